"""Flax nnx: `nnx.RNN` over `OptimizedLSTMCell` or `GRUCell`, batch first.

`nnx.jit` traverses the module in Python at each call. The functional form by split and
merge is measured, which Flax's documentation recommends for speed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.cases import Case, Kind, Weights
from benchmarks.peers import jitted
from benchmarks.peers.base import merge_gate_axis

Array = jax.Array


@functools.cache
def _split(cell: Kind, features: int, units: int, reverse: bool) -> Any:
    """Return graph definition, parameters and other state of an initialised module."""
    rngs = nnx.Rngs(0)
    kind = nnx.GRUCell if cell == "gru" else nnx.OptimizedLSTMCell
    one = kind(features, units, rngs=rngs)
    rnn = nnx.RNN(one, reverse=reverse, keep_order=True, rngs=rngs)
    return nnx.split(rnn, nnx.Param, ...)


def _load(case: Case, weights: Weights) -> Any:
    """Return one dense layer each for x and h, gates concatenated.

    The bias is with h in an LSTM and with x in a GRU.
    """
    _, params, _ = _split(case.cell, weights.w_x.shape[0], case.units, False)
    w_x, w_h, b = (jnp.asarray(merge_gate_axis(leaf)) for leaf in weights)
    own = {"dense_i": {"kernel": w_x}, "dense_h": {"kernel": w_h}}
    own["dense_i" if case.cell == "gru" else "dense_h"]["bias"] = b
    params = jax.tree.map(jnp.copy, params)
    nnx.replace_by_pure_dict(params, {"cell": own})
    return params


def _merged(case: Case, params: Any, features: int, reverse: bool) -> Any:
    definition, _, rest = _split(case.cell, features, case.units, reverse)
    return nnx.merge(definition, params, rest)


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Array:
    rnn = _merged(case, params, xs.shape[-1], reverse)
    return rnn(xs, initial_carry=_start(case), seq_lengths=lengths)


def _step(case: Case, params: Any, state: Any, x: Array) -> tuple[Any, Array]:
    return _merged(case, params, case.features, False).cell(state, x)


def _start(case: Case) -> Any:
    zeros = jnp.zeros((case.batch, case.units))
    return zeros if case.cell == "gru" else (zeros, jnp.copy(zeros))


SUPPORTS = jitted.supports_plain_cells("nnx", lengths=True)
LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=1)
CONTENDERS = (jitted.contender("flax nnx", "flax", SUPPORTS, LAYERS),)
