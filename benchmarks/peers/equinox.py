"""Equinox: `LSTMCell`, scanned over time and mapped over the batch, batch first."""

from typing import Any

import equinox
import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Weights
from benchmarks.peers import jitted
from benchmarks.peers.base import merge_gate_axis

Array = jax.Array


def _load(case: Case, weights: Weights) -> Any:
    """Return a cell with these weights."""
    cell = _empty(weights.w_x.shape[0], case.units)
    own = tuple(jnp.asarray(merge_gate_axis(leaf).T) for leaf in weights)
    return equinox.tree_at(
        lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias), cell, own
    )


def _empty(features: int, units: int) -> equinox.nn.LSTMCell:
    return equinox.nn.LSTMCell(features, units, key=jax.random.key(0))


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Array:
    def row(xs: Array) -> Array:
        def step(state: Any, x: Array) -> tuple[Any, Array]:
            state = params(x, state)
            return state, state[0]

        zeros = jnp.zeros(case.units)
        return jax.lax.scan(step, (zeros, zeros), xs, reverse=reverse)[1]

    return jax.vmap(row)(xs)


def _step(case: Case, params: Any, state: Any, x: Array) -> tuple[Any, Array]:
    state = jax.vmap(params)(x, state)
    return state, state[0]


def _start(case: Case) -> Any:
    zeros = jnp.zeros((case.batch, case.units))
    return zeros, jnp.copy(zeros)


SUPPORTS = jitted.supports_plain_lstm("Equinox", lengths=False)
LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=1)
CONTENDERS = (jitted.contender("equinox", "equinox", SUPPORTS, LAYERS),)
