"""Training a module with Optax gives the bits of training its layer.

Losses and parameters of six steps of Adam on ragged data with resets, under `jit`, on
one device and on an explicit mesh.
"""

import functools

import jax
import optax
import pytest
import ragged
from flax import nnx, serialization
from ragged import FEATURES, assert_equal, core_loss, error, pure

import jaxlstm as jl

pytestmark = pytest.mark.thorough
OPTIMISED = True  # bits are compared: compile with the flags of users

OPTIMISER = optax.adam(3e-2)
STEPS = 6


@pytest.fixture(autouse=True)
def relaxed():
    """Allow promotion: Optax raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def layer(name: str) -> jl.Layer:
    return getattr(ragged, name)()


def initial_params(name: str):
    return layer(name).init(jax.random.key(0), FEATURES)[0]


def train(loss, params, rest):
    """Return losses and parameters of plain Optax; `rest` has an entry per step."""

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


def streams() -> nnx.Rngs:
    return nnx.Rngs(jax.random.key(1, impl="rbg"))  # this generator compiles fast


def by_core(name, batch, stream=None):
    def loss(params, batch, key):
        return core_loss(layer(name), params, batch, key)

    keys = [None if stream is None else stream() for _ in range(STEPS)]
    return train(loss, initial_params(name), [(batch, key) for key in keys])


def by_nnx(name, batch):
    """Train the nnx module, with noise from its own stream if the layer has any."""
    model = jl.modules.nnx.Recurrent(layer(name), FEATURES, rngs=streams())
    model.params = jax.tree.map(nnx.Param, initial_params(name))
    optimiser = nnx.Optimizer(model, OPTIMISER, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimiser, batch):
        def loss(model):
            ys = model(batch.xs, seq_lengths=batch.lengths, resets=batch.resets)
            return error(ys, batch.targets)

        value, gradients = nnx.value_and_grad(loss)(model)
        optimiser.update(model, gradients)
        return value

    losses = [float(step(model, optimiser, batch)) for _ in range(STEPS)]
    return losses, pure(model)


def by_linen(name, batch):
    model = jl.modules.linen.Recurrent(layer(name))
    own = serialization.to_state_dict(initial_params(name))

    def loss(variables, batch):
        ys = model.apply(
            variables, batch.xs, seq_lengths=batch.lengths, resets=batch.resets
        )
        return error(ys, batch.targets)

    rest = [(batch,)] * STEPS
    losses, variables = train(loss, {"params": {"layer": own}}, rest)
    after = serialization.from_state_dict(
        initial_params(name), variables["params"]["layer"]
    )
    return losses, after


def on_one(by, name):
    return by(name, ragged.draw())


def on_an_explicit_mesh(by, name):
    mesh = ragged.explicit()
    with jax.set_mesh(mesh):
        return by(name, ragged.split(mesh, ragged.draw()))


@pytest.mark.parametrize("where", [on_one, on_an_explicit_mesh])
def test_training_gives_the_bits_of_the_layer(where):
    core = where(by_core, "both_directions")
    assert_equal(where(by_nnx, "both_directions"), core)
    assert_equal(where(by_linen, "both_directions"), core)
    assert core[0][-1] < 0.9 * core[0][0]


def test_training_with_dropout_gives_the_bits_of_the_layer():
    """The key of each step is the next key of the fork that the module keeps."""
    rngs = streams()
    rngs.params()  # the module draws its params first
    by = functools.partial(by_core, stream=rngs.dropout.fork())
    core = on_an_explicit_mesh(by, "noisy")
    assert_equal(on_an_explicit_mesh(by_nnx, "noisy"), core)
