"""Build a corpus from documents: split, vocabulary and document tokens."""

from collections.abc import Sequence
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.config.schema import SUBWORD_SIZE
from jaxlstm.lab.data import tokenizer as tokenizers
from jaxlstm.lab.data import tokenizer_files
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.vocabulary import (
    DOCUMENT_TOKEN,
    Vocabulary,
    byte,
    characters,
    encode_long,
    of_tokenizer,
    utf8,
)

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import PythonData, TextData


class Split(NamedTuple):
    """Documents for training and validation."""

    train: Sequence[str]
    validation: Sequence[str]


def split_documents(documents: Sequence[str], fraction: float) -> Split:
    """Hold out every k-th document by length, k = 1 / fraction.

    The documents are sorted by length, and the n-th is held out if n f + 1/2 passes a
    whole number: the 5th, 15th, 25th for f = 1/10. The split is deterministic, both
    parts have long and short documents, and about `fraction` of the characters is
    held out. Of several documents at least one is held out, the one whose length is
    nearest to `fraction`. Duplicates of a document are in the same part. Both parts
    keep the original order.

    Example:
        >>> split_documents(["a", "bbb", "cc", "dddd", "a", "eeeee"], 0.25)
        Split(train=['a', 'bbb', 'cc', 'dddd', 'a'], validation=['eeeee'])
    """
    by_length = sorted(documents, key=len)
    passes = [floor(n * fraction + 0.5) for n in range(len(documents) + 1)]
    held_out: dict[str, bool] = {}
    for n, document in enumerate(by_length):
        held_out.setdefault(document, passes[n] < passes[n + 1])
    if len(held_out) > 1 and not any(held_out.values()):
        size = fraction * sum(map(len, documents))
        held_out[min(held_out, key=lambda text: abs(len(text) - size))] = True
    return Split(
        [document for document in documents if not held_out[document]],
        [document for document in documents if held_out[document]],
    )


def split_text(text: str, fraction: float) -> Split:
    """Hold out the last `fraction` of a text that has no documents."""
    cut = int(len(text) * (1 - fraction))
    return Split([text[:cut]], [text[cut:]])


def assemble(
    split: Split,
    data: "TextData | PythonData",
    *,
    marked: bool,
    description: dict[str, Any],
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Encode a split with a vocabulary of the training part.

    Args:
        split: documents of both parts.
        data: the section of the config, which says what a token is.
        marked: whether every document begins with a document token.
        description: description of the source; the sizes of the parts are added.
        vocabulary: the vocabulary of a run, whose tokenizer is used again.

    Raises:
        BadInput: the tokenizer cannot be read, or its library is not installed.
    """
    if vocabulary is None or vocabulary.kind != "tokenizer":
        vocabulary = _vocabulary(split.train, data)
    token = vocabulary.size - 1
    token = DOCUMENT_TOKEN.get(vocabulary.kind, token) if marked else None
    vocabulary = vocabulary._replace(document_token=token)
    train = _encode(split.train, vocabulary, token)
    validation = _encode(split.validation, vocabulary, token)
    sizes: dict[str, Any] = {
        "unit": data.unit,
        "train": _sizes(split.train, train, vocabulary),
        "validation": _sizes(split.validation, validation, vocabulary),
    }
    return Corpus(train, validation, vocabulary, token, description | sizes)


def _vocabulary(texts: Sequence[str], data: "TextData | PythonData") -> Vocabulary:
    """Return the vocabulary of the training texts."""
    if data.unit == "character":
        return characters("".join(texts))
    if data.unit == "byte":
        return byte()
    if data.tokenizer is not None:
        return of_tokenizer(tokenizer_files.read(data.tokenizer, key="data.tokenizer"))
    size = data.vocabulary_size or SUBWORD_SIZE
    # The last id begins documents, and is not one of the tokenizer.
    return of_tokenizer(tokenizers.train(texts, unit=data.unit, size=size - 1))


def _encode(
    documents: Sequence[str], vocabulary: Vocabulary, token: int | None
) -> NDArray[np.integer]:
    """Encode all documents into one array, with `token` before each of them."""
    if vocabulary.kind == "tokenizer":
        return _joined(documents, vocabulary, token)
    ids = encode_long(vocabulary, "".join(documents))
    if token is None:
        return ids
    measure = len if vocabulary.kind == "character" else lambda text: len(utf8(text))
    ends = np.cumsum([0, *map(measure, documents)])
    return np.insert(ids, ends[:-1], token)


def _joined(
    documents: Sequence[str], vocabulary: Vocabulary, token: int | None
) -> NDArray[np.integer]:
    """Encode each document on its own: a token may not reach into the next one."""
    begin = np.array([] if token is None else [token], vocabulary.dtype)
    parts = [np.empty(0, vocabulary.dtype)]
    for ids in tokenizers.encode(vocabulary.tokenizer, documents):
        parts += [begin, ids.astype(vocabulary.dtype)]
    return np.concatenate(parts)


def _sizes(
    documents: Sequence[str], ids: NDArray[np.integer], vocabulary: Vocabulary
) -> dict[str, int]:
    sizes = {
        "tokens": len(ids),
        "characters": sum(map(len, documents)),
        "documents": len(documents),
    }
    if vocabulary.kind == "tokenizer":
        unknown = tokenizers.facts(vocabulary.tokenizer).unknown
        if unknown is not None:
            sizes["unknown"] = int(np.count_nonzero(ids == unknown))
    return sizes
