"""What goes in and what comes out: dtypes, counting in 16 bits, extremes, layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import finite, same_bits
from problems import CELL, B, D, H, problem

DTYPES = [  # xs and params, h and hs, c
    ("float32", "float32", "float32"),
    ("float64", "float64", "float64"),
    ("bfloat16", "bfloat16", "float32"),
    ("float16", "float16", "float32"),
]


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize(("dtype", "hidden", "cell"), DTYPES)
def test_dtypes(dtype, hidden, cell, given_state, x64):
    params, xs, state = problem(dtype=jnp.dtype(dtype))
    last, hs = jl.unroll(CELL, params, xs, state if given_state else None)
    assert hs.dtype == last.h.dtype == hidden
    assert last.c.dtype == cell


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_wide_params_with_narrow_features(dtype):
    """The features choose the compute dtype; the parameters stay what they are."""
    params, xs, _ = problem()
    narrow = xs.astype(dtype)

    def loss(params, xs):
        last, hs = jl.unroll(CELL, params, xs)
        return jnp.sum(hs.astype(jnp.float32)) + jnp.sum(last.c), hs

    gradients, hs = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, narrow)
    _, wide = jl.unroll(CELL, params, xs)
    assert hs.dtype == dtype
    assert all(leaf.dtype == jnp.float32 for leaf in gradients[0])
    assert gradients[1].dtype == dtype
    np.testing.assert_allclose(hs.astype(jnp.float32), wide, atol=0.05)


def counting_params(dtype):
    """Every gate open, so that c grows by one at each step."""
    b = jnp.full((4, 1), 50.0, dtype)
    return jl.LSTMParams(jnp.zeros((1, 4, 1), dtype), jnp.zeros((1, 4, 1), dtype), b)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_compute_counts_past_256(dtype, jit):
    params, xs = counting_params(dtype), jnp.zeros((300, 1), dtype)

    def run(xs):
        return jl.unroll(CELL, params, xs, emit=jl.emit.states)

    last, states = (jax.jit(run) if jit else run)(xs)
    assert np.array_equal(states.c[:, 0], np.arange(1.0, 301.0))
    assert last.c.dtype == jnp.float32
    assert last.c == 300.0


def test_a_large_cell_state_survives_float16():
    params, xs = counting_params(jnp.float16), jnp.zeros((3, 1), jnp.float16)
    state = jl.LSTMState(jnp.zeros(1, jnp.float16), jnp.array([70_000.0]))
    last, hs = jl.unroll(CELL, params, xs, state)
    assert last.c == 70_003.0
    assert finite(hs)


def test_weak_types_are_carried():
    params, xs, _ = problem()
    weak = jnp.broadcast_to(jnp.asarray(0.0), (B, H))
    assert weak.weak_type
    got = jl.unroll(CELL, params, xs, jl.LSTMState(weak, weak))
    assert same_bits(got, jl.unroll(CELL, params, xs))


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_large_features_saturate(size):
    params, xs, state = problem()

    def loss(params, xs):
        last, hs = jl.unroll(CELL, params, xs, state)
        return jnp.sum(hs) + jnp.sum(last.c)

    params = params._replace(w_x=jnp.sign(params.w_x) / D)
    assert finite(jax.value_and_grad(loss, argnums=(0, 1))(params, jnp.sign(xs) * size))


def test_numpy_arrays_of_any_layout():
    params, xs, state = problem()
    plain = np.asarray(xs)
    wanted = jl.unroll(CELL, params, xs, state)
    backwards = plain[::-1].copy()[::-1]
    fortran = np.asfortranarray(plain)
    frozen = plain.copy()
    frozen.flags.writeable = False
    for odd in (plain, backwards, fortran, frozen, np.repeat(plain, 2, 1)[:, ::2]):
        assert same_bits(jl.unroll(CELL, params, odd, state), wanted)
