"""Names and signatures of Optax's functions, read from its source code.

Importing Optax imports JAX, which takes a second or more, and checking a config must
be fast. The public names of `optax` and `optax.schedules` are therefore followed
through their imports to a `def`, whose return annotation shows whether the function
makes a transformation or a schedule.

    - adamw: {learning_rate: {linear_schedule: {init_value: 1.0, ...}}}
      ^ transformation        ^ schedule, as the value of an argument
"""

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["transformation", "schedule"]


class Factory(NamedTuple):
    """A function that makes a transformation or a schedule.

    Attributes:
        kind: type of the result.
        arguments: source text of each argument's annotation.
        required: names of the arguments without a default.
    """

    kind: Kind
    arguments: dict[str, str]
    required: frozenset[str]


@functools.cache
def factory(name: str) -> Factory | None:
    """Return the public factory with this name, None if a config cannot call it.

    Example:
        >>> sorted(factory("clip_by_global_norm").arguments)
        ['max_norm']
    """
    if name.startswith("_"):
        return None
    definition = _definition("optax", name) or _definition("optax.schedules", name)
    return _signature(definition) if definition else None


def names(kind: Kind) -> list[str]:
    """Return the names of all factories of a kind.

    Example:
        >>> "cosine_decay_schedule" in names("schedule")
        True
    """
    public = sorted(_bindings("optax") | _bindings("optax.schedules"))
    found = ((name, factory(name)) for name in public)
    return [name for name, each in found if each and each.kind == kind]


@functools.cache
def _bindings(module: str) -> dict[str, ast.stmt | tuple[str, str]]:
    """Map a module's names to their statement, or to a name in another module."""
    path = _file(module)
    bound: dict[str, ast.stmt | tuple[str, str]] = {}
    for statement in ast.parse(path.read_text("utf-8")).body if path else ():
        if isinstance(statement, ast.FunctionDef):
            bound[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                bound[alias.asname or alias.name] = (statement.module, alias.name)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    bound[target.id] = statement
    return bound


def _file(module: str) -> Path | None:
    """Return the source file of a module of Optax."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package) if package == "optax" else None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inner)
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


def _definition(module: str, name: str) -> ast.FunctionDef | None:
    """Follow imports, `a = b.c` and `partial(f)` from a name to its `def`."""
    bound = _bindings(module).get(name)
    if isinstance(bound, tuple):
        return _definition(*bound) if bound != (module, name) else None
    if isinstance(bound, ast.FunctionDef):
        return bound
    value = bound.value if isinstance(bound, ast.Assign) else None
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "functools.partial":
        value = value.args[0]
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        holder = _bindings(module).get(value.value.id)
        return (
            _definition(".".join(holder), value.attr)
            if isinstance(holder, tuple)
            else None
        )
    return _definition(module, value.id) if isinstance(value, ast.Name) else None


def _signature(definition: ast.FunctionDef) -> Factory | None:
    """Read a signature; None for a function that a config cannot call."""
    returned = ast.unparse(definition.returns) if definition.returns else ""
    result = re.fullmatch(r"(?:base\.)?(Schedule|GradientTransformation\w*)", returned)
    parameters = definition.args
    if (
        result is None
        or parameters.vararg
        or parameters.kwarg
        or parameters.posonlyargs
    ):
        return None
    notes = {
        item.arg: ast.unparse(item.annotation) if item.annotation else "Any"
        for item in parameters.args + parameters.kwonlyargs
    }
    for name in _none_by_default(parameters):
        notes[name] += " | None"
    defaults = [None] * (
        len(parameters.args) - len(parameters.defaults)
    ) + parameters.defaults
    required = {
        item.arg
        for item, default in zip(
            parameters.args + parameters.kwonlyargs,
            defaults + parameters.kw_defaults,
            strict=True,
        )
        if default is None
    }
    if any(re.search(r"Callable|Fn|PyTree|Hashable", notes[name]) for name in required):
        return None
    kind = "schedule" if result[1] == "Schedule" else "transformation"
    return Factory(kind, notes, frozenset(required))


def _none_by_default(parameters: ast.arguments) -> list[str]:
    """Return the arguments whose default is None, whatever their annotation says."""
    named = parameters.args[len(parameters.args) - len(parameters.defaults) :]
    pairs = [
        *zip(named, parameters.defaults, strict=True),
        *zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True),
    ]
    return [
        item.arg
        for item, default in pairs
        if isinstance(default, ast.Constant) and default.value is None
    ]
