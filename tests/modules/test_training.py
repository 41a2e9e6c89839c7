"""Training with Optax on ragged data with resets, held to the core to the bit.

Each kind of module under `jit`, on one device and on an explicit mesh, beside the
functional core with the same parameters: losses and parameters of six steps of Adam.
"""

import jax
import numpy as np
import optax
import pytest
import ragged
from flax import nnx, serialization
from ragged import FEATURES, assert_equal, core_loss, error, pure

import jaxlstm as jl

OPTIMISER = optax.adam(3e-2)
BATCH = ragged.draw()
STEPS = 6


@pytest.fixture(autouse=True)
def relaxed():
    """Optax raises a float to a power that is an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def descend(loss, params, rest):
    """Losses and parameters of plain Optax, one entry of `rest` for each step."""

    @jax.jit
    def step(params, moments, rest):
        value, gradients = jax.value_and_grad(loss)(params, *rest)
        updates, moments = OPTIMISER.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value

    moments, losses = OPTIMISER.init(params), []
    for one in rest:
        params, moments, value = step(params, moments, one)
        losses.append(float(value))
    return losses, params


def by_nnx(layer, batch):
    """With noise where the layer has it: the module's key is the stream's."""
    model = jl.modules.nnx.Recurrent(layer, FEATURES, rngs=nnx.Rngs(0))
    optimiser = nnx.Optimizer(model, OPTIMISER, wrt=nnx.Param)
    begin, stream, losses = pure(model), nnx.clone(model.rngs), []

    @nnx.jit
    def step(model, optimiser, batch):
        def loss(model):
            ys = model(batch.xs, seq_lengths=batch.lengths, resets=batch.resets)
            return error(ys, batch.targets)

        value, gradients = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradients)
        return value

    for _ in range(STEPS):
        losses.append(float(step(model, optimiser, batch)))
    keys = [None if stream is None else stream() for _ in range(STEPS)]
    wanted = descend(
        lambda params, batch, key: core_loss(layer, params, batch, key),
        begin,
        [(batch, key) for key in keys],
    )
    return (losses, pure(model)), wanted


def by_linen(layer, batch):
    model = jl.modules.linen.Recurrent(layer, deterministic=True)
    variables = model.init(jax.random.key(0), np.zeros_like(batch.xs))
    begin = layer.init(jax.random.key(1), FEATURES)[0]
    begin = serialization.from_state_dict(begin, variables["params"]["layer"])

    def loss(variables, batch):
        ys = model.apply(
            variables, batch.xs, seq_lengths=batch.lengths, resets=batch.resets
        )
        return error(ys, batch.targets)

    losses, variables = descend(loss, variables, [(batch,)] * STEPS)
    wanted = descend(
        lambda params, batch: core_loss(layer, params, batch),
        begin,
        [(batch,)] * STEPS,
    )
    after = serialization.from_state_dict(begin, variables["params"]["layer"])
    return (losses, after), wanted


def on_one(by, layer):
    return by(layer, BATCH)


def on_an_explicit_mesh(by, layer):
    mesh = ragged.explicit()
    with jax.set_mesh(mesh):
        return by(layer, ragged.split(mesh, BATCH))


@pytest.mark.parametrize("where", [on_one, on_an_explicit_mesh])
@pytest.mark.parametrize("by", [by_nnx, by_linen])
def test_training_is_the_core_s_to_the_bit(by, where):
    module, core = where(by, ragged.both_ways())
    assert_equal(module, core)
    assert module[0][-1] < 0.8 * module[0][0]


def test_training_with_dropout_is_the_core_s_to_the_bit():
    module, core = on_an_explicit_mesh(by_nnx, ragged.deep())
    assert_equal(module, core)
