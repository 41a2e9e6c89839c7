"""Build a corpus from documents: split, vocabulary and document tokens."""

from collections.abc import Sequence
from math import floor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.vocabulary import (
    DOCUMENT_TOKEN,
    Kind,
    Vocabulary,
    byte,
    characters,
    encode_long,
    utf8,
)


class Split(NamedTuple):
    """Documents for training and validation."""

    train: Sequence[str]
    validation: Sequence[str]


def split_documents(documents: Sequence[str], fraction: float) -> Split:
    """Hold out every k-th document by length, k = 1 / fraction.

    The documents are sorted by length, and the n-th is held out if n f + 1/2 passes a
    whole number: the 5th, 15th, 25th for f = 1/10. The split is deterministic, both
    parts have long and short documents, and about `fraction` of the characters is
    held out. Duplicates of a document are in the same part. Both parts keep the
    original order.

    Example:
        >>> split_documents(["a", "bbb", "cc", "dddd", "a", "eeeee"], 0.25)
        Split(train=['a', 'bbb', 'cc', 'dddd', 'a'], validation=['eeeee'])
    """
    by_length = sorted(documents, key=len)
    passes = [floor(n * fraction + 0.5) for n in range(len(documents) + 1)]
    held_out: dict[str, bool] = {}
    for n, document in enumerate(by_length):
        held_out.setdefault(document, passes[n] < passes[n + 1])
    return Split(
        [document for document in documents if not held_out[document]],
        [document for document in documents if held_out[document]],
    )


def split_text(text: str, fraction: float) -> Split:
    """Hold out the last `fraction` of a text that has no documents."""
    cut = int(len(text) * (1 - fraction))
    return Split([text[:cut]], [text[cut:]])


def assemble(
    split: Split, *, unit: Kind, marked: bool, description: dict[str, Any]
) -> Corpus:
    """Encode a split with a vocabulary of the training part.

    Args:
        split: documents of both parts.
        unit: "character" or "byte".
        marked: whether every document begins with a document token.
        description: description of the source; the sizes of the parts are added.
    """
    vocabulary = characters("".join(split.train)) if unit == "character" else byte()
    token = DOCUMENT_TOKEN[unit] if marked else None
    train = _encode(split.train, vocabulary, token)
    validation = _encode(split.validation, vocabulary, token)
    sizes = {
        "unit": unit,
        "train": _sizes(split.train, train),
        "validation": _sizes(split.validation, validation),
    }
    return Corpus(train, validation, vocabulary, token, description | sizes)


def _encode(
    documents: Sequence[str], vocabulary: Vocabulary, token: int | None
) -> NDArray[np.integer]:
    """Encode all documents into one array, with `token` before each of them."""
    ids = encode_long(vocabulary, "".join(documents))
    if token is None:
        return ids
    measure = len if vocabulary.kind == "character" else lambda text: len(utf8(text))
    ends = np.cumsum([0, *map(measure, documents)])
    return np.insert(ids, ends[:-1], token)


def _sizes(documents: Sequence[str], ids: NDArray[np.integer]) -> dict[str, int]:
    return {
        "tokens": len(ids),
        "characters": sum(map(len, documents)),
        "documents": len(documents),
    }
