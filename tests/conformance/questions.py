"""Comparison of a cell with a peer: the same values and every gradient."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same

os.environ.setdefault("KERAS_BACKEND", "jax")

TIME, ROWS, FEATURES, HIDDEN = 6, 3, 4, 5
LENGTHS = np.array([1, TIME, 4], np.int32)


class Question(NamedTuple):
    """Parameters, inputs and a non-zero state."""

    params: Any
    xs: jax.Array
    state: Any


def ask(params_of, state_of, frame: tuple[int, ...] = ()) -> Question:
    """Draw random numbers in the shapes of a cell's `init` and `initial_state`."""
    rng = np.random.default_rng(51)

    def draw(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)

    params = draw(jax.eval_shape(params_of, jax.random.key(0)))
    state = draw(jax.eval_shape(lambda: state_of(params, (ROWS, *frame))))
    xs = jnp.asarray(rng.normal(size=(TIME, ROWS, *frame, FEATURES)))
    return Question(params, xs, state)


def question(cell: jl.Cell, frame: tuple[int, ...] = ()) -> Question:
    return ask(lambda key: cell.init(key, FEATURES, HIDDEN), cell.initial_state, frame)


def agree(cell: jl.Cell, asked: Question, peer, *, active=None, **options) -> None:
    """Assert that `peer(params, xs, state) -> (state, hs)` equals the cell."""

    def ours(params, xs, state):
        return jl.unroll(cell, params, xs, state, **options)

    def theirs(params, xs, state):
        state, hs = peer(params, xs, state)
        return state, hs if active is None else jnp.where(active[..., None], hs, 0.0)

    rng = np.random.default_rng(52)
    shapes = jax.eval_shape(ours, *asked)
    cotangents = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)
    got, expected = (pulled(run, asked, cotangents) for run in (ours, theirs))
    assert_same(got, expected)


def pulled(run, asked: Question, cotangents):
    @jax.jit
    def values_and_gradients(asked, cotangents):
        out, pull = jax.vjp(run, *asked)
        return out, pull(cotangents)

    return values_and_gradients(asked, cotangents)


def joined(weight, order: str, names: str):
    """Reorder the gate axis and merge it with the last one: `[..., gates * H]`."""
    taken = weight[..., [names.index(gate) for gate in order], :]
    return taken.reshape(*weight.shape[:-2], -1)


def active_steps(masking: str):
    """Return None, or bool `[T, b]`: leading steps of each row, or random ones."""
    if masking == "none":
        return None
    if masking == "lengths":
        return np.arange(TIME)[:, None] < LENGTHS
    active = np.random.default_rng(53).random((TIME, ROWS)) < 0.7
    active[:, 0] = False  # a row of no steps
    return active


def scanned(cell, state, xs, shown=lambda state: state[0]):
    """Scan a peer that has only single steps: `cell(x, state) -> state`."""

    def step(state, x):
        state = cell(x, state)
        return state, shown(state)

    return jax.lax.scan(step, state, xs)


def keras_layer(name: str, *size, reverse: bool = False, **options):
    """Return the layer with non-zero dropout rates, unused outside of training."""
    keras = pytest.importorskip("keras")
    return getattr(keras.layers, name)(
        *size,
        return_sequences=True,
        return_state=True,
        go_backwards=reverse,
        activation=jnp.tanh,  # its own is exact to float32 only
        dropout=0.3,
        recurrent_dropout=0.4,
        dtype="float64",
        **options,
    )


def keras_run(layer, weights, xs, state, mask, reverse: bool):
    """Return the last state and the outputs at their own t; Keras reverses them."""
    extra = [v.value for v in layer.non_trainable_variables]
    (hs, *last), _ = layer.stateless_call(
        weights,
        extra,
        xs.swapaxes(0, 1),
        initial_state=list(state),
        mask=None if mask is None else jnp.asarray(mask.T),
    )
    hs = hs.swapaxes(0, 1)
    return type(state)(*last), hs[::-1] if reverse else hs


def haiku_run(core_of, weights, xs, state):
    """Return the core unrolled over the sequence with these weights."""
    haiku = pytest.importorskip("haiku")

    def network(xs, state):
        hs, last = haiku.dynamic_unroll(core_of(haiku), xs, state)
        return last, hs

    return haiku.without_apply_rng(haiku.transform(network)).apply(weights, xs, state)
