"""Ragged batches with resets, and helpers, for the tests of both kinds of modules."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlstm as jl

KINDS = ("nnx", "linen")
ROWS, TIME, FEATURES, HIDDEN = 8, 6, 3, 5
LENGTHS = np.array([0, 6, 3, 2, 5, 1, 4, 6], np.int32)


class Batch(NamedTuple):
    """`xs [B, T, D]` with NaN in the padding, `targets [B, T, 2]`, and step options."""

    xs: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    resets: np.ndarray


def draw(rows: int = ROWS) -> Batch:
    """Return inputs, and running sums that restart at each reset as targets."""
    rng = np.random.default_rng(4)
    xs = rng.normal(size=(rows, TIME, FEATURES)).astype(np.float32)
    resets = rng.random((rows, TIME)) < 0.3
    targets = np.zeros((rows, TIME, 2), np.float32)
    total = np.zeros((rows, 2), np.float32)
    for t in range(TIME):
        total = np.where(resets[:, t, None], 0, total) + xs[:, t, :2]
        targets[:, t] = total
    lengths = LENGTHS[:rows]
    padding = np.arange(TIME) >= lengths[:, None]
    xs[padding], targets[padding] = np.nan, 0
    return Batch(xs, targets, lengths, resets)


def split(mesh: jax.sharding.Mesh, batch: Batch) -> Batch:
    """Shard the rows over the mesh."""

    def one(value: np.ndarray) -> jax.Array:
        return jax.device_put(value, NamedSharding(mesh, P("data")))

    return jax.tree.map(one, batch)


def explicit() -> jax.sharding.Mesh:
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))


def noisy() -> jl.Layer:
    """Return a recurrent layer, dropout and a linear layer."""
    return jl.serial(jl.recurrent(jl.lstm(), HIDDEN), jl.dropout(0.3), jl.linear(2))


def both_directions() -> jl.Layer:
    """Return a bidirectional layer and a linear layer, without noise."""
    return jl.serial(jl.stack(jl.lstm(), (HIDDEN,), bidirectional=True), jl.linear(2))


def error(ys: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((ys - targets) ** 2)


def core_loss(layer: jl.Layer, params, batch: Batch, key=None) -> jax.Array:
    """Return the loss of the layer itself, with time moved to axis 0."""
    _, ys = layer.apply(
        params,
        jnp.moveaxis(batch.xs, 1, 0),
        key=key,
        lengths=batch.lengths,
        resets=jnp.moveaxis(batch.resets, 1, 0),
    )
    return error(jnp.moveaxis(ys, 0, 1), batch.targets)


def assert_equal(one, other) -> None:
    """Assert equal structures and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one, other) -> None:
    """Assert equality up to the rounding of another order of sums in float32."""

    def close(a, b) -> None:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    jax.tree.map(close, one, other)


def pure(model: nnx.Module):
    """Return the parameters of an nnx module as arrays."""
    return jax.tree.map(
        lambda variable: variable[...],
        model.params,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


def ours(kind: str, **options):
    """Return the LSTM of `jl.modules` from 3 features to 5 as a function of inputs."""
    if kind == "nnx":
        return jl.modules.nnx.LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **options)
    module = jl.modules.linen.LSTM(HIDDEN, **options)
    variables = module.init(jax.random.key(0), jnp.ones((2, 1, 1, FEATURES))[0])

    def call(inputs, **rest):
        return module.apply(variables, inputs, **rest)

    return call


def theirs(kind: str):
    """Return the `RNN` of Flax as a function of inputs.

    In nnx it is built inside the call, because it refuses streams of an outer trace.
    """
    if kind == "linen":
        module = linen.RNN(linen.OptimizedLSTMCell(HIDDEN))
        variables = module.init(jax.random.key(0), jnp.ones((1, 1, FEATURES)))
        return lambda inputs, **rest: module.apply(variables, inputs, **rest)

    def call(inputs, **rest):
        rngs = nnx.Rngs(0)
        cell = nnx.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=rngs)
        return nnx.RNN(cell, rngs=rngs)(inputs, **rest)

    return call
