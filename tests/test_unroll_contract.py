"""The contract of `unroll`: inactive steps, resets and outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, answer, assert_same, draw, expected, finite, same_bits
from oracle import forward
from problems import CELL, B, T, problem

OPTIMISED = True  # compared bit for bit or nearly: compile as users do


@pytest.mark.parametrize(
    ("jit", "reverse"),
    [
        (True, False),
        (True, True),
        (False, True),
        pytest.param(False, False, marks=pytest.mark.combinations),
    ],
)
def test_padding_emits_zeros_and_keeps_the_state(jit, reverse):
    params, xs, state = problem()
    lengths = jnp.array([0, 2, T, 5])

    def run(params, xs, state, lengths):
        return jl.unroll(CELL, params, xs, state, lengths=lengths, reverse=reverse)

    last, hs = (jax.jit(run) if jit else run)(params, xs, state, lengths)
    padding = np.arange(T)[:, None] >= np.asarray(lengths)
    assert not np.asarray(hs)[padding].any()
    assert np.asarray(hs)[~padding].all()
    assert same_bits((last.h[0], last.c[0]), (state.h[0], state.c[0]))


@pytest.mark.parametrize("jit", [False, True])
def test_full_lengths_equal_no_lengths(jit):
    params, xs, state = problem()

    def run(lengths):
        return jl.unroll(CELL, params, xs, state, lengths=lengths)

    plain = run(None)
    got = (jax.jit(run) if jit else run)(jnp.full(B, T))
    assert_same(got, plain, 1e-6)


@pytest.mark.parametrize(
    "reverse", [True, pytest.param(False, marks=pytest.mark.combinations)]
)
def test_lengths_equal_the_mask_of_valid_steps(reverse, x64):
    params, xs, state = problem(dtype=jnp.float64)
    lengths = jnp.array([0, 2, T, 5])
    mask = jnp.arange(T)[:, None] < lengths[None]

    @jax.jit
    def run(**steps):
        return jl.unroll(CELL, params, xs, state, reverse=reverse, **steps)

    assert same_bits(run(lengths=lengths), run(mask=mask))


NON_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize(
    "value",
    [
        np.nan,
        *(pytest.param(v, marks=pytest.mark.combinations) for v in NON_FINITE[1:]),
    ],
)
@pytest.mark.parametrize(
    "option", ["lengths", pytest.param("mask", marks=pytest.mark.combinations)]
)
def test_values_in_padding_have_no_influence(option, value):
    """On values, gradients of first and second order, and jvps."""
    params, xs, state = problem()
    lengths = jnp.array([0, 2, T, 5])
    mask = jnp.arange(T)[:, None] < lengths[None]
    steps = {"lengths": lengths} if option == "lengths" else {"mask": mask}

    def loss(params, xs, state):
        last, hs = jl.unroll(CELL, params, xs, state, **steps)
        return jnp.sum(hs**2) + jnp.sum(last.h**2) + jnp.sum(last.c**2)

    def looks(xs):
        arguments = (params, xs, state)
        tangents = jax.tree.map(jnp.ones_like, (params, state))
        tangents = (tangents[0], xs * 0 + 1, tangents[1])  # NaN where xs is
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        return (
            jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments),
            jax.jvp(loss, arguments, tangents),
            jax.jvp(gradient, arguments, tangents),
        )

    clean = jax.jit(looks)(jnp.where(mask[..., None], xs, 0.0))
    with_nan = jax.jit(looks)(jnp.where(mask[..., None], xs, value))
    assert finite(with_nan)
    assert same_bits(with_nan, clean)


def test_resets_are_selected_not_multiplied():
    """A NaN state before a reset does not affect the steps after it."""
    params, xs, state = problem()
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state)
    resets = jnp.zeros((T, B), bool).at[0].set(True)

    def loss(params, xs, state):
        last, hs = jl.unroll(CELL, params, xs, state, resets=resets)
        return jnp.sum(hs) + jnp.sum(last.h) + jnp.sum(last.c)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(params, xs, state)
    assert finite((value, gradients))
    assert not np.any(gradients[2].h)
    assert not np.any(gradients[2].c)


def test_nan_in_a_step_stays_in_its_row_until_the_next_reset():
    params, xs, state = problem()
    resets = jnp.zeros((T, B), bool).at[4, 1].set(True)
    _, clean = jl.unroll(CELL, params, xs, state, resets=resets)
    _, hs = jl.unroll(CELL, params, xs.at[2, 1].set(jnp.nan), state, resets=resets)
    touched = np.zeros((T, B), bool)
    touched[2:4, 1] = True
    assert np.array_equal(np.isnan(hs).any(-1), touched)
    assert np.array_equal(np.asarray(hs)[~touched], np.asarray(clean)[~touched])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reset_at_an_inactive_step_has_no_effect(reverse):
    params, xs, state = problem()
    mask = jnp.ones((T, B), bool).at[2].set(False)
    resets = jnp.zeros((T, B), bool).at[2].set(True)
    without = jl.unroll(CELL, params, xs, state, mask=mask, reverse=reverse)
    got = jl.unroll(CELL, params, xs, state, mask=mask, resets=resets, reverse=reverse)
    assert_same(got, without, 1e-6)


def test_a_reset_uses_the_cells_initial_state():
    params, xs, state = problem()
    resets = jnp.zeros((T, B), bool).at[0].set(True)
    got = jl.unroll(CELL, params, xs, state, resets=resets)
    assert_same(got, jl.unroll(CELL, params, xs), 1e-6)


def test_sizes_of_one_are_one_step(x64):
    case = draw(np.random.default_rng(1), Shape(1, (1,), 1, 1), Kind())
    assert_same(answer(jl, case, jit=False), expected(case))


def test_a_long_sequence_equals_its_parts():
    """65,537 steps, one more than the limit of cuDNN."""
    time = 2**16 + 1
    params, xs, _ = problem((1,), time)
    last, hs = jl.unroll(CELL, params, xs)
    half, first = jl.unroll(CELL, params, xs[: time // 2])
    end, second = jl.unroll(CELL, params, xs[time // 2 :], half)
    assert_same((end, jnp.concatenate([first, second])), (last, hs), 1e-6)


@pytest.mark.parametrize(
    "reverse", [True, pytest.param(False, marks=pytest.mark.combinations)]
)
def test_emit(reverse, x64):
    kind = Kind("mask", True, reverse)
    weights, xs, h, c, which, *_ = draw(
        np.random.default_rng(9), Shape(5, (3,), 2, 4), kind
    )
    run = forward(weights, xs, h, c, which)

    @functools.partial(jax.jit, static_argnums=0)
    def emitted(emit):
        return jl.unroll(
            CELL,
            jl.LSTMParams(*weights),
            xs,
            jl.LSTMState(h, c),
            mask=which.mask,
            resets=which.resets,
            reverse=reverse,
            emit=emit,
        )[1]

    assert_same(emitted(jl.emit.hidden), run.hs)
    states = emitted(jl.emit.states)
    assert isinstance(states, jl.LSTMState)
    assert_same((states.h, states.c), (run.hs, run.cs))
    trace = emitted(jl.emit.trace)
    assert_same((trace.state.h, trace.state.c), (run.hs, run.cs))
    gates = trace.gates
    assert_same((gates.i, gates.f, gates.g, gates.o), tuple(run.gates))
    assert jax.tree.leaves(emitted(jl.emit.nothing)) == []
    own = emitted(lambda state, gates: {"f": gates.f[..., 0], "c": [state.c]})
    assert_same((own["f"], own["c"][0]), (run.gates[1][..., 0], run.cs))
