"""Training with Optax on ragged data with resets, held to the core to the bit.

Each kind of module under `jit`, on one device and on an explicit mesh, beside the
functional core with the same parameters: losses and parameters of six steps of Adam.
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
OPTIMISED = True  # held to the bit: compile as users do

OPTIMISER = optax.adam(3e-2)
STEPS = 6


@pytest.fixture(autouse=True)
def relaxed():
    """Optax raises a float to a power that is an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def layer(name: str) -> jl.Layer:
    return getattr(ragged, name)()


def begin(name: str):
    return layer(name).init(jax.random.key(0), FEATURES)[0]


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


def streams() -> nnx.Rngs:
    return nnx.Rngs(jax.random.key(1, impl="rbg"))  # soon compiled


def by_core(name, batch, stream=None):
    def loss(params, batch, key):
        return core_loss(layer(name), params, batch, key)

    keys = [None if stream is None else stream() for _ in range(STEPS)]
    return descend(loss, begin(name), [(batch, key) for key in keys])


def by_nnx(name, batch):
    """With noise where the layer has it, from the module's own stream."""
    model = jl.modules.nnx.Recurrent(layer(name), FEATURES, rngs=streams())
    model.params = jax.tree.map(nnx.Param, begin(name))
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
    own = serialization.to_state_dict(begin(name))

    def loss(variables, batch):
        ys = model.apply(
            variables, batch.xs, seq_lengths=batch.lengths, resets=batch.resets
        )
        return error(ys, batch.targets)

    rest = [(batch,)] * STEPS
    losses, variables = descend(loss, {"params": {"layer": own}}, rest)
    after = serialization.from_state_dict(begin(name), variables["params"]["layer"])
    return losses, after


def on_one(by, name):
    return by(name, ragged.draw())


def on_an_explicit_mesh(by, name):
    mesh = ragged.explicit()
    with jax.set_mesh(mesh):
        return by(name, ragged.split(mesh, ragged.draw()))


@pytest.mark.parametrize("where", [on_one, on_an_explicit_mesh])
def test_training_is_the_core_s_to_the_bit(where):
    core = where(by_core, "both_ways")
    assert_equal(where(by_nnx, "both_ways"), core)
    assert_equal(where(by_linen, "both_ways"), core)
    assert core[0][-1] < 0.9 * core[0][0]


def test_training_with_dropout_is_the_core_s_to_the_bit():
    """The key of each step is the next of the fork that the module keeps."""
    rngs = streams()
    rngs.params()  # as the module does when it is made
    by = functools.partial(by_core, stream=rngs.dropout.fork())
    core = on_an_explicit_mesh(by, "noisy")
    assert_equal(on_an_explicit_mesh(by_nnx, "noisy"), core)
