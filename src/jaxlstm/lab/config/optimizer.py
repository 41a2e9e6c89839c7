"""Check the optimizer section of a config without importing Optax.

    - adamw: {learning_rte: 1e-3}
    -> [1].adamw.learning_rte: unknown argument; did you mean "learning_rate"?

Names and arguments are checked against Optax's signatures, values against the type
names in their annotations. Errors that only Optax detects, such as a decay over zero
steps, are reported when the optimizer is built.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxlstm.lab._util.wording import describe, did_you_mean, dotted, join_names
from jaxlstm.lab.config.optax_names import Factory, Kind, factory, names

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]


class OptimizerError(ValueError):
    """An invalid optimizer; `problems` has pairs of a path in it and a message."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{dotted(p)}: {text}" for p, text in problems))
        self.problems = problems


def check(chain: Any) -> list[Problem]:
    """Return the errors of an optimizer as pairs of a path in it and a message.

    Example:
        >>> check([{"adm": {"learning_rate": 0.1}}])[0][0]
        (0, 'adm')
    """
    if not isinstance(chain, list | tuple):
        form = "a list such as [{adamw: {learning_rate: 1e-3}}]"
        return [((), f"got {describe(chain)}, expected {form}")]
    if not chain:
        return [((), "got an empty list, expected at least one transformation")]
    return [
        problem
        for i, entry in enumerate(chain)
        for problem in _call(entry, "transformation", (i,))
    ]


def is_call(value: Any) -> bool:
    """Return whether a value is a call `{name: {arguments}}`, not a plain mapping."""
    if not (isinstance(value, dict) and len(value) == 1):
        return False
    [name] = value
    return isinstance(name, str) and factory(name) is not None


# -- the sign of updates ------------------------------------------------------


def climbs(chain: Any) -> bool:
    """Return whether the updates of a valid chain raise the loss.

    Every transformation with a learning rate changes the sign of updates, and so does
    `scale` by a number below 0. False is returned where the sign is not known: for
    `scale_by_schedule`, and transformations that may differ between parameters.

    Example:
        >>> climbs([{"scale_by_adam": {}}]), climbs([{"adam": {"learning_rate": 1}}])
        (True, False)
        >>> climbs([{"adam": {"learning_rate": 1}}, {"sgd": {"learning_rate": 1}}])
        True
    """
    signs = [
        _sign(name, arguments or {}) for e in chain for name, arguments in e.items()
    ]
    return None not in signs and math.prod(sign or 1 for sign in signs) > 0


def _sign(name: str, arguments: dict[str, Any]) -> int | None:
    """Return the sign by which a transformation multiplies updates, None if unknown."""
    found = factory(name)
    if name == "scale":
        step = arguments["step_size"]
        return (-1 if step < 0 else 1) if isinstance(step, int | float) else None
    if name == "apply_if_finite":
        [(inner, given)] = arguments["inner"].items()
        return _sign(inner, given or {})
    if found is None or name in ("scale_by_schedule", "set_to_zero"):
        return None
    if any("GradientTransformation" in note for note in found.arguments.values()):
        return None  # the transformations inside may apply to some parameters only
    # These two scale by nothing, minus included, if they have no learning rate.
    is_optional = name in ("adadelta", "scale_by_learning_rate")
    is_missing = is_optional and arguments.get("learning_rate") is None
    if "learning_rate" not in found.arguments or is_missing:
        return 1
    return -1 if arguments.get("flip_sign", True) else 1


# -- calls --------------------------------------------------------------------


def _call(value: Any, kind: Kind, path: KeyPath) -> Iterator[Problem]:
    """Check a call `{name: {arguments}}`."""
    if not (isinstance(value, dict) and len(value) == 1):
        yield path, _not_a_call(value, kind)
        return
    [(name, arguments)] = value.items()
    path = (*path, name)
    found = factory(str(name))
    if found is None or found.kind != kind:
        yield path, _unknown(name, kind, found)
    elif arguments is not None and not isinstance(arguments, dict):
        yield path, f"got {describe(arguments)}, expected {_signature(name)}"
    else:
        yield from _arguments(found, arguments or {}, path)


def _not_a_call(value: Any, kind: Kind) -> str:
    if isinstance(value, str) and factory(value):
        return f"got {describe(value)}, expected {_signature(value)}"
    if isinstance(value, dict) and value:
        keys = join_names(value, last="and")
        return f"got the keys {keys}, expected one {kind} with its arguments inside it"
    return f"got {describe(value)}, expected one {kind} as {{name: {{arguments}}}}"


def _signature(name: str) -> str:
    """Return a call of a factory with its required arguments."""
    found = factory(name)
    needs = [f"{arg}: ..." for arg in sorted(found.required)] if found else []
    return f"{name}: {{{', '.join(needs)}}}"


def _unknown(name: Any, kind: Kind, other: Factory | None) -> str:
    if other is not None:
        return f"got a {other.kind} of optax, expected a {kind}"
    return (
        f"optax has no {kind} with this name that a config can use"
        f"{did_you_mean(name, names(kind))}"
    )


# -- arguments ----------------------------------------------------------------


def _arguments(
    found: Factory, given: dict[Any, Any], path: KeyPath
) -> Iterator[Problem]:
    for name, value in given.items():
        if name in found.arguments:
            yield from _value(value, found.arguments[name], (*path, name))
        else:
            yield (*path, name), _unknown_argument(name, found)
    missing = [name for name in found.required if name not in given]
    if missing and given.keys() <= found.arguments.keys():
        yield (
            path,
            f"required argument is missing: {join_names(sorted(missing), last='and')}",
        )


def _unknown_argument(name: Any, found: Factory) -> str:
    if not found.arguments:
        return "unknown argument; this function takes no arguments"
    known = f"; expected {join_names(found.arguments)}"
    return f"unknown argument{did_you_mean(name, found.arguments) or known}"


def _value(value: Any, annotation: str, path: KeyPath) -> Iterator[Problem]:
    """Check a value against the type names in an annotation."""
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
                    f"got the key {describe(key)}, expected a whole number or text",
                )
            yield from _value(item, annotation, (*path, key))
    elif not _fits(value, words):
        yield path, f"got {describe(value)}, expected {_expected(words)}"
    elif (bounds := _bounds(path)) and not bounds.admit(value):
        yield path, f"got {describe(value)}, expected {bounds.words}"


def _nested(value: Any, words: set[str], path: KeyPath) -> Iterator[Problem]:
    """Check a mapping given for a transformation or a schedule."""
    if any(word.startswith("GradientTransformation") for word in words):
        yield from _call(value, "transformation", path)
    elif words & {"Schedule", "ScalarOrSchedule"}:
        yield from _call(value, "schedule", path)
    else:
        yield path, f"got {describe(value)}, expected {_expected(words)}"


class _Bounds(NamedTuple):
    low: float
    high: float
    excluded: float | None
    words: str

    def admit(self, value: Any) -> bool:
        """Return whether a value is no number or within the bounds."""
        if not isinstance(value, int | float):
            return True
        return self.low <= value < self.high and value != self.excluded


_NOT_NEGATIVE = _Bounds(0, math.inf, None, "0 or more")
_POSITIVE = _Bounds(0, math.inf, 0, "more than 0")
_DECAY = _Bounds(0, 1, None, "0 or more and less than 1")
_ARGUMENTS = {
    "learning_rate": _NOT_NEGATIVE,
    "eps": _NOT_NEGATIVE,
    "eps_root": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "initial_accumulator_value": _NOT_NEGATIVE,
    "decay_rate": _NOT_NEGATIVE,
    "eta": _NOT_NEGATIVE,
    "max_consecutive_errors": _NOT_NEGATIVE,
    "max_norm": _POSITIVE,
    "max_delta": _POSITIVE,
    "clipping": _POSITIVE,
    "threshold": _POSITIVE,
    "b1": _DECAY,
    "b2": _DECAY,
    "b3": _DECAY,
    "decay": _DECAY,
    "momentum": _DECAY,
}
_RATES = ("value", "init_value", "peak_value", "end_value")


def _bounds(path: KeyPath) -> _Bounds | None:
    """Return the bounds of an argument; outside of them training makes no sense.

    Optax accepts a negative learning rate, which climbs, and a decay above 1, whose
    averages grow without bound.
    """
    name = str(path[-1])
    is_rate = "learning_rate" in path and name in _RATES
    return _NOT_NEGATIVE if is_rate else _ARGUMENTS.get(name)


_NUMBERS = {"float", "int", "ArrayLike", "ScalarOrSchedule"}
_TEXTS = {"str", "dtype", "DTypeLike", "Literal"}
_OPEN = {"Any", "dict", "PyTree", "MaskOrFn"}


def _fits(value: Any, words: set[str]) -> bool:
    """Return whether a scalar is of one of the types named in an annotation."""
    if isinstance(value, bool):
        return bool(words & (_OPEN | {"bool"}))
    if isinstance(value, int | float):
        whole_only = words & _NUMBERS == {"int"} and not words & _OPEN
        if not -1e308 < value < 1e308 or (whole_only and value != int(value)):
            return False
        return bool(words & (_OPEN | _NUMBERS))
    if isinstance(value, str):
        return bool(words & (_OPEN | _TEXTS))
    return value is None and bool(words & (_OPEN | {"None", "Optional"}))


def _expected(words: set[str]) -> str:
    """Describe the types named in an annotation."""
    kinds = []
    if words & _NUMBERS:
        whole = words & _NUMBERS == {"int"}
        kinds.append("a whole number" if whole else "a finite number")
    if words & _TEXTS:
        kinds.append("text")
    if "bool" in words:
        kinds.append("true or false")
    if words & {"Schedule", "ScalarOrSchedule"}:
        kinds.append("a schedule")
    if any(word.startswith("GradientTransformation") for word in words):
        kinds.append("a transformation")
    return " or ".join(kinds or ["another type"])
