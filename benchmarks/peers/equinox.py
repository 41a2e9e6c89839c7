"""Equinox: `LSTMCell` or `GRUCell`, scanned, mapped over the batch, batch first."""

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
    features, (w_x, w_h, b) = weights.w_x.shape[0], weights
    key, own = jax.random.key(0), [merge_gate_axis(w).T for w in (w_x, w_h, b)]
    if case.cell == "gru":
        cell = equinox.nn.GRUCell(features, case.units, key=key)
        names, own = ("weight_ih", "weight_hh", "bias", "bias_n"), [*own, 0 * b[2]]
    else:
        cell = equinox.nn.LSTMCell(features, case.units, key=key)
        names = ("weight_ih", "weight_hh", "bias")
    return equinox.tree_at(
        lambda cell: [getattr(cell, name) for name in names],
        cell,
        [jnp.asarray(leaf) for leaf in own],
    )


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Array:
    zeros = jnp.zeros(case.units)
    start = zeros if case.cell == "gru" else (zeros, zeros)

    def row(xs: Array) -> Array:
        def step(state: Any, x: Array) -> tuple[Any, Array]:
            state = params(x, state)
            return state, state if case.cell == "gru" else state[0]

        return jax.lax.scan(step, start, xs, reverse=reverse)[1]

    return jax.vmap(row)(xs)


def _step(case: Case, params: Any, state: Any, x: Array) -> tuple[Any, Array]:
    state = jax.vmap(params)(x, state)
    return state, state[0]


def _start(case: Case) -> Any:
    zeros = jnp.zeros((case.batch, case.units))
    return zeros, jnp.copy(zeros)


SUPPORTS = jitted.supports_plain_cells("Equinox", lengths=False)
LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=1)
CONTENDERS = (jitted.contender("equinox", "equinox", SUPPORTS, LAYERS),)
