"""Labelled sequences of unequal length: a label a sequence or step, or transcripts."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = Literal["sequence", "step", "transcript"]
"""One label for each sequence, one for each step, or a text of symbols (CTC)."""

UNLABELLED = -1


class LabelledSequences(NamedTuple):
    """Sequences stored one after another, and their labels.

    Attributes:
        ids: names of the N sequences.
        offsets: int64 `[N + 1]`; sequence k is rows `offsets[k]` to `offsets[k + 1]`.
        values: float32 `[rows, D]`.
        labels: numbers of classes, int32: `[N]`, or `[rows]` for a label a step with
            -1 where there is none, or `[symbols]` for transcripts.
        label_offsets: int64 `[N + 1]` for transcripts, otherwise None.
        classes: names of the classes, in order of their numbers.
        columns: names of the D columns.
        notes: sentences on what was inferred, filled and left out.
        description: JSON: source, paths, sha256 of each file, and sizes.
    """

    ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.int32]
    label_offsets: NDArray[np.int64] | None
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    description: Mapping[str, Any]


class Parts(NamedTuple):
    """Sequences for training and validation, and those of a separate test part."""

    train: LabelledSequences
    test: LabelledSequences | None
