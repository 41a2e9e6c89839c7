"""Keras on its JAX backend: `layers.LSTM` and `layers.GRU`, batch first, stateless."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from benchmarks.cases import Case, Kind, Weights
from benchmarks.peers import jitted
from benchmarks.peers.base import merge_gate_axis

Array = jax.Array
ZRN = np.array([1, 0, 2])  # its order of the gates of a GRU


@functools.cache
def _layer(cell: Kind, features: int, units: int, reverse: bool) -> Any:
    kind = keras.layers.GRU if cell == "gru" else keras.layers.LSTM
    layer = kind(units, return_sequences=True, go_backwards=reverse)
    layer.build((None, None, features))
    return layer


@functools.cache
def _cell(features: int, units: int) -> Any:
    cell = keras.layers.LSTMCell(units)
    cell.build((None, features))
    return cell


def _load(case: Case, weights: Weights) -> list[Array]:
    """Return the weights; a GRU has gates in another order and two rows of biases."""
    if case.cell == "gru":
        w_x, w_h, b = weights
        biases = np.stack([b[ZRN], 0 * b])
        weights = Weights(w_x[:, ZRN], w_h[:, ZRN], biases)
    return [jnp.asarray(merge_gate_axis(leaf)) for leaf in weights]


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Array:
    """Run a layer; Keras returns the outputs of a reversed one in reversed order."""
    layer = _layer(case.cell, xs.shape[-1], case.units, reverse)
    steps = jnp.arange(xs.shape[1])
    mask = None if lengths is None else steps < lengths[:, None]
    rest = [v.value for v in layer.non_trainable_variables]
    hs, _ = layer.stateless_call(params, rest, xs, mask=mask)
    return jnp.flip(hs, axis=1) if reverse else hs


def _step(case: Case, params: Any, state: Any, x: Array) -> tuple[Any, Array]:
    cell = _cell(case.features, case.units)
    rest = [v.value for v in cell.non_trainable_variables]
    (h, state), _ = cell.stateless_call(params, rest, x, state)
    return state, h


def _start(case: Case) -> Any:
    zeros = jnp.zeros((case.batch, case.units))
    return [zeros, jnp.copy(zeros)]


SUPPORTS = jitted.supports_plain_cells("Keras", lengths=True)
LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=1)
CONTENDERS = (jitted.contender("keras", "keras", SUPPORTS, LAYERS),)
