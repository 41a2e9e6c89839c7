"""Documents of a text: split, vocabulary, and document tokens where they begin."""

from collections.abc import Sequence
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import Data

END = "\n[end of document]\n"  # shown between documents that have no separator


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


def newlines(text: str) -> str:
    """Return the text with `\\n` as its only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def separator_of(data: "Data") -> str | None:
    """Return the text between two documents, with line ends as in `newlines`."""
    separator = getattr(data, "document_separator", None)
    return None if separator is None else newlines(separator)


def document_token(data: "Data", vocabulary: Vocabulary) -> int | None:
    """Return the token that begins every document, None if there are no documents."""
    if data.source == "python" or separator_of(data) is not None:
        return DOCUMENT_TOKEN[vocabulary.kind]
    return getattr(data, "document_token", None)


def split(text: str, data: "Data") -> list[str]:
    """Return the documents of a text; the last one is empty if it has only begun.

    Example:
        >>> from jaxlstm.lab.config.schema import TextData
        >>> data = TextData(path="names.txt", document_separator=";")
        >>> split("Ann;Bo;;Cy", data), split("Ann;", data), split("", data)
        (['Ann', 'Bo', 'Cy'], ['Ann', ''], [''])
    """
    separator = separator_of(data)
    found = [text] if separator is None else newlines(text).split(separator)
    return [*filter(None, found[:-1]), found[-1]]


def encode(text: str, data: "Data", vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Return the ids `[N]` of a text as a reader of `data` encodes its files.

    The document token is before each document, so that it is the only one of an empty
    text. Token ids are taken as they are; without any, they are those of the beginning
    of a document.

    Raises:
        BadInput: the text is not a sequence of token ids.
    """
    token = document_token(data, vocabulary)
    if vocabulary.kind == "tokens":
        ids = vocabulary.encode(text)
        is_empty = not ids.size and token is not None
        return np.array([token], np.int32) if is_empty else ids
    if token is None:
        return vocabulary.encode(newlines(text))
    parts = [vocabulary.encode(newlines(part)) for part in split(text, data)]
    first = np.array([token], np.int32)
    return np.concatenate([part for ids in parts for part in (first, ids)])


def decode(ids: NDArray[np.integer], data: "Data", vocabulary: Vocabulary) -> str:
    """Return the text of ids `[N]` that continue a document, separators included."""
    token = document_token(data, vocabulary)
    if vocabulary.kind == "tokens" or token is None:
        return vocabulary.decode(ids)
    ends = np.flatnonzero(ids == token)
    parts = np.split(ids, ends)  # each but the first begins with the document token
    return (separator_of(data) or END).join(map(vocabulary.decode, parts))
