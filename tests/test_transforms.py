"""`unroll` under JAX's transformations, meshes and checks.

Values are compared with the oracle where it has them, and with the untransformed call
elsewhere.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Case, Kind, Shape, assert_same, draw, expected
from oracle import backward

CELL = jl.lstm()
SHAPE = Shape(6, (4,), 3, 5)
KINDS = [Kind(), Kind("lengths", True), Kind("mask", True, True)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["plain", "lengths", "reverse"])
some_kinds = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(KINDS[0], id="plain"),
        pytest.param(KINDS[1], id="lengths", marks=pytest.mark.combinations),
        pytest.param(KINDS[2], id="reverse"),
    ],
)


def question(kind: Kind, shape: Shape = SHAPE, seed: int = 11) -> Case:
    return draw(np.random.default_rng(seed), shape, kind)


def inputs_of(case: Case):
    """The differentiated arguments: params, xs, state."""
    return jl.LSTMParams(*case.weights), case.xs, jl.LSTMState(case.h, case.c)


def runner(which):
    """Return `(params, xs, state) -> (state, hs)` for the steps of a case."""

    def run(params, xs, state):
        return jl.unroll(
            CELL,
            params,
            xs,
            state,
            lengths=which.lengths,
            mask=which.mask,
            resets=which.resets,
            reverse=which.reverse,
        )

    return run


def objective(case: Case):
    """Return `(params, xs, state) -> scalar`, the inner product with the cotangents."""
    run = runner(case.which)

    def scalar(params, xs, state):
        last, hs = run(params, xs, state)
        on_last = jnp.sum(last.h * case.d_h) + jnp.sum(last.c * case.d_c)
        return jnp.sum(hs * case.d_hs) + on_last

    return scalar


def flat_gradients(gradients):
    d_params, d_xs, d_state = gradients
    return (*d_params, d_xs, *d_state)


def tangents_like(inputs, seed: int = 4):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), inputs)


def dot(one, other) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(float(np.sum(np.asarray(a) * np.asarray(b))) for a, b in pairs)


# --- derivatives ----------------------------------------------------------------------


@some_kinds
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_grad(wrap, kind, x64):
    case = question(kind)
    gradients = jax.grad(wrap(objective(case)), argnums=(0, 1, 2))(*inputs_of(case))
    assert_same(flat_gradients(gradients), expected(case).gradients)


@kinds
def test_jvp_is_the_transpose_of_vjp(kind, x64):
    case = question(kind)
    tangents = tangents_like(inputs_of(case))
    _, directional = jax.jvp(objective(case), inputs_of(case), tangents)
    reference = dot(expected(case).gradients, flat_gradients(tangents))
    np.testing.assert_allclose(directional, reference, rtol=1e-12)


def hvp_forward_reverse(f, inputs, tangents):
    return jax.jvp(jax.grad(f, argnums=(0, 1, 2)), inputs, tangents)[1]


def hvp_reverse_forward(f, inputs, tangents):
    def directional(*inputs):
        return jax.jvp(f, inputs, tangents)[1]

    return jax.grad(directional, argnums=(0, 1, 2))(*inputs)


def hvp_reverse_reverse(f, inputs, tangents):
    def along(*inputs):
        gradients = jax.grad(f, argnums=(0, 1, 2))(*inputs)
        products = jax.tree.map(lambda g, v: jnp.sum(g * v), gradients, tangents)
        return sum(jax.tree.leaves(products))

    return jax.grad(along, argnums=(0, 1, 2))(*inputs)


@some_kinds
@pytest.mark.parametrize(
    "hvp", [hvp_forward_reverse, hvp_reverse_forward, hvp_reverse_reverse]
)
def test_hessian_vector_products(hvp, kind, x64):
    """The reference is the finite difference of the oracle's gradient."""
    case = question(kind)
    inputs = inputs_of(case)
    tangents = tangents_like(inputs)
    got = jax.jit(partial(hvp, objective(case)))(inputs, tangents)
    step = 1e-5

    def gradient(sign: float):
        moved = jax.tree.map(lambda a, v: a + sign * step * v, inputs, tangents)
        params, xs, state = moved
        weights = type(case.weights)(*params)
        cotangents = case.d_hs, case.d_h, case.d_c
        return backward(weights, xs, *state, case.which, *cotangents)

    reference = jax.tree.map(
        lambda up, down: (up - down) / (2 * step), gradient(1.0), gradient(-1.0)
    )
    assert_same(flat_gradients(got), reference, 1e-6)


def test_jacobians_agree(x64):
    case = question(Kind("lengths", True))
    params, xs, state = inputs_of(case)
    xs = np.nan_to_num(xs, posinf=1.0, neginf=1.0)

    def final_cell(state):
        return runner(case.which)(params, xs, state)[0].c

    assert_same(jax.jacfwd(final_cell)(state), jax.jacrev(final_cell)(state))


def test_linearize_and_transpose(x64):
    case = question(Kind("mask", True))
    inputs = inputs_of(case)
    tangents = tangents_like(inputs)
    _, linear = jax.linearize(objective(case), *inputs)
    reference = dot(expected(case).gradients, flat_gradients(tangents))
    np.testing.assert_allclose(linear(*tangents), reference, rtol=1e-12)


# --- vmap -----------------------------------------------------------------------------


def stacked(cases):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(inputs_of, cases))


@some_kinds
@pytest.mark.parametrize("over", ["data", "params", "both"])
def test_vmap(over, kind, x64):
    """Values and gradients of the mapped call equal those of single calls."""
    which = question(kind).which
    cases = [question(kind, seed=seed)._replace(which=which) for seed in (1, 2, 3)]
    cases = [case._replace(xs=np.nan_to_num(case.xs, posinf=1.0)) for case in cases]
    first = inputs_of(cases[0])
    batch = stacked(cases)
    axes = {"data": (None, 0, 0), "params": (0, None, None), "both": (0, 0, 0)}[over]
    arguments = [
        b if axis == 0 else f for axis, b, f in zip(axes, batch, first, strict=True)
    ]

    def both(params, xs, state):
        out, pull = jax.vjp(runner(which), params, xs, state)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    got = jax.jit(jax.vmap(both, in_axes=axes))(*arguments)
    for number in range(3):
        one = [
            jax.tree.map(lambda leaf, n=number: leaf[n], argument)
            if axis == 0
            else argument
            for axis, argument in zip(axes, arguments, strict=True)
        ]
        reference = both(*one)
        assert_same(jax.tree.map(lambda leaf, n=number: leaf[n], got), reference)


@pytest.mark.parametrize("masking", ["lengths", "mask"])
def test_vmap_over_the_batch_equals_the_batch(masking, x64):
    """The lengths, the mask and the resets may be mapped too."""
    case = question(Kind(masking, True))
    params, xs, state = inputs_of(case)
    steps = {"resets": (case.which.resets, 1)}
    steps[masking] = {"lengths": (case.which.lengths, 0), "mask": (case.which.mask, 1)}[
        masking
    ]

    def row(xs, state, steps):
        return jl.unroll(CELL, params, xs, state, **steps)

    axes = {name: axis for name, (_, axis) in steps.items()}
    values = {name: value for name, (value, _) in steps.items()}
    mapped = jax.vmap(row, in_axes=(1, 0, axes), out_axes=(0, 1))
    last, hs = jax.jit(mapped)(xs, state, values)
    reference = expected(case)
    assert_same((hs, *last), (reference.hs, reference.h, reference.c))


def test_vmap_of_vmap_with_one_reset_for_all(x64):
    """Resets that are not mapped while the data is, and the other way round."""
    case = question(Kind("mask", True), Shape(5, (), 2, 3))
    params, xs, state = inputs_of(case)
    xs = np.nan_to_num(xs, posinf=1.0, neginf=1.0)
    masks = np.stack([case.which.mask, ~case.which.mask])

    def run(xs, mask):
        return jl.unroll(CELL, params, xs, state, mask=mask, resets=case.which.resets)

    grid = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(np.stack([xs, -xs]), masks)
    for i, xs_i in enumerate((xs, -xs)):
        for j, mask in enumerate(masks):
            got = jax.tree.map(lambda leaf, at=(i, j): leaf[at], grid)
            assert_same(got, run(xs_i, mask))


def test_gradients_per_example(x64):
    """Per-example gradients sum to the gradient of the batch."""
    case = question(Kind())
    params, xs, state = inputs_of(case)

    def loss(params, xs, state):
        last, hs = jl.unroll(CELL, params, xs, state)
        return jnp.sum(hs**2) + jnp.sum(last.c)

    each = jax.vmap(jax.grad(loss), in_axes=(None, 1, 0))(params, xs, state)
    summed = jax.tree.map(lambda leaf: leaf.sum(0), each)
    assert_same(summed, jax.grad(loss)(params, xs, state))


# --- abstract values, loops -----------------------------------------------------------


@pytest.mark.parametrize("emit", ["hidden", "states", "trace", "nothing"])
def test_eval_shape(emit):
    params = jax.eval_shape(partial(CELL.init, input_size=3, hidden_size=5), key())
    xs = jax.ShapeDtypeStruct((6, 4, 3), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((4,), jnp.int32)

    def run(params, xs, lengths):
        return jl.unroll(CELL, params, xs, lengths=lengths, emit=getattr(jl.emit, emit))

    promised = jax.eval_shape(run, params, xs, lengths)
    real = run(CELL.init(key(), 3, 5), jnp.ones(xs.shape, xs.dtype), jnp.full(4, 2))
    assert jax.tree.structure(promised) == jax.tree.structure(real)
    for one, other in zip(
        jax.tree.leaves(promised), jax.tree.leaves(real), strict=True
    ):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def key():
    return jax.random.key(0)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_scan_over_unroll(dtype, x64):
    """A scan over chunks of a sequence, from the cell's initial state."""
    params = CELL.init(key(), 3, 5, dtype=dtype)
    xs = jax.random.normal(key(), (12, 4, 3), dtype)
    last, hs = jl.unroll(CELL, params, xs)
    zero = CELL.initial_state(params, (4,))
    carried, chunks = jax.lax.scan(
        lambda state, chunk: jl.unroll(CELL, params, chunk, state),
        zero,
        xs.reshape(4, 3, 4, 3),
    )
    tolerance = 1e-12 if dtype == jnp.float64 else 2e-2
    widened = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64),
        (carried, chunks.reshape(hs.shape), last, hs),
    )
    assert_same(widened[:2], widened[2:], tolerance)


def test_inside_cond_and_while(x64):
    case = question(Kind())
    params, xs, state = inputs_of(case)
    state = jax.tree.map(jnp.asarray, state)

    def again(carry):
        count, state = carry
        return count + 1, jl.unroll(CELL, params, xs, state)[0]

    _, twice = jax.lax.while_loop(lambda carry: carry[0] < 2, again, (0, state))
    once = jl.unroll(CELL, params, xs, state)[0]
    assert_same(twice, jl.unroll(CELL, params, xs, once)[0])
    chosen = jax.jit(
        lambda flag: jax.lax.cond(
            flag, lambda: jl.unroll(CELL, params, xs, state)[0], lambda: state
        )
    )
    assert_same(chosen(True), once)


def test_donated_state():
    params = CELL.init(key(), 3, 5)
    xs = jnp.ones((6, 4, 3))
    step = jax.jit(
        lambda state: jl.unroll(CELL, params, xs, state, emit=jl.emit.nothing)[0],
        donate_argnums=0,
    )
    state = jax.tree.map(jnp.copy, CELL.initial_state(params, (4,)))
    for _ in range(3):
        state = step(state)
    assert np.isfinite(state.c).all()


@pytest.mark.thorough
@pytest.mark.parametrize("every", [None, 4, "sqrt"])
def test_no_tracer_leaks(every):
    params = CELL.init(key(), 3, 5)
    xs, lengths = jnp.ones((6, 4, 3)), jnp.array([0, 1, 6, 3])

    def loss(params, xs, lengths):
        last, hs = jl.unroll(CELL, params, xs, lengths=lengths, checkpoint_every=every)
        return jnp.sum(hs) + jnp.sum(last.c)

    with jax.checking_leaks():
        jax.jit(jax.grad(loss))(params, xs, lengths)
        jax.jit(jax.vmap(jax.grad(loss), (None, 2, None)))(
            params, jnp.ones((6, 4, 2, 3)), lengths
        )
        jax.lax.scan(lambda s, x: jl.unroll(CELL, params, x[None], s),
                     CELL.initial_state(params, (4,)), xs)  # fmt: skip


def test_debug_nans_finds_none():
    """NaN in padding is never used in a computation."""
    params = CELL.init(key(), 3, 5)
    xs = jnp.ones((6, 4, 3)).at[3:].set(jnp.nan)

    def loss(params, xs):
        last, hs = jl.unroll(CELL, params, xs, lengths=jnp.full(4, 3))
        return jnp.sum(hs) + jnp.sum(last.c)

    gradient = jax.jit(jax.grad(loss))
    reference = gradient(params, jnp.ones_like(xs))
    assert_same(gradient(params, xs), reference, 1e-6)
