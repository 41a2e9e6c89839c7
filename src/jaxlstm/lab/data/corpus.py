"""What every reader gives: two parts of one text, as ids, and how they came about."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.data.vocabulary import Vocabulary


class Corpus(NamedTuple):
    """A text to learn and a text to be judged by, which share no document.

    `train` and `validation` are `[N]` of the smallest dtype that holds the ids, or
    memmaps of the file they came from. `document_token` is the id that begins every
    document, None where the text is one stream. `description` is plain JSON: the
    source, the paths as they were written, the sha256 of each, and the sizes.
    """

    train: NDArray[np.integer]
    validation: NDArray[np.integer]
    vocabulary: Vocabulary
    document_token: int | None
    description: dict[str, Any]
