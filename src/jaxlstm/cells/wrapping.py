"""What the wrappers are made of: keys, masks, edits, and a place beside the cell's own.

A wrapper has four ways to do its work, and each is a few lines here or a `_replace`:
it changes the parameters once a sequence (`prepare`), brings something for each step
(`with_each`), reaches into the step (`Edit`), or holds parameters of its own
(`inside`).
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
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
    edited,
)
from jaxlstm.typing import Features, Key, is_explicit, reshard_like, show


class Beside(NamedTuple):
    """What the cell inside gets, and beside it what its wrapper brought."""

    inner: Any
    own: Any


# Of params, xs and the key: what the wrapper brings for each step, `[T, *b, ...]`,
# and the key for the cell inside.
Bring = Callable[[Params, Features, Key | None], tuple[Any, Key | None]]


def with_each(cell: Cell, bring: Bring, nothing: Any) -> Cell:
    """The cell with `Beside(z, own)` in place of z, own being one step of `bring`'s.

    Its `step` is still to be replaced by one that takes such a z. Where nobody calls
    `prepare`, own is `nothing`.
    """

    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        own, key = bring(params, xs, key)
        params, each = prepared(cell, params, xs, key)
        return params, Beside(each, own)

    def project(params: Params, x: Array, each: PerStep = None) -> Beside:
        inner, own = Beside(None, nothing) if each is None else each
        return Beside(base.project(cell, params, x, inner), own)

    return cell._replace(prepare=prepare, project=project)


def inside(cell: Cell, opened: Callable[[Params], Params]) -> Cell:
    """The cell whose params are a record that holds those of `cell` in `params`.

    Arguments:
        opened: of the record's params, those of `cell`.
    """

    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        return cell.initial_state(opened(params), batch_shape, dtype=dtype)

    def project(params: Params, x: Array, each: PerStep = None) -> Projection:
        return base.project(cell, opened(params), x, each)

    @functools.wraps(cell.step)
    def inner_step(
        params: Params, state: State, z: Projection, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        return step(cell, opened(params), state, z, edit)

    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        inner, each = prepared(cell, opened(params), xs, key)
        return params._replace(params=inner), each

    return cell._replace(
        initial_state=initial_state, project=project, step=inner_step, prepare=prepare
    )


def held(record: type, params: Params) -> Params:
    """`params.params`, or a `ValueError` where params are no such record."""
    if not isinstance(params, record):
        raise ValueError(
            f"params is a {type(params).__name__}; this cell wants "
            f"{record.__name__}({', '.join(getattr(record, '_fields', ()))}), such as "
            "its init draws."
        )
    return params.params


def prepared(
    cell: Cell, params: Params, xs: Features, key: Key | None
) -> tuple[Params, PerStep]:
    """What the cell's `prepare` gives, or params and nothing where it has none."""
    return (params, None) if cell.prepare is None else cell.prepare(params, xs, key=key)


def step(
    cell: Cell, params: Params, state: State, z: Projection, edit: Edit
) -> tuple[State, Reported]:
    """The cell's step, which need not take an edit where there is none."""
    takes_edit: Callable[..., tuple[State, Reported]] = cell.step
    if edit == UNEDITED:
        return cell.step(params, state, z)
    return takes_edit(params, state, z, edit=edit)


def then(first: Activation, second: Activation | None) -> Activation:
    """The edit of an inner wrapper, then that of an outer one, if there is one."""
    return first if second is None else lambda value: edited(second, first(value))


def state_of(cell: Cell, params: Params, xs: Features) -> State:
    """The shapes and dtypes of the state of a batch such as xs; nothing is computed."""
    batch_shape, dtype = xs.shape[1:-1], xs.dtype
    return jax.eval_shape(
        lambda params: cell.initial_state(params, batch_shape, dtype=dtype), params
    )


def part(state: State, name: str, what: str) -> Any:
    """`state.h` or `state.c`, or a `ValueError` that says what asked for it."""
    if name not in getattr(state, "_fields", ()):
        raise ValueError(
            f"{what} needs a cell whose state has {name}; this one's is a "
            f"{type(state).__name__}({', '.join(getattr(state, '_fields', ()))})."
        )
    return getattr(state, name)


# -- noise ---------------------------------------------------------------------


def split(key: Key | None, own: int) -> tuple[Any, ...]:
    """So many keys for the wrapper, and the last for the cell inside; None for none."""
    return (None,) * (own + 1) if key is None else tuple(jax.random.split(key, own + 1))


def kept(
    key: Key | None, rate: float, xs: Features, shape: tuple[int, ...]
) -> Array | None:
    """Booleans `[T, *b, H]` or `[*b, H]`, True with probability 1 - rate.

    None without a key, and where all would be True. They depend on nothing but the
    key and the shape, and their rows are split over an explicit mesh as those of xs.
    """
    if key is None or rate == 0:
        return None
    drawn = jax.random.uniform(key, shape, jnp.float32) >= rate
    kind = jax.typeof(xs).sharding
    if not is_explicit(kind):
        return drawn
    return jax.sharding.reshard(drawn, P(*kind.spec[xs.ndim - len(shape) : -1], None))


def dropped(value: Array, keep: Array | None, rate: float) -> Array:
    """`value / (1 - rate)` where it is kept and 0 elsewhere; the value without a mask.

    The value may have axes before those of the mask.
    """
    if keep is None:
        return value
    keep = reshard_like(value, jnp.broadcast_to(keep, value.shape))
    return jnp.where(keep, value / (1 - rate), 0.0)


# -- what a caller can get wrong -------------------------------------------------


def check_cell(wrapper: str, cell: Cell, *, editable: bool = False) -> None:
    """Errors: `ValueError` for no `Cell`, and for a step that cannot be edited."""
    if not isinstance(cell, Cell):
        raise ValueError(
            f"{wrapper}: cell is {cell!r:.60}; a Cell is needed, such as jl.lstm() "
            "gives or Cell(init, initial_state, project, step)."
        )
    if editable and "edit" not in inspect.signature(cell.step).parameters:
        raise ValueError(
            f"{wrapper}: the step of this cell takes no edit, so nothing can reach "
            "into it; write it as step(params, state, z, *, edit=UNEDITED)."
        )


def checked_rate(wrapper: str, name: str, rate: float) -> float:
    """The rate as a Python number.

    Errors: `ValueError` for a rate outside 0 <= rate < 1, NaN included.
    """
    number = isinstance(rate, int | float | np.integer | np.floating)
    if not number or not 0 <= rate < 1:
        raise ValueError(
            f"{wrapper}: {name} is {rate!r}; a number with 0 <= {name} < 1 is needed."
        )
    return float(rate)


def check_like(
    name: str, state: State, like: State, *, before: tuple[int, ...] = ()
) -> None:
    """Errors: `ValueError` where a state is not shaped as another, after the axes of
    `before`.
    """
    wanted = {
        jax.tree_util.keystr(path): (*before, *leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    came = {
        jax.tree_util.keystr(path): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    same = jax.tree.structure(state) == jax.tree.structure(like)
    if not same or came != wanted:
        raise ValueError(
            f"{name} is {_shapes(state, came)}; {_shapes(like, wanted)} is needed."
        )


def _shapes(state: State, shapes: dict[str, tuple[int, ...]]) -> str:
    leaves = (f"{name.lstrip('.')} {show(shape)}" for name, shape in shapes.items())
    return f"{type(state).__name__}({', '.join(leaves)})"
