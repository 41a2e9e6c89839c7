"""A Griffe extension that prepares docstrings for Markdown.

Doctests become code blocks: Markdown would read `>>>` as nested quotations and
`x[0][-1]` as a link. An argument entry for several names becomes an entry for each.
"""

import re

import griffe

ENTRY = re.compile(r"(?P<indent> +)(?P<names>\w+(?:, \w+)+):(?P<text>.*)")


class PlainDocstrings(griffe.Extension):
    """Rewrite the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = fence(separate(obj.docstring.value))


def separate(text: str) -> str:
    """Return the text with an entry for each name of `lengths, mask: ...`."""
    lines, old = [], text.splitlines()
    while old:
        entry = ENTRY.fullmatch(line := old.pop(0))
        if entry is None:
            lines.append(line)
            continue
        more = []
        while old and old[0].startswith(entry["indent"] + " "):
            more.append(old.pop(0))
        for name in entry["names"].split(", "):
            lines += [f"{entry['indent']}{name}:{entry['text']}", *more]
    return "\n".join(lines)


def fence(text: str) -> str:
    """Return the text with a fence around each doctest, up to the next empty line."""
    lines, indent = [], None
    for line in [*text.splitlines(), ""]:
        if indent is None and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            lines += ["", f"{indent}```pycon"]
        elif indent is not None and not line.strip():
            lines.append(f"{indent}```")
            indent = None
        lines.append(line)
    return "\n".join(lines).rstrip()
