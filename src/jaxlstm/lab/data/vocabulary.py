"""Mappings between text and token ids.

A character vocabulary contains the characters of the training part; all others are the
unknown symbol.

    character   0 unknown    1 document   2.. characters in code point order
    byte        0..255 bytes of UTF-8     256 document
    tokens      ids from another tokenizer, without text
"""

import json
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe

Kind = Literal["character", "byte", "tokens"]

UNKNOWN, FIRST_CHARACTER = 0, 2
DOCUMENT_TOKEN: dict[Kind, int] = {"character": 1, "byte": 256}
LARGEST_SIZE = 2**31 - 1  # ids are int32
_CHUNK = 1 << 20
_DAMAGED = "vocabulary: got a damaged file, expected the output of Vocabulary.to_json."


class Vocabulary(NamedTuple):
    """The token ids of a model and their text.

    Attributes:
        kind: "character", "byte" or "tokens".
        size: number of ids.
        symbols: characters in order of their ids; empty for the other kinds.

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

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """Smallest dtype that holds all ids."""
        return np.min_scalar_type(self.size - 1)

    @property
    def without_text(self) -> tuple[int, ...]:
        """Ids without text, which must not be sampled."""
        document = (DOCUMENT_TOKEN[self.kind],) if self.kind in DOCUMENT_TOKEN else ()
        return (UNKNOWN, *document) if self.kind == "character" else document

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids `[N]` of a text; unknown characters have id 0.

        Raises:
            BadInput: the kind is "tokens", and the text is not a sequence of ids.
        """
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

    def unknown(self, text: str) -> str:
        """Return the unknown characters of a text, sorted, each once.

        Example:
            >>> characters("hello").unknown("a hole")
            ' a'
        """
        if self.kind != "character":
            return ""
        return "".join(sorted(set(text) - set(self.symbols)))

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of ids `[N]`.

        Document tokens are omitted, invalid UTF-8 becomes U+FFFD, and ids of the kind
        "tokens" are written as numbers.

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
        if self.kind == "byte":
            return bytes(numbers[numbers < 256].tolist()).decode("utf-8", "replace")
        return " ".join(map(str, numbers.tolist()))

    def to_json(self) -> str:
        """Return one line of JSON for `from_json`."""
        return json.dumps(
            {"kind": self.kind, "size": self.size, "symbols": list(self.symbols)}
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


def from_json(written: str) -> Vocabulary:
    """Read the output of `Vocabulary.to_json`.

    Raises:
        BadInput: `written` is not a valid vocabulary.
    """
    try:
        fields = json.loads(written)
        symbols = "".join(fields["symbols"])
        vocabulary = Vocabulary(fields["kind"], fields["size"], symbols)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadInput(_DAMAGED) from None
    if not _is_valid(vocabulary):
        raise BadInput(_DAMAGED)
    return vocabulary


def _is_valid(vocabulary: Vocabulary) -> bool:
    """Return whether the vocabulary equals one of the three kinds."""
    _, size, symbols = vocabulary
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        return False
    return vocabulary in (characters(symbols), byte(), opaque(size))


def encode_long(vocabulary: Vocabulary, text: str) -> NDArray[np.integer]:
    """Encode a long text in the smallest dtype, in chunks."""
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
