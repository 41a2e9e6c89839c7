"""A learned initial state."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells.base import Cell, Params, State, as_batch_shape
from jaxlstm.cells.wrappers.base import (
    check_cell,
    check_state_shapes,
    inner_params,
    with_outer_params,
)
from jaxlstm.construction import cached, constructor
from jaxlstm.typing import Key, exportable


@exportable
class Learned(NamedTuple):
    """Parameters of the inner cell, and its initial state with leaves `[H]`."""

    params: Params
    state: State


@constructor
def learned_initial_state(cell: Cell) -> Cell:
    """Make the initial state a parameter, the same for every row:

        h_0, c_0 = params.state        broadcast from `[H]` to `[*b, H]`

    It is used at the start of a sequence, unless a state is given, and at every reset.
    Params are `Learned(params, state)`; `init` sets the state to the initial state of
    the inner cell, zeros for every cell of this library.

    Raises:
        ValueError: when used, if params are not `Learned` or their state does not have
            the shapes of the cell's state.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.learned_initial_state(jl.lstm())
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> def loss(params):
        ...     _, hs = jl.unroll(cell, params, jnp.ones((7, 2, 3)))
        ...     return (hs**2).sum()
        >>> gradient = jax.grad(loss)(params)
        >>> gradient.state.c.shape, bool((gradient.state.c != 0).all())
        ((5,), True)
    """
    check_cell("learned_initial_state", cell)
    return _learned_initial_state(cell)


@cached
def _learned_initial_state(cell: Cell) -> Cell:
    def init(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> Learned:
        params = cell.init(key, input_size, hidden_size, dtype=dtype)
        return Learned(params, cell.initial_state(params))

    learned = with_outer_params(cell, functools.partial(inner_params, Learned))

    def initial_state(
        params: Learned,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        like = jax.eval_shape(lambda p: learned.initial_state(p, dtype=dtype), params)
        check_state_shapes("learned_initial_state: params.state", params.state, like)
        batch = as_batch_shape(batch_shape)

        def broadcast(like: jax.ShapeDtypeStruct, leaf: Array) -> Array:
            return jnp.broadcast_to(leaf.astype(like.dtype), (*batch, *like.shape))

        return jax.tree.map(broadcast, like, params.state)

    return learned._replace(init=init, initial_state=initial_state)
