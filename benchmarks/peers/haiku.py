"""Haiku: `dynamic_unroll` of `hk.LSTM`, time first."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, Weights
from benchmarks.peers import jitted
from benchmarks.peers.base import merge_gate_axis

Array = jax.Array
IGFO = np.array([0, 2, 1, 3])  # its order of gates


def _load(case: Case, weights: Weights) -> Any:
    """Return one matrix for [x, h] and the bias, without the 1 that Haiku adds to f."""
    w_x, w_h, b = weights
    fused = np.concatenate([w_x, w_h])[:, IGFO]
    bias = (b - np.eye(4, dtype=np.float32)[1][:, None])[IGFO]
    return {"lstm/linear": {"w": merge_gate_axis(fused), "b": merge_gate_axis(bias)}}


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Array:
    def network(xs: Array) -> Any:
        core = hk.LSTM(case.units)
        start = core.initial_state(case.batch)
        return hk.dynamic_unroll(core, xs, start, reverse=reverse)[0]

    return hk.without_apply_rng(hk.transform(network)).apply(params, xs)


def _step(case: Case, params: Any, state: Any, x: Array) -> tuple[Any, Array]:
    core = hk.transform(lambda x, state: hk.LSTM(case.units)(x, state))
    h, state = hk.without_apply_rng(core).apply(params, x, state)
    return state, h


def _start(case: Case) -> Any:
    zeros = jnp.zeros((case.batch, case.units))
    return hk.LSTMState(zeros, jnp.copy(zeros))


PLAIN = jitted.supports_plain_cells("Haiku", lengths=False)


def supports(case: Case) -> str | None:
    """Return why a case is not supported: its GRU is that of the paper."""
    if case.cell == "gru":
        return "Haiku applies the reset gate before the recurrent product"
    return PLAIN(case)


LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=0)
CONTENDERS = (jitted.contender("haiku", "dm-haiku", supports, LAYERS),)
