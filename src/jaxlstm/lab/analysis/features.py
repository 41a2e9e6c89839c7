"""Features of a text: properties of each position that units are compared with.

A feature is known once the symbol at its position has been read: "inside parentheses"
holds from `(` on, and no longer at `)`. Features are computed from the text alone.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

FREQUENT = 26  # symbols that begin and end intervals
FIRST_WORDS = 12
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_OPENING = {")": "(", "]": "[", "}": "{"}
_NAMES = {
    "\n": "a line end",
    " ": "a blank",
    "\t": "a tab",
    "`": "a backtick",
    "": "the beginning of a document",
    "\ufffd": "an unknown symbol",
}


class Text(NamedTuple):
    """Tokens `[M]`, the symbol of each, and the name of their source."""

    tokens: NDArray[np.int32]
    symbols: list[str]
    source: str


class Feature(NamedTuple):
    """A property of every position.

    Attributes:
        phrase: Its name, such as "inside parentheses".
        values: `[N]`, booleans or amounts.
        symbol: The symbol, for features that hold at one symbol only.
        plain: Whether it is preferred to other features that fit equally well.
        edged: Whether the phrase names a first and a last symbol. A unit that follows
            the feature must change at both.
    """

    phrase: str
    values: NDArray[Any]
    symbol: str | None = None
    plain: bool = True
    edged: bool = False

    @property
    def is_flag(self) -> bool:
        """Return whether the values are booleans."""
        return self.values.dtype == np.bool_


def symbol_name(symbol: str) -> str:
    """Return the name of a symbol in a sentence.

    Example:
        >>> symbol_name("("), symbol_name(" "), symbol_name("417")
        ('`(`', 'a blank', 'token 417')
    """
    if len(symbol) > 1:
        return f"token {symbol}"
    if not symbol.isprintable():
        return _NAMES.get(symbol, f"U+{ord(symbol):04X}")
    return _NAMES.get(symbol, f"`{symbol}`")


def of_text(symbols: Sequence[str], positions: NDArray[np.integer]) -> list[Feature]:
    """Return all features of a text at some of its positions.

    Args:
        symbols: The whole text; "" where a document begins.
        positions: `[N]`.

    Example:
        >>> found = of_text("f(a)", np.arange(4))
        >>> [f.phrase for f in found if f.values.tolist() == [False, True, True, False]]
        ['inside parentheses', 'the depth of brackets']
        >>> [f.phrase for f in of_symbols("f(a)", np.arange(4))]
        ['on `(`', 'on `)`', 'on `a`', 'on `f`']
    """
    are_letters = all(len(symbol) < 2 for symbol in symbols)
    found = [*_lines(symbols), *_syntax(symbols)] if are_letters else []
    chosen = [f._replace(values=f.values[positions]) for f in found]
    return [*chosen, *_intervals(symbols, positions), *of_symbols(symbols, positions)]


def of_symbols(symbols: Sequence[str], positions: NDArray[np.integer]) -> list[Feature]:
    """Return a feature for each frequent symbol, which holds where it is read."""
    here = np.array(list(symbols), object)[positions]
    return [
        Feature(f"on {symbol_name(symbol)}", here == symbol, symbol)
        for symbol in _frequent(symbols, 3 * FREQUENT)
    ]


def _frequent(symbols: Iterable[str], number: int) -> list[str]:
    """Return the most frequent symbols, letters and digits after all others."""
    counts = Counter(symbols)
    order = sorted(counts, key=lambda s: (len(s) < 2 and s.isalnum(), -counts[s], s))
    return order[:number]


def _intervals(symbols: Sequence[str], positions: NDArray[np.integer]) -> list[Feature]:
    """Return "after A and before B" for each pair of frequent symbols.

    Of the two orders of A and B, the one that holds at fewer positions.
    """
    text, at = np.array(list(symbols), object), np.arange(len(symbols), dtype=np.int32)
    frequent = _frequent(symbols, FREQUENT)
    last = {
        s: np.maximum.accumulate(np.where(text == s, at, -1))[positions]
        for s in frequent
    }
    features = []
    for one, other in itertools.combinations(frequent, 2):
        lead = last[one] - last[other]
        if (lead > 0).sum() > (lead < 0).sum():
            one, other, lead = other, one, -lead
        phrase = f"after {symbol_name(one)} and before {symbol_name(other)}"
        plain = _CLOSING.get(one, "\n") == other
        features.append(Feature(phrase, lead > 0, plain=plain, edged=True))
    return features


def _lines(symbols: Sequence[str]) -> list[Feature]:
    """Return positions in the line and the word, and the indentation."""
    breaks, leading = _indentation(symbols)
    column = _since(breaks)
    word = np.array([s.isalnum() or s == "_" for s in symbols])
    ago = _since(leading)
    indent = column[np.maximum(np.arange(len(symbols)) - ago, 0)]
    return [
        Feature("the position in the line", column),
        Feature("the indentation", np.where(ago <= column, indent, 0) * ~breaks),
        Feature("the position in a word", np.where(word, _since(~word), 0)),
    ]


def _indentation(symbols: Sequence[str]) -> tuple[Flags, Flags]:
    """Return where lines or documents begin, and the blanks that lead a line."""
    breaks = np.array([s in ("\n", "") for s in symbols])
    blank = np.array([s in (" ", "\t") for s in symbols])
    return breaks, blank & (_since(breaks | ~blank) == _since(breaks))


def _since(events: Flags) -> NDArray[np.int64]:
    """Return the number of positions since the last event.

    Example:
        >>> _since(np.array([False, True, False, False])).tolist()
        [1, 0, 1, 2]
    """
    at = np.arange(len(events))
    return at - np.maximum.accumulate(np.where(events, at, -1))


def _syntax(symbols: Sequence[str]) -> list[Feature]:
    """Return brackets, strings, comments, kinds of words, and first words of lines."""
    text = "".join(symbol or "\0" for symbol in symbols)
    breaks, leading = _indentation(symbols)
    depth, inside = _lexical(text)
    names = {"(": "parentheses", "[": "square brackets", "{": "curly braces"}
    flags = {
        "inside a quoted string": inside["line"],
        "inside a string of several lines": inside["block"],
        "inside any string": inside["line"] | inside["block"],
        "inside a comment": inside["comment"],
        "in the indentation of a line": breaks | leading,
        "in a word of capitals": _matches(r"\b[A-Z]([A-Z]+\w*)", text),
        "in a word with a capital": _matches(r"\b([A-Z]\w+)", text),
        "in a number": _matches(r"\b(\d[\w.]*)", text),
    }
    total = sum(depth.values(), np.zeros(len(text)))
    return [
        *(Feature(f"inside {names[b]}", depth[b] > 0) for b in depth),
        Feature("the depth of brackets", total),
        *(Feature(phrase, values) for phrase, values in flags.items()),
        *_first_words(text),
    ]


def _matches(pattern: str, text: str) -> Flags:
    """Return the positions inside the first group of each match."""
    inside = np.zeros(len(text), bool)
    for match in re.finditer(pattern, text, re.MULTILINE):
        inside[match.start(1) : match.end(1)] = True
    return inside


def _first_words(text: str) -> list[Feature]:
    """Return the rest of the line after each frequent first word."""
    counts = Counter(re.findall(r"^[ \t]*(\w+)\b", text, re.MULTILINE))
    return [
        Feature(
            f"on a line that begins with `{word}`",
            _matches(rf"^[ \t]*{word}\b([^\n\0]*)", text),
        )
        for word, _ in counts.most_common(FIRST_WORDS)
    ]


_LEXEME = re.compile(
    r"""
      \\.
    | (?P<block> (?P<three> '''|\"\"\") (?: \\. | [^\\] )*? (?P=three) )
    | '''|\"\"\"
    | (?: (?<![^\W_]) | (?<=\b[rbfuRBFU]) | (?<=\b[rbfuRBFU]{2}) | (?=") )
      (?P<line> (?P<one> ['"]) (?: \\. | [^\\\n\0] )*? (?P=one) )
    | (?P<comment> \# [^\n\0]* )
    | (?P<opening> [(\[{] )
    | (?P<closing> [)\]}] )
    | (?P<end> \0 | \n(?=\n) )
    """,
    re.DOTALL | re.VERBOSE,
)


def _lexical(text: str) -> tuple[dict[str, NDArray[np.int32]], dict[str, Flags]]:
    """Return the depth of each bracket, and where strings and comments are.

    As in a Python program, with two exceptions: a quote that is not closed on its line
    is an apostrophe, and a blank line closes all brackets.
    """
    changes = {b: np.zeros(len(text) + 1, np.int32) for b in "([{"}
    inside = {kind: np.zeros(len(text), bool) for kind in ("block", "line", "comment")}
    depth = dict.fromkeys("([{", 0)
    for match in _LEXEME.finditer(text):
        kind, begin = match.lastgroup, match.start()
        if kind in inside:
            quote = match["three"] or match["one"] or ""
            inside[kind][begin : match.end() - len(quote)] = True
        elif kind == "opening":
            changes[match[0]][begin] += 1
            depth[match[0]] += 1
        elif kind == "closing":
            opened = _OPENING[match[0]]
            changes[opened][begin] -= depth[opened] > 0
            depth[opened] = max(0, depth[opened] - 1)
        elif kind == "end":
            for bracket in depth:
                changes[bracket][begin] -= depth[bracket]
                depth[bracket] = 0
    return {b: np.cumsum(change[:-1]) for b, change in changes.items()}, inside
