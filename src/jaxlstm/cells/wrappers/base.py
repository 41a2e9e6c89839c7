"""Shared parts of the wrappers: keys, masks, edits and per-step inputs.

A wrapper changes a cell in one or more of four ways:

    prepare              change the parameters once per sequence
    with_per_step        pass a value of its own to each step
    Edit                 apply a function to h, g or c inside the step
    with_outer_params    hold parameters besides those of the inner cell
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells import base
from jaxlstm.cells.base import (
    UNEDITED,
    Activation,
    Cell,
    Edit,
    Params,
    PerStep,
    Projection,
    Reported,
    State,
    apply_edit,
)
from jaxlstm.typing import Features, Key, is_explicit, on_mesh_of, reshard_like, show


class WrappedInput(NamedTuple):
    """The projection z of the inner cell, and the wrapper's own per-step value."""

    inner: Any
    own: Any


# (params, xs, key) -> the wrapper's value for each step, `[T, *b, ...]`, and the key
# that is left for the inner cell.
PerStepFn = Callable[[Params, Features, Key | None], tuple[Any, Key | None]]


def with_per_step(cell: Cell, per_step_fn: PerStepFn, default: Any) -> Cell:
    """Return the cell with z replaced by `WrappedInput(z, own)`.

    `own` is one step of the value of `per_step_fn`, or `default` if `prepare` was not
    called. The caller must replace `step` by one that accepts such a z.
    """

    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        own, key = per_step_fn(params, xs, key)
        params, inner = prepare_inner(cell, params, xs, key)
        return params, WrappedInput(inner, own)

    def project(params: Params, x: Array, per_step: PerStep = None) -> WrappedInput:
        inner, own = WrappedInput(None, default) if per_step is None else per_step
        return WrappedInput(base.project(cell, params, x, inner), own)

    return cell._replace(prepare=prepare, project=project)


def with_outer_params(cell: Cell, get_inner: Callable[[Params], Params]) -> Cell:
    """Return the cell with params that are a record with the cell's in `params`.

    Args:
        cell: the inner cell.
        get_inner: returns the params of `cell` from those of the record.
    """

    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        return cell.initial_state(get_inner(params), batch_shape, dtype=dtype)

    def project(params: Params, x: Array, per_step: PerStep = None) -> Projection:
        return base.project(cell, get_inner(params), x, per_step)

    @functools.wraps(cell.step)
    def inner_step(
        params: Params, state: State, z: Projection, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        return edited_step(cell, get_inner(params), state, z, edit)

    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        inner, per_step = prepare_inner(cell, get_inner(params), xs, key)
        return params._replace(params=inner), per_step

    return cell._replace(
        initial_state=initial_state, project=project, step=inner_step, prepare=prepare
    )


def inner_params(record: type, params: Params) -> Params:
    """Return `params.params`.

    Raises:
        ValueError: params is not a `record`.
    """
    if not isinstance(params, record):
        fields = ", ".join(getattr(record, "_fields", ()))
        raise ValueError(
            f"params: got {type(params).__name__}, expected {record.__name__}"
            f"({fields}); use the params that cell.init returns."
        )
    return params.params


def prepare_inner(
    cell: Cell, params: Params, xs: Features, key: Key | None
) -> tuple[Params, PerStep]:
    """Call the cell's `prepare`; return `(params, None)` if it has none."""
    return (params, None) if cell.prepare is None else cell.prepare(params, xs, key=key)


def edited_step(
    cell: Cell, params: Params, state: State, z: Projection, edit: Edit
) -> tuple[State, Reported]:
    """Call the cell's step, with `edit` only if there is one to apply."""
    step_with_edit: Callable[..., tuple[State, Reported]] = cell.step
    if edit == UNEDITED:
        return cell.step(params, state, z)
    return step_with_edit(params, state, z, edit=edit)


def compose_edits(inner: Activation, outer: Activation | None) -> Activation:
    """Return the edit of an inner wrapper followed by that of an outer one, if any."""
    return inner if outer is None else lambda value: apply_edit(outer, inner(value))


def state_struct(cell: Cell, params: Params, xs: Features) -> State:
    """Return shapes and dtypes of the state for a batch like xs, by `eval_shape`."""
    batch_shape, dtype = xs.shape[1:-1], xs.dtype
    return jax.eval_shape(
        lambda params: cell.initial_state(params, batch_shape, dtype=dtype), params
    )


def state_field(state: State, name: str, option: str) -> Any:
    """Return `state.h` or `state.c`.

    Raises:
        ValueError: the state has no such field; the message begins with `option`.
    """
    if name not in getattr(state, "_fields", ()):
        raise ValueError(
            f"{option}: got a cell with state {type(state).__name__}"
            f"({', '.join(getattr(state, '_fields', ()))}), expected a state with "
            f"field {name}; leave the option out or use another cell."
        )
    return getattr(state, name)


# -- noise ---------------------------------------------------------------------


def split_key(key: Key | None, count: int) -> tuple[Any, ...]:
    """Return `count` keys for the wrapper and one for the inner cell, or Nones."""
    if key is None:
        return (None,) * (count + 1)
    return tuple(jax.random.split(key, count + 1))


def keep_mask(
    key: Key | None, rate: float, xs: Features, shape: tuple[int, ...]
) -> Array | None:
    """Draw booleans of `shape`, True with probability 1 - rate.

    The mask depends on the key and the shape only. On an explicit mesh its rows are
    sharded like those of xs.

    Args:
        key: None for no noise.
        rate: probability of False.
        xs: features `[T, *b, D]`; only their sharding is read.
        shape: `[T, *b, H]` or `[*b, H]`.

    Returns:
        The mask, or None if the key is None or the rate is 0.
    """
    if key is None or rate == 0:
        return None
    drawn = jax.random.uniform(key, shape, jnp.float32) >= rate
    sharding = jax.typeof(xs).sharding
    if not is_explicit(sharding):
        return drawn
    rows = sharding.spec[xs.ndim - len(shape) : -1]
    return jax.sharding.reshard(drawn, on_mesh_of(xs, *rows, None))


def apply_dropout(value: Array, keep: Array | None, rate: float) -> Array:
    """Return `value / (1 - rate)` where kept and 0 elsewhere.

    The mask is broadcast to leading axes of the value. Without a mask the value is
    returned unchanged.
    """
    if keep is None:
        return value
    keep = reshard_like(value, jnp.broadcast_to(keep, value.shape))
    return jnp.where(keep, value / (1 - rate), 0.0)


# -- checks of arguments ---------------------------------------------------------


def check_cell(wrapper: str, cell: Cell, *, editable: bool = False) -> None:
    """Check that `cell` is a `Cell` and, if `editable`, that its step takes `edit`.

    Raises:
        ValueError: it is not, or does not.
    """
    if not isinstance(cell, Cell):
        raise ValueError(
            f"{wrapper}: cell: got {cell!r:.60}, expected a Cell; pass for example "
            "jl.lstm() or Cell(init, initial_state, project, step)."
        )
    if editable and "edit" not in inspect.signature(cell.step).parameters:
        raise ValueError(
            f"{wrapper}: cell: got a cell whose step takes no edit, expected one that "
            "does; define it as step(params, state, z, *, edit=UNEDITED)."
        )


def check_rate(wrapper: str, name: str, rate: float) -> float:
    """Return the rate as a Python float.

    Raises:
        ValueError: the rate is not a number with 0 <= rate < 1.
    """
    is_number = isinstance(rate, int | float | np.integer | np.floating)
    if not is_number or not 0 <= rate < 1:
        raise ValueError(
            f"{wrapper}: {name}: got {rate!r}, expected a number with 0 <= {name} < 1."
        )
    return float(rate)


def check_state_shapes(
    name: str, state: State, like: State, *, leading: tuple[int, ...] = ()
) -> None:
    """Check that a state has the structure and shapes of another.

    Args:
        name: name of the state for the message.
        state: the state to check.
        like: arrays or `ShapeDtypeStruct`s with the expected shapes.
        leading: axes that the leaves of `state` have before those of `like`.

    Raises:
        ValueError: structure or shapes differ.
    """
    expected = {
        jax.tree_util.keystr(path): (*leading, *leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    got = {
        jax.tree_util.keystr(path): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    same_tree = jax.tree.structure(state) == jax.tree.structure(like)
    if not same_tree or got != expected:
        raise ValueError(
            f"{name}: got {_format(state, got)}, expected {_format(like, expected)}."
        )


def _format(state: State, shapes: dict[str, tuple[int, ...]]) -> str:
    leaves = (f"{name.lstrip('.')} {show(shape)}" for name, shape in shapes.items())
    return f"{type(state).__name__}({', '.join(leaves)})"
