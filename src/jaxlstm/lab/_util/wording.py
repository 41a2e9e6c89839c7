"""How values, names and guesses are put into the one sentence of a message."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def shown(text: str) -> str:
    """`text` on one line that any terminal can print.

    >>> shown("two\\nlines")
    'two\\\\nlines'
    """
    safe = (c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "".join(safe)


def described(value: Any) -> str:
    """What came, in the words of the one who wrote it.

    >>> described("adm"), described(True), described([1, 2]), described({})
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


def listed(names: Iterable[Any], *, last: str = "or") -> str:
    """`"a", "b" or "c"`."""
    words = [described(name) for name in names]
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def dotted(path: Iterable[str | int]) -> str:
    """A key path as people write it.

    >>> dotted(("optimizer", 1, "adamw"))
    'optimizer[1].adamw'
    """
    parts = (f"[{key}]" if isinstance(key, int) else f".{shown(key)}" for key in path)
    return "".join(parts).removeprefix(".")


def guess(name: Any, names: Iterable[str]) -> str:
    """`; did you mean "hidden_size"?` where a name comes close, otherwise nothing.

    >>> guess("hiden_size", ["hidden_size", "layers"])
    '; did you mean "hidden_size"?'
    """
    folded = {known.casefold(): known for known in names}
    close = get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {described(folded[close[0]])}?" if close else ""


def _shortened(text: str, limit: int = 60) -> str:
    return shown(text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}")
