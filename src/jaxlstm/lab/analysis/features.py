"""What can be said of each place of a text: the columns that units are compared with.

Every column is known once the symbol of its place has been read: "inside parentheses"
is true from `(` on, and no more at `)`. All of it is read off the text; nothing here
has seen a network.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

FREQUENT = 26  # symbols, each of which may begin and end an interval
FIRST_WORDS = 12
_PARTNER = {"(": ")", "[": "]", "{": "}", "<": ">"}
_NAMES = {
    "\n": "a line end",
    " ": "a blank",
    "\t": "a tab",
    "`": "a backtick",
    "": "the beginning of a document",
    "\ufffd": "an unknown symbol",
}


class Feature(NamedTuple):
    """One column: what holds, or how much of it, at each place.

    phrase     completes "where it is ...": "inside parentheses"
    values     `[N]`, booleans for what holds, numbers for how much
    symbol     the symbol that this is the place of, where it is no more than that
    plain      whether it is easily said and grasped: to be preferred to what is not
    edged      whether it names what begins and what ends it, so that a unit that goes
               with it has to move at both
    """

    phrase: str
    values: NDArray[Any]
    symbol: str | None = None
    plain: bool = True
    edged: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether it holds or does not; otherwise it is an amount."""
        return self.values.dtype == np.bool_


def symbol_name(symbol: str) -> str:
    """A symbol as it is written in a sentence.

    >>> symbol_name("("), symbol_name(" "), symbol_name("417")
    ('`(`', 'a blank', 'token 417')
    """
    if len(symbol) > 1:
        return f"token {symbol}"
    if not symbol.isprintable():
        return _NAMES.get(symbol, f"U+{ord(symbol):04X}")
    return _NAMES.get(symbol, f"`{symbol}`")


def of_text(symbols: Sequence[str], places: NDArray[np.integer]) -> list[Feature]:
    """All columns of a text, at some of its places.

    Arguments:
        symbols: the whole text, a symbol a token; "" where a document begins.
        places: `[N]`, those that the columns are wanted for.

    >>> found = of_text("f(a)", np.arange(4))
    >>> [f.phrase for f in found if f.values.tolist() == [False, True, True, False]]
    ['inside parentheses', 'the depth of brackets']
    >>> [f.phrase for f in of_symbols("f(a)", np.arange(4))]
    ['on `(`', 'on `)`', 'on `a`', 'on `f`']
    """
    columns = [] if _are_tokens(symbols) else [*_amounts(symbols), *_places(symbols)]
    chosen = [f._replace(values=f.values[places]) for f in columns]
    return [*chosen, *_intervals(symbols, places), *of_symbols(symbols, places)]


def of_symbols(symbols: Sequence[str], places: NDArray[np.integer]) -> list[Feature]:
    """For each frequent symbol, the places where it is read."""
    here = np.array(list(symbols), object)[places]
    return [
        Feature(f"on {symbol_name(symbol)}", here == symbol, symbol)
        for symbol in _frequent(symbols, 3 * FREQUENT)
    ]


def _are_tokens(symbols: Sequence[str]) -> bool:
    return any(len(symbol) > 1 for symbol in symbols)


def _frequent(symbols: Iterable[str], number: int) -> list[str]:
    """The most frequent symbols, those that are no letters or digits before others."""
    counts = Counter(symbols)
    order = sorted(counts, key=lambda s: (len(s) < 2 and s.isalnum(), -counts[s], s))
    return order[:number]


def _intervals(symbols: Sequence[str], places: NDArray[np.integer]) -> list[Feature]:
    """For each two frequent symbols: after the one, and before the other."""
    text, at = np.array(list(symbols), object), np.arange(len(symbols), dtype=np.int32)
    frequent = _frequent(symbols, FREQUENT)
    last = {
        s: np.maximum.accumulate(np.where(text == s, at, -1))[places] for s in frequent
    }
    pairs = itertools.combinations(frequent, 2)
    return [_interval(one, other, last[one] - last[other]) for one, other in pairs]


def _interval(one: str, other: str, lead: NDArray[np.integer]) -> Feature:
    """After one symbol and before another, or the reverse: what holds more rarely."""
    if (lead > 0).sum() > (lead < 0).sum():
        one, other, lead = other, one, -lead
    plain = _PARTNER.get(one, "\n") == other
    phrase = f"after {symbol_name(one)} and before {symbol_name(other)}"
    return Feature(phrase, lead > 0, plain=plain, edged=True)


# -- how much ----------------------------------------------------------------


def _amounts(symbols: Sequence[str]) -> list[Feature]:
    """Counts along the line and the word."""
    breaks, blank, word = _classes(symbols)
    position = _since(breaks)
    leading = blank & (_since(breaks | ~blank) == _since(breaks))
    return [
        Feature("the position in the line", position),
        Feature("the indentation", _held(leading, position, breaks)),
        Feature("the position in a word", np.where(word, _since(~word), 0)),
    ]


def _classes(symbols: Sequence[str]) -> tuple[Flags, Flags, Flags]:
    """Where lines or documents begin anew, where blanks are, where words are."""
    breaks = np.array([s in ("\n", "") for s in symbols])
    blank = np.array([s in (" ", "\t") for s in symbols])
    word = np.array([s.isalnum() or s == "_" for s in symbols])
    return breaks, blank, word


def _since(events: Flags) -> NDArray[np.int64]:
    """How many places ago the last event was; 0 at an event.

    >>> _since(np.array([False, True, False, False])).tolist()
    [1, 0, 1, 2]
    """
    at = np.arange(len(events))
    return at - np.maximum.accumulate(np.where(events, at, -1))


def _held(
    when: Flags, values: NDArray[np.integer], begins: Flags
) -> NDArray[np.integer]:
    """The last value at a place of `when`, 0 before there is one since `begins`."""
    ago = _since(when)
    held = values[np.maximum(np.arange(len(when)) - ago, 0)]
    return np.where(ago <= _since(begins), held, 0) * ~begins


# -- where -------------------------------------------------------------------


def _places(symbols: Sequence[str]) -> list[Feature]:
    """Inside what a place is: brackets, strings, comments, kinds of words and lines."""
    text = "".join(symbol or "\0" for symbol in symbols)
    breaks, blank, _ = _classes(symbols)
    brackets, quoted, comment = _lexical(text)
    names = {"(": "parentheses", "[": "square brackets", "{": "curly braces"}
    indentation = blank & (_since(breaks | ~blank) == _since(breaks))
    return [
        *(Feature(f"inside {names[b]}", brackets[b] > 0) for b in "([{"),
        Feature("the depth of brackets", sum(brackets.values(), np.zeros(len(text)))),
        Feature("inside a quoted string", quoted["line"]),
        Feature("inside a string of several lines", quoted["block"]),
        Feature("inside any string", quoted["line"] | quoted["block"]),
        Feature("inside a comment", comment),
        Feature("in the indentation of a line", breaks | indentation),
        Feature("in a word of capitals", _matches(r"\b[A-Z]{2,}\w*", text, 1)),
        Feature("in a word with a capital", _matches(r"\b[A-Z]\w+", text, 0)),
        Feature("in a number", _matches(r"\b\d[\w.]*", text, 0)),
        *_lines(text),
    ]


def _matches(pattern: str, text: str, skipped: int) -> Flags:
    """True inside each match, but for its first symbols."""
    inside = np.zeros(len(text), bool)
    for match in re.finditer(pattern, text):
        inside[match.start() + skipped : match.end()] = True
    return inside


def _lines(text: str) -> list[Feature]:
    """For each frequent first word: the rest of its line."""
    found = list(re.finditer(r"^[ \t]*(\w+)\b([^\n\0]*)", text, re.MULTILINE))
    counts = Counter(match[1] for match in found)
    features = []
    for word, _ in counts.most_common(FIRST_WORDS):
        inside = np.zeros(len(text), bool)
        for match in found:
            if match[1] == word:
                inside[match.start(2) : match.end(2)] = True
        features.append(Feature(f"on a line that begins with `{word}`", inside))
    return features


_LEXEME = re.compile(r"\\.|'''|\"\"\"|['\"#\n\0()\[\]{}]", re.DOTALL)
_OPENS = {")": "(", "]": "[", "}": "{"}


def _lexical(text: str) -> tuple[dict[str, NDArray[np.int32]], dict[str, Flags], Flags]:
    """Depths of brackets, the two kinds of strings, comments: as in a program.

    A quote that is not closed on its line is taken for an apostrophe, and a bracket
    inside a string or comment for a part of it. A blank line ends open brackets.
    """
    changes = {b: np.zeros(len(text) + 1, np.int32) for b in "([{"}
    quoted = {kind: np.zeros(len(text), bool) for kind in ("line", "block")}
    comment, depth = np.zeros(len(text), bool), dict.fromkeys("([{", 0)
    at = 0
    while match := _LEXEME.search(text, at):
        begin, mark, at = match.start(), match[0], match.end()
        if mark in ("'", '"', "'''", '"""'):
            end = _closing(text, mark, begin)
            if end is not None:
                quoted["block" if len(mark) == 3 else "line"][begin:end] = True
                at = end + len(mark)
        elif mark == "#":
            end = re.compile(r"[\n\0]|\Z").search(text, begin)
            at = end.start() if end else len(text)
            comment[begin:at] = True
        elif mark in "([{":
            changes[mark][begin] += 1
            depth[mark] += 1
        elif mark in ")]}":
            opened = _OPENS[mark]
            changes[opened][begin] -= depth[opened] > 0
            depth[opened] = max(0, depth[opened] - 1)
        elif mark == "\0" or text[begin : begin + 2] == "\n\n":
            for bracket, open_ones in depth.items():
                changes[bracket][begin] -= open_ones
            depth = dict.fromkeys("([{", 0)
    return {b: np.cumsum(c[:-1]) for b, c in changes.items()}, quoted, comment


def _closing(text: str, mark: str, begin: int) -> int | None:
    """Where the string that begins here is closed, if it is one."""
    if mark == "'" and text[max(0, begin - 1) : begin].isalnum():
        prefix = re.search(r"\b[rbfuRBFU]{1,2}\Z", text[max(0, begin - 3) : begin])
        if prefix is None:
            return None
    body = r"(?:\\.|[^\\])*?" if len(mark) == 3 else r"(?:\\.|[^\\\n\0])*?"
    match = re.compile(body + mark, re.DOTALL).match(text, begin + len(mark))
    return match.end() - len(mark) if match else None
