"""Text as the tokens of a corpus, and back: each document begins with its token.

Ann;Bo  <->  <document> A n n <document> B o        document_separator: ";"
"""

import codecs
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.data import tokenizer as tokenizers
from jaxlstm.lab.data.vocabulary import DOCUMENT_TOKEN, Vocabulary

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import Data

END = "\n[end of document]\n"  # shown between documents that have no separator
_CONTEXT = 64  # characters before a text that can change how its first token is shown


def newlines(text: str) -> str:
    """Return the text with `\\n` as its only line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def separator_of(data: "Data") -> str | None:
    """Return the text between two documents, with line ends as in `newlines`."""
    separator = getattr(data, "document_separator", None)
    return None if separator is None else newlines(separator)


def document_token(data: "Data", vocabulary: Vocabulary) -> int | None:
    """Return the token that begins every document, None if there are no documents."""
    if vocabulary.document_token is not None:
        return vocabulary.document_token
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
    separator, text = separator_of(data), newlines(text)
    found = [text] if separator is None else text.split(separator)
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
    parts = [vocabulary.encode(part) for part in split(text, data)]
    first = np.array([token], np.int32)
    return np.concatenate([part for ids in parts for part in (first, ids)])


class Decoder:
    """Text of ids, one at a time, that continue a text.

    Args:
        data: the section of a config.
        vocabulary: the vocabulary.
        before: the text that the ids continue; None if it is not known.

    Example:
        >>> from jaxlstm.lab.config.schema import TokenData
        >>> from jaxlstm.lab.data.vocabulary import opaque
        >>> data = TokenData(path="ids.bin", vocabulary_size=50)
        >>> show = Decoder(data, opaque(50), "7 42")
        >>> show(33), show(9)
        (' 33', ' 9')
    """

    def __init__(
        self, data: "Data", vocabulary: Vocabulary, before: str | None
    ) -> None:
        self._vocabulary = vocabulary
        self._token = document_token(data, vocabulary)
        self._separator = separator_of(data) or END
        self._is_spaced = before is not None and (not before or before[-1].isspace())
        self._pieces = _pieces(vocabulary, before)

    def __call__(self, id: int) -> str:
        """Return the text of the next id; "" for a part of a character in bytes."""
        if self._vocabulary.kind == "tokens":
            space, self._is_spaced = "" if self._is_spaced else " ", False
            return f"{space}{id}"
        if id == self._token:
            return self.end() + self._separator
        return self._pieces.decode(id)

    def end(self) -> str:
        """Return the text of a character in bytes that has not ended."""
        return self._pieces.end()


class _Characters:
    """Text of characters, and of bytes that become characters."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, id: int) -> str:
        if self._vocabulary.kind == "byte":
            return self._bytes.decode(bytes([id])) if id < 256 else ""
        return self._vocabulary.decode([id])

    def end(self) -> str:
        rest = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return rest


def _pieces(
    vocabulary: Vocabulary, before: str | None
) -> "_Characters | tokenizers.Pieces":
    """Return a decoder of one id after another, which continue a text."""
    if vocabulary.kind != "tokenizer":
        return _Characters(vocabulary)
    if before is None:
        without = set(vocabulary.without_text)
        ids = [next(id for id in range(vocabulary.size) if id not in without)]
    else:
        ids = vocabulary.encode(newlines(before)[-_CONTEXT:]).tolist()
    return tokenizers.Pieces(vocabulary.tokenizer, ids)


def decode(
    ids: NDArray[np.integer],
    data: "Data",
    vocabulary: Vocabulary,
    before: str | None,
) -> str:
    """Return the text of ids `[N]` that continue a text, separators included."""
    show = Decoder(data, vocabulary, before)
    return "".join(map(show, ids.tolist())) + show.end()
