"""What Optax offers by name, read from its source text and not imported.

Importing Optax imports JAX, which takes a second or more; a config must be checked
in less. So the public names of `optax` and `optax.schedules` are followed through
their `import` statements to the `def` that makes them, and its annotations say what
it is: a transformation, a schedule, or none of our business.

    - adamw: {learning_rate: {linear_schedule: {init_value: 1.0, ...}}}
      ^ a transformation      ^ a schedule, as the value of an argument
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

    `arguments` holds the text of each argument's annotation; `required` names those
    without a default.
    """

    kind: Kind
    arguments: dict[str, str]
    required: frozenset[str]


@functools.cache
def factory(name: str) -> Factory | None:
    """The public factory of that name, None if there is none for a config to call.

    >>> sorted(factory("clip_by_global_norm").arguments)
    ['max_norm']
    """
    if name.startswith("_"):
        return None
    made = _definition("optax", name) or _definition("optax.schedules", name)
    return _signature(made) if made else None


def names(kind: Kind) -> list[str]:
    """The names of all factories of a kind.

    >>> "cosine_decay_schedule" in names("schedule")
    True
    """
    public = sorted(_bindings("optax") | _bindings("optax.schedules"))
    found = ((name, factory(name)) for name in public)
    return [name for name, made in found if made and made.kind == kind]


@functools.cache
def _bindings(module: str) -> dict[str, ast.stmt | tuple[str, str]]:
    """What a module's names stand for: a statement, or a name in another module."""
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
    """The file of a module of Optax."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package) if package == "optax" else None
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inner)
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in files if file.is_file()), None)


def _definition(module: str, name: str) -> ast.FunctionDef | None:
    """The `def` that a name leads to, through imports, `a = b.c` and `partial(f)`."""
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


def _signature(made: ast.FunctionDef) -> Factory | None:
    """What the signature says; None for a function that a config cannot call."""
    returned = ast.unparse(made.returns) if made.returns else ""
    made_is = re.fullmatch(r"(?:base\.)?(Schedule|GradientTransformation\w*)", returned)
    given = made.args
    if made_is is None or given.vararg or given.kwarg or given.posonlyargs:
        return None
    notes = {
        each.arg: ast.unparse(each.annotation) if each.annotation else "Any"
        for each in given.args + given.kwonlyargs
    }
    defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
    required = {
        each.arg
        for each, default in zip(
            given.args + given.kwonlyargs, defaults + given.kw_defaults, strict=True
        )
        if default is None
    }
    if any(re.search(r"Callable|Fn|PyTree|Hashable", notes[name]) for name in required):
        return None
    kind = "schedule" if made_is[1] == "Schedule" else "transformation"
    return Factory(kind, notes, frozenset(required))
