"""The contract of `unroll`: inactive steps, resets, splits, shapes and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, answer, assert_same, draw, expected, finite, same_bits
from oracle import forward
from problems import CELL, B, H, T, problem

OPTIMISED = True  # compared bit for bit or nearly: compile as users do


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("jit", [False, True])
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


def test_a_ragged_row_equals_the_truncated_row(x64):
    params, xs, state = problem(dtype=jnp.float64)
    last, hs = jl.unroll(CELL, params, xs, state, lengths=jnp.array([0, 2, T, 5]))
    run = jax.jit(lambda params, xs, state: jl.unroll(CELL, params, xs, state))
    for row, length in enumerate([0, 2, T, 5]):
        alone = jl.LSTMState(state.h[row], state.c[row])
        one, short = run(params, xs[:length, row], alone)
        assert_same((last.h[row], last.c[row]), one, 1e-12)
        assert_same(hs[:length, row], short, 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_lengths_equal_the_mask_of_valid_steps(reverse, x64):
    params, xs, state = problem(dtype=jnp.float64)
    lengths = jnp.array([0, 2, T, 5])
    mask = jnp.arange(T)[:, None] < lengths[None]
    a = jl.unroll(CELL, params, xs, state, lengths=lengths, reverse=reverse)
    b = jl.unroll(CELL, params, xs, state, mask=mask, reverse=reverse)
    assert same_bits(a, b)


NON_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("value", NON_FINITE)
@pytest.mark.parametrize("option", ["lengths", "mask"])
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


@pytest.mark.parametrize(
    ("reverse", "cuts"),
    [
        (False, (0, 3, T)),
        (True, (1, 5)),
        pytest.param(False, (1, 2, 4, 5), marks=pytest.mark.combinations),
        pytest.param(True, (0, 2, 3, 4, T), marks=pytest.mark.combinations),
    ],
)
def test_a_split_sequence_equals_the_whole(reverse, cuts, x64):
    params, xs, state = problem(dtype=jnp.float64)
    rng = np.random.default_rng(0)
    mask, resets = rng.random((2, T, B)) < np.array([0.7, 0.3])[:, None, None]
    whole_state, whole = jl.unroll(
        CELL, params, xs, state, mask=mask, resets=resets, reverse=reverse
    )
    for cut in cuts:
        parts = [slice(0, cut), slice(cut, T)]
        carried, outputs = state, []
        for part in reversed(parts) if reverse else parts:
            carried, hs = jl.unroll(
                CELL,
                params,
                xs[part],
                carried,
                mask=mask[part],
                resets=resets[part],
                reverse=reverse,
            )
            outputs.append(hs)
        outputs = reversed(outputs) if reverse else outputs
        assert_same(carried, whole_state, 1e-12)
        assert_same(np.concatenate(list(outputs)), whole, 1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_streaming_one_step_at_a_time(dtype):
    """The state keeps its structure and dtypes, so that a scan can carry it."""
    params, xs, _ = problem(dtype=dtype)
    last, hs = jl.unroll(CELL, params, xs)

    def one(state, x):
        state, h = jl.unroll(CELL, params, x[None], state)
        return state, h[0]

    zero = CELL.initial_state(params, (B,), dtype=dtype)
    streamed_state, streamed = jax.lax.scan(one, zero, xs)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    as_wide = jax.tree.map(lambda x: x.astype(jnp.float32), (streamed_state, streamed))
    assert_same(
        as_wide, jax.tree.map(lambda x: x.astype(jnp.float32), (last, hs)), tolerance
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch", [(), (B,), (2, 2)])
def test_no_steps(batch, reverse):
    params, xs, state = problem(batch, time=0)

    def run(params, xs, state):
        return jl.unroll(CELL, params, xs, state, reverse=reverse)

    (last, hs), pull = jax.vjp(run, params, xs, state)
    assert same_bits(last, state)
    assert hs.shape == (0, *batch, H)
    assert hs.dtype == xs.dtype
    d_params, d_xs, d_state = pull((state, hs))
    assert same_bits(d_state, state)
    assert d_xs.shape == xs.shape
    assert not any(np.any(leaf) for leaf in d_params)


@pytest.mark.parametrize("batch", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("option", [None, "lengths", "mask"])
def test_no_rows(option, batch):
    params, xs, state = problem(batch)
    steps = {
        None: {},
        "lengths": {"lengths": jnp.zeros(batch, jnp.int32)},
        "mask": {"mask": jnp.ones((T, *batch), bool)},
    }[option]

    def run(params):
        return jl.unroll(CELL, params, xs, state, **steps)

    (last, hs), pull = jax.vjp(run, params)
    assert hs.shape == (T, *batch, H)
    assert last.c.shape == (*batch, H)
    (d_params,) = pull((last, hs))
    assert not any(np.any(leaf) for leaf in d_params)


@pytest.mark.parametrize("option", ["none", "lengths", "mask"])
def test_any_number_of_batch_axes(option, x64):
    """[T, 2, 3, D] is [T, 6, D], and both are six rows run alone."""
    case = draw(np.random.default_rng(5), Shape(4, (2, 3), 3, 5), Kind(option, True))
    weights, xs, h, c, which, *_ = case
    given = {
        name: value for name, value in which._asdict().items() if name != "reverse"
    }
    params = jl.LSTMParams(*weights)

    def run(reshape, at_rows):
        flat = {
            name: value
            if value is None
            else (at_rows if name == "lengths" else reshape)(value)
            for name, value in given.items()
        }
        state = jl.LSTMState(at_rows(h), at_rows(c))
        return jl.unroll(CELL, params, reshape(xs), state, **flat)

    last, hs = run(lambda a: a, lambda a: a)
    flat_last, flat = run(
        lambda a: a.reshape(a.shape[0], 6, *a.shape[3:]),
        lambda a: a.reshape(6, *a.shape[2:]),
    )
    assert_same(flat.reshape(hs.shape), hs)
    assert_same(flat_last.c.reshape(c.shape), last.c)
    for row in np.ndindex(2, 3):
        one, alone = run(lambda a, r=row: a[(slice(None), *r)], lambda a, r=row: a[r])
        assert_same(alone, hs[(slice(None), *row)])
        assert_same(one.h, last.h[row])


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


@pytest.mark.parametrize("reverse", [False, True])
def test_emit(reverse, x64):
    kind = Kind("mask", True, reverse)
    weights, xs, h, c, which, *_ = draw(
        np.random.default_rng(9), Shape(5, (3,), 2, 4), kind
    )
    run = forward(weights, xs, h, c, which)

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


def test_emit_may_close_over_differentiated_values(x64):
    """A read-out in emit has the gradient of the read-out after the loop."""
    params, xs, state = problem(dtype=jnp.float64)
    lengths = np.array([0, 2, T, 5])
    readout = jax.random.normal(jax.random.key(1), (H, 2), jnp.float64)

    def inside(readout, params):
        _, ys = jl.unroll(
            CELL,
            params,
            xs,
            state,
            lengths=lengths,
            emit=lambda state, gates: state.h @ readout,
        )
        return jnp.sum(ys**2)

    def after(readout, params):
        _, hs = jl.unroll(CELL, params, xs, state, lengths=lengths)
        return jnp.sum((hs @ readout) ** 2)

    slopes = jax.jit(jax.grad(after, argnums=(0, 1)))(readout, params)
    for wrap in (lambda f: f, jax.jit):
        got = wrap(jax.grad(inside, argnums=(0, 1)))(readout, params)
        assert_same(got, slopes)
    each = jax.jit(jax.vmap(inside, in_axes=(0, None)))
    both = each(jnp.stack([readout, -readout]), params)
    assert_same(both, jnp.full(2, jax.jit(inside)(readout, params)))


@pytest.mark.parametrize("jit", [False, True])
def test_emit_without_leaves_or_without_batch_axes(jit):
    """No leaf is valid; a leaf without the batch axes is an error."""
    params, xs, _ = problem()

    def run(lengths, emit):
        return jl.unroll(CELL, params, xs, lengths=lengths, emit=emit)[1]

    lengths = jnp.full(B, 2)
    run = jax.jit(run, static_argnums=1) if jit else run
    assert jax.tree.leaves(run(lengths, jl.emit.nothing)) == []
    with pytest.raises(ValueError, match="emit"):
        run(lengths, mean_of_the_batch)


def mean_of_the_batch(state, gates):
    return state.h.mean()


@pytest.mark.parametrize("engine", ["adjoint", "adjoint/lean", "scan"])
def test_inputs_without_features(engine):
    """With `w_x [0, 4, H]` only the recurrence is left, and it has gradients."""
    cell = jl.lstm()
    drawn = cell.init(jax.random.key(0), 3, 4)
    params = drawn._replace(w_x=jnp.zeros((0, 4, 4)))

    def total(params, size):
        xs = jnp.zeros((5, 2, size))
        return jl.unroll(cell, params, xs, engine=engine)[1].sum()

    both = jax.jit(jax.value_and_grad(total), static_argnums=1)
    loss, gradient = both(params, 0)
    expected, known = both(drawn, 3)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient.w_h, known.w_h, rtol=1e-5, atol=1e-6)
    assert gradient.w_x.shape == (0, 4, 4)
