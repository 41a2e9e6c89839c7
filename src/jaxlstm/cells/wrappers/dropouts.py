"""Variational and recurrent dropout."""

import functools
from typing import Any, NamedTuple

from jax import Array

from jaxlstm.cells import base
from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, PerStep, Reported, State
from jaxlstm.cells.wrappers.base import (
    WrappedInput,
    apply_dropout,
    check_cell,
    check_rate,
    compose_edits,
    edited_step,
    keep_mask,
    prepare_inner,
    split_key,
    state_field,
    state_struct,
    with_outer_params,
    with_per_step,
)
from jaxlstm.construction import cached, constructor
from jaxlstm.typing import Features, Key


@constructor
def variational_dropout(
    cell: Cell, *, x_rate: float = 0.0, h_rate: float = 0.0
) -> Cell:
    """Apply dropout to x and to the recurrent input h, with one mask per sequence:

        x_t, h_{t-1}  ->  x_t ⊙ m / (1 - x_rate),  h_{t-1} ⊙ n / (1 - h_rate)

    with m `[*b, D]` ~ Bernoulli(1 - x_rate) and n `[*b, H]` ~ Bernoulli(1 - h_rate),
    drawn once for each row and used at every step. h is dropped only where the
    recurrent product reads it, not in the state. Without a key the results are those
    of the cell, bit for bit.

    Args:
        cell: a cell whose step takes `edit` if h_rate is not 0.
        x_rate: probability with 0 <= x_rate < 1.
        h_rate: probability with 0 <= h_rate < 1.

    Raises:
        ValueError: a rate is out of range, or the step takes no `edit`.

    Reference:
        Gal and Ghahramani, "A theoretically grounded application of dropout in
        recurrent neural networks", 2016, https://arxiv.org/abs/1512.05287

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.variational_dropout(jl.lstm(), x_rate=0.25, h_rate=0.25)
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> xs = jnp.ones((7, 2, 3))
        >>> _, hs = jl.unroll(cell, params, xs)
        >>> _, noisy = jl.unroll(cell, params, xs, key=jax.random.key(1))
        >>> bool((hs[:, 0] == hs[:, 1]).all()), bool((noisy[:, 0] == noisy[:, 1]).all())
        (True, False)
    """
    x_rate = check_rate("variational_dropout", "x_rate", x_rate)
    h_rate = check_rate("variational_dropout", "h_rate", h_rate)
    check_cell("variational_dropout", cell, editable=h_rate > 0)
    return _variational_dropout(cell, x_rate, h_rate)


class _Masked(NamedTuple):
    """Parameters for one sequence, and its masks of x `[*b, D]` and h `[*b, H]`."""

    params: Params
    x: Array | None = None
    h: Array | None = None


@cached
def _variational_dropout(cell: Cell, x_rate: float, h_rate: float) -> Cell:
    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[_Masked, PerStep]:
        x_key, h_key, key = split_key(key, 2)
        x, h = keep_mask(x_key, x_rate, xs, xs.shape[1:]), None
        if h_rate > 0:
            state = state_struct(cell, params, xs)
            shape = state_field(state, "h", "variational_dropout: h_rate").shape
            h = keep_mask(h_key, h_rate, xs, shape)
        params, per_step = prepare_inner(cell, params, xs, key)
        return _Masked(params, x, h), per_step

    def project(params: Params, x: Array, per_step: PerStep = None) -> Any:
        params = _masked(params)
        x = apply_dropout(x, params.x, x_rate)
        return base.project(cell, params.params, x, per_step)

    @functools.wraps(cell.step)
    def dropout_step(
        params: Params, state: State, z: Any, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        params = _masked(params)
        if h_rate > 0:
            drop = compose_edits(
                lambda h: apply_dropout(h, params.h, h_rate), edit.hidden
            )
            edit = edit._replace(hidden=drop)
        return edited_step(cell, params.params, state, z, edit)

    return with_outer_params(cell, lambda params: _masked(params).params)._replace(
        prepare=prepare, project=project, step=dropout_step
    )


def _masked(params: Params) -> _Masked:
    """Return params with masks; without masks if `prepare` was not called."""
    return params if isinstance(params, _Masked) else _Masked(params)


@constructor
def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    """Apply dropout to the candidate, with a mask for each step:

        g_t  ->  g_t ⊙ m_t / (1 - rate)          m_t ~ Bernoulli(1 - rate), `[*b, H]`

    so that c_t = f ⊙ c_{t-1} + i ⊙ (g_t ⊙ m_t / (1 - rate)). The cell state itself is
    never dropped, so long sequences do not erode it. Without a key the results are
    those of the cell, bit for bit.

    Args:
        cell: a cell with a candidate, whose step takes `edit`.
        rate: probability with 0 <= rate < 1.

    Raises:
        ValueError: the rate is out of range, or the step takes no `edit`; in a step,
            the cell has no candidate.

    Reference:
        Semeniuta et al., "Recurrent dropout without memory loss", 2016,
        https://arxiv.org/abs/1603.05118

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.recurrent_dropout(jl.lstm(), 0.5)
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=100)
        >>> xs, key = jnp.ones((1, 3)), jax.random.key(1)
        >>> _, trace = jl.unroll(cell, params, xs, key=key, emit=jl.emit.trace)
        >>> 30 < int((trace.gates.g == 0).sum()) < 70
        True
    """
    check_cell("recurrent_dropout", cell, editable=True)
    return _recurrent_dropout(cell, check_rate("recurrent_dropout", "rate", rate))


@cached
def _recurrent_dropout(cell: Cell, rate: float) -> Cell:
    def per_step_mask(
        params: Params, xs: Features, key: Key | None
    ) -> tuple[Array | None, Key | None]:
        own, key = split_key(key, 1)
        state = state_struct(cell, params, xs)
        # The candidate has the shape of c, or of h in a cell without c.
        name = "c" if "c" in getattr(state, "_fields", ()) else "h"
        shape = state_field(state, name, "recurrent_dropout").shape
        return keep_mask(own, rate, xs, (xs.shape[0], *shape)), key

    @functools.wraps(cell.step)
    def dropout_step(
        params: Params, state: State, z: WrappedInput, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        drop = compose_edits(lambda g: apply_dropout(g, z.own, rate), edit.candidate)
        return edited_step(cell, params, state, z.inner, edit._replace(candidate=drop))

    return with_per_step(cell, per_step_mask, None)._replace(step=dropout_step)
