"""What is wrong with an optimizer, as far as the text of a config can tell.

    - adamw: {learning_rte: 1e-3}
    -> [1].adamw.learning_rte: unknown argument; did you mean "learning_rate"?

Names and arguments are checked against Optax's signatures (`optax_names`), values
against the words of their annotations. What only Optax itself can tell, such as a
decay over no steps, `optimizers.build` finds out.
"""

import re
from collections.abc import Iterator
from typing import Any

from jaxlstm.lab._util.wording import described, dotted, guess, listed
from jaxlstm.lab.config.optax_names import Factory, Kind, factory, names

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]


class MisusedError(ValueError):
    """An optimizer with problems: pairs of a path below it and a sentence."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{dotted(p)}: {text}" for p, text in problems))
        self.problems = problems


def check(chain: Any) -> list[Problem]:
    """Everything wrong with an optimizer: paths below it, and sentences.

    >>> check([{"adm": {"learning_rate": 0.1}}])[0][0]
    (0, 'adm')
    """
    if not isinstance(chain, list | tuple):
        form = "a list is wanted, such as [{adamw: {learning_rate: 1e-3}}]"
        return [((), f"{described(chain)} came; {form}")]
    if not chain:
        return [((), "an empty list came; at least one transformation is wanted")]
    links = enumerate(chain)
    return [found for i, link in links for found in _call(link, "transformation", (i,))]


def is_call(value: Any) -> bool:
    """Whether a value is `{name: {arguments}}` of a factory, and no plain mapping."""
    if not (isinstance(value, dict) and len(value) == 1):
        return False
    [name] = value
    return isinstance(name, str) and factory(name) is not None


# -- calls --------------------------------------------------------------------


def _call(value: Any, kind: Kind, path: KeyPath) -> Iterator[Problem]:
    """Checks `{name: {arguments}}`."""
    if not (isinstance(value, dict) and len(value) == 1):
        yield path, _not_a_call(value, kind)
        return
    [(name, arguments)] = value.items()
    path = (*path, name)
    made = factory(str(name))
    if made is None or made.kind != kind:
        yield path, _unknown(name, kind, made)
    elif arguments is not None and not isinstance(arguments, dict):
        yield path, f"{described(arguments)} came; {_signature(name)} is the form"
    else:
        yield from _arguments(made, arguments or {}, path)


def _not_a_call(value: Any, kind: Kind) -> str:
    if isinstance(value, str) and factory(value):
        return f"{described(value)} came; {_signature(value)} is the form"
    if isinstance(value, dict) and value:
        both = listed(value, last="and")
        return f"{both} stand together; one {kind} is wanted, its arguments inside it"
    return f"{described(value)} came; one {kind} is wanted, as {{name: {{arguments}}}}"


def _signature(name: str) -> str:
    """How a factory is called with no more than it must have."""
    made = factory(name)
    needs = [f"{arg}: ..." for arg in sorted(made.required)] if made else []
    return f"{name}: {{{', '.join(needs)}}}"


def _unknown(name: Any, kind: Kind, other: Factory | None) -> str:
    if other is not None:
        return f"this is a {other.kind} of optax; a {kind} is wanted here"
    return f"optax has no {kind} of this name for a config{guess(name, names(kind))}"


# -- arguments ----------------------------------------------------------------


def _arguments(
    made: Factory, given: dict[Any, Any], path: KeyPath
) -> Iterator[Problem]:
    for name, value in given.items():
        if name in made.arguments:
            yield from _value(value, made.arguments[name], (*path, name))
        else:
            yield (*path, name), _unknown_argument(name, made)
    missing = [name for name in made.required if name not in given]
    if missing and given.keys() <= made.arguments.keys():
        yield path, f"{listed(sorted(missing), last='and')} must be given"


def _unknown_argument(name: Any, made: Factory) -> str:
    if not made.arguments:
        return "unknown argument; it takes none"
    known = f"; its arguments are {listed(made.arguments, last='and')}"
    return f"unknown argument{guess(name, made.arguments) or known}"


def _value(value: Any, annotation: str, path: KeyPath) -> Iterator[Problem]:
    """Checks a value against the words of an annotation."""
    words = set(re.findall(r"\w+", annotation))
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _value(item, annotation, (*path, i))
    elif isinstance(value, dict) and not words & {"dict", "PyTree", "MaskOrFn"}:
        yield from _nested(value, words, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) not in (str, int):
                yield (
                    path,
                    f"the key {described(key)} came; a number or a name is wanted",
                )
            yield from _value(item, annotation, (*path, key))
    elif not _fits(value, words):
        yield path, f"{described(value)} came; {_wish(words)} is wanted"


def _nested(value: Any, words: set[str], path: KeyPath) -> Iterator[Problem]:
    """Checks a mapping in an argument's place: an inner transformation, a schedule."""
    if any(word.startswith("GradientTransformation") for word in words):
        yield from _call(value, "transformation", path)
    elif words & {"Schedule", "ScalarOrSchedule"}:
        yield from _call(value, "schedule", path)
    else:
        yield path, f"{described(value)} came; {_wish(words)} is wanted"


_NUMBERS = {"float", "int", "ArrayLike", "ScalarOrSchedule"}
_TEXTS = {"str", "dtype", "DTypeLike", "Literal"}
_OPEN = {"Any", "dict", "PyTree", "MaskOrFn"}


def _fits(value: Any, words: set[str]) -> bool:
    """Whether a value, no list, may stand where an annotation has these words."""
    if isinstance(value, bool):
        return bool(words & (_OPEN | {"bool"}))
    if isinstance(value, int | float):
        whole_only = words & _NUMBERS == {"int"} and not words & _OPEN
        if not -1e308 < value < 1e308 or (whole_only and value != int(value)):
            return False
        return bool(words & (_OPEN | _NUMBERS))
    if isinstance(value, str):
        return bool(words & (_OPEN | _TEXTS))
    return value is None


def _wish(words: set[str]) -> str:
    """The words of an annotation as a wish."""
    wishes = []
    if words & _NUMBERS:
        whole = words & _NUMBERS == {"int"}
        wishes.append("a whole number" if whole else "a finite number")
    if words & _TEXTS:
        wishes.append("text")
    if "bool" in words:
        wishes.append("true or false")
    if words & {"Schedule", "ScalarOrSchedule"}:
        wishes.append("a schedule")
    if any(word.startswith("GradientTransformation") for word in words):
        wishes.append("a transformation")
    return " or ".join(wishes or ["something else"])
