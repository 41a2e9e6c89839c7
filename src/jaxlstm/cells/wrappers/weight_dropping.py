"""DropConnect on the recurrent weights."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells.base import Cell, Params, PerStep
from jaxlstm.cells.wrappers.base import (
    apply_dropout,
    check_cell,
    check_rate,
    prepare_inner,
    split_key,
)
from jaxlstm.construction import cached, constructor
from jaxlstm.typing import Features, Key


@constructor
def weight_drop(cell: Cell, rate: float) -> Cell:
    """Apply DropConnect to the recurrent weights, one mask per sequence for all rows:

        w_h  ->  w_h ⊙ m / (1 - rate)          m ~ Bernoulli(1 - rate), as w_h

    for every leaf of the params that is named `w_h`. Without a key the results are
    those of the cell, bit for bit.

    Args:
        cell: a cell with such a leaf in its params.
        rate: probability with 0 <= rate < 1.

    Raises:
        ValueError: the rate is out of range; from `init` and `prepare`, the params
            have no leaf named `w_h`.

    Reference:
        Merity et al., "Regularizing and optimizing LSTM language models", 2018,
        https://arxiv.org/abs/1708.02182

    Example:
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
    return _weight_drop(cell, check_rate("weight_drop", "rate", rate))


@cached
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
        own, key = split_key(key, 1)
        paths = _recurrent_weights(params)
        keys = (
            (None,) * len(paths) if own is None else jax.random.split(own, len(paths))
        )
        key_of = dict(zip(paths, keys, strict=True))

        def drop(path: jax.tree_util.KeyPath, w: Array) -> Array:
            if path not in key_of or key_of[path] is None or rate == 0:
                return w
            keep = jax.random.uniform(key_of[path], w.shape, jnp.float32) >= rate
            return apply_dropout(w, keep, rate)

        params = jax.tree_util.tree_map_with_path(drop, params)
        return prepare_inner(cell, params, xs, key)

    return cell._replace(init=init, prepare=prepare)


def _recurrent_weights(params: Params) -> list[jax.tree_util.KeyPath]:
    """Return the paths of the leaves that are named `w_h`.

    Raises:
        ValueError: there is no such leaf.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [
        path
        for path, _ in leaves
        if path and jax.tree_util.keystr(path[-1:], simple=True) == "w_h"
    ]
    if not paths:
        raise ValueError(
            f"weight_drop: params: got {type(params).__name__} without a leaf named "
            "w_h, expected at least one; name the recurrent weights w_h."
        )
    return paths
