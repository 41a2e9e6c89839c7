"""Both directions of a bidirectional layer in one call of the kernel."""

import math

import jax
import jax.numpy as jnp
import pytest

import jaxlstm as jl
from cases import assert_same
from jaxlstm import unrolling
from jaxlstm.engines.native import build

ENOUGH = {"MOST_ROWS_AT_ONCE": 8, "LEAST_READS_AT_ONCE": 0}
CELLS = {
    "lstm": jl.lstm(),
    "gru": jl.gru(),
    "layer norm": jl.layer_norm_lstm(),
    "zoneout": jl.zoneout(jl.lstm(), h_rate=0.3, c_rate=0.2),
    "variational dropout": jl.variational_dropout(jl.lstm(), x_rate=0.2, h_rate=0.3),
    "weight drop": jl.weight_drop(jl.lstm(), 0.3),
    "learned state": jl.learned_initial_state(jl.lstm()),
}
LENGTHS = jnp.array([9, 3, 0, 5])
needs_kernel = pytest.mark.skipif(
    build.load_built() is not None, reason="the kernel is not built here"
)


@pytest.fixture
def at_once(monkeypatch):
    """Return a function that sets whether directions may run at once."""

    def choose(yes):
        for name, value in ENOUGH.items():
            monkeypatch.setattr(unrolling, name, value if yes else -math.inf)

    return choose


def bidirectional(cell, size=5, **options):
    return jl.bidirectional(
        jl.recurrent(cell, size, **options),
        jl.recurrent(cell, size, reverse=True, **options),
    )


def problem(model, rows=(4,), steps=9, dtype=jnp.float32):
    params, _ = model.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (steps, *rows, 3), dtype)
    return jax.tree.map(lambda a: a.astype(dtype), params), xs


def kernel_calls(function, *arguments):
    program = jax.jit(function).lower(*arguments).as_text()
    return program.count("@jaxlstm_loop")


@needs_kernel
@pytest.mark.parametrize("name", CELLS)
def test_at_once_equals_in_turn(name, at_once, x64):
    """States, outputs, traces and gradients, ragged, with resets and noise."""
    model = bidirectional(CELLS[name])
    params, xs = problem(model, dtype=jnp.float64)
    options = {
        "lengths": LENGTHS,
        "resets": jax.random.bernoulli(jax.random.key(3), 0.2, xs.shape[:2]),
        "key": jax.random.key(5),
    }

    def loss(params, xs):
        return (model.apply(params, xs, **options)[1] ** 2).sum()

    found = []
    for yes in True, False:
        at_once(yes)
        gradients = jax.grad(loss, (0, 1))(params, xs)
        state, ys, traces = model.trace(params, xs, **options)
        assert_same(model.apply(params, xs, **options), (state, ys), 1e-12)
        found.append((gradients, state, ys, traces))
    assert_same(*found, 1e-10)


@needs_kernel
def test_padding_with_nan_has_no_effect(at_once):
    model = bidirectional(jl.lstm())
    params, xs = problem(model)
    padded = jnp.arange(9)[:, None] >= LENGTHS[None]

    def gradients(xs):
        return jax.grad(lambda p: (model.apply(p, xs, lengths=LENGTHS)[1] ** 2).sum())(
            params
        )

    at_once(True)
    with_nan = jnp.where(padded[..., None], jnp.nan, xs)
    assert_same(gradients(with_nan), gradients(xs), 0)


@needs_kernel
def test_each_direction_starts_from_its_own_state(at_once):
    model = bidirectional(jl.lstm())
    params, xs = problem(model)
    state = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(a.size), a.shape),
        model.apply(params, xs)[0],
    )
    state = state._replace(backward=jax.tree.map(lambda a: 2 * a, state.forward))
    found = []
    for yes in True, False:
        at_once(yes)
        found.append(model.apply(params, xs, state))
    assert_same(*found, 1e-6)


@needs_kernel
@pytest.mark.parametrize(
    ("rows", "size", "steps", "number"),
    [
        ((1,), 64, 300, 1),
        ((), 64, 300, 1),
        ((8,), 64, 100, 1),
        ((9,), 64, 100, 2),  # enough rows for the cores
        ((1,), 32, 100, 2),  # over before both are stacked
        ((1,), 512, 100, 2),  # too much for the cache of a core
    ],
)
def test_small_batches_are_run_at_once(rows, size, steps, number):
    model = bidirectional(jl.lstm(), size)
    params, xs = problem(model, rows, steps)

    def run(params, xs):
        return model.apply(params, xs)[1]

    def loss(params, xs):
        return (run(params, xs) ** 2).sum()

    assert kernel_calls(run, params, xs) == number
    assert kernel_calls(jax.grad(loss), params, xs) == 2 * number


@needs_kernel
def test_rows_of_an_outer_vmap_are_in_the_same_call():
    model = bidirectional(jl.lstm(), 64)
    params, xs = problem(model, (5,), 300)

    def run(xs):
        return model.apply(params, xs)[1]

    mapped = jax.vmap(run, in_axes=1, out_axes=1)
    assert kernel_calls(mapped, xs) == 1
    assert_same(mapped(xs), run(xs), 1e-5)


@pytest.mark.parametrize(
    "pair",
    [
        lambda: (jl.recurrent(jl.lstm(), 5), jl.recurrent(jl.gru(), 5, reverse=True)),
        lambda: (jl.recurrent(jl.lstm(), 5), jl.recurrent(jl.lstm(), 5)),
        lambda: (
            jl.recurrent(jl.lstm(), 5, engine="scan"),
            jl.recurrent(jl.lstm(), 5, reverse=True, engine="scan"),
        ),
        lambda: (
            jl.serial(jl.recurrent(jl.lstm(), 5), jnp.tanh),
            jl.recurrent(jl.lstm(), 5, reverse=True),
        ),
    ],
)
def test_other_pairs_run_in_turn(pair, at_once):
    model = jl.bidirectional(*pair())
    params, xs = problem(model)
    found = []
    for yes in True, False:
        at_once(yes)
        found.append(model.apply(params, xs, lengths=LENGTHS)[1])
    assert_same(*found, 0)


def test_errors_name_the_direction(at_once):
    at_once(True)
    model = bidirectional(jl.lstm())
    params, xs = problem(model)
    wrong = params._replace(backward=jl.lstm().init(jax.random.key(0), 3, 6))
    with pytest.raises(ValueError, match=r"^backward: .*parameters of 6 units"):
        model.apply(wrong, xs)
