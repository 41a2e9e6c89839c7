"""Resets of packed sequences, with gaps and in both directions; single steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same
from jaxlstm import masking
from problems import CELL, problem

SEGMENTS = np.array([1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
    "hole", [pytest.param(None, marks=pytest.mark.combinations), 0, 2, 3, 5]
)
@pytest.mark.parametrize(
    "bidirectional", [True, pytest.param(False, marks=pytest.mark.combinations)]
)
def test_packed_sequences_equal_separate_ones(hole, bidirectional, x64):
    """A masked step may be the first or the last of a sequence."""
    _, xs, _ = problem(batch=(), dtype=jnp.float64)
    layer = jl.stack(CELL, (4, 3), bidirectional=bidirectional)
    params, _ = layer.init(jax.random.key(0), 3)
    mask = None if hole is None else np.arange(6) != hole
    resets = jl.resets_from_segments(SEGMENTS, mask=mask)
    _, packed = layer.apply(params, xs, mask=mask, resets=resets)
    for segment in (1, 2):
        own = segment == SEGMENTS if mask is None else (segment == SEGMENTS) & mask
        assert_same(packed[own], layer.apply(params, xs[own])[1])


@pytest.mark.parametrize("hole", [None, 0, 2, 3, 5])
def test_packed_in_reverse(hole, x64):
    params, xs, _ = problem(batch=(), dtype=jnp.float64)
    mask = None if hole is None else np.arange(6) != hole
    resets = jl.resets_from_segments(SEGMENTS, mask=mask, reverse=True)
    run = jl.unroll(CELL, params, xs, mask=mask, resets=resets, reverse=True)[1]
    for segment in (1, 2):
        own = segment == SEGMENTS if mask is None else (segment == SEGMENTS) & mask
        alone = jl.unroll(CELL, params, xs[own], reverse=True)[1]
        assert_same(run[own], alone)


def test_windows_of_packed_sequences(x64):
    """`before` determines whether the first step continues the previous window."""
    params, xs, _ = problem(batch=(), dtype=jnp.float64)
    resets = jl.resets_from_segments(SEGMENTS)
    whole, _ = jl.unroll(CELL, params, xs, resets=resets)
    for cut in range(1, 6):
        first, rest = SEGMENTS[:cut], SEGMENTS[cut:]
        state, _ = jl.unroll(
            CELL, params, xs[:cut], resets=jl.resets_from_segments(first)
        )
        resets = jl.resets_from_segments(rest, before=first[-1])
        assert_same(jl.unroll(CELL, params, xs[cut:], state, resets=resets)[0], whole)


def test_segments_of_no_steps_and_of_many_rows():
    assert jl.resets_from_segments(np.zeros((0, 3), int)).shape == (0, 3)
    both = np.stack([SEGMENTS, SEGMENTS[::-1]], axis=1)
    resets = jl.resets_from_segments(both)
    assert np.array_equal(resets[:, 0], resets[:, 1])
    assert np.flatnonzero(resets[:, 0]).tolist() == [0, 3]


def test_invalid_segments_are_refused():
    with pytest.raises(ValueError, match="expected integers"):
        jl.resets_from_segments(np.ones(3))
    with pytest.raises(ValueError, match="mask: got shape"):
        jl.resets_from_segments(SEGMENTS, mask=np.ones(3, bool))
    with pytest.raises(ValueError, match="before: got shape"):
        jl.resets_from_segments(SEGMENTS, before=np.ones(3, int))


def test_reversing_resets_is_compiled_once():
    layer = jl.stack(CELL, (3,), bidirectional=True)
    params, _ = layer.init(jax.random.key(0), 2)
    xs, resets = jnp.ones((6, 2)), SEGMENTS == 2
    arguments = {"mask": np.arange(6) != 1, "resets": resets}
    layer.apply(params, xs, **arguments)
    with jax.log_compiles(False), jax.check_tracer_leaks(False):
        before = masking.reverse_resets._cache_size()
        layer.apply(params, xs, **arguments)
        assert masking.reverse_resets._cache_size() == before


def test_the_gradient_of_a_single_step_runs_no_other_step():
    """A following step would overflow, and is not computed."""
    cell = jl.lstm(candidate_activation="relu", output_activation="identity")
    params = cell.init(jax.random.key(0), 1, 1)
    params = params._replace(
        w_x=jnp.full((1, 4, 1), 1e15), w_h=jnp.full((1, 4, 1), 1e25)
    )

    def loss(params):
        return jl.unroll(cell, params, jnp.ones((1, 1)))[0].h.sum()

    assert jax.grad(loss)(params).b[:, 0].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_prepared_inputs_may_be_keys():
    """A noisy cell of a user prepares a key for each step."""

    def prepare(params, xs, *, key=None):
        return params, None if key is None else jax.random.split(key, len(xs))

    def project(params, x, key=None):
        z = CELL.project(params, x)
        return z if key is None else z + jax.random.normal(key, z.shape)

    cell = CELL._replace(prepare=prepare, project=project)
    params, xs, _ = problem()
    quiet = jl.unroll(cell, params, xs)[1]
    noisy = jl.unroll(cell, params, xs, key=jax.random.key(0))[1]
    assert np.array_equal(quiet, jl.unroll(CELL, params, xs)[1])
    assert not np.allclose(noisy, quiet)


def test_parameters_are_real():
    params, xs, _ = problem()
    for dtype in (jnp.complex64, jnp.int32):
        wrong = jax.tree.map(lambda leaf, to=dtype: leaf.astype(to), params)
        with pytest.raises(ValueError, match=r"params\.w_x: got dtype"):
            jl.unroll(CELL, wrong, xs)
        with pytest.raises(ValueError, match="floating point"):
            CELL.init(jax.random.key(0), 2, 3, dtype=dtype)
    with pytest.raises(ValueError, match="forget_bias: got None"):
        jl.lstm(forget_bias=None)
    with pytest.raises(ValueError, match="not hashable"):
        jl.lstm(gate_activation=["tanh"])
