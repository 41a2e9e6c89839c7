"""Format values, names and suggestions in error messages."""

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


def shown(text: str) -> str:
    """Escape the unprintable characters of `text`.

    Example:
        >>> shown("two\\nlines")
        'two\\\\nlines'
    """
    safe = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(safe)


def describe(value: Any) -> str:
    """Format a value as in YAML, shortened, or describe a list or mapping.

    Example:
        >>> describe("adm"), describe(True), describe([1, 2]), describe({})
        ('"adm"', 'true', 'a list of 2 entries', 'an empty mapping')
    """
    if value is None:
        return "null"
    if isinstance(value, dict | list | tuple):
        kind = "mapping" if isinstance(value, dict) else "list"
        if not value:
            return f"an empty {kind}"
        return f"a {kind} of {len(value)} {'entry' if len(value) == 1 else 'entries'}"
    if isinstance(value, int) and abs(value) >= 10**50:
        return "a number of more than 50 digits"
    if isinstance(value, str | bool | int | float):
        return _shortened(json.dumps(value, ensure_ascii=False))
    return f"a value of type {type(value).__name__}"


def join_names(names: Iterable[Any], *, last: str = "or") -> str:
    """Join names as in `"a", "b" or "c"`."""
    words = [describe(name) for name in names]
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def shortened(names: Sequence[str], *, most: int = 6) -> str:
    """Join names, and count those after the first ones if there are many.

    Example:
        >>> shortened(["a", "b"]), shortened(["a", "b", "c"], most=2)
        ('a, b', 'a and 2 more')
    """
    if len(names) <= most:
        return ", ".join(names)
    shown_first = ", ".join(names[: most - 1])
    return f"{shown_first} and {len(names) - most + 1:,} more"


def dotted(path: Iterable[str | int]) -> str:
    """Format a key path.

    Example:
        >>> dotted(("optimizer", 1, "adamw"))
        'optimizer[1].adamw'
    """
    parts = (f"[{key}]" if isinstance(key, int) else f".{shown(key)}" for key in path)
    return "".join(parts).removeprefix(".")


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """Return a suffix that suggests a similar name, or "" if there is none.

    Example:
        >>> did_you_mean("hiden_size", ["hidden_size", "layers"])
        '; did you mean "hidden_size"?'
    """
    folded = {known.casefold(): known for known in names}
    close = get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {describe(folded[close[0]])}?" if close else ""


def _shortened(text: str, limit: int = 60) -> str:
    return shown(text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}")
