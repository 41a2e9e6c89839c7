"""Wrappers that draw noise: zoneout and three ways to drop.

Noise is a function of the key and of the shapes: not of the engine, nor of
`checkpoint_every`, nor of any value. A wrapper that draws splits the key between
itself and the cell inside. One key is one noise:

    windows     with a sequence cut into windows, the same key keeps the mask that
                `variational_dropout` and `weight_drop` hold for a whole sequence;
                a mask for each step repeats with the windows, unless the number of
                the window is folded into the key
    resets      a reset draws no new mask
    shard_map   every device draws the same noise for its rows, unless the caller
                folds the index of the device into the key
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells import base
from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, PerStep, Reported, State
from jaxlstm.cells.wrapping import (
    Beside,
    check_cell,
    checked_rate,
    dropped,
    inside,
    kept,
    part,
    prepared,
    split,
    state_of,
    step,
    then,
    with_each,
)
from jaxlstm.typing import Features, Hidden, Key, reshard_like


def zoneout(cell: Cell, *, h_rate: float = 0.0, c_rate: float = 0.0) -> Cell:
    """Each unit keeps its old value with some probability; a mask for each step:

        h_t = d ⊙ h_{t-1} + (1 - d) ⊙ h̃_t          d ~ Bernoulli(h_rate)
        c_t = e ⊙ c_{t-1} + (1 - e) ⊙ c̃_t          e ~ Bernoulli(c_rate)

    where h̃_t, c̃_t are what the cell makes of h_{t-1}, c_{t-1}: h̃_t shows c̃_t, not
    c_t. Without a key, d and e are what they are in expectation, h_rate and c_rate.

    Arguments:
        cell: one whose state has h where h_rate is not 0, and c where c_rate is not.
        h_rate, c_rate: from 0 to below 1.

    Errors: `ValueError` for another rate; in a step, for a state without h or c.

    Reference: Krueger et al., "Zoneout", 2017, https://arxiv.org/abs/1606.01305

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
        checked_rate("zoneout", "h_rate", h_rate),
        checked_rate("zoneout", "c_rate", c_rate),
    )


class _Zones(NamedTuple):
    """True where the new value is taken, None where nothing is random."""

    h: Array | None = None
    c: Array | None = None


@functools.cache
def _zoneout(cell: Cell, h_rate: float, c_rate: float) -> Cell:
    rates = {name: r for name, r in (("h", h_rate), ("c", c_rate)) if r > 0}

    def bring(params: Params, xs: Features, key: Key | None) -> tuple[_Zones, Any]:
        h_key, c_key, key = split(key, 2)
        keys, state, masks = {"h": h_key, "c": c_key}, state_of(cell, params, xs), {}
        for name, rate in rates.items():
            shape = part(state, name, f"zoneout: {name}_rate").shape
            masks[name] = kept(keys[name], rate, xs, (len(xs), *shape))
        return _Zones(**masks), key

    @functools.wraps(cell.step)
    def zoned(
        params: Params, state: State, z: Beside, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        after, gates = step(cell, params, state, z.inner, edit)
        values = {}
        for name, rate in rates.items():
            old = part(state, name, f"zoneout: {name}_rate")
            values[name] = _mixed(old, getattr(after, name), getattr(z.own, name), rate)
        return (after._replace(**values) if values else after), gates

    return with_each(cell, bring, _Zones())._replace(step=zoned)


def _mixed(old: Hidden, new: Hidden, keep_new: Array | None, rate: float) -> Hidden:
    """`rate * old + (1 - rate) * new`, or by a mask one or the other."""
    old = reshard_like(new, old)
    if keep_new is None:
        return rate * old + (1 - rate) * new
    return jnp.where(reshard_like(new, keep_new), new, old)


def variational_dropout(
    cell: Cell, *, x_rate: float = 0.0, h_rate: float = 0.0
) -> Cell:
    """Dropout on x and on h as the recurrent product reads it, one mask a sequence:

        x_t, h_{t-1}  ->  x_t ⊙ m / (1 - x_rate),  h_{t-1} ⊙ n / (1 - h_rate)

    with m `[*b, D]` ~ Bernoulli(1 - x_rate) and n `[*b, H]` ~ Bernoulli(1 - h_rate),
    drawn once for each row and used at every step. What the state keeps of h is not
    dropped. Without a key it is the cell, bit for bit.

    Arguments:
        cell: one whose step takes `edit`, where h_rate is not 0.
        x_rate, h_rate: from 0 to below 1.

    Errors: `ValueError` for another rate, and for a cell whose step takes no edit.

    Reference: Gal and Ghahramani, "A theoretically grounded application of dropout in
    recurrent neural networks", 2016, https://arxiv.org/abs/1512.05287

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.variational_dropout(jl.lstm(), x_rate=0.25, h_rate=0.25)
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> xs = jnp.ones((7, 2, 3))
    >>> _, hs = jl.unroll(cell, params, xs)
    >>> _, noisy = jl.unroll(cell, params, xs, key=jax.random.key(1))
    >>> bool((hs[:, 0] == hs[:, 1]).all()), bool((noisy[:, 0] == noisy[:, 1]).all())
    (True, False)
    """
    x_rate = checked_rate("variational_dropout", "x_rate", x_rate)
    h_rate = checked_rate("variational_dropout", "h_rate", h_rate)
    check_cell("variational_dropout", cell, editable=h_rate > 0)
    return _variational_dropout(cell, x_rate, h_rate)


class _Masked(NamedTuple):
    """The parameters for one sequence, and what it keeps of x and h: `[*b, D or H]`."""

    params: Params
    x: Array | None = None
    h: Array | None = None


@functools.cache
def _variational_dropout(cell: Cell, x_rate: float, h_rate: float) -> Cell:
    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[_Masked, PerStep]:
        x_key, h_key, key = split(key, 2)
        x, h = kept(x_key, x_rate, xs, xs.shape[1:]), None
        if h_rate > 0:
            state = state_of(cell, params, xs)
            shape = part(state, "h", "variational_dropout: h_rate").shape
            h = kept(h_key, h_rate, xs, shape)
        params, each = prepared(cell, params, xs, key)
        return _Masked(params, x, h), each

    def project(params: Params, x: Array, each: PerStep = None) -> Any:
        params = _masked(params)
        return base.project(cell, params.params, dropped(x, params.x, x_rate), each)

    @functools.wraps(cell.step)
    def reading(
        params: Params, state: State, z: Any, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        params = _masked(params)
        if h_rate > 0:
            read = then(lambda h: dropped(h, params.h, h_rate), edit.hidden)
            edit = edit._replace(hidden=read)
        return step(cell, params.params, state, z, edit)

    return inside(cell, lambda params: _masked(params).params)._replace(
        prepare=prepare, project=project, step=reading
    )


def _masked(params: Params) -> _Masked:
    """The params of a sequence; without masks where nobody has prepared them."""
    return params if isinstance(params, _Masked) else _Masked(params)


def recurrent_dropout(cell: Cell, rate: float) -> Cell:
    """Dropout on what is written, never on what is remembered; a mask for each step:

        g_t  ->  g_t ⊙ m_t / (1 - rate)          m_t ~ Bernoulli(1 - rate), `[*b, H]`

    so that c_t = f ⊙ c_{t-1} + i ⊙ (g_t ⊙ m_t / (1 - rate)), and what c holds is not
    worn away by long sequences. Without a key it is the cell, bit for bit.

    Arguments:
        cell: one whose step takes `edit`, and has a candidate.
        rate: from 0 to below 1.

    Errors: `ValueError` for another rate, and for a cell whose step takes no edit; in
    a step, for a cell without a candidate.

    Reference: Semeniuta et al., "Recurrent dropout without memory loss", 2016,
    https://arxiv.org/abs/1603.05118

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.recurrent_dropout(jl.lstm(), 0.5)
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=100)
    >>> xs, key = jnp.ones((1, 3)), jax.random.key(1)
    >>> _, written = jl.unroll(cell, params, xs, key=key, emit=jl.emit.trace)
    >>> 30 < int((written.gates.g == 0).sum()) < 70
    True
    """
    check_cell("recurrent_dropout", cell, editable=True)
    return _recurrent_dropout(cell, checked_rate("recurrent_dropout", "rate", rate))


@functools.cache
def _recurrent_dropout(cell: Cell, rate: float) -> Cell:
    def bring(
        params: Params, xs: Features, key: Key | None
    ) -> tuple[Array | None, Key | None]:
        own, key = split(key, 1)
        state = state_of(cell, params, xs)  # a candidate has the shape of the memory
        name = "c" if "c" in getattr(state, "_fields", ()) else "h"
        shape = part(state, name, "recurrent_dropout").shape
        return kept(own, rate, xs, (len(xs), *shape)), key

    @functools.wraps(cell.step)
    def writing(
        params: Params, state: State, z: Beside, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        write = then(lambda g: dropped(g, z.own, rate), edit.candidate)
        return step(cell, params, state, z.inner, edit._replace(candidate=write))

    return with_each(cell, bring, None)._replace(step=writing)


def weight_drop(cell: Cell, rate: float) -> Cell:
    """DropConnect on the recurrent weights, one mask a sequence for all rows:

        w_h  ->  w_h ⊙ m / (1 - rate)          m ~ Bernoulli(1 - rate), as w_h

    for every leaf of the params that is named `w_h`. Without a key it is the cell, bit
    for bit.

    Arguments:
        cell: one with such a leaf in its params.
        rate: from 0 to below 1.

    Errors: `ValueError` for another rate; from `init` and `prepare`, for params
    without a leaf `w_h`.

    Reference: Merity et al., "Regularizing and optimizing LSTM language models", 2018,
    https://arxiv.org/abs/1708.02182

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.weight_drop(jl.lstm(), 0.5)
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> for_one_sequence, _ = cell.prepare(
    ...     params, jnp.ones((7, 2, 3)), key=jax.random.key(1)
    ... )
    >>> 30 < int((for_one_sequence.w_h == 0).sum()) < 70
    True
    """
    check_cell("weight_drop", cell)
    return _weight_drop(cell, checked_rate("weight_drop", "rate", rate))


@functools.cache
def _weight_drop(cell: Cell, rate: float) -> Cell:
    def init(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> Params:
        params = cell.init(key, input_size, hidden_size, dtype=dtype)
        _recurrent_weights(params)
        return params

    def prepare(
        params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        own, key = split(key, 1)
        paths = _recurrent_weights(params)
        keys = (
            (None,) * len(paths) if own is None else jax.random.split(own, len(paths))
        )
        key_of = dict(zip(paths, keys, strict=True))

        def one(path: jax.tree_util.KeyPath, w: Array) -> Array:
            if path not in key_of or key_of[path] is None or rate == 0:
                return w
            keep = jax.random.uniform(key_of[path], w.shape, jnp.float32) >= rate
            return dropped(w, keep, rate)

        params = jax.tree_util.tree_map_with_path(one, params)
        return prepared(cell, params, xs, key)

    return cell._replace(init=init, prepare=prepare)


def _recurrent_weights(params: Params) -> list[jax.tree_util.KeyPath]:
    """The paths of the leaves that are named `w_h`.

    Errors: `ValueError` where there are none.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [
        path
        for path, _ in leaves
        if path and jax.tree_util.keystr(path[-1:], simple=True) == "w_h"
    ]
    if not paths:
        raise ValueError(
            f"weight_drop: the params of this cell, a {type(params).__name__}, have no "
            "leaf named w_h; name the recurrent weights so."
        )
    return paths
