"""What a caller hands to `unroll`, made into arrays or refused in a sentence.

Everything that can be found wrong is found here, before an engine is entered; what an
engine's program stumbles over is put into the words of the caller.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import Cell, Params, State, project
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, show

Arrays = tuple[Params, Features, State, StepMask]


@contextlib.contextmanager
def translate_jax_errors(cell: Cell, arrays: Arrays) -> Iterator[None]:
    """What JAX says of a step that does not fit, or of memory, said in our words."""
    try:
        yield
    except TypeError as error:
        sentence = _misfit(cell, *arrays)
        if sentence is None:
            raise
        raise ValueError(sentence) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            error.add_note(f"unroll: {OUT_OF_MEMORY}")
        raise


OUT_OF_MEMORY = (
    'checkpoint_every="sqrt" remembers √T of T states for the way back and computes '
    "the rest again; emit=jl.emit.nothing stacks no outputs; a batch of fewer rows, or "
    "a long sequence in several calls that carry the state on, need less still."
)


def _misfit(
    cell: Cell, params: Params, xs: Features, state: State, steps: StepMask
) -> str | None:
    """How the state after a step differs from the state before it, if it does."""

    def step(params: Params, xs: Features, state: State) -> State:
        each = None
        if cell.prepare is not None:
            params, each = cell.prepare(params, xs)
        first = jax.tree.map(lambda leaf: leaf[0], (xs, each))
        return cell.step(params, state, project(cell, params, *first))[0]

    if len(xs) == 0:
        return None
    after = _leaves(jax.eval_shape(step, params, xs, state))
    for name, before in _leaves(state).items():
        came, gone = _typed(before), _typed(after.pop(name, None))
        if came != gone:
            return (
                f"the cell's step turns state{name}, {came}, into {gone}; a step must "
                "give back what it got, for example with .astype(state.h.dtype)."
            )
    return f"the cell's step adds state{next(iter(after))}." if after else None


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _typed(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype} {show(leaf.shape)}"


def check_hashable(name: str, value: Any) -> None:
    """Errors: `ValueError` for what `jit` could not tell from another."""
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be hashed ({error}), and is part of what a program is "
            "compiled for; a function can be, and so can a frozen dataclass."
        ) from None


def check_flag(name: str, value: Any) -> None:
    """Errors: `ValueError` for what is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {value!r}; True or False is needed.")


def check_function(name: str, function: Any, *takes: str, such_as: str) -> None:
    """Errors: `ValueError` for what cannot be called with so many arguments.

    >>> check_function("emit", abs, "state", "gates", such_as="jl.emit.hidden")
    Traceback (most recent call last):
    ValueError: emit is called as emit(state, gates): too many positional arguments.
    """
    call = f"({', '.join(takes)})"
    if not callable(function):
        raise ValueError(
            f"{name} is {function!r:.60}; a function {call} is needed, such as "
            f"{such_as}."
        )
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some have none, or none that can be read
        return
    try:
        signature.bind(*takes)
    except TypeError as error:
        raise ValueError(f"{name} is called as {name}{call}: {error}.") from None


def arrays(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    resets: ArrayLike | None,
) -> Arrays:
    """Parameters, features, first state and steps, as the engines take them.

    Errors: `ValueError` for what does not fit together, in the caller's names.
    """
    if not isinstance(cell, Cell):
        if hasattr(cell, "apply"):
            raise ValueError(
                "cell is a layer; the cell that it was made of is needed, such as "
                "jl.lstm(), and of the layer's parameters those of that cell."
            )
        raise ValueError(
            f"cell is {cell!r:.60}; a Cell is needed, such as jl.lstm() gives or "
            "Cell(init, initial_state, project, step)."
        )
    check_hashable("cell", cell)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not isinstance(leaf, np.ndarray):
            _as_leaf("params", path, leaf)
    xs = masking.features("xs", xs, spatial_axes=cell.spatial_axes)
    frame = xs.shape[: xs.ndim - 1 - cell.spatial_axes]
    begin = _beginning(cell, xs.shape[1:-1], xs.dtype)
    jax.eval_shape(cell.project, params, xs)
    wanted = jax.eval_shape(begin, params)
    state = begin(params) if state is None else _conform(state, wanted)
    steps = masking.steps(frame, lengths=lengths, mask=mask, resets=resets)
    return params, xs, state, steps


@functools.lru_cache
def _beginning(
    cell: Cell, batch_shape: tuple[int, ...], dtype: np.dtype
) -> Callable[[Params], State]:
    """One object for each kind of batch, so that JAX knows it again and is quick."""
    return functools.partial(cell.initial_state, batch_shape=batch_shape, dtype=dtype)


def _as_leaf(name: str, path: jax.tree_util.KeyPath, leaf: Any) -> Array:
    """The leaf as an array; its place is only put into words where it is none."""
    if isinstance(leaf, Tracer) or (isinstance(leaf, Array) and not leaf.is_deleted()):
        return leaf
    return masking.as_array(name + jax.tree_util.keystr(path), leaf)


def _conform(state: State, wanted: State) -> State:
    """The caller's state, in the dtypes that the cell carries it in.

    A number in place of an array is the value of every unit.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(wanted)
    try:
        leaves = tree.flatten_up_to(state)
    except ValueError:
        raise ValueError(
            f"state is {_describe(state)}; this cell wants {_describe(wanted)}. Take "
            "it from cell.initial_state or from an earlier call."
        ) from None

    def one(path: jax.tree_util.KeyPath, want: Any, leaf: ArrayLike) -> Array:
        if type(leaf) in (int, float):
            return jnp.full(want.shape, leaf, want.dtype)
        name = f"state{jax.tree_util.keystr(path)}"
        array = _as_leaf("state", path, leaf)
        if array.shape != want.shape:
            raise ValueError(
                f"{name} has shape {show(array.shape)}; for this xs and these params "
                f"{show(want.shape)} is needed."
            )
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(
                f"{name} has dtype {array.dtype}; real numbers are needed."
            )
        return array.astype(want.dtype)

    pairs = zip(paths, leaves, strict=True)
    return tree.unflatten([one(path, want, leaf) for (path, want), leaf in pairs])


def _describe(state: State) -> str:
    kind, fields = type(state).__name__, getattr(state, "_fields", ())
    return f"{kind}({', '.join(fields)})" if fields else f"a {kind}"
