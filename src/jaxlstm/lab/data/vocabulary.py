"""From text to ids and back.

A character vocabulary is made from the training part alone: what only the
validation part knows is the unknown symbol, as it will be for any later text.

    character   0 unknown    1 document   2.. the characters, in code point order
    byte        0..255 the bytes of UTF-8                     256 document
    tokens      ids that somebody else made; there is no text
"""

import json
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxlstm.lab._util.errors import BadInput

Kind = Literal["character", "byte", "tokens"]

UNKNOWN, FIRST_CHARACTER = 0, 2
DOCUMENT_TOKEN: dict[Kind, int] = {"character": 1, "byte": 256}
LARGEST_SIZE = 2**31 - 1  # ids are int32
_CHUNK = 1 << 20
_DAMAGED = (
    "vocabulary: this is not what Vocabulary.to_json writes; it is damaged, or belongs "
    "to something else."
)


class Vocabulary(NamedTuple):
    """The ids of a model: how many, of which kind, and what they stand for.

    `symbols` holds the characters of a character vocabulary in order, and is empty
    for the other kinds.

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
        """The smallest dtype that holds these ids."""
        return np.min_scalar_type(self.size - 1)

    @property
    def without_text(self) -> tuple[int, ...]:
        """The ids that stand for no text: never to be written."""
        document = (DOCUMENT_TOKEN[self.kind],) if self.kind in DOCUMENT_TOKEN else ()
        return (UNKNOWN, *document) if self.kind == "character" else document

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text, `[N]`; a character it does not know is id 0.

        Raises:
          BadInput: if these ids are opaque tokens, and the text is not a row of ids.
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
            "vocabulary: this model was trained on token ids made elsewhere, so text "
            f"cannot be encoded here; give the ids themselves, all below {self.size}, "
            'as in "7 42".'
        )

    def unknown(self, text: str) -> str:
        """The characters of a text that `encode` makes the unknown symbol, each once.

        Example:
          >>> characters("hello").unknown("a hole")
          ' a'
        """
        if self.kind != "character":
            return ""
        return "".join(sorted(set(text) - set(self.symbols)))

    def decode(self, ids: ArrayLike) -> str:
        """The text of `[N]` ids. A document token has no text; opaque ids are written
        as numbers, broken UTF-8 as U+FFFD.

        Raises:
          BadInput: if an id is outside 0 to size - 1.
        """
        numbers = np.asarray(ids, np.int64).ravel()
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.size:
            wrong = numbers[(numbers < 0) | (numbers >= self.size)][0]
            raise BadInput(
                f"vocabulary: id {wrong} is not one of 0 to {self.size - 1}."
            )
        if self.kind == "character":
            glyphs = ("\ufffd", "", *self.symbols)
            return "".join(glyphs[number] for number in numbers.tolist())
        if self.kind == "byte":
            return bytes(numbers[numbers < 256].tolist()).decode("utf-8", "replace")
        return " ".join(map(str, numbers.tolist()))

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to the same vocabulary."""
        return json.dumps(
            {"kind": self.kind, "size": self.size, "symbols": list(self.symbols)}
        )


def characters(text: str) -> Vocabulary:
    """The characters that occur in `text`, in code point order."""
    symbols = "".join(sorted(set(text)))
    return Vocabulary("character", len(symbols) + FIRST_CHARACTER, symbols)


def byte() -> Vocabulary:
    """The 256 bytes and the document token."""
    return Vocabulary("byte", 257)


def opaque(size: int) -> Vocabulary:
    """`size` ids without a text."""
    return Vocabulary("tokens", size)


def from_json(written: str) -> Vocabulary:
    """The vocabulary that `to_json` wrote.

    Raises:
      BadInput: if `written` is not such a vocabulary.
    """
    try:
        fields = json.loads(written)
        symbols = "".join(fields["symbols"])
        vocabulary = Vocabulary(fields["kind"], fields["size"], symbols)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadInput(_DAMAGED) from None
    if not _is_sound(vocabulary):
        raise BadInput(_DAMAGED)
    return vocabulary


def _is_sound(vocabulary: Vocabulary) -> bool:
    """Whether one of the three makers would have made it."""
    _, size, symbols = vocabulary
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        return False
    return vocabulary in (characters(symbols), byte(), opaque(size))


def encode_long(vocabulary: Vocabulary, text: str) -> NDArray[np.integer]:
    """`vocabulary.encode(text)` in its smallest dtype, a stretch at a time."""
    starts = range(0, len(text), _CHUNK)
    return np.concatenate(
        [np.empty(0, vocabulary.dtype)]
        + [
            vocabulary.encode(text[at : at + _CHUNK]).astype(vocabulary.dtype)
            for at in starts
        ]
    )


def utf8(text: str) -> bytes:
    """The bytes of `text`; a lone surrogate keeps its three."""
    return text.encode("utf-8", "surrogatepass")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@lru_cache(maxsize=4)
def _lookup(symbols: str) -> NDArray[np.int32]:
    """code point -> id, for every code point there is."""
    table = np.full(0x110000, UNKNOWN, np.int32)
    table[_code_points(symbols)] = np.arange(len(symbols)) + FIRST_CHARACTER
    return table
