"""Lengths of every integer dtype and outside 0..T, and step masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same, finite, same_bits
from problems import CELL, B, D, T, problem


@pytest.mark.parametrize("bad", [-1, T + 1, 2**31 - 1, -(2**31)])
def test_lengths_out_of_range_are_an_error(bad):
    params, xs, state = problem()
    lengths = np.array([1, bad, 0, T], np.int32)
    pattern = rf"lengths.*{bad}.*{T}"
    with pytest.raises(ValueError, match=pattern):
        jl.unroll(CELL, params, xs, state, lengths=lengths)
    with pytest.raises(ValueError, match=pattern):  # concrete, though xs is traced
        jax.jit(lambda xs: jl.unroll(CELL, params, xs, lengths=lengths))(xs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bad", [-1, T + 1, 2**31 - 1, -(2**31)])
def test_traced_lengths_out_of_range_set_their_row_to_nan(bad, reverse):
    params, xs, state = problem()

    @jax.jit
    def run(xs, lengths):
        return jl.unroll(CELL, params, xs, state, lengths=lengths, reverse=reverse)

    good = run(xs, jnp.array([1, 3, 0, T]))
    last, hs = run(xs, jnp.array([1, bad, 0, T]))
    assert np.isnan(hs[:, 1]).all()
    assert np.isnan(last.h[1]).all()
    assert np.isnan(last.c[1]).all()
    others = np.array([0, 2, 3])
    assert same_bits(hs[:, others], good[1][:, others])
    assert same_bits(
        jax.tree.map(lambda s: s[others], (last.h, last.c)),
        jax.tree.map(lambda s: s[others], (good[0].h, good[0].c)),
    )


def test_nan_rows_under_vmap_and_in_gradients_stay_in_their_row():
    params, xs, state = problem()

    def loss(xs, state, length):
        last, hs = jl.unroll(CELL, params, xs, state, lengths=length)
        return jnp.sum(hs) + jnp.sum(last.c)

    each = jax.vmap(jax.value_and_grad(loss), in_axes=(1, 0, 0), out_axes=(0, 1))
    values, gradients = each(xs, state, jnp.array([1, T + 1, -1, T]))
    assert np.array_equal(np.isnan(values), [False, True, True, False])
    assert finite((gradients[:, 0], gradients[:, 3]))


def test_nan_rows_cover_emitted_floats_only():
    params, xs, state = problem()

    def emit(state, gates):
        return {"c": state.c, "open": gates.o > 0.5, "twice": (gates.f, gates.f)}

    @jax.jit
    def run(lengths):
        return jl.unroll(CELL, params, xs, state, lengths=lengths, emit=emit)[1]

    emitted = run(jnp.array([1, T + 1, 0, T]))
    assert emitted["open"].dtype == bool
    assert not np.asarray(emitted["open"])[1:, 0].any()
    for leaf in (emitted["c"], *emitted["twice"]):
        assert np.isnan(leaf[:, 1]).all()
        assert finite(leaf[:, [0, 2, 3]])


def test_nan_rows_of_a_sequence_without_steps():
    params, _, state = problem()
    xs = jnp.zeros((0, B, D))
    run = jax.jit(lambda n: jl.unroll(CELL, params, xs, state, lengths=n))
    last, _ = run(jnp.array([0, 1, 0, 0]))
    assert np.array_equal(np.isnan(last.c).any(-1), [False, True, False, False])


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"]
)
@pytest.mark.parametrize("jit", [False, True])
def test_every_integer_dtype_is_accepted(dtype, jit):
    """T = 300 does not fit into eight bits."""
    params, xs, _ = problem(time=300, batch=(3,))
    lengths = np.array([0, 100, 127])

    def run(lengths):
        return jl.unroll(CELL, params, xs, lengths=lengths)

    run = jax.jit(run) if jit else run
    assert same_bits(run(lengths.astype(dtype)), run(lengths.astype("int32")))


@pytest.mark.parametrize("bad", [2**32 + 2, 2**31, -(2**32) + 2, 2**63 - 1])
def test_64_bit_lengths_are_not_truncated(bad):
    """2**32 + 2 is not read as 2, neither concrete nor traced with x64 on."""
    params, xs, _ = problem()
    lengths = np.array([1, bad, 0, T], np.int64)
    with pytest.raises(ValueError, match=rf"lengths.*{bad}"):
        jl.unroll(CELL, params, xs, lengths=lengths)
    with jax.enable_x64(True):
        run = jax.jit(lambda n: jl.unroll(CELL, params, xs, lengths=n))
        last, hs = run(jnp.asarray(lengths))
    assert np.array_equal(np.isnan(hs).any((0, 2)), [False, True, False, False])
    assert np.array_equal(np.isnan(last.c).any(-1), [False, True, False, False])


@pytest.mark.parametrize("length", [0, 3, T])
def test_a_single_sequence_has_a_scalar_length(length):
    """Without a batch axis, a plain number is accepted."""
    params, xs, state = problem(())
    got = jl.unroll(CELL, params, xs, state, lengths=length)
    assert_same(got, jl.unroll(CELL, params, xs, state, lengths=np.int32(length)))
    last, hs = jl.unroll(CELL, params, xs[:length], state)
    assert_same((got[0], got[1][:length]), (last, hs), 1e-6)
    with pytest.raises(ValueError, match="lengths"):
        jl.unroll(CELL, params, xs, lengths=T + 1)


def test_full_lengths_equal_no_lengths_bit_for_bit():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 5)
    xs = jax.random.normal(jax.random.key(1), (32, 4, 3))
    full = jl.unroll(cell, params, xs, lengths=[32] * 4)
    for a, b in zip(
        jax.tree.leaves(full), jax.tree.leaves(jl.unroll(cell, params, xs)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("jit", [False, True])
def test_a_step_mask_replaces_lengths_and_resets(jit):
    params, xs, state = problem()
    lengths, resets = (
        jnp.array([0, 2, T, 5]),
        jnp.zeros((T, 4), bool).at[1, 3].set(True),
    )

    def by_mask(lengths, resets):
        mask = jl.StepMask.from_lengths(lengths, T)._replace(resets=resets)
        return jl.unroll(CELL, params, xs, state, mask=mask)

    def by_arguments(lengths, resets):
        return jl.unroll(CELL, params, xs, state, lengths=lengths, resets=resets)

    got, expected = (
        (jax.jit(run) if jit else run)(lengths, resets)
        for run in (by_mask, by_arguments)
    )
    assert same_bits(got, expected)


def test_a_step_mask_of_traced_lengths_marks_invalid_rows():
    params, xs, state = problem()

    @jax.jit
    def run(lengths):
        mask = jl.StepMask.from_lengths(lengths, T)
        return jl.unroll(CELL, params, xs, state, mask=mask)[1]

    hs = run(jnp.array([1, T + 1, 0, T]))
    assert np.array_equal(np.isnan(hs).any((0, 2)), [False, True, False, False])


def test_step_masks_of_wrong_shapes_are_refused():
    params, xs, state = problem()
    message = r"^StepMask\.from_lengths: lengths\[1\]: got 9, expected 0 to 6"
    with pytest.raises(ValueError, match=message):
        jl.StepMask.from_lengths([1, 9], 6)
    mask, resets = jl.StepMask.from_lengths([1, 2, 3, 4], T), jnp.zeros((T, 4), bool)
    numbers = mask.active.astype(int)
    for changes, message in [
        ({"mask": mask, "lengths": [1, 2, 3, 4]}, "lengths and mask: got both"),
        ({"mask": mask._replace(resets=resets), "resets": resets}, "resets: got them"),
        ({"mask": jl.StepMask(active=mask.active[1:])}, r"mask\.active: got shape"),
        ({"mask": jl.StepMask(active=numbers)}, r"mask\.active: got dtype"),
    ]:
        with pytest.raises(ValueError, match=f"^unroll: {message}"):
            jl.unroll(CELL, params, xs, state, **changes)
