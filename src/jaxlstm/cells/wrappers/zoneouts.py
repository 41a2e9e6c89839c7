"""Zoneout: units that keep their previous value at random."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, Reported, State
from jaxlstm.cells.wrappers.base import (
    WrappedInput,
    check_cell,
    check_rate,
    edited_step,
    keep_mask,
    split_key,
    state_field,
    state_struct,
    with_per_step,
)
from jaxlstm.construction import cached, constructor
from jaxlstm.typing import Features, Hidden, Key, reshard_like


@constructor
def zoneout(cell: Cell, *, h_rate: float = 0.0, c_rate: float = 0.0) -> Cell:
    """Keep the previous value of each unit with some probability:

        h_t = d ⊙ h_{t-1} + (1 - d) ⊙ h̃_t          d ~ Bernoulli(h_rate)
        c_t = e ⊙ c_{t-1} + (1 - e) ⊙ c̃_t          e ~ Bernoulli(c_rate)

    h̃_t and c̃_t are the cell's new state for h_{t-1} and c_{t-1}; h̃_t is computed from
    c̃_t, not from c_t. Masks are drawn for every step. Without a key, d and e are
    replaced by their expectations h_rate and c_rate.

    Args:
        cell: a cell whose state has h if h_rate is not 0, and c if c_rate is not.
        h_rate: probability with 0 <= h_rate < 1.
        c_rate: probability with 0 <= c_rate < 1.

    Raises:
        ValueError: a rate is out of range; when used, the state lacks h or c.

    Reference:
        Krueger et al., "Zoneout", 2017, https://arxiv.org/abs/1606.01305

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.zoneout(jl.lstm(), h_rate=0.5)
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=100)
        >>> _, hs = jl.unroll(cell, params, jnp.ones((2, 3)), key=jax.random.key(1))
        >>> 30 < int((hs[0] == hs[1]).sum()) < 70
        True
    """
    check_cell("zoneout", cell)
    return _zoneout(
        cell,
        check_rate("zoneout", "h_rate", h_rate),
        check_rate("zoneout", "c_rate", c_rate),
    )


class _UpdateMasks(NamedTuple):
    """Masks that are True where a unit takes its new value; None without noise."""

    h: Array | None = None
    c: Array | None = None


@cached
def _zoneout(cell: Cell, h_rate: float, c_rate: float) -> Cell:
    rates = {name: r for name, r in (("h", h_rate), ("c", c_rate)) if r > 0}

    def per_step_masks(
        params: Params, xs: Features, key: Key | None
    ) -> tuple[_UpdateMasks, Any]:
        h_key, c_key, key = split_key(key, 2)
        keys, masks = {"h": h_key, "c": c_key}, {}
        state = state_struct(cell, params, xs)
        for name, rate in rates.items():
            shape = state_field(state, name, f"zoneout: {name}_rate").shape
            masks[name] = keep_mask(keys[name], rate, xs, (xs.shape[0], *shape))
        return _UpdateMasks(**masks), key

    @functools.wraps(cell.step)
    def zoneout_step(
        params: Params, state: State, z: WrappedInput, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        after, gates = edited_step(cell, params, state, z.inner, edit)
        values = {}
        for name, rate in rates.items():
            old = state_field(state, name, f"zoneout: {name}_rate")
            new, update = getattr(after, name), getattr(z.own, name)
            values[name] = _interpolate(old, new, update, rate)
        return (after._replace(**values) if values else after), gates

    return with_per_step(cell, per_step_masks, _UpdateMasks())._replace(
        step=zoneout_step
    )


def _interpolate(old: Hidden, new: Hidden, update: Array | None, rate: float) -> Hidden:
    """Select new or old by the mask; without one return their expectation."""
    old = reshard_like(new, old)
    if update is None:
        return rate * old + (1 - rate) * new
    return jnp.where(reshard_like(new, update), new, old)
