"""From documents to a corpus: the split, the vocabulary, the document tokens."""

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
    """The documents to learn, and those to be judged by."""

    train: Sequence[str]
    validation: Sequence[str]


def split_documents(documents: Sequence[str], fraction: float) -> Split:
    """Whole documents, every k-th of them by length held out, k = 1 / fraction.

    Of the documents from short to long, number n is held out where n f + 1/2 passes a
    whole number: for f = 1/10 the 5th, the 15th, the 25th. So the choice needs no
    seed, both parts have long and short documents alike, and about `fraction` of the
    characters is held out. A document that comes again goes where it went the first
    time, so that none is on both sides. Both parts keep the order they came in.

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
    """One text without documents: its last `fraction` is held out."""
    cut = int(len(text) * (1 - fraction))
    return Split([text[:cut]], [text[cut:]])


def assemble(
    split: Split, *, unit: Kind, marked: bool, description: dict[str, Any]
) -> Corpus:
    """The corpus of a split, its vocabulary made from the training part alone.

    Args:
      split: the documents of both parts.
      unit: "character" or "byte".
      marked: whether a document token goes before every document.
      description: what is known of the source; the sizes of the parts are added.
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
    """All documents in one array, each after its token if there is one."""
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
