"""Wrappers: cell to cell, in any order, and more than one of a kind.

The inner wrapper acts first: `taps(zoneout(cell))` adds its taps to the state that
zoneout left. Three of them do not act after a step but reach into it, to one place of
the innermost cell, and there too the inner one acts first: `variational_dropout` to
h as the recurrent product reads it, `recurrent_dropout` to the candidate, `clip_cell`
to the cell state. So `zoneout(clip_cell(cell))` is `clip_cell(zoneout(cell))`.

>>> import jax, jax.numpy as jnp, jaxlstm as jl
>>> cell = jl.zoneout(jl.weight_drop(jl.lstm(), 0.5), h_rate=0.1, c_rate=0.5)
>>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
>>> xs = jnp.ones((7, 2, 3))
>>> state, hs = jl.unroll(cell, params, xs, key=jax.random.key(1))
>>> hs.shape, type(params).__name__
((7, 2, 5), 'LSTMParams')

The four that draw noise are in `jaxlstm.cells.noise`, which says what a key means.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, Reported, State
from jaxlstm.cells.noise import recurrent_dropout as recurrent_dropout
from jaxlstm.cells.noise import variational_dropout as variational_dropout
from jaxlstm.cells.noise import weight_drop as weight_drop
from jaxlstm.cells.noise import zoneout as zoneout
from jaxlstm.cells.wrapping import (
    Beside,
    check_cell,
    check_like,
    held,
    inside,
    state_of,
    step,
    then,
    with_each,
)
from jaxlstm.typing import Features, Key


class Learned(NamedTuple):
    """The parameters of a cell, and its initial state: leaves `[H]`."""

    params: Params
    state: State


class Tapped(NamedTuple):
    """The parameters of a cell, and its taps: None, or a state of `[T, *b, H]`."""

    params: Params
    taps: State | None


def clip_cell(cell: Cell, limit: float) -> Cell:
    """The cell state is kept within bounds, before it is shown and carried:

        c_t  ->  min(max(c_t, -limit), limit)

    No gradient flows back through a unit that is beyond them.

    Arguments:
        cell: one whose step takes `edit`, and has a cell state.
        limit: positive and finite.

    Errors: `ValueError` for another limit, and for a cell whose step takes no edit; in
    a step, for a cell without a cell state.

    Reference: Sak et al., "Long short-term memory recurrent neural network
    architectures for large scale acoustic modeling", 2014,
    https://www.isca-archive.org/interspeech_2014/sak14_interspeech.html

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.clip_cell(jl.lstm(), 0.1)
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> state, hs = jl.unroll(cell, params, jnp.ones((7, 2, 3)))
    >>> float(abs(state.c).max())
    0.10000000149011612
    """
    check_cell("clip_cell", cell, editable=True)
    number = isinstance(limit, int | float | np.integer | np.floating)
    if not number or not 0 < limit < math.inf:
        raise ValueError(
            f"clip_cell: limit is {limit!r}; a positive and finite number is needed."
        )
    return _clip_cell(cell, float(limit))


@functools.cache
def _clip_cell(cell: Cell, limit: float) -> Cell:
    @functools.wraps(cell.step)
    def clipped(
        params: Params, state: State, z: Any, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        keep = then(lambda c: jnp.clip(c, -limit, limit), edit.cell)
        return step(cell, params, state, z, edit._replace(cell=keep))

    return cell._replace(step=clipped)


def learned_initial_state(cell: Cell) -> Cell:
    """The initial state is a parameter, the same for every row:

        h_0, c_0 = params.state        broadcast from `[H]` to `[*b, H]`

    wherever a sequence begins: at its start, unless a state is given, and at every
    reset. Params are `Learned(params, state)`; `init` makes the state what the cell
    began with, zeros for every cell of this library.

    Errors: `ValueError` for params that are no `Learned`, or whose state has other
    shapes than the cell's.

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


@functools.cache
def _learned_initial_state(cell: Cell) -> Cell:
    def init(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> Learned:
        params = cell.init(key, input_size, hidden_size, dtype=dtype)
        return Learned(params, cell.initial_state(params))

    learned = inside(cell, functools.partial(held, Learned))

    def initial_state(
        params: Learned,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        like = jax.eval_shape(lambda p: learned.initial_state(p, dtype=dtype), params)
        check_like("learned_initial_state: params.state", params.state, like)

        def one(like: Any, leaf: Array) -> Array:
            return jnp.broadcast_to(
                leaf.astype(like.dtype), (*batch_shape, *like.shape)
            )

        return jax.tree.map(one, like, params.state)

    return learned._replace(init=init, initial_state=initial_state)


def taps(cell: Cell) -> Cell:
    """Places to read off the gradient that flows back through time, in zeros:

        h_t, c_t  ->  h_t + taps.h[t],  c_t + taps.c[t]

    right after each step. The gradient with respect to taps of zero is dL/dh_t and
    dL/dc_t at every t: with respect to what the step handed on, so that what reaches
    c_t by way of h_t, which was made before, counts in dL/dh_t. It is 0 where a step
    does not happen.

    Params are `Tapped(params, taps)`. `init` makes taps None, for none; they are a
    state with leaves `[T, *b, H]`, such as `jl.emit.states` stacks.

    Errors: `ValueError` for params that are no `Tapped`, and for taps of other shapes.

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


@functools.cache
def _taps(cell: Cell) -> Cell:
    def init(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> Tapped:
        return Tapped(cell.init(key, input_size, hidden_size, dtype=dtype), None)

    within = inside(cell, functools.partial(held, Tapped))

    def bring(
        params: Tapped, xs: Features, key: Key | None
    ) -> tuple[State | None, Key | None]:
        if params.taps is not None:
            like = state_of(within, params, xs)
            check_like("taps: params.taps", params.taps, like, before=(len(xs),))
        return params.taps, key

    @functools.wraps(cell.step)
    def tapped(
        params: Tapped, state: State, z: Beside, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        after, gates = step(within, params, state, z.inner, edit)
        if z.own is None:
            return after, gates
        return jax.tree.map(lambda a, t: a + t.astype(a.dtype), after, z.own), gates

    return with_each(within, bring, None)._replace(init=init, step=tapped)
