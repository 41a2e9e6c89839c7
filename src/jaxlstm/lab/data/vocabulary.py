"""Mappings between text and token ids.

A character vocabulary contains the characters of the training part; all others are the
unknown symbol.

    character   0 unknown    1 document   2.. characters in code point order
    byte        0..255 bytes of UTF-8     256 document
    tokenizer   ids of words or subwords    document: one more, or None
    tokens      ids from another tokenizer, without text
"""

import json
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.data import tokenizer as tokenizers

Kind = Literal["character", "byte", "tokenizer", "tokens"]

UNKNOWN, FIRST_CHARACTER = 0, 2
DOCUMENT_TOKEN: dict[Kind, int] = {"character": 1, "byte": 256}
LARGEST_SIZE = 2**31 - 1  # ids are int32
_CHUNK = 1 << 20
_DAMAGED = "vocabulary: got a damaged file, expected the output of Vocabulary.to_json."


class Vocabulary(NamedTuple):
    """The token ids of a model and their text.

    Attributes:
        kind: "character", "byte", "tokenizer" or "tokens".
        size: number of ids.
        symbols: characters in order of their ids; empty for the other kinds.
        tokenizer: the JSON of a tokenizer, as in a `tokenizer.json`; empty for the
            other kinds.
        document_token: id that begins every document. None if there are no documents,
            and for vocabularies of earlier versions, whose config says what it is.

    Example:
        >>> vocabulary = characters("hello")
        >>> vocabulary.encode("hole").tolist(), vocabulary.size
        ([3, 5, 4, 2], 6)
        >>> vocabulary.decode([3, 2, 0])
        'he\ufffd'
    """

    kind: Kind
    size: int
    symbols: str = ""
    tokenizer: str = ""
    document_token: int | None = None

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Smallest dtype that holds all ids."""
        return np.min_scalar_type(self.size - 1)

    @property
    def without_text(self) -> tuple[int, ...]:
        """Ids without text, which must not be sampled."""
        if self.kind == "tokenizer":
            found = tokenizers.facts(self.tokenizer)
            return (*found.without_text, *range(found.size, self.size))
        document = (DOCUMENT_TOKEN[self.kind],) if self.kind in DOCUMENT_TOKEN else ()
        return (UNKNOWN, *document) if self.kind == "character" else document

    @property
    def unknown_id(self) -> int | None:
        """The id of what has no id of its own, or None."""
        if self.kind == "tokenizer":
            return tokenizers.facts(self.tokenizer).unknown
        return UNKNOWN if self.kind == "character" else None

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids `[N]` of a text; unknown characters have id 0.

        Raises:
            BadInput: the kind is "tokens", and the text is not a sequence of ids; or a
                tokenizer without an unknown word has no token for a word.
        """
        if self.kind == "tokenizer":
            return next(tokenizers.encode(self.tokenizer, [text]))
        if self.kind == "character":
            return _lookup(self.symbols)[_code_points(text)]
        if self.kind == "byte":
            return np.frombuffer(utf8(text), np.uint8).astype(np.int32)
        words = text.split()
        if all(word.isascii() and word.isdigit() for word in words):
            ids = [int(word) for word in words]
            if all(number < self.size for number in ids):
                return np.array(ids, np.int32)
        raise BadInput(
            f"vocabulary: got {describe(text)}, expected ids below {self.size}, such "
            'as "7 42"; this model was trained on token ids and cannot encode text.'
        )

    def unknown(self, text: str) -> list[str]:
        """Return the characters or words of a text that have no id, each once.

        Example:
            >>> characters("hello").unknown("a hole")
            [' ', 'a']
        """
        if self.kind == "tokenizer":
            return tokenizers.unknown(self.tokenizer, text)
        if self.kind != "character":
            return []
        return sorted(set(text) - set(self.symbols))

    def characters(self) -> NDArray[np.int32] | None:
        """Return the number of characters of the text of each id, `[size]`.

        A document token counts as one, as a separator does. A character of several
        tokens is one of the first.

        Returns:
            None if a token is not a fixed part of a text.
        """
        counts = np.ones(self.size, np.int32)
        if self.kind == "byte":
            counts[0x80:0xC0] = 0  # bytes that continue a character
        elif self.kind == "tokenizer":
            found = tokenizers.characters(self.tokenizer)
            if found is None:
                return None
            counts[: len(found)] = found
        return None if self.kind == "tokens" else counts

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids `[N]`.

        Document tokens are omitted, invalid UTF-8 becomes U+FFFD, unknown words become
        their token, and ids of the kind "tokens" are written as numbers.

        Raises:
            BadInput: an id is not in 0 to size - 1.
        """
        numbers = np.asarray(ids, np.int64).ravel()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.size:
            wrong = numbers[(numbers < 0) | (numbers >= self.size)][0]
            raise BadInput(
                f"vocabulary: got the id {wrong}, expected 0 to {self.size - 1}."
            )
        if self.kind == "character":
            glyphs = ("\ufffd", "", *self.symbols)
            return "".join(glyphs[number] for number in numbers.tolist())
        if self.kind == "tokenizer":
            size = tokenizers.facts(self.tokenizer).size
            has_text = (numbers < size) & (numbers != self.document_token)
            return tokenizers.decode(self.tokenizer, numbers[has_text].tolist())
        if self.kind == "byte":
            return bytes(numbers[numbers < 256].tolist()).decode("utf-8", "replace")
        return " ".join(map(str, numbers.tolist()))

    def to_json(self) -> str:
        """Return one line of JSON for `from_json`."""
        fields = self._asdict() | {"symbols": list(self.symbols)}
        optional = ("tokenizer", "document_token")
        return json.dumps(
            {
                k: v
                for k, v in fields.items()
                if k not in optional or v not in ("", None)
            }
        )


def characters(text: str) -> Vocabulary:
    """Return the vocabulary of the characters in `text`, in code point order."""
    symbols = "".join(sorted(set(text)))
    return Vocabulary("character", len(symbols) + FIRST_CHARACTER, symbols)


def byte() -> Vocabulary:
    """Return the vocabulary of the 256 bytes and the document token."""
    return Vocabulary("byte", 257)


def opaque(size: int) -> Vocabulary:
    """Return a vocabulary of `size` ids without text."""
    return Vocabulary("tokens", size)


def of_tokenizer(tokenizer: str, *, size: int | None = None) -> Vocabulary:
    """Return the vocabulary of a tokenizer.

    Args:
        tokenizer: its JSON.
        size: number of ids; None for one more than the tokenizer has, which begins
            documents.
    """
    if size is None:
        size = tokenizers.facts(tokenizer).size + 1
    return Vocabulary("tokenizer", size, tokenizer=tokenizer)


def from_json(written: str) -> Vocabulary:
    """Read the output of `Vocabulary.to_json`.

    Raises:
        BadInput: `written` is not a valid vocabulary.
    """
    try:
        fields = json.loads(written)
        symbols = "".join(fields["symbols"])
        vocabulary = Vocabulary(
            fields["kind"],
            fields["size"],
            symbols,
            fields.get("tokenizer", ""),
            fields.get("document_token"),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadInput(_DAMAGED) from None
    if not _is_valid(vocabulary):
        raise BadInput(_DAMAGED)
    return vocabulary


def _is_valid(vocabulary: Vocabulary) -> bool:
    """Return whether the vocabulary equals one of the four kinds.

    A tokenizer is read when it is used: a model can be loaded without its library.
    """
    _, size, symbols, tokenizer, document = vocabulary
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        return False
    if document is not None and (type(document) is not int or document >= size):
        return False
    known = [characters(symbols), byte(), opaque(size)]
    if isinstance(tokenizer, str) and tokenizer:
        known = [Vocabulary("tokenizer", size, tokenizer=tokenizer)]
    return vocabulary._replace(document_token=None) in known


def encode_long(vocabulary: Vocabulary, text: str) -> NDArray[np.integer]:
    """Encode a long text of characters or bytes in the smallest dtype, in chunks."""
    starts = range(0, len(text), _CHUNK)
    return np.concatenate(
        [np.empty(0, vocabulary.dtype)]
        + [
            vocabulary.encode(text[at : at + _CHUNK]).astype(vocabulary.dtype)
            for at in starts
        ]
    )


def utf8(text: str) -> bytes:
    """Encode `text` as UTF-8; lone surrogates are encoded as three bytes."""
    return text.encode("utf-8", "surrogatepass")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@lru_cache(maxsize=4)
def _lookup(symbols: str) -> NDArray[np.int32]:
    """Return a table from code points to ids."""
    table = np.full(0x110000, UNKNOWN, np.int32)
    table[_code_points(symbols)] = np.arange(len(symbols)) + FIRST_CHARACTER
    return table
