"""Result of every reader: token ids for training and validation."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.data.vocabulary import Vocabulary


class Corpus(NamedTuple):
    """Token ids for training and validation; no document is in both.

    Attributes:
        train: training ids `[N]` in the smallest dtype that holds them, or a memmap.
        validation: validation ids in the same form.
        vocabulary: mapping between text and ids.
        document_token: id that begins every document, None if there are no documents.
        description: JSON values: source, paths as written in the config, SHA-256 of
            each file, and sizes.
    """

    train: NDArray[np.integer]
    validation: NDArray[np.integer]
    vocabulary: Vocabulary
    document_token: int | None
    description: dict[str, Any]
