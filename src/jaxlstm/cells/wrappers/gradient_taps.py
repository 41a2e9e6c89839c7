"""Taps: zeros added to the states, whose gradient is the gradient of the states."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, Reported, State
from jaxlstm.cells.wrappers.base import (
    WrappedInput,
    check_cell,
    check_state_shapes,
    edited_step,
    inner_params,
    state_struct,
    with_outer_params,
    with_per_step,
)
from jaxlstm.construction import cached, constructor
from jaxlstm.typing import Features, Key, exportable


@exportable
class Tapped(NamedTuple):
    """Parameters of the inner cell, and taps: None or a state of `[T, *b, H]`."""

    params: Params
    taps: State | None


@constructor
def taps(cell: Cell) -> Cell:
    """Add taps to the state after each step:

        h_t, c_t  ->  h_t + taps.h[t],  c_t + taps.c[t]

    With taps of zero, the gradient with respect to the taps is dL/dh_t and dL/dc_t at
    every t. Both are partial derivatives with respect to the state that the step
    returns: h_t is computed before the taps are added, so its dependence on c_t counts
    in dL/dh_t only. The gradient is 0 at masked and padded steps.

    Params are `Tapped(params, taps)`. `init` sets taps to None, which adds nothing;
    otherwise they are a state with leaves `[T, *b, H]`, as `jl.emit.states` stacks it.

    Raises:
        ValueError: when used, if params are not `Tapped` or the taps have wrong shapes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.taps(jl.lstm())
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> xs = jnp.ones((7, 2, 3))
        >>> _, states = jl.unroll(cell, params, xs, emit=jl.emit.states)
        >>> def loss(taps):
        ...     state, _ = jl.unroll(cell, params._replace(taps=taps), xs)
        ...     return state.h.sum()
        >>> flow = jax.grad(loss)(jax.tree.map(jnp.zeros_like, states))
        >>> flow.c.shape, bool((flow.h[-1] == 1).all()), bool((flow.c[-1] == 0).all())
        ((7, 2, 5), True, True)
    """
    check_cell("taps", cell)
    return _taps(cell)


@cached
def _taps(cell: Cell) -> Cell:
    def init(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> Tapped:
        return Tapped(cell.init(key, input_size, hidden_size, dtype=dtype), None)

    inner = with_outer_params(cell, functools.partial(inner_params, Tapped))

    def per_step_taps(
        params: Tapped, xs: Features, key: Key | None
    ) -> tuple[State | None, Key | None]:
        if params.taps is not None:
            like = state_struct(inner, params, xs)
            check_state_shapes(
                "taps: params.taps", params.taps, like, leading=xs.shape[:1]
            )
        return params.taps, key

    @functools.wraps(cell.step)
    def tapped_step(
        params: Tapped, state: State, z: WrappedInput, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        after, gates = edited_step(inner, params, state, z.inner, edit)
        if z.own is None:
            return after, gates
        return jax.tree.map(lambda a, t: a + t.astype(a.dtype), after, z.own), gates

    return with_per_step(inner, per_step_taps, None)._replace(
        init=init, step=tapped_step
    )
