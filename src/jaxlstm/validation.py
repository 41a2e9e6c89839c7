"""Checks of public arguments, and their error messages.

Arguments are checked before an engine runs. Errors that JAX raises while an engine is
traced are translated to the caller's names.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import Cell, Params, State, project
from jaxlstm.construction import cached
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, is_key, show

Arrays = tuple[Params, Features, State, StepMask]


@contextlib.contextmanager
def translate_jax_errors(cell: Cell, arrays: Arrays) -> Iterator[None]:
    """Translate errors that a wrong step causes, and add a hint if memory ran out."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        try:
            message = _wrong_step(cell, *arrays)
        except Exception:  # the step raises an error of its own, which is `error`
            message = None
        if message is None:
            raise
        raise ValueError(message) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            error.add_note(f"unroll: {OUT_OF_MEMORY}")
        raise


OUT_OF_MEMORY = (
    'checkpoint_every="sqrt" keeps √T of T states for the gradient and recomputes the '
    "rest; emit=jl.emit.nothing stacks no outputs. A smaller batch, or several calls "
    "on parts of the sequence that carry the state, need less memory still."
)


def _wrong_step(
    cell: Cell, params: Params, xs: Features, state: State, steps: StepMask
) -> str | None:
    """Describe how the results of a step differ from `(state, gates)`, or None."""
    returned: list[Any] = []

    def step(params: Params, xs: Features, state: State) -> State:
        per_step = None
        if cell.prepare is not None:
            params, per_step = cell.prepare(params, xs)
        first = jax.tree.map(lambda leaf: leaf[0], (xs, per_step))
        returned.append(cell.step(params, state, project(cell, params, *first)))
        return returned[0][0] if _is_pair(returned[0], state) else None

    if xs.shape[0] == 0:
        return None
    after = _leaves(jax.eval_shape(step, params, xs, state))
    if not _is_pair(returned[0], state):
        return (
            f"cell.step: got {masking.described(returned[0])}, expected a pair "
            "(state, gates); write `return state, gates`, or `return state, None` for "
            "a cell without gates."
        )
    for name, before in _leaves(state).items():
        if name not in after:
            return (
                f"cell.step: got {masking.described(returned[0][0])} without "
                f"state{name}, expected {masking.described(state)} as before the step."
            )
        expected, got = _typed(before), _typed(after.pop(name))
        if expected != got:
            return (
                f"cell.step: got state{name}, {got}, expected {expected} "
                f"as before the step; cast it, for example with .astype(state.h.dtype)."
            )
    if after:
        name = next(iter(after))
        return f"cell.step: got state{name}, expected the fields before the step."
    return None


def _is_pair(result: Any, state: State) -> bool:
    is_state = isinstance(result, type(state)) and type(state) is not tuple
    return isinstance(result, tuple) and len(result) == 2 and not is_state


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _typed(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype} {show(leaf.shape)}"


def check_hashable(name: str, value: Any) -> None:
    """Raise a `ValueError` if the value cannot be a static argument of `jit`."""
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(
            f"{name}: got a value that is not hashable ({error}), expected a hashable "
            "one, such as a function or a frozen dataclass."
        ) from None


def check_flag(name: str, value: Any) -> None:
    """Raise a `ValueError` if the value is not True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {value!r}, expected True or False.")


def check_function(name: str, function: Any, *takes: str, such_as: str) -> None:
    """Check that a function can be called with arguments named `takes`.

    Names that end in "=" are those of keywords.

    Raises:
        ValueError: it is not callable, or not with that many arguments.

    Example:
        >>> check_function("emit", abs, "state", "gates", such_as="jl.emit.hidden")
        Traceback (most recent call last):
        ValueError: emit: called as emit(state, gates): too many positional arguments.
    """
    call = f"({', '.join(takes)})"
    if not callable(function):
        raise ValueError(
            f"{name}: got {function!r:.60}, expected a function {call}; pass for "
            f"example {such_as}."
        )
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    try:
        positional = [name for name in takes if not name.endswith("=")]
        keywords = {name[:-1]: name for name in takes if name.endswith("=")}
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise ValueError(f"{name}: called as {name}{call}: {error}.") from None


def arrays(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None,
    lengths: ArrayLike | None,
    mask: ArrayLike | StepMask | None,
    resets: ArrayLike | None,
) -> Arrays:
    """Return parameters, features, first state and step mask as the engines take them.

    Raises:
        ValueError: the arguments do not fit together.
    """
    if not isinstance(cell, Cell):
        if hasattr(cell, "apply"):
            raise ValueError(
                "cell: got a Layer, expected a Cell; pass the layer's cell, such as "
                "jl.lstm(), and the params of that cell."
            )
        raise ValueError(
            f"cell: got {cell!r:.60}, expected a Cell; pass for example jl.lstm() or "
            "Cell(init, initial_state, project, step)."
        )
    if hasattr(params, "shape") and isinstance(xs, tuple | dict):
        raise ValueError(
            f"params: got {masking.described(params)}, expected the parameters of the "
            "cell; the arguments are cell, params, xs, in this order."
        )
    check_hashable("cell", cell)
    _check_functions(cell)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, np.ndarray):  # converted by the compiled program
            masking.check_dtype("params" + jax.tree_util.keystr(path), leaf.dtype)
        else:
            _as_leaf("params", path, leaf)
    xs = masking.features("xs", xs, spatial_axes=cell.spatial_axes)
    frame = xs.shape[: xs.ndim - 1 - cell.spatial_axes]
    initial_state = _initial_state(cell.initial_state, xs.shape[1:-1], xs.dtype)
    jax.eval_shape(cell.project, params, xs)
    like = jax.eval_shape(initial_state, params)
    state = initial_state(params) if state is None else cast_state(state, like)
    steps = masking.steps(frame, lengths=lengths, mask=mask, resets=resets)
    return params, xs, state, steps


@cached
def _check_functions(cell: Cell) -> None:
    """Raise a `ValueError` if a function of the cell takes other arguments."""
    takes = {
        "initial_state": ("params", "batch_shape", "dtype="),
        "project": ("params", "x"),
        "step": ("params", "state", "z"),
    }
    for name, arguments in takes.items():
        example = f"that of jl.lstm(), {name}({', '.join(arguments)})"
        check_function(f"cell.{name}", getattr(cell, name), *arguments, such_as=example)


@cached
def _initial_state(
    function: Callable[..., State], batch_shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[Params], State]:
    """Return one function object per kind of batch, so that JAX caches its trace."""
    return lambda params: function(params, batch_shape, dtype=dtype)


def _as_leaf(name: str, path: jax.tree_util.KeyPath, leaf: Any) -> Array:
    """Return the leaf as an array. The path is formatted only if it is not one."""
    if isinstance(leaf, Tracer) or (isinstance(leaf, Array) and not leaf.is_deleted()):
        return leaf
    return masking.as_array(name + jax.tree_util.keystr(path), leaf)


def cast_state(
    state: State,
    like: State,
    *,
    name: str = "state",
    shapes: Callable[[Any], Sequence[tuple[int, ...]]] = lambda like: (like.shape,),
) -> State:
    """Return the caller's state in the dtypes of the carry.

    A Python number stands for an array of that value.

    Args:
        state: the caller's state.
        like: arrays or structs with the dtypes and shapes of the carry.
        name: name of the argument.
        shapes: returns the shapes that a leaf may have.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    try:
        leaves = tree.flatten_up_to(state)
    except ValueError:
        raise ValueError(
            f"{name}: got {_describe(state)}, expected {_describe(like)}; pass the "
            "result of cell.initial_state or of an earlier call."
        ) from None

    def cast(path: jax.tree_util.KeyPath, like: Any, leaf: ArrayLike) -> Array:
        if type(leaf) in (int, float):
            return jnp.full(like.shape, leaf, like.dtype)
        array = _as_leaf(name, path, leaf)
        place = f"{name}{jax.tree_util.keystr(path)}"
        if (is_key(like) or is_key(array)) and array.dtype != like.dtype:
            raise ValueError(
                f"{place}: got dtype {array.dtype}, expected {like.dtype}."
            )
        if array.shape not in (allowed := shapes(like)):
            expected = " or ".join(map(show, dict.fromkeys(allowed)))
            raise ValueError(
                f"{place}: got shape {show(array.shape)}, expected {expected} "
                "for these xs and params."
            )
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(
                f"{place}: got dtype {array.dtype}, expected real numbers."
            )
        return array if is_key(like) else array.astype(like.dtype)

    pairs = zip(paths, leaves, strict=True)
    return tree.unflatten([cast(path, like, leaf) for (path, like), leaf in pairs])


def _describe(state: State) -> str:
    kind, fields = type(state).__name__, getattr(state, "_fields", ())
    return f"{kind}({', '.join(fields)})" if fields else kind
