"""Keras on its JAX backend: `layers.LSTM`, batch first, called without state."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras

from benchmarks.cases import Case, Weights
from benchmarks.peers import jitted
from benchmarks.peers.base import merge_gate_axis

Array = jax.Array


@functools.cache
def _layer(features: int, units: int, reverse: bool) -> Any:
    layer = keras.layers.LSTM(units, return_sequences=True, go_backwards=reverse)
    layer.build((None, None, features))
    return layer


@functools.cache
def _cell(features: int, units: int) -> Any:
    cell = keras.layers.LSTMCell(units)
    cell.build((None, features))
    return cell


def _load(case: Case, weights: Weights) -> list[Array]:
    return [jnp.asarray(merge_gate_axis(leaf)) for leaf in weights]


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Array:
    """Run a layer; Keras returns the outputs of a reversed one in reversed order."""
    layer = _layer(xs.shape[-1], case.units, reverse)
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


SUPPORTS = jitted.supports_plain_lstm("Keras", lengths=True)
LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=1)
CONTENDERS = (jitted.contender("keras", "keras", SUPPORTS, LAYERS),)
