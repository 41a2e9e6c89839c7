"""A Griffe extension that prepares docstrings and signatures for the pages.

Doctests become code blocks: Markdown would read `>>>` as nested quotations and
`x[0][-1]` as a link. An argument entry for several names becomes an entry for each.
`**options: Unpack[...]` is written out in signatures.
"""

import importlib
import inspect
import re

import griffe

ENTRY = re.compile(r"(?P<indent> +)(?P<names>\w+(?:, \w+)+):(?P<text>.*)")


class PlainDocstrings(griffe.Extension):
    """Rewrite the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = fence(separate(obj.docstring.value))

    def on_function(self, *, func: griffe.Function, **_) -> None:
        """Replace `**options: Unpack[T]` by the fields of T, with their defaults."""
        for parameter in list(func.parameters):
            unpacked = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation))
            if unpacked is not None:
                del func.parameters[parameter.name]
                fields = func.parent[unpacked[1]].members
                for option in options_of(func):
                    func.parameters.add(
                        griffe.Parameter(
                            option.name,
                            annotation=fields[option.name].annotation,
                            kind=griffe.ParameterKind.keyword_only,
                            default=repr(option.default),
                        )
                    )


def options_of(func: griffe.Function) -> list[inspect.Parameter]:
    """Return the keyword-only parameters that the imported function shows."""
    module = importlib.import_module(func.module.path)
    shown = inspect.signature(getattr(module, func.name)).parameters.values()
    return [option for option in shown if option.kind is option.KEYWORD_ONLY]


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
    """Return the text with a fence around each doctest, up to the next empty line.

    `Example:` becomes `Examples:`, a section in which Griffe finds doctests itself.
    """
    lines, indent, in_example = [], None, None
    for line in [*text.splitlines(), ""]:
        own = line[: len(line) - len(line.lstrip())]
        if in_example is not None and line.strip() and len(own) <= len(in_example):
            in_example = None
        if line.strip() == "Example:":
            in_example, line = own, f"{own}Examples:"
        elif in_example is None:
            if indent is None and line.lstrip().startswith(">>> "):
                indent = own
                lines += ["", f"{indent}```pycon"]
            elif indent is not None and not line.strip():
                lines.append(f"{indent}```")
                indent = None
        lines.append(line)
    return "\n".join(lines).rstrip()
