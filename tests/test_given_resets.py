"""Resets to a given state, and burn-in, equal the float64 oracle on every engine."""

import shutil
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, assert_same, draw, same_bits
from oracle import backward, forward

CELL = jl.lstm()
SHAPE = Shape(7, (3,), 2, 4)
KINDS = [
    Kind(masking, True, reverse)
    for masking, reverse in product(("none", "lengths", "mask"), (False, True))
]
DEFAULT = {("scan", 1), ("scan", 4), ("adjoint", 2), ("adjoint", 5), ("native", 3)}


@pytest.fixture(autouse=True, scope="module")
def kernel():
    """Load the kernel, if there is a compiler."""
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        jl.engines.native.load()


def with_states(case, rng):
    """Return a case with states to reset to, NaN where they are not read."""
    states = rng.normal(size=(2, *case.which.resets.shape, SHAPE.hidden))
    states[:, ~case.which.resets] = np.nan
    given = jl.LSTMState(*states)
    return case._replace(which=case.which._replace(reset_state=given))


def pulled(case, engine, **options):
    """Return values and gradients as the oracle orders them."""
    weights, xs, h, c, which, d_hs, d_h, d_c = case
    steps = {"lengths": which.lengths, "mask": which.mask, "resets": which.resets}

    @jax.jit
    def values_and_gradients(*inputs):
        def run(params, xs, state, reset_state):
            return jl.unroll(
                CELL, params, xs, state, reset_state=reset_state,
                reverse=which.reverse, engine=engine, **steps, **options,
            )  # fmt: skip

        out, pull = jax.vjp(run, *inputs)
        return out, pull((jl.LSTMState(d_h, d_c), d_hs))

    state = jl.LSTMState(h, c)
    return values_and_gradients(jl.LSTMParams(*weights), xs, state, which.reset_state)


def every_engine(function):
    engines = ("scan", "adjoint", "adjoint/lean", "native")
    cases = [
        pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.combinations)
        for case in product(engines, range(len(KINDS)))
    ]
    return pytest.mark.parametrize(("engine", "number"), cases)(function)


@every_engine
def test_resets_to_a_state_for_each_step(engine, number, x64):
    """With NaN in padding, and in states that no reset reads."""
    if engine == "native" and jl.engines.native.load_built() is not None:
        pytest.skip("no kernel")
    rng = np.random.default_rng([21, number])
    case = with_states(draw(rng, SHAPE, KINDS[number]), rng)
    run = forward(*case[:5])
    gradients = backward(*case)
    got, (d_params, d_xs, d_state, d_reset) = pulled(case, engine)
    assert_same(got, ((run.h, run.c), run.hs))
    assert_same((d_params, d_xs, d_state, d_reset), tuple(gradients))


@pytest.mark.parametrize("engine", ["scan", "adjoint"])
def test_one_state_for_all_steps(engine, x64):
    """A state of rows, of one row, and of numbers equals one for each step."""
    rng = np.random.default_rng(3)
    xs = rng.normal(size=(6, 3, 2))
    resets = rng.random((6, 3)) < 0.4
    params = CELL.init(jax.random.key(0), 2, 4)

    def total(state):
        _, hs = jl.unroll(
            CELL, params, xs, resets=resets, reset_state=state, engine=engine
        )
        return jnp.sum(hs**2)

    rows = jl.LSTMState(*rng.normal(size=(2, 3, 4)))
    each = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (6, 3, 4)), rows)
    both = jax.jit(jax.value_and_grad(total))
    value, gradient = both(rows)
    expected, of_each = both(each)
    assert_same(value, expected)
    assert_same(gradient, jax.tree.map(lambda leaf: leaf.sum(0), of_each))
    one = jax.tree.map(lambda leaf: leaf[0], rows)
    alike = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], (3, 4)), rows)
    assert_same(total(one), total(alike))
    half = jax.tree.map(lambda leaf: np.full((3, 4), 0.5), rows)
    assert_same(total(jl.LSTMState(0.5, 0.5)), total(half))
    mixed = jl.LSTMState(each.h, 0.5)
    assert_same(total(mixed), total(jl.LSTMState(rows.h, half.c)))


def test_the_initial_state_as_reset_state_changes_nothing():
    """For a cell with noise, in `vmap`, and through a model."""
    cell = jl.zoneout(CELL, h_rate=0.5)
    model = jl.serial(jl.linear(4), jnp.tanh, jl.recurrent(cell, 4), jl.linear(2))
    params, _ = model.init(jax.random.key(0), 2)
    xs = jax.random.normal(jax.random.key(1), (6, 3, 2))
    resets = jax.random.bernoulli(jax.random.key(2), 0.4, (6, 3))
    key, begin = jax.random.key(3), model.initial_state(params)

    def run(xs, resets, state=None):
        options = {"key": key, "resets": resets, "reset_state": state}
        return model.apply(params, xs, **options)[1]

    assert_same(run(xs, resets, begin), run(xs, resets), 1e-6)
    rows = jax.vmap(lambda xs, resets: run(xs, resets, begin), 1, 1)(xs, resets)
    expected = jax.vmap(run, 1, 1)(xs, resets)
    assert_same(rows, expected, 1e-6)


def test_a_bidirectional_layer_refuses_a_reset_state():
    layer = jl.stack(CELL, (4,), bidirectional=True)
    params, _ = layer.init(jax.random.key(0), 2)
    state, resets = layer.initial_state(params, (3,)), jnp.zeros((6, 3), bool)
    with pytest.raises(ValueError, match="bidirectional: reset_state: got a state"):
        layer.apply(params, jnp.ones((6, 3, 2)), resets=resets, reset_state=state)


def test_traces_of_a_model_read_the_reset_state():
    layer = jl.recurrent(CELL, 4)
    params, _ = layer.init(jax.random.key(0), 2)
    resets = jnp.zeros((5, 3), bool).at[2].set(True)
    state = jl.LSTMState(jnp.ones(4), 2 * jnp.ones(4))
    options = {"resets": resets, "reset_state": state}
    _, ys, traces = layer.trace(params, jnp.ones((5, 3, 2)), **options)
    assert same_bits(ys, traces[""].state.h)
    begin = jl.LSTMState(jnp.ones((3, 4)), 2 * jnp.ones((3, 4)))
    _, expected = layer.apply(params, jnp.ones((3, 3, 2)), begin)
    assert_same(ys[2:], expected, 1e-6)


def test_states_on_an_explicit_mesh():
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    split = jax.NamedSharding(mesh, jax.P(None, "rows"))
    params = CELL.init(jax.random.key(0), 2, 4)
    xs = jax.random.normal(jax.random.key(1), (5, 4, 2))
    resets = jnp.zeros((5, 4), bool).at[2].set(True)
    states = jl.LSTMState(*jax.random.normal(jax.random.key(2), (2, 5, 4, 4)))

    def run(xs, resets, reset_state):
        options = {"resets": resets, "reset_state": reset_state}
        return jl.unroll(CELL, params, xs, **options)[1]

    expected = run(xs, resets, states)
    got = run(*jax.device_put((xs, resets, states), split))
    assert got.sharding.spec == jax.P(None, "rows", None)
    assert_same(got, expected, 1e-5)
    one = jl.LSTMState(jnp.ones(4), jnp.ones(4))
    got = run(*jax.device_put((xs, resets), split), one)
    assert_same(got, run(xs, resets, one), 1e-5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (jl.LSTMState(jnp.ones((2, 4)), 0.0), r"reset_state\.h: got shape \[2, 4\]"),
        ((jnp.ones(4), jnp.ones(4)), "reset_state: got tuple, expected LSTMState"),
        (jl.LSTMState(jnp.ones(4, complex), 0.0), "reset_state.h: got dtype complex64"),
    ],
)
def test_wrong_states_are_errors(state, message):
    params, xs = CELL.init(jax.random.key(0), 2, 4), jnp.ones((5, 3, 2))
    resets = jnp.zeros((5, 3), bool)
    with pytest.raises(ValueError, match=f"^unroll: {message}"):
        jl.unroll(CELL, params, xs, resets=resets, reset_state=state)
    with pytest.raises(ValueError, match="reset_state: got a state without resets"):
        jl.unroll(CELL, params, xs, reset_state=jl.LSTMState(0.0, 0.0))


def test_engines_say_whether_they_serve():
    params, xs = CELL.init(jax.random.key(0), 2, 4), jnp.ones((5, 3, 2))
    state = jl.LSTMState(0.0, 1.0)
    options = {"resets": jnp.zeros((5, 3), bool), "reset_state": state}
    found = jl.explain(CELL, params, xs, engine="adjoint", **options)
    assert found.reasons["adjoint"] == "serves"
    memory = jl.estimate_memory(CELL, params, xs, engine="adjoint", **options)
    assert memory.temporaries > 0


# --- burn-in --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "count", "number"),
    [("scan", 3, 2), ("adjoint", 3, 5), ("adjoint", 7, 4), ("scan", 0, 0)],
)
def test_burn_in(engine, count, number, x64):
    """Its steps change the state only: nothing is emitted, and no gradient passes."""
    rng = np.random.default_rng([22, number])
    case = draw(rng, SHAPE, KINDS[number])
    weights, xs, h, c, which, d_hs, d_h, d_c = with_states(case, rng)
    first, rest = slice(count), slice(count, None)
    if which.reverse:
        first, rest = slice(7 - count, None), slice(7 - count)

    def at(steps):
        own = {
            name: jax.tree.map(lambda leaf: leaf[steps], getattr(which, name))
            for name in ("mask", "resets", "reset_state")
        }
        if which.lengths is not None:
            own["mask"] = np.arange(7)[steps, None] < which.lengths
        return which._replace(lengths=None, **own)

    burned = forward(weights, xs[first], h, c, at(first))
    end = forward(weights, xs[rest], burned.h, burned.c, at(rest))
    cotangents = d_hs[rest], d_h, d_c
    arguments = weights, xs[rest], burned.h, burned.c, at(rest)
    gradients = backward(*arguments, *cotangents)
    case = case._replace(which=which, d_hs=d_hs[rest])
    got, (d_params, d_xs, d_state, d_reset) = pulled(case, engine, burn_in=count)
    assert_same(got, ((end.h, end.c), end.hs))
    assert_same(d_params, gradients.weights)
    assert_same(d_xs[rest], gradients.xs)
    assert_same(tuple(np.asarray(d_reset)[:, rest]), gradients.reset_state)
    assert not np.asarray(d_xs[first]).any()
    assert not np.asarray(d_reset)[:, first].any()
    expected = (gradients.h, gradients.c) if count == 0 else np.zeros((2, *h.shape))
    assert_same(d_state, tuple(expected))


def test_burn_in_draws_the_noise_of_the_whole_sequence():
    cell = jl.zoneout(jl.variational_dropout(CELL, x_rate=0.3), h_rate=0.5)
    params, xs = cell.init(jax.random.key(0), 2, 4), jnp.ones((7, 3, 2))
    key = jax.random.key(1)
    expected, hs = jl.unroll(cell, params, xs, key=key)
    state, rest = jl.unroll(cell, params, xs, key=key, burn_in=4)
    assert_same((state, rest), (expected, hs[4:]), 1e-6)


@pytest.mark.parametrize("count", [-1, 8, 1.0, True, None, "3"])
def test_wrong_burn_in_is_an_error(count):
    params, xs = CELL.init(jax.random.key(0), 2, 4), jnp.ones((7, 3, 2))
    with pytest.raises(ValueError, match=r"unroll: burn_in: got .*, expected an "):
        jl.unroll(CELL, params, xs, burn_in=count)
