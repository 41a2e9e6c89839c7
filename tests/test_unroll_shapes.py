"""`unroll` on parts of sequences, on every shape of a batch and with own outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, assert_same, draw, same_bits
from problems import CELL, B, H, T, problem


def test_a_ragged_row_equals_the_truncated_row(x64):
    params, xs, state = problem(dtype=jnp.float64)
    last, hs = jl.unroll(CELL, params, xs, state, lengths=jnp.array([0, 2, T, 5]))
    run = jax.jit(lambda params, xs, state: jl.unroll(CELL, params, xs, state))
    for row, length in enumerate([0, 2, T, 5]):
        alone = jl.LSTMState(state.h[row], state.c[row])
        one, short = run(params, xs[:length, row], alone)
        assert_same((last.h[row], last.c[row]), one, 1e-12)
        assert_same(hs[:length, row], short, 1e-12)


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


@pytest.mark.parametrize(
    "engine",
    [
        "adjoint",
        pytest.param("adjoint/lean", marks=pytest.mark.combinations),
        pytest.param("scan", marks=pytest.mark.combinations),
    ],
)
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
