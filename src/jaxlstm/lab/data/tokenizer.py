"""Tokenizers of words and subwords, from the library `tokenizers`.

    train              texts  ->  JSON of a tokenizer
    encode             texts  ->  ids
    decode, Pieces     ids  ->  text, at once or as they come

A tokenizer is passed around as its JSON, the content of a `tokenizer.json`: text can be
compared, hashed and stored in a checkpoint. The library is imported when a tokenizer is
used, and is an extra: `pip install "jaxlstm[tokenizers]"`.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN = "<unknown>"  # the token of words that a tokenizer of words does not have
MIN_FREQUENCY = 2  # of a word; rarer ones train the embedding of the unknown word
_CHUNK = 1 << 20  # characters
_BATCH = 1 << 12  # texts


class Facts(NamedTuple):
    """Properties of a tokenizer.

    Attributes:
        size: one more than the largest id.
        without_text: ids that no text has: special tokens, and numbers without a token.
        unknown: the id of what has no token, None if everything has one.
        is_lossless: whether the tokens joined are the text, for every text.
    """

    size: int
    without_text: tuple[int, ...]
    unknown: int | None
    is_lossless: bool


def train(texts: Iterable[str], *, unit: Literal["word", "subword"], size: int) -> str:
    """Train a tokenizer and return its JSON.

    Both kinds split a text as GPT-2 does, into words with the blank before them,
    numbers, punctuation and white space, so that the tokens joined are the text. A word
    is a token, or is split further by byte-level BPE, which has a token for each byte
    and so for each text. Where words are tokens, the first one of a line has a blank
    before it too, which is removed in decoding: it is the same token everywhere.

    Args:
        texts: the training texts.
        unit: "word" or "subword".
        size: the most tokens.

    Reference:
        Sennrich, Haddow and Birch, "Neural machine translation of rare words with
        subword units", 2016, https://arxiv.org/abs/1508.07909
    """
    require()
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    decoder: Any = decoders.ByteLevel()
    if unit == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        inner_line_end = Regex(r"\n(?=[\s\S])")
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(" "), normalizers.Replace(inner_line_end, "\n ")]
        )
        decoder = decoders.Sequence(
            [decoder, decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)]
        )
        trainer: Any = trainers.WordLevelTrainer(
            vocab_size=size,
            min_frequency=MIN_FREQUENCY,
            show_progress=False,
            special_tokens=[UNKNOWN],
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoder
    pieces = (piece for text in texts for piece in _chunks(text))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer.to_str()


def encode(tokenizer: str, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
    """Yield the ids `[N]` of each text, without the tokens that a model adds.

    Raises:
        BadInput: a text has a word without a token, and the tokenizer has no token for
            unknown words.
    """
    loaded = load(tokenizer)
    for first in range(0, len(texts), _BATCH):
        some = [list(_chunks(text)) for text in texts[first : first + _BATCH]]
        pieces = [piece for chunks in some for piece in chunks]
        try:
            found = iter(loaded.encode_batch_fast(pieces, add_special_tokens=False))
        except Exception as error:  # the library raises no subclass of it
            raise BadInput(
                f"tokenizer: got a text that it cannot encode ({error}); it has no "
                "token for unknown words"
            ) from None
        for chunks in some:
            ids = [np.asarray(next(found).ids, np.int32) for _ in chunks]
            yield np.concatenate([np.empty(0, np.int32), *ids])


def decode(tokenizer: str, ids: Sequence[int]) -> str:
    """Return the text of ids."""
    return load(tokenizer).decode(ids, skip_special_tokens=False)


def unknown(tokenizer: str, text: str) -> list[str]:
    """Return the words of a text that have no token, in their order, each once."""
    which = facts(tokenizer).unknown
    if which is None:
        return []
    found = load(tokenizer).encode(_valid(text), add_special_tokens=False)
    spans = zip(found.ids, found.offsets, strict=True)
    words = [text[begin:end] for id, (begin, end) in spans if id == which]
    return list(dict.fromkeys(word.strip() or word for word in words))


class Pieces:
    """Text of ids, one at a time, by the library's `DecodeStream`.

    Args:
        tokenizer: the JSON of a tokenizer.
        before: ids that the first one follows; some tokenizers show a token without its
            blank where a text begins.
    """

    def __init__(self, tokenizer: str, before: Sequence[int]) -> None:
        self._tokenizer = load(tokenizer)
        self._begin(before)

    def decode(self, id: int) -> str:
        """Return the text of the next id; "" for a part of a character."""
        found = self._stream.step(self._tokenizer, id)
        self._is_partial = found is None
        return found or ""

    def end(self) -> str:
        """Return the text of a character that has not ended, and begin a new text."""
        rest = "\ufffd" * self._is_partial
        self._begin([])
        return rest

    def _begin(self, before: Sequence[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(ids=list(before), skip_special_tokens=False)
        self._is_partial = False


@functools.lru_cache(maxsize=4)
def load(tokenizer: str) -> "Tokenizer":
    """Return the object of the library.

    Raises:
        BadInput: the library is not installed, or the JSON is not of a tokenizer.
    """
    require()
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(tokenizer)
    except Exception as error:  # the library raises no subclass of it
        raise BadInput(
            f"tokenizer: got {describe(tokenizer)}, expected a tokenizer.json of the "
            f"library tokenizers ({error})"
        ) from None


@functools.lru_cache(maxsize=4)
def facts(tokenizer: str) -> Facts:
    """Return the properties of a tokenizer, which its JSON says."""
    ids = load(tokenizer).get_vocab(with_added_tokens=True)
    data = json.loads(tokenizer)
    special = {token["id"] for token in data["added_tokens"] if token["special"]}
    size = max(ids.values(), default=-1) + 1
    model = data["model"]
    unknown = model.get("unk_id", ids.get(model.get("unk_token") or ""))
    none = set(range(size)) - set(ids.values())
    without_text = tuple(sorted(special | none | ({unknown} - {None})))
    return Facts(size, without_text, unknown, _is_lossless(data, ids))


def characters(tokenizer: str) -> NDArray[np.int32] | None:
    """Return the number of characters of each id; None if tokens are not the text.

    A character that several tokens share is one of the token of its first byte, so that
    the sum over the tokens of a text is its number of characters.
    """
    found = facts(tokenizer)
    if not found.is_lossless:
        return None
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # In UTF-8, U+0080 to U+00BF are the bytes C2 80 to C2 BF, whose second ones are all
    # bytes that continue a character.
    [(letters, _)] = level.pre_tokenize_str("".join(map(chr, range(0x80, 0xC0))))
    continuing = set(letters[1::2])
    data = json.loads(tokenizer)
    added = {token["content"] for token in data["added_tokens"]}
    counts = np.zeros(found.size, np.int32)
    for token, id in load(tokenizer).get_vocab(with_added_tokens=True).items():
        parts = sum(letter in continuing for letter in token)
        counts[id] = len(token) - (0 if token in added else parts)
    return counts


def require() -> None:
    """Raise `BadInput` if the library is not installed."""
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise BadInput(
            "tokenizer: words and subwords need the package tokenizers: "
            'pip install "jaxlstm[tokenizers]"'
        ) from None


def _chunks(text: str) -> Iterator[str]:
    """Yield a text in whole lines, about `_CHUNK` characters at a time.

    The library stores more than 100 bytes for each token of a text, until it is encoded
    to its end.
    """
    begin, text = 0, _valid(text)
    while begin < len(text):
        end = text.find("\n", begin + _CHUNK, begin + 2 * _CHUNK) + 1
        end = end or begin + 2 * _CHUNK
        yield text[begin:end]
        begin = end


def _valid(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 text has, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_lossless(data: dict[str, Any], ids: dict[str, int]) -> bool:
    """Return whether a tokenizer is byte-level, with a token for each byte."""
    from tokenizers import pre_tokenizers

    before = data["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    last = steps[-1]
    return (
        data["model"].get("type") == "BPE"
        and data["normalizer"] is None
        and (data["decoder"] or {}).get("type") == "ByteLevel"
        and last.get("type") == "ByteLevel"
        and not last["add_prefix_space"]
        and all(
            step["type"] == "Digits"
            or (step["type"] == "Split" and step["behavior"] != "Removed")
            for step in steps[:-1]
        )
        and set(pre_tokenizers.ByteLevel.alphabet()) <= ids.keys()
    )
