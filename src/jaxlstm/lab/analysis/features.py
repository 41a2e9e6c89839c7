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
_NAMES = {
    "\n": "a line end",
    " ": "a blank",
    "\t": "a tab",
    "`": "a backtick",
    "": "the beginning of a document",
    "\ufffd": "an unknown symbol",
}


class Feature(NamedTuple):
    """A property of every position.

    Attributes:
        phrase: Its name, such as "inside parentheses".
        values: `[N]`, booleans or amounts.
        plain: Whether it is preferred to other features that fit equally well.
        edged: Whether the phrase names a first and a last symbol. A unit that follows
            the feature must change at both.
    """

    phrase: str
    values: NDArray[Any]
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
    """Return the features of a text at some of its positions, without `of_symbols`.

    Args:
        symbols: The whole text; "" where a document begins.
        positions: `[N]`.

    Example:
        >>> found = of_text("f(a)", np.arange(4))
        >>> [f.phrase for f in found if f.values.tolist() == [False, True, True, False]]
        ['inside parentheses', 'the depth of brackets']
    """
    are_letters = all(len(symbol) < 2 for symbol in symbols)
    found = _of_letters(symbols) if are_letters else {}
    chosen = [Feature(phrase, values[positions]) for phrase, values in found.items()]
    return chosen + _intervals(symbols, positions)


def of_symbols(symbols: Sequence[str], positions: NDArray[np.integer]) -> list[Feature]:
    """Return a feature for each frequent symbol, which holds where it is read.

    Example:
        >>> [f.phrase for f in of_symbols("f(a)", np.arange(4))]
        ['on `(`', 'on `)`', 'on `a`', 'on `f`']
    """
    here = np.array(list(symbols), object)[positions]
    return [
        Feature(f"on {symbol_name(symbol)}", here == symbol)
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
    last = {
        symbol: np.maximum.accumulate(np.where(text == symbol, at, -1))[positions]
        for symbol in _frequent(symbols, FREQUENT)
    }
    features = []
    for one, other in itertools.combinations(last, 2):
        lead = last[one] - last[other]
        if (lead > 0).sum() > (lead < 0).sum():
            one, other, lead = other, one, -lead
        phrase = f"after {symbol_name(one)} and before {symbol_name(other)}"
        plain = _CLOSING.get(one, "\n") == other
        features.append(Feature(phrase, lead > 0, plain=plain, edged=True))
    return features


def _of_letters(symbols: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return properties of lines, words, brackets, strings and comments by phrase."""
    text = "".join(symbol or "\0" for symbol in symbols)
    breaks = np.array([s in ("\n", "") for s in symbols])
    blank = np.array([s in (" ", "\t") for s in symbols])
    word = np.array([s.isalnum() or s == "_" for s in symbols])
    column = _since(breaks)
    leading = blank & (_since(breaks | ~blank) == column)
    ago = _since(leading)
    indent = column[np.maximum(np.arange(len(symbols)) - ago, 0)]
    depths, inside = _lexical(text)
    words = Counter(re.findall(r"^[ \t]*(\w+)\b", text, re.MULTILINE))
    return {
        "the position in the line": column,
        "the indentation": np.where(ago <= column, indent, 0) * ~breaks,
        "the position in a word": np.where(word, _since(~word), 0),
        "inside parentheses": depths[:, 0] > 0,
        "inside square brackets": depths[:, 1] > 0,
        "inside curly braces": depths[:, 2] > 0,
        "the depth of brackets": depths.sum(1),
        "inside a quoted string": inside["line"],
        "inside a string of several lines": inside["block"],
        "inside any string": inside["line"] | inside["block"],
        "inside a comment": inside["comment"],
        "in the indentation of a line": breaks | leading,
        "in a word of capitals": _matches(r"\b[A-Z]([A-Z]+\w*)", text),
        "in a word with a capital": _matches(r"\b([A-Z]\w+)", text),
        "in a number": _matches(r"\b(\d[\w.]*)", text),
    } | {
        f"on a line that begins with `{word}`": _matches(
            rf"^[ \t]*{word}\b([^\n\0]*)", text
        )
        for word, _ in words.most_common(FIRST_WORDS)
    }


def _since(events: Flags) -> NDArray[np.int64]:
    """Return the number of positions since the last event.

    Example:
        >>> _since(np.array([False, True, False, False])).tolist()
        [1, 0, 1, 2]
    """
    at = np.arange(len(events))
    return at - np.maximum.accumulate(np.where(events, at, -1))


def _matches(pattern: str, text: str) -> Flags:
    """Return the positions inside the first group of each match."""
    inside = np.zeros(len(text), bool)
    for match in re.finditer(pattern, text, re.MULTILINE):
        inside[match.start(1) : match.end(1)] = True
    return inside


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


def _lexical(text: str) -> tuple[NDArray[np.int64], dict[str, Flags]]:
    """Return the depths `[N, 3]` of brackets, and where strings and comments are.

    As in a Python program, with two exceptions: a quote that is not closed on its line
    is an apostrophe, and a blank line closes all brackets.
    """
    inside = {kind: np.zeros(len(text), bool) for kind in ("block", "line", "comment")}
    begins, depths = [0], [[0, 0, 0]]
    for match in _LEXEME.finditer(text):
        kind, depth = match.lastgroup, depths[-1].copy()
        if kind in inside:
            quote = match["three"] or match["one"] or ""
            inside[kind][match.start() : match.end() - len(quote)] = True
        elif kind == "opening":
            depth["([{".index(match[0])] += 1
        elif kind == "closing":
            bracket = ")]}".index(match[0])
            depth[bracket] = max(0, depth[bracket] - 1)
        elif kind == "end":
            depth = [0, 0, 0]
        begins.append(match.start())
        depths.append(depth)
    return np.repeat(depths, np.diff([*begins, len(text)]), axis=0), inside
