"""Record of the call that constructed a cell or layer.

The functions of cells and layers are defined inside their constructors. Python can
neither pickle nor compare such functions, but it can pickle and compare the call:

    pickle, deepcopy    repeat the call
    ==, hash, jit       equal calls return the same functions
    file formats        write the call that `construction_of` returns as data
"""

import difflib
import functools
import inspect
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

P = ParamSpec("P")
Record = TypeVar("Record", bound=tuple)
Result = TypeVar("Result")

Arguments = dict[str, Any]


class Construction(NamedTuple):
    """Call of a public constructor.

    Attributes:
        function: the constructor, such as `jl.stack`.
        arguments: all of its arguments by name, with defaults filled in. Layers that
            `jl.serial` takes are a tuple under "layers", or a dict under "named".
    """

    function: Callable[..., Any]
    arguments: Arguments

    def build(self) -> Any:
        """Call the constructor: return the cell or layer."""
        positional, keywords = [], {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if name not in self.arguments:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += self.arguments[name]
            elif parameter.kind is parameter.VAR_KEYWORD:
                keywords |= self.arguments[name]
            elif parameter.kind is parameter.KEYWORD_ONLY:
                keywords[name] = self.arguments[name]
            else:
                positional.append(self.arguments[name])
        return self.function(*positional, **keywords)


# The construction of a cell is in the `memo` of one of its functions. Layers are kept
# for as long as they are used: for each construction `apply`, which holds the `_Layer`.
_layers: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
_lock = threading.RLock()


class _Memo:
    """Results that are kept in an attribute of the function that owns them."""

    def __init__(self, owner: Callable[..., Any]) -> None:
        self.owner, self.results = weakref.ref(owner), {}


_permanent: dict[Hashable, Any] = {}  # results that no function owns
_NUMBER, _numbers = "number", itertools.count()  # of functions that are made here


def memo(function: Callable[..., Any] | None) -> dict[Hashable, Any]:
    """Return a dict that lives as long as a function.

    A cache in a module would keep the functions that a user defines in a loop, and the
    arrays that they close over. The dict is an attribute of the function, and a cycle
    of both is collected.

    Args:
        function: the function; for None, or for one without attributes, the dict is
            that of the process.

    Example:
        >>> def step(state): ...
        >>> memo(step)["traced"] = True
        >>> memo(step), memo(lambda state: state)
        ({'traced': True}, {})
    """
    attributes = getattr(function, "__dict__", None)
    if function is None or attributes is None or inspect.ismethod(function):
        return _permanent
    found = attributes.get("_jaxlstm_memo")
    # `functools.wraps` copies the attributes of another function.
    if found is None or found.owner() is not function:
        found = attributes["_jaxlstm_memo"] = _Memo(function)
    return found.results


def cached(function: Callable[P, Result]) -> Callable[P, Result]:
    """Decorate a function of hashable arguments: equal calls return the same object.

    A result is kept in the `memo` of the function among the arguments that a user is
    most likely to define anew for each call, if there is one.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        results = memo(shortest_lived(args))
        key = (function, *args)
        if key not in results:
            results.setdefault(key, function(*args, **kwargs))
        return results[key]

    return call


def _local_functions(values: Any) -> Iterator[Callable[..., Any]]:
    """Yield the functions in nested tuples that were defined inside a function."""
    for value in values:
        if isinstance(value, tuple):
            yield from _local_functions(value)
        elif callable(value) and "<" in getattr(value, "__qualname__", ""):
            yield value


def shortest_lived(values: Iterable[Any]) -> Callable[..., Any] | None:
    """Return the function in nested tuples that is likely to be freed first, if any.

    A function that a constructor of this package did not make comes first, then the
    one that was made last.
    """
    functions = _local_functions(values)
    return max(functions, key=lambda f: memo(f).get(_NUMBER, math.inf), default=None)


class _Layer(NamedTuple):
    """A layer, and the call that constructed it."""

    record: tuple
    construction: Construction


def constructor(
    function: Callable[P, Record],
    *,
    canonical: Callable[[Arguments], Arguments] | None = None,
) -> Callable[P, Record]:
    """Decorate a constructor of cells or layers: record its arguments.

    A constructor of layers then returns the same layer for equal arguments.

    Args:
        function: the constructor.
        canonical: function that maps arguments of equal meaning, such as a function
            and its name, to equal arguments.
    """
    signature = inspect.signature(function)
    converters = {
        name: _converter(parameter.annotation)
        for name, parameter in signature.parameters.items()
    }

    @functools.wraps(function)
    def construct(*args: P.args, **kwargs: P.kwargs) -> Record:
        bound = _bind(function, signature, args, kwargs)
        record = function(*args, **kwargs)
        if _is_known_cell(record):
            return record
        _document(record)
        bound.apply_defaults()
        arguments = {
            name: converters[name](value) for name, value in bound.arguments.items()
        }
        arguments = arguments if canonical is None else canonical(arguments)
        return _remember(record, Construction(construct, arguments))

    return readable(construct)


def _document(record: tuple) -> None:
    """Give the functions of a cell or layer the names and texts of their fields.

    They are defined inside constructors, so `help` and error messages would show
    internal names. A function that has a docstring, or that a user wrote, is kept. The
    qualified name stays one of a local function, see `_local_functions`.
    """
    kind = type(record).__name__
    for field, annotation in type(record).__annotations__.items():
        function = getattr(record, field)
        is_ours = getattr(function, "__module__", "").startswith("jaxlstm.")
        if not is_ours or function.__doc__ or not any(_local_functions([function])):
            continue
        protocol = (get_args(annotation) or (annotation,))[0]
        function.__name__, function.__qualname__ = field, f"{kind}.<locals>.{field}"
        function.__doc__ = _text_of(protocol)
        if not hasattr(function, "__signature__"):
            readable(function)


@functools.cache
def _text_of(protocol: type) -> str:
    """Return the text of a protocol, followed by that of its call."""
    call: Any = protocol.__call__
    texts = inspect.getdoc(protocol), inspect.getdoc(call)
    return "\n\n".join(filter(None, texts))


_SIZES = "size", "sizes", "features", "units", "input_size", "hidden_size"


def _bind(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> inspect.BoundArguments:
    """Return the arguments of a call by name.

    Raises:
        TypeError: the function has no such arguments, or some are missing.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        problem = f"{error}"
    name, parameters = function.__name__, signature.parameters
    shown = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in parameters.values()],
        return_annotation=signature.empty,
    )
    remedy = f"expected {name}{shown}"
    unknown = [key for key in kwargs if key not in parameters]
    if unknown:
        problem = f"got an unknown option {unknown[0]!r}"
        if near := difflib.get_close_matches(unknown[0], parameters, n=1):
            remedy = f"did you mean {near[0]}?"
    given = [*args, *unknown]
    is_size = any(type(each) is int or str(each) in _SIZES for each in given)
    is_cell = function.__module__.startswith("jaxlstm.cells.")
    if is_size and is_cell and "cell" not in parameters:
        remedy = "pass sizes to its init: cell.init(key, input_size, hidden_size)"
    stop = "" if remedy.endswith("?") else "."
    raise TypeError(f"{name}: {problem}; {remedy}{stop}") from None


def construction_of(record: tuple) -> Construction | None:
    """Return the call that constructed a cell or layer.

    Returns:
        The call; None for a cell or layer that was not made by a constructor of this
        package, or that has a replaced function. Cells and layers among the
        arguments have a construction in turn.

    Example:
        >>> import jaxlstm as jl
        >>> function, arguments = construction_of(jl.recurrent(jl.lstm(), 5))
        >>> function is jl.recurrent, arguments["hidden_size"], arguments["reverse"]
        (True, 5, False)
        >>> construction_of(arguments["cell"]).arguments["gate_activation"]
        'sigmoid'
    """
    apply, construction = getattr(record, "apply", None), None
    if apply is None:
        construction = _construction_of_cell(record)
    else:
        layer: _Layer | None = getattr(apply, "constructed", None)
        if layer is not None and layer.record == record:
            construction = layer.construction
    if construction is None:
        return None
    arguments = {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in construction.arguments.items()
    }
    return construction._replace(arguments=arguments)


def reduce(record: tuple) -> tuple[Any, ...]:
    """Return the value of `__reduce__` for a cell or layer.

    A record without construction is reduced to its functions, which pickle finds by
    their names, or raises an error of its own if they have none.
    """
    construction = construction_of(record)
    if construction is None:
        return type(record), tuple(record)
    return rebuild, tuple(construction)


def describe(record: tuple) -> str:
    """Return the call that made a cell or layer as text, without defaults.

    A record without construction is described by the names of its functions.

    Example:
        >>> import jax, jaxlstm as jl
        >>> jl.serial(rnn=jl.stack(jl.lstm(), (8, 8)), f=jax.nn.relu, head=jl.linear(2))
        serial(rnn=stack(lstm(), (8, 8)), f='relu', head=linear(2))
        >>> jl.zoneout(jl.lstm(forget_bias=2), h_rate=0.1)
        zoneout(lstm(forget_bias=2.0), h_rate=0.1)
    """
    construction = construction_of(record)
    if construction is None:
        given = zip(getattr(record, "_fields", ()), record, strict=True)
        parts = [f"{name}={_show(value)}" for name, value in given if value]
        return f"{type(record).__name__}({', '.join(parts)})"
    function, arguments = construction
    parts = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments.get(name, parameter.default)
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts += map(_show, value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            parts += [f"{key}={_show(own)}" for key, own in value.items()]
        elif parameter.default is parameter.empty:
            parts.append(_show(value))
        elif _show(value) != _show(parameter.default):
            parts.append(f"{name}={_show(value)}")
    return f"{function.__name__}({', '.join(parts)})"


def _show(value: Any) -> str:
    """Return text for an argument: a name for a function or dtype."""
    if isinstance(value, np.dtype):
        return value.name
    return getattr(value, "__name__", None) or repr(value)


class _Name:
    """A default that `help` shows by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def readable(
    function: Callable[P, Result], *, options: Mapping[str, Any] | None = None
) -> Callable[P, Result]:
    """Decorate a function: `help` shows names and defaults, without types.

    Types such as `ArrayLike` are shown as unions of ten others; the docstring explains
    the arguments in words.

    Args:
        function: the function.
        options: the keywords that `**options` stands for, with their defaults.
    """
    signature = inspect.signature(function)
    shown = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and options is not None:
            continue
        shown.append(parameter.replace(annotation=parameter.empty))
    for name, default in (options or {}).items():
        shown.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        )
    for place, parameter in enumerate(shown):
        default = parameter.default
        if default is not parameter.empty and hasattr(default, "__name__"):
            module = default.__module__.rpartition(".")[2]  # as in emit.hidden
            name = f"{module}.{default.__name__}"
            shown[place] = parameter.replace(default=_Name(name))
    signature = signature.replace(parameters=shown)
    if not isinstance(signature.return_annotation, type):
        signature = signature.replace(return_annotation=signature.empty)
    setattr(function, "__signature__", signature)  # noqa: B010
    return function


def rebuild(function: Callable[..., Any], arguments: Arguments) -> Any:
    """Return the cell or layer that a pickle describes."""
    return Construction(function, arguments).build()


def _remember(record: Any, construction: Construction) -> Any:
    """Keep the construction; return the layer that the same call made before, if any.

    A layer whose arguments cannot be hashed, such as one of a cell with functions that
    cannot be, is equal to itself only.
    """
    apply = getattr(record, "apply", None)
    if apply is None:
        results = memo(shortest_lived(record))
        results.setdefault((Construction, record), construction)
        given = list(_local_functions(construction.arguments.values()))
        for function in _local_functions(record):
            if function not in given:
                memo(function).setdefault(_NUMBER, next(_numbers))
        return record
    apply.constructed = _Layer(record, construction)
    key = construction.function, _hashable(construction.arguments)
    if not _can_be_hashed(key):
        return record
    with _lock:
        return _layers.setdefault(key, apply).constructed.record


def _is_known_cell(record: Any) -> bool:
    is_cell = not hasattr(record, "apply")
    return is_cell and _construction_of_cell(record) is not None


def _construction_of_cell(record: Any) -> Construction | None:
    if not isinstance(record, tuple) or not _can_be_hashed(record):
        return None  # a function among the layers of `serial` is not a record
    owners = [*_local_functions(record), None]
    found = (memo(owner).get((Construction, record)) for owner in owners)
    return next(filter(None, found), None)


def _can_be_hashed(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _hashable(value: Any) -> Hashable:
    """Return the arguments with their types, since 1 == True == 1.0."""
    if isinstance(value, Mapping):
        return tuple((name, _hashable(item)) for name, item in value.items())
    return type(value), value


def _converter(annotation: Any) -> Callable[[Any], Any]:
    """Return the function that makes arguments of equal meaning equal."""
    if annotation == DTypeLike:
        return lambda value: value if value is None else jnp.dtype(value)
    return as_floats if annotation in (float, ArrayLike) else _plain


def as_floats(value: Any) -> Any:
    """Return Python floats for integers, also in tuples and in concrete arrays."""
    value = _plain(value)
    if isinstance(value, tuple):
        return tuple(map(as_floats, value))
    return float(value) if isinstance(value, int) else value


def _plain(value: Any) -> Any:
    """Return Python numbers for those of arrays, and tuples for other sequences."""
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    if is_array and not isinstance(value, Tracer):
        return _plain(value.tolist())
    if isinstance(value, str) or hasattr(value, "_fields"):
        return value
    return tuple(map(_plain, value)) if isinstance(value, Sequence) else value
