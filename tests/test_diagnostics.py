"""Diagnostics agree with derivatives by brute force, and with known answers.

Brute force is a Python loop over the rows and steps, differentiated forward with
respect to an addition to the state after every step. It uses no scan, no batch axis,
no mask arithmetic and no reverse pass.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlstm as jl
from cases import Kind, Shape, active_steps, assert_same, draw_which, finite
from jaxlstm import diagnostics as dg

over = pytest.mark.parametrize
PLAIN, RAGGED = Kind(), Kind("lengths", resets=True)
HOLES = Kind("mask", resets=True)
KINDS = [PLAIN, RAGGED, HOLES]
DAILY = [("lstm", HOLES)]
CELLS = {
    "lstm": jl.lstm(),
    "projected": jl.projected_lstm(2),
    "peephole": jl.peephole_lstm(),
    "gru": jl.gru(),
}
SHAPE = Shape(5, (3,), 2, 3)
thorough = pytest.mark.thorough


def daily(cases, *chosen):
    """Return the cases; all but the chosen ones are marked as thorough."""
    return [
        case if case in chosen else pytest.param(case, marks=thorough) for case in cases
    ]


FLOWS = [
    pytest.param(
        name,
        kind,
        marks=() if (name, kind) in DAILY else thorough,
        id=f"{name}-{kind.masking}",
    )
    for name in CELLS
    for kind in KINDS
]


class Question(NamedTuple):
    """A cell on a ragged batch, with NaN at inactive steps."""

    cell: jl.Cell
    params: object
    xs: jax.Array
    state: object
    steps: dict
    active: np.ndarray
    resets: np.ndarray


def init_of(cell, features, hidden, dtype=jnp.float32, seed=0):
    """Return the initialization of a cell as a function without arguments."""

    def init():
        return cell.init(jax.random.key(seed), features, hidden, dtype=dtype)

    return init


@functools.cache
def init(cell, features, hidden, dtype=jnp.float32, seed=0):
    """Return the cell's initial parameters as NumPy arrays, from one program."""
    return jax.device_get(jax.jit(init_of(cell, features, hidden, dtype, seed))())


def replaced(params, gate, **fields):
    """Return LSTM parameters whose fields hold other values for one gate."""
    copies = {name: getattr(params, name).copy() for name in fields}
    for name, value in fields.items():
        copies[name][..., gate, :] = value
    return params._replace(**copies)


def question(cell, kind=RAGGED, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    time, batch, features, hidden = shape
    which = draw_which(rng, shape, kind)
    if which.lengths is not None:  # all steps, some, none
        which = which._replace(lengths=np.array([time, time - 2, 0], np.int32))
    active = active_steps(which, time, batch)
    xs = rng.normal(size=(time, *batch, features))
    xs[~active] = np.nan
    resets = np.zeros_like(active) if which.resets is None else which.resets.copy()
    like = jax.eval_shape(init_of(cell, features, hidden, jnp.float64))
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), like)
    like = jax.eval_shape(functools.partial(cell.initial_state, params, batch))
    state = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), like)
    steps = {n: getattr(which, n) for n in ("lengths", "mask", "resets")}
    return Question(cell, params, jnp.asarray(xs), state, steps, active, resets)


def asked(function, q, **options):
    """Return the diagnostic's result, compiled in one program."""
    call = jax.jit(
        lambda params, xs, state: function(
            q.cell, params, xs, state, **q.steps, **options
        )
    )
    return call(q.params, q.xs, q.state)


def row_of(tree, row):
    return jax.tree.map(lambda leaf: leaf[row], tree)


def run_row(q, row, xs, added):
    """Run one row step by step; return its last state and the h of every step."""
    state, hs = row_of(q.state, row), []
    for t in range(len(xs)):
        if not q.active[t, row]:
            hs.append(jnp.zeros_like(state.h))
            continue
        if q.resets[t, row]:
            state = q.cell.initial_state(q.params, dtype=xs.dtype)
        state, _ = q.cell.step(q.params, state, q.cell.project(q.params, xs[t]))
        state = jax.tree.map(jnp.add, state, row_of(added, t))
        hs.append(state.h)
    return state, jnp.stack(hs)


def zero_states(q):
    time = len(q.xs)
    return jax.tree.map(lambda leaf: jnp.zeros((time, *leaf.shape[1:])), q.state)


def rows(q):
    return range(q.xs.shape[1])


def memory(state):
    return state.c if hasattr(state, "c") else state.h


def by_rows(function, q):
    """Return `function(row)` of every row, `[T, ...]`, stacked to `[T, *b, ...]`."""
    results = jax.jit(lambda: [function(row) for row in rows(q)])()
    return jax.tree.map(lambda *leaves: np.stack(leaves, 1), *results)


# -- gradients -----------------------------------------------------------------------


def loss(state, hs):
    return (jnp.sin(hs) ** 2).sum() + (memory(state) ** 2).sum()


@over(("name", "kind"), FLOWS)
def test_gradient_flow_is_the_derivative_with_respect_to_the_state(x64, name, kind):
    q = question(CELLS[name], kind)
    found = asked(dg.gradient_flow, q, loss=loss)

    def gradient(row):
        return jax.jacfwd(lambda added: loss(*run_row(q, row, q.xs[:, row], added)))(
            zero_states(q)
        )

    expected = by_rows(gradient, q)
    assert_same(found.gradient, expected, 1e-10)
    norm = jax.tree.map(lambda leaf: np.linalg.norm(leaf, axis=-1), expected)
    assert_same(found.norm, norm, 1e-10)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.1


@over(("name", "kind"), FLOWS)
def test_the_carousel_has_the_exact_derivative_and_the_forget_product(x64, name, kind):
    q = question(CELLS[name], kind)
    found = asked(dg.carousel, q)
    field = "c" if hasattr(q.state, "c") else "h"

    def jacobian(row):
        def last(push):
            added = zero_states(q)._replace(**{field: push})
            return memory(run_row(q, row, q.xs[:, row], added)[0])

        return jnp.moveaxis(jax.jacfwd(last)(memory(zero_states(q))), 0, -2)

    whole = by_rows(jacobian, q)
    whole = np.where(q.active[..., None, None], whole, 0)
    assert_same(found.derivative, np.diagonal(whole, axis1=-2, axis2=-1), 1e-10)
    assert_same(found.norm, np.linalg.norm(whole, axis=(-2, -1)), 1e-10)
    assert_same(found.product, products(q), 1e-10)
    assert np.abs(whole).max() > 0.1


def products(q):
    """Return the products of the later forget gates, multiplied one by one."""
    _, trace = jl.unroll(q.cell, q.params, q.xs, q.state, **q.steps, emit=jl.emit.trace)
    f = np.asarray(trace.gates.f if hasattr(trace.gates, "f") else trace.gates.z)
    expected = np.zeros_like(f)
    for row in rows(q):
        product = np.ones(f.shape[-1])
        for t in reversed(range(len(f))):
            if q.active[t, row]:
                expected[t, row] = product
                product = product * (0 if q.resets[t, row] else f[t, row])
    return expected


def test_without_recurrent_weights_the_product_is_the_derivative(x64):
    q = question(jl.lstm())
    q = q._replace(params=q.params._replace(w_h=0 * q.params.w_h))
    found = asked(dg.carousel, q)
    assert_same(found.derivative, found.product, 1e-10)
    assert_same(found.norm, np.linalg.norm(found.product, axis=-1), 1e-10)


@pytest.mark.thorough
@over("kind", daily(KINDS, RAGGED), ids=str)
def test_memory_span_is_the_derivative_with_respect_to_each_input(x64, kind):
    q = question(jl.lstm(), kind)
    found = asked(dg.memory_span, q, share=0.2)
    zero = jnp.where(q.active[..., None], q.xs, 0.0)
    for row in rows(q):
        full = jax.jacfwd(lambda xs, row=row: run_row(q, row, xs, zero_states(q))[0].h)(
            zero[:, row]
        )
        norms = np.linalg.norm(np.moveaxis(full, 1, 0), axis=(1, 2))
        norms = norms[q.active[:, row]][::-1]
        expected = np.zeros(len(q.xs))
        expected[: len(norms)] = norms
        np.testing.assert_allclose(found.sensitivity[:, row], expected, atol=1e-10)
        above = np.flatnonzero(expected > 0.2 * expected.max())
        assert found.span[row] == (above.max() if above.size else -1)


@thorough
def test_memory_span_of_another_output(x64):
    q = question(jl.lstm(), Kind())
    whole = asked(dg.memory_span, q, output=lambda state: 2 * state.h)
    one = asked(dg.memory_span, q, output=lambda state: state.h[..., :1])
    assert_same(whole.sensitivity, 2 * asked(dg.memory_span, q).sensitivity, 1e-10)
    assert (one.sensitivity < whole.sensitivity).all()


def halving_rnn(size=2):
    """h_t = h_{t-1} / 2 + x_t."""
    cell = jl.simple_rnn(activation="identity")
    eye = np.eye(size)
    params = init(cell, size, size)
    return cell, params._replace(w_x=eye, w_h=eye / 2, b=np.zeros(size))


def test_a_network_that_halves_its_state_halves_its_gradient(x64):
    cell, params = halving_rnn()
    powers = 0.5 ** np.arange(6) * math.sqrt(2)

    @jax.jit
    def found(xs):
        cells = {"RNN": (cell, params)}
        flows = dg.compare(cells, xs, loss=lambda state, hs: hs[-1].sum())
        return flows["RNN"], dg.memory_span(cell, params, xs, share=0.1)

    flow, span = jax.device_get(found(np.ones((6, 2))))
    np.testing.assert_allclose(flow.norm.h[::-1], powers, rtol=1e-12)
    np.testing.assert_allclose(span.sensitivity, powers, rtol=1e-12)
    assert span.span == 3  # 1/8 is above a tenth, 1/16 is not


@thorough
def test_compare_uses_the_same_steps_for_all_cells(x64):
    q = question(jl.lstm())._replace(state=None)
    gru = question(jl.gru())
    cells = {"b": (q.cell, q.params), "a": (gru.cell, gru.params)}
    flows = dg.compare(cells, q.xs, loss=loss, **q.steps)
    assert list(flows) == ["b", "a"]
    assert_same(flows["b"], asked(dg.gradient_flow, q, loss=loss), 1e-12)
    assert flows["a"].norm.h.shape == (5, 3)


@thorough
def test_the_loss_of_gradient_flow_gets_what_emit_returns(x64):
    q = question(jl.lstm())
    found = asked(
        dg.gradient_flow,
        q,
        loss=lambda state, states: states.c.sum() * 3,
        emit=jl.emit.states,
    )
    last = q.active & ~np.roll(q.active, -1, 0)
    last[-1] = q.active[-1]
    assert (found.gradient.c[last] == 3).all()
    assert (found.gradient.c[~q.active] == 0).all()


def test_the_gradient_flow_of_a_model_is_that_of_its_cells(x64):
    """That of each cell alone, whose loss is computed by the layers after it."""
    lstm, gru = jl.lstm(), jl.zoneout(jl.gru(), h_rate=0.2)
    both = jl.bidirectional(
        jl.recurrent(gru, 3), jl.serial(jl.recurrent(gru, 2, reverse=True))
    )
    model = jl.serial(rnn=jl.stack(lstm, (4,)), both=both, head=jl.linear(1))
    params, _ = model.init(KEY, 2)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    xs, lengths = jax.random.normal(KEY, (6, 3, 2), jnp.float64), np.array([6, 4, 0])
    flows = dg.gradient_flow(
        model, params, xs, loss=lambda _, ys: (ys**2).sum(), lengths=lengths
    )
    assert list(flows) == ["rnn/0", "both/forward", "both/backward/0"]

    def flipped(values):
        t = np.arange(6)[:, None]
        order = np.where(t < lengths, lengths - 1 - t, t)[..., None]
        return jnp.take_along_axis(values, order, axis=0)

    def rest(forward, backward):
        features = jnp.concatenate([forward, backward], -1)
        _, ys = jl.linear(1).apply(params["head"], features, lengths=lengths)
        return (ys**2).sum()

    def after_lstm(_, hs):
        _, features = both.apply(params["both"], hs, lengths=lengths)
        return rest(features[..., :3], features[..., 3:])

    steps = {"lengths": lengths}
    expected = dg.gradient_flow(
        lstm, params["rnn"][0], xs, loss=after_lstm, **steps
    ).gradient
    assert_same(flows["rnn/0"].gradient, expected, 1e-12)
    hs = model.trace(params, xs, lengths=lengths)[2]["rnn/0"].state.h
    _, ahead = jl.unroll(gru, params["both"].forward, hs, **steps)
    back = flipped(hs)
    own = params["both"].backward[0]
    _, behind = jl.unroll(gru, own, back, **steps)
    behind = flipped(behind)
    found = flows["both/forward"]
    expected = dg.gradient_flow(
        gru, params["both"].forward, hs, loss=lambda _, h: rest(h, behind), **steps
    )
    assert_same(found, expected, 1e-12)
    expected = dg.gradient_flow(
        gru,
        own,
        back,
        loss=lambda _, h: rest(ahead, flipped(h)),
        **steps,
    )
    found = flows["both/backward/0"].gradient.h
    assert_same(found, flipped(expected.gradient.h), 1e-12)
    with pytest.raises(ValueError, match="expected a model with recurrent layers"):
        dg.gradient_flow(jl.linear(1), params["head"], ahead, loss=lambda s, y: y.sum())


@thorough
def test_gradient_flow_of_a_convolutional_cell():
    cell = jl.conv_lstm((3,))
    params = init(cell, 1, 2)
    found = dg.gradient_flow(
        cell,
        params,
        jnp.ones((4, 2, 5, 1)),
        loss=lambda state, hs: hs[-1].sum(),
        lengths=[4, 2],
    )
    assert found.gradient.h.shape == (4, 2, 5, 2)
    assert found.norm.h.shape == (4, 2)
    np.testing.assert_allclose(found.norm.h[-1], [math.sqrt(10), 0], rtol=1e-6)


# -- dynamics ----------------------------------------------------------------------

KEY = jax.random.key(3)


def jacobians_by_hand(q):
    """Return {(t, row): ∂s_t / ∂s_{t-1}} of the active steps, each computed alone."""

    def every_jacobian():
        found = {}
        for row in rows(q):
            state = row_of(q.state, row)
            for t in np.flatnonzero(q.active[:, row]).tolist():
                if q.resets[t, row]:
                    state = q.cell.initial_state(q.params, dtype=q.xs.dtype)
                z = q.cell.project(q.params, q.xs[t, row])

                def step(state, z=z):
                    return q.cell.step(q.params, state, z)[0]

                found[t, row] = list(map(list, jax.jacrev(step)(state)))
                state = step(state)
        return found

    return {at: np.block(blocks) for at, blocks in jax.jit(every_jacobian)().items()}


@over(("name", "kind"), FLOWS)
def test_step_jacobians_equal_jacobians_of_single_steps(x64, name, kind):
    q = question(CELLS[name], kind)
    found = np.asarray(asked(dg.step_jacobians, q))
    by_hand = jacobians_by_hand(q)
    for t, row in np.ndindex(q.active.shape):
        expected = by_hand.get((t, row), np.zeros(found.shape[2:]))
        np.testing.assert_allclose(found[t, row], expected, atol=1e-10)


@thorough
def test_the_spectrum_belongs_to_the_jacobians(x64):
    q = question(jl.lstm())
    found, jacobians = asked(dg.jacobian_spectrum, q), asked(dg.step_jacobians, q)
    trace = np.trace(jacobians, axis1=-2, axis2=-1)
    np.testing.assert_allclose(found.eigenvalues.sum(-1), trace, atol=1e-10)
    squares = (np.asarray(jacobians) ** 2).sum((-2, -1))
    np.testing.assert_allclose((found.singular_values**2).sum(-1), squares, atol=1e-10)
    assert (np.diff(found.singular_values, axis=-1) <= 0).all()


def linear_rnn(w_h):
    cell = jl.simple_rnn(activation="identity")
    params = init(cell, 2, len(w_h), jnp.float64)
    return cell, params._replace(w_h=jnp.asarray(w_h))


def test_an_orthogonal_network_is_isometric(x64):
    cell, params = linear_rnn(jax.random.orthogonal(KEY, 6, dtype=jnp.float64))
    xs = jax.random.normal(KEY, (30, 2), jnp.float64)
    spectrum, exponents = jax.jit(
        lambda xs: (
            dg.jacobian_spectrum(cell, params, xs),
            dg.lyapunov_exponents(cell, params, xs),
        )
    )(xs)
    np.testing.assert_allclose(spectrum.singular_values, 1, rtol=1e-12)
    np.testing.assert_allclose(abs(spectrum.eigenvalues), 1, rtol=1e-12)
    np.testing.assert_allclose(exponents, np.zeros(6), atol=1e-12)


@over("sign", daily([-1, 1], -1))
def test_exponents_of_a_diagonal_network_are_the_logs_of_its_entries(x64, sign):
    rates = np.array([-2.0, 0.5, -0.1, -1.0])
    cell, params = linear_rnn(np.diag(sign * np.exp(rates)))
    xs, draw = jnp.ones((60, 2)), {"count": 2, "key": KEY}

    @jax.jit
    def found(xs):
        exponents = functools.partial(dg.lyapunov_exponents, cell, params, xs)
        return exponents(), exponents(warm_up=40, **draw), exponents(**draw)

    every, largest, at_once = found(xs)
    np.testing.assert_allclose(every, sorted(rates)[::-1], rtol=1e-12)
    np.testing.assert_allclose(largest, [0.5, -0.1], atol=1e-9)
    assert 1e-4 < abs(at_once - jnp.array([0.5, -0.1])).max() < 0.1


@pytest.mark.thorough
@over("kind", daily(KINDS, RAGGED), ids=str)
def test_exponents_equal_a_qr_iteration_in_numpy(x64, kind):
    q = question(jl.lstm(), kind)
    found = np.asarray(asked(dg.lyapunov_exponents, q, warm_up=1))
    by_hand = jacobians_by_hand(q)
    for row in rows(q):
        basis, total, seen = np.eye(found.shape[-1]), 0.0, 0
        for t in np.flatnonzero(q.active[:, row]):
            basis, r = np.linalg.qr(by_hand[t, row] @ basis)
            total = total + (seen >= 1) * np.log(abs(np.diag(r)))
            seen += 1
        if seen < 2:
            assert np.isnan(found[row]).all()
            continue
        expected = sorted(total / (seen - 1))[::-1]
        np.testing.assert_allclose(found[row], expected, rtol=1e-8)


@thorough
def test_large_recurrent_weights_are_chaotic_and_small_ones_are_not(x64):
    cell = jl.simple_rnn()
    params = init(cell, 1, 20, jnp.float64)
    w_h = jax.random.normal(KEY, (20, 20), jnp.float64) / math.sqrt(20)
    begin = jl.unroll(cell, params, jax.random.normal(KEY, (1, 1), jnp.float64))[0]

    def largest(gain):
        own = params._replace(w_h=gain * w_h)
        return dg.lyapunov_exponents(
            cell, own, jnp.zeros((150, 1)), begin, count=1, key=KEY, warm_up=50
        ).item()

    assert largest(0.5) < -0.3
    assert largest(6.0) > 0.1


@pytest.mark.thorough
def test_dynamics_use_the_parameters_that_prepare_returns(x64):
    cell, params = halving_rnn()

    def prepare(params, xs, *, key=None):
        return params._replace(w_h=2 * params.w_h), None

    prepared = cell._replace(prepare=prepare)
    found = dg.step_jacobians(prepared, params, jnp.ones((3, 2)))
    np.testing.assert_allclose(found, [np.eye(2)] * 3, rtol=1e-12)


@thorough
def test_jacobians_of_16_bit_inputs_are_in_float32():
    cell = jl.gru()
    params = init(cell, 2, 3)
    xs = jax.random.normal(KEY, (5, 2), jnp.bfloat16)
    jacobians = dg.step_jacobians(cell, params, xs)
    wide = dg.step_jacobians(cell, params, xs.astype(jnp.float32))
    assert jacobians.dtype == jnp.float32
    np.testing.assert_allclose(jacobians, wide, atol=0.05)


# -- gates -------------------------------------------------------------------------


def logit(p):
    return math.log(p / (1 - p))


def test_statistics_of_a_counter_that_keeps_everything(x64):
    cell = jl.lstm(candidate_activation="identity", output_activation="identity")
    params = jl.LSTMParams(
        w_x=jnp.array([[[80.0], [0.0], [0.0], [0.0]]]),  # i opens where x is 1
        w_h=jnp.zeros((1, 4, 1)),
        b=jnp.array([[-40.0], [40.0], [1.0], [40.0]]),  # f and o open, g = 1
    )
    xs = jnp.array([1.0, 0, 0, 1, 1, 0, 0, 0])[:, None]

    @jax.jit
    def run(xs):
        state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
        return state, trace.gates, dg.carousel(cell, params, xs)

    state, gates, carousel = run(xs)
    assert state.c.item() == pytest.approx(3)
    write, keep, read = dg.fractions(gates)
    assert (write.item(), keep.item(), read.item()) == pytest.approx((3 / 8, 1, 1))
    low, high = dg.saturation(gates)
    assert (low.i.item(), high.i.item()) == (5 / 8, 3 / 8)
    assert (low.f.item(), high.f.item()) == (0, 1)
    assert (low.g.item(), high.g.item()) == (0, 1)
    assert dg.timescales(gates).item() > 1e12
    intervals = dg.closed_intervals(gates.i)
    assert intervals.closed_for[:, 0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert [part.item() for part in intervals[1:]] == [2, 3, 2.5]
    np.testing.assert_allclose(carousel.product, 1, rtol=1e-12)
    np.testing.assert_allclose(carousel.derivative, 1, rtol=1e-12)


def test_the_timescale_of_an_integrator(x64):
    taus = np.array([1.0, 20.0, 500.0])
    cell = jl.lstm()
    params = init(cell, 2, 3, jnp.float64)
    b_f = [logit(math.exp(-1 / tau)) for tau in taus]
    params = replaced(params, 1, w_x=0, w_h=0, b=b_f)
    xs = np.ones((6, 2, 2))
    xs[3:, 1] = np.nan

    @jax.jit
    def run(xs):
        _, trace = jl.unroll(cell, params, xs, lengths=[6, 3], emit=jl.emit.trace)
        return (
            dg.timescales(trace.gates, lengths=[6, 3]),
            dg.forget_products(trace.gates, lengths=[6, 3]),
        )

    found, products = run(xs)
    np.testing.assert_allclose(found, taus, rtol=1e-10)
    first = np.asarray(products)[0]
    np.testing.assert_allclose(first[0], np.exp(-5 / taus), rtol=1e-10)
    np.testing.assert_allclose(first[1], np.exp(-2 / taus), rtol=1e-10)


def test_a_timescale_uses_the_geometric_mean_and_may_be_infinite(x64):
    f = jnp.array([[0.5, 1.0, 0.0], [0.125, 1.0, 0.9]])
    found = dg.timescales(jl.Gates(f, f, f, f))
    np.testing.assert_allclose(found, [1 / math.log(4), math.inf, 0], rtol=1e-12)


@thorough
def test_without_a_forget_gate_the_timescale_is_infinite(x64):
    q = question(jl.classic_lstm())
    _, trace = jl.unroll(q.cell, q.params, q.xs, **q.steps, emit=jl.emit.trace)
    assert (dg.timescales(trace.gates, lengths=q.steps["lengths"]) == math.inf).all()


@thorough
def test_a_timescale_has_finite_gradients_at_padding(x64):
    f = jnp.full((3, 2, 1), 0.5).at[2, 1].set(0.0)  # zeros, as emitted at padding

    def tau(f):
        return dg.timescales(jl.Gates(f, f, f, f), lengths=jnp.array([3, 2])).sum()

    assert finite(jax.jit(jax.grad(tau))(f))


@over("masking", daily(["lengths", "mask"], "lengths"))
def test_statistics_leave_out_padding(x64, masking):
    q = question(jl.lstm(), Kind(masking))
    _, trace = jl.unroll(q.cell, q.params, q.xs, **q.steps, emit=jl.emit.trace)
    steps = {masking: q.steps[masking]}
    gates = jax.tree.map(
        lambda gate: jnp.where(q.active[..., None], gate, jnp.nan), trace.gates
    )
    real = jax.tree.map(lambda gate: np.asarray(gate)[q.active], gates)
    low, high = dg.saturation(gates, low=0.3, high=0.6, **steps)
    for name in "ifo":
        np.testing.assert_allclose(
            getattr(low, name), (getattr(real, name) < 0.3).mean(0), rtol=1e-12
        )
        np.testing.assert_allclose(
            getattr(high, name), (getattr(real, name) > 0.6).mean(0), rtol=1e-12
        )
    np.testing.assert_allclose(high.g, (real.g > 0.2).mean(0), rtol=1e-12)
    np.testing.assert_allclose(low.g, (real.g < -0.4).mean(0), rtol=1e-12)
    expected = [real.i.mean(0), real.f.mean(0), real.o.mean(0)]
    np.testing.assert_allclose(dg.fractions(gates, **steps), expected, rtol=1e-12)
    np.testing.assert_allclose(
        dg.timescales(gates, **steps), -1 / np.log(real.f).mean(0), rtol=1e-12
    )
    hs = gates.o
    spread = real.o.max(0) - real.o.min(0)
    band = float(np.median(spread))
    found = dg.dead_units(hs, band=band + 1e-12, **steps)
    assert found.tolist() == (spread <= band + 1e-12).tolist()
    found = dg.duplicate_units(hs, threshold=0.1, **steps)
    expected = np.corrcoef(real.o.T)
    np.testing.assert_allclose(found.correlation, expected, atol=1e-10)
    assert (found.pairs == np.triu(abs(expected) > 0.1, 1)).all()


def test_a_gru_keeps_by_z_and_reads_everything():
    z = jnp.array([[0.25], [0.75]])
    gates = jl.cells.gru.GRUGates(r=z, z=z, n=z)
    assert [part.item() for part in dg.fractions(gates)] == [0.5, 0.5, 1.0]
    assert dg.forget_products(gates)[:, 0].tolist() == [0.75, 1.0]


def test_a_step_mask_replaces_lengths_mask_and_resets(x64):
    q = question(jl.lstm(), HOLES)
    gates = jl.Gates(*np.random.default_rng(1).random((4, *q.xs.shape[:-1], 4)))
    whole = jl.StepMask(*(jnp.asarray(q.steps[name]) for name in ("mask", "resets")))
    found = dg.forget_products(gates, mask=whole)
    assert_same(found, dg.forget_products(gates, **q.steps), 0)
    found = dg.forget_products(gates, mask=whole._replace(active=None))
    assert_same(found, dg.forget_products(gates, resets=whole.resets), 0)
    found = dg.timescales(gates, mask=whole)
    assert_same(found, dg.timescales(gates, mask=q.steps["mask"]), 0)


def intervals_by_hand(gate, active, resets):
    """Return, for each step of one unit, for how long the gate has been closed."""
    run, found = 0, []
    for value, executed, reset in zip(gate, active, resets, strict=True):
        if not executed:
            found.append(0)
            continue
        run = (0 if reset else run) + 1 if value < 0.5 else 0
        found.append(run)
    return found


@over("kind", daily(KINDS, HOLES), ids=str)
def test_closed_intervals_equal_a_count_in_python(x64, kind):
    q = question(jl.lstm(), kind, Shape(20, (3,), 2, 4))
    gate = np.random.default_rng(1).random((20, 3, 4))
    gate[~q.active] = np.nan
    found = jax.tree.map(
        np.asarray, dg.closed_intervals(gate, threshold=0.5, **q.steps)
    )
    for row, unit in np.ndindex(3, 4):
        expected = intervals_by_hand(
            gate[:, row, unit], q.active[:, row], q.resets[:, row]
        )
        assert found.closed_for[:, row, unit].tolist() == expected
        number = expected.count(1)
        assert found.number[row, unit] == number
        assert found.longest[row, unit] == max(expected)
        closed = sum(run > 0 for run in expected)
        assert found.mean[row, unit] == pytest.approx(closed / max(number, 1))
    assert found.longest.max() > 2


# -- units -------------------------------------------------------------------------


def test_dead_and_duplicate_units_are_found(x64):
    a, b = np.random.default_rng(0).normal(size=(2, 40, 2))
    units = [a, np.full_like(a, 0.3), b, 2 - a, a + 0.001 * b, np.full_like(a, 1e3)]
    hs = np.stack(units, axis=-1)
    assert dg.dead_units(hs).tolist() == [False, True, False, False, False, True]
    found = jax.device_get(dg.duplicate_units(hs))
    assert np.argwhere(found.pairs).tolist() == [[0, 3], [0, 4], [3, 4]]
    assert found.correlation[0, 3] == pytest.approx(-1)
    assert (found.correlation[1] == 0).all()
    assert (found.correlation[5] == 0).all()


# -- attribution -------------------------------------------------------------------


def test_each_input_contributes_its_own_term_of_a_sum(x64):
    rng = np.random.default_rng(0)
    xs, weights = rng.normal(size=(2, 4, 3, 2))
    ragged = xs.copy()
    ragged[2:, 1] = np.nan

    @jax.jit
    def attributions(xs, ragged):
        def squares(xs):
            return (xs**2).sum()

        def linear(xs):
            return (weights * xs).sum()

        half = jnp.full_like(xs, 0.5)
        return (
            dg.integrated_gradients(squares, xs, nodes=1),
            dg.integrated_gradients(squares, ragged, nodes=1, lengths=[4, 2, 4]),
            dg.integrated_gradients(lambda xs: (xs**2).sum((0, 2)), xs, baseline=half),
            dg.integrated_gradients(linear, xs, baseline=2.0, nodes=1),
        )

    whole, padded, by_row, shifted = attributions(xs, ragged)
    assert_same(whole.values, xs**2, 1e-12)  # one node is exact to degree one
    assert_same(padded.values, np.nan_to_num(ragged) ** 2, 1e-12)
    assert abs(padded.gap) < 1e-12
    assert_same(by_row.values, xs**2 - 0.25, 1e-12)
    assert by_row.gap.shape == (3,)
    assert_same(shifted.values, weights * (xs - 2), 1e-12)


@pytest.mark.thorough
@over("kind", daily([RAGGED, HOLES], RAGGED), ids=str)
def test_attributions_sum_to_the_change_of_the_output(x64, kind):
    q = question(jl.lstm(), kind)
    steps = {name: q.steps[name] for name in ("lengths", "mask")}

    def output(xs):
        state, _ = jl.unroll(q.cell, q.params, xs, q.state, **q.steps)
        return state.h[..., 0]

    def attributed(nodes):
        return dg.integrated_gradients(output, q.xs, nodes=nodes, **steps)

    output = jax.jit(output)
    found = attributed(64)
    changed = output(q.xs) - output(jnp.zeros_like(q.xs))
    assert_same(found.values.sum((0, 2)), changed, 1e-8)
    assert abs(changed).max() > 0.01
    assert_same(found.gap, changed - found.values.sum((0, 2)), 1e-12)
    assert (found.values[~q.active] == 0).all()
    assert abs(attributed(1).gap).max() > 1e-4
    total = dg.integrated_gradients(
        lambda xs: output(xs).sum(), q.xs, nodes=64, **steps
    )
    assert_same(total.values, found.values, 1e-12)


# -- every function under every transformation ---------------------------------------


def output_of(params, lengths):
    def output(xs):
        return jl.unroll(jl.lstm(), params, xs, lengths=lengths)[0].h.sum(-1)

    return output


def of_a_trace(function):
    """Return a statistic of a trace as a function of parameters and inputs."""

    def call(params, xs, lengths):
        _, trace = jl.unroll(jl.lstm(), params, xs, lengths=lengths, emit=jl.emit.trace)
        return function(trace, lengths)

    return call


def of_a_run(function, **options):
    def call(params, xs, lengths):
        return function(jl.lstm(), params, xs, lengths=lengths, **options)

    return call


FUNCTIONS = {
    "saturation": of_a_trace(lambda t, n: dg.saturation(t.gates, lengths=n)),
    "fractions": of_a_trace(lambda t, n: dg.fractions(t.gates, lengths=n)),
    "timescales": of_a_trace(lambda t, n: dg.timescales(t.gates, lengths=n)),
    "closed_intervals": of_a_trace(
        lambda t, n: dg.closed_intervals(t.gates.i, threshold=0.4, lengths=n)
    ),
    "forget_products": of_a_trace(lambda t, n: dg.forget_products(t.gates, lengths=n)),
    "backward_resets": of_a_trace(
        lambda t, n: dg.backward_resets(t.gates.f[..., 0] > 0.5, lengths=n)
    ),
    "dead_units": of_a_trace(
        lambda t, n: dg.dead_units(t.state.h, band=0.1, lengths=n)
    ),
    "duplicate_units": of_a_trace(
        lambda t, n: dg.duplicate_units(t.state.h, lengths=n)
    ),
    "gradient_flow": of_a_run(dg.gradient_flow, loss=loss),
    "carousel": of_a_run(dg.carousel),
    "memory_span": of_a_run(dg.memory_span),
    "step_jacobians": of_a_run(dg.step_jacobians),
    "jacobian_spectrum": of_a_run(dg.jacobian_spectrum),
    "lyapunov_exponents": of_a_run(dg.lyapunov_exponents),
    "compare": lambda params, xs, n: dg.compare(
        {"a": (jl.lstm(), params)}, xs, loss=loss, lengths=n
    ),
    "integrated_gradients": lambda params, xs, n: dg.integrated_gradients(
        output_of(params, n), xs, nodes=4, lengths=n
    ),
}


def data():
    """Return two sets of parameters, inputs and lengths."""
    keys = jax.random.split(KEY)
    params = jax.vmap(lambda key: jl.lstm().init(key, 2, 3, dtype=jnp.float64))(keys)
    xs = jax.random.normal(KEY, (2, 4, 2, 2), jnp.float64)
    xs = xs.at[0, 3:, 1].set(jnp.nan).at[1, 2:, 0].set(jnp.nan)
    return params, xs, jnp.array([[4, 3], [2, 4]])


def test_every_public_function_is_tested_under_transformations():
    public = {name for name in vars(dg) if callable(getattr(dg, name))}
    assert {name for name in public if name.islower()} == set(FUNCTIONS)


@thorough
@over("name", FUNCTIONS)
def test_jit_and_vmap_do_not_change_the_result(x64, name):
    params, xs, lengths = data()
    together = jax.jit(jax.vmap(FUNCTIONS[name]))(params, xs, lengths)
    for one in range(2):
        alone = FUNCTIONS[name](*row_of((params, xs), one), lengths[one])
        leaves = jax.tree.leaves(alone)
        assert leaves
        assert finite(alone)
        if name == "jacobian_spectrum":  # eigenvalues have no order
            alone, own = alone.singular_values, together.singular_values[one]
        else:
            own = row_of(together, one)
        assert_same(own, alone, 1e-9)


@thorough
@over(
    "name",
    [name for name in FUNCTIONS if name not in ("dead_units", "closed_intervals")],
)
def test_an_invalid_traced_length_gives_nan(x64, name):
    params, xs, _ = data()
    xs = jnp.nan_to_num(xs)
    for wrong in (5, -1):
        found = jax.jit(FUNCTIONS[name])(
            *row_of((params, xs), 0), jnp.array([4, wrong])
        )
        leaves = jax.tree.leaves(found)
        numbers = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
        assert all(not finite(leaf) for leaf in numbers)


@thorough
@over("name", ["saturation", "fractions", "timescales"])
def test_vmap_gives_statistics_of_each_row(x64, name):
    gates = jl.Gates(*jax.random.uniform(KEY, (4, 5, 3, 2)))
    function, lengths = getattr(dg, name), jnp.array([5, 2, 3])

    def one(gates, length):
        return function(gates, lengths=length)

    apart = jax.vmap(one, in_axes=(1, 0))(gates, lengths)
    for row in range(3):
        cut = jax.tree.map(lambda gate, row=row: gate[: lengths[row], row], gates)
        assert_same(row_of(apart, row), function(cut), 1e-6)


@thorough
@over("time", [0, 1])
def test_sequences_of_no_step_or_one_step(x64, time):
    params, xs, _ = data()
    params, xs = row_of(params, 0), xs[0, :time]
    for name, function in FUNCTIONS.items():
        if name == "compare":
            continue
        found = function(params, xs, jnp.array([time, time]))
        shaped = jax.eval_shape(function, params, xs, jnp.array([time, time]))
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, shaped)


# -- errors --------------------------------------------------------------------------

F = jnp.full((4, 2), 0.5)
ONES = jnp.ones((4, 2))


def traced(function, *args, **options):
    """Call a function without compiling anything; errors are raised while tracing."""
    return jax.eval_shape(lambda: function(*args, **options))


def with_lstm(function, **options):
    cell = jl.lstm()
    return traced(function, cell, init(cell, 2, 3), ONES, **options)


WRONG = {
    "saturation: low, high: got 0.9 and 0.1, expected 0 <= low": lambda: dg.saturation(
        {"i": F}, low=0.9, high=0.1
    ),
    "saturation: gates.i: got shape [4], expected [T, *b, D]": lambda: dg.saturation(
        {"i": F[:, 0]}
    ),
    "timescales: gates: got RNNGates(g), expected a forget gate f or z": (
        lambda: dg.timescales(jl.cells.simple.RNNGates(F))
    ),
    "fractions: lengths[1]: got 5, expected 0 to 4": lambda: dg.fractions(
        jl.Gates(*jnp.ones((4, 4, 2, 2))), lengths=[1, 5]
    ),
    "closed_intervals: threshold: got 2.0, expected 0 < threshold <= 1": (
        lambda: dg.closed_intervals(F, threshold=2)
    ),
    "dead_units: band: got -1.0, expected a width >= 0": lambda: dg.dead_units(
        F, band=-1
    ),
    "duplicate_units: threshold: got 1.0, expected 0 <= threshold < 1": (
        lambda: dg.duplicate_units(F, threshold=1)
    ),
    "gradient_flow: loss: got a result of shape [4, 3], expected one number": (
        lambda: with_lstm(dg.gradient_flow, loss=lambda state, hs: hs)
    ),
    "gradient_flow: unroll: lengths: got 9": lambda: with_lstm(
        dg.gradient_flow, loss=loss, lengths=9
    ),
    "memory_span: share: got 1.0, expected 0 <= share < 1": lambda: with_lstm(
        dg.memory_span, share=1
    ),
    "memory_span: output: got a result of shape [], expected one vector": (
        lambda: with_lstm(dg.memory_span, output=lambda state: state.h.sum())
    ),
    "lyapunov_exponents: count: got 7, expected an integer from 1 to 6": (
        lambda: with_lstm(dg.lyapunov_exponents, count=7, key=KEY)
    ),
    "lyapunov_exponents: key: got None with count 1 of 6, expected a key": (
        lambda: with_lstm(dg.lyapunov_exponents, count=1)
    ),
    "lyapunov_exponents: warm_up: got -1, expected an integer >= 0": (
        lambda: with_lstm(dg.lyapunov_exponents, warm_up=-1)
    ),
    "compare: cells: got [], expected a dict": lambda: dg.compare([], ONES, loss=loss),
    'compare: cells["a"]: gradient_flow: unroll: ': lambda: dg.compare(
        {"a": (jl.lstm(), None)}, ONES, loss=loss
    ),
    "integrated_gradients: function: got a result of shape [4, 2], expected one": (
        lambda: dg.integrated_gradients(lambda xs: xs, ONES)
    ),
    "integrated_gradients: baseline: got shape [2], expected a number or the shape": (
        lambda: dg.integrated_gradients(lambda xs: xs.sum(), ONES, baseline=jnp.ones(2))
    ),
    "integrated_gradients: nodes: got 0, expected an integer >= 1": (
        lambda: dg.integrated_gradients(lambda xs: xs.sum(), ONES, nodes=0)
    ),
}


@over("message", WRONG)
def test_wrong_arguments_raise(message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        WRONG[message]()


@over(
    "function",
    [dg.carousel, dg.memory_span, dg.step_jacobians, dg.lyapunov_exponents],
)
def test_jacobians_of_a_cell_with_spatial_axes_raise(function):
    cell = jl.conv_lstm((3,))
    with pytest.raises(ValueError, match="cell: got 1 spatial axes, expected none"):
        traced(function, cell, init(cell, 1, 2), jnp.ones((4, 2, 5, 1)))


def test_a_seed_in_place_of_a_key_raises():
    with pytest.raises(TypeError, match="lyapunov_exponents: key: got 3"):
        with_lstm(dg.lyapunov_exponents, key=3)


def test_statistics_of_16_bit_values_are_summed_in_float32():
    """In bfloat16, neither the number of 1,003 steps nor a sum over them is exact."""
    drawn = jax.random.uniform(jax.random.key(0), (1003, 1, 6), jnp.float32)
    halves = drawn.astype(jnp.bfloat16)
    same = halves.astype(jnp.float32)

    def found(values):
        gates = jl.Gates(*[values] * 4)
        return (
            dg.saturation(gates),
            dg.fractions(gates),
            dg.timescales(gates),
            dg.closed_intervals(values),
            dg.forget_products(gates),
            dg.dead_units(values),
            dg.duplicate_units(values),
        )

    jax.tree.map(np.testing.assert_array_equal, found(halves), found(same))


def test_exponents_of_an_lstm_without_recurrent_weights_are_log_f():
    """Gates depend on the input alone, and h_t does not depend on h_{t-1}."""
    cell = jl.lstm()
    params = init(cell, 2, 3)
    params = params._replace(w_h=np.zeros_like(params.w_h))
    kept = np.array([0.9, 0.5, 0.99])
    params = replaced(params, 1, w_x=0, b=np.log(kept / (1 - kept)))
    found = np.asarray(
        jax.jit(functools.partial(dg.lyapunov_exponents, cell))(
            params, np.ones((20, 2), np.float32)
        )
    )
    np.testing.assert_allclose(found[:3], np.sort(np.log(kept))[::-1], rtol=1e-5)
    assert (found[3:] == -jnp.inf).all()


def test_small_exponents_are_finite_in_float32(x64):
    """Nearly closed output gates give very negative, finite exponents."""
    cell = jl.lstm()
    params = init(cell, 2, 16, jnp.float64)
    params = replaced(replaced(params, 3, b=params.b[3] - 6.0), 1, b=2.0)
    xs = np.random.default_rng(0).normal(size=(20, 2))
    exponents = jax.jit(functools.partial(dg.lyapunov_exponents, cell))
    exact = exponents(params, xs)
    single = jax.tree.map(np.float32, (params, xs))
    found = exponents(*single)
    np.testing.assert_allclose(found, exact, atol=0.01)


def test_eigenvalues_and_singular_values_of_a_known_matrix(x64):
    cell = jl.simple_rnn(activation="identity")
    params = init(cell, 1, 3, jnp.float64)
    step = np.array([[2.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, -0.25]])
    found = jax.jit(functools.partial(dg.jacobian_spectrum, cell))(
        params._replace(w_h=step), jnp.ones((2, 1))
    )
    for eigen, singular in zip(found.eigenvalues, found.singular_values, strict=True):
        assert_same(np.sort(eigen.real), np.array([-0.25, 0.5, 2.0]), 1e-12)
        assert_same(singular, np.linalg.svd(step, compute_uv=False), 1e-12)


def test_compare_gives_the_flow_of_each_cell(x64):
    """One linear network halves its state at each step, the other keeps it."""
    cell = jl.simple_rnn(activation="identity")
    params = init(cell, 1, 1, jnp.float64)
    halves, keeps = (params._replace(w_h=jnp.full((1, 1), w)) for w in (0.5, 1.0))

    @jax.jit
    def compared(xs):
        cells = {"halves": (cell, halves), "keeps": (cell, keeps)}
        return dg.compare(cells, xs, loss=lambda state, hs: hs[-1].sum())

    flows = compared(jnp.ones((6, 1)))
    assert_same(flows["halves"].norm.h, 0.5 ** np.arange(5.0, -1, -1), 1e-12)
    assert_same(flows["keeps"].norm.h, np.ones(6), 1e-12)


def test_compare_names_the_cell_whose_loss_fails():
    cells = {"g": (jl.gru(), init(jl.gru(), 2, 3))}
    with pytest.raises(AttributeError, match="c") as caught:
        traced(dg.compare, cells, ONES, loss=lambda state, hs: state.c.sum())
    assert 'compare: raised for cells["g"].' in caught.value.__notes__


UNEVEN = {"f": jnp.ones((3, 2)), "i": jnp.ones((9, 2)), "o": jnp.ones((3, 2))}
WRONG_RESULTS = {
    "complex loss": (
        lambda cell, params, xs: dg.gradient_flow(
            cell, params, xs, loss=lambda state, hs: lax.complex(hs, hs).sum()
        ),
        "gradient_flow: loss: got a result of dtype complex64, expected floating point",
    ),
    "complex output": (
        lambda cell, params, xs: dg.memory_span(
            cell, params, xs, output=lambda state: lax.complex(state.h, state.h)
        ),
        "memory_span: output: got a result of dtype complex64",
    ),
    "complex baseline": (
        lambda cell, params, xs: dg.integrated_gradients(
            lambda xs: xs.sum(), xs, baseline=1j
        ),
        "integrated_gradients: baseline: got dtype complex64, expected real numbers",
    ),
    "gates of different lengths": (
        lambda cell, params, xs: dg.saturation(UNEVEN),
        r"saturation: gates.i: got shape \[9, 2\], expected the steps and rows of "
        r"gates.f, \[3, 2\]",
    ),
    "fractions of gates of different lengths": (
        lambda cell, params, xs: dg.fractions(UNEVEN),
        r"fractions: gates.f: got shape \[3, 2\], expected the steps and rows of "
        r"gates.i, \[9, 2\]",
    ),
    "a traced share": (
        lambda cell, params, xs: jax.jit(
            lambda share: dg.memory_span(cell, params, xs, share=share)
        )(0.1),
        "memory_span: share: got .*, expected a plain Python number",
    ),
    "a boolean threshold": (
        lambda cell, params, xs: dg.dead_units(xs, band=True),
        "dead_units: band: got True, expected a plain Python number",
    ),
    "a layer in place of a cell": (
        lambda cell, params, xs: dg.carousel(jl.stack(cell, (3,)), params, xs),
        "cell: got a Layer, expected a Cell; pass the layer's cell",
    ),
    "resets without steps": (
        lambda cell, params, xs: dg.backward_resets(True),
        "backward_resets: resets: got one value, expected booleans",
    ),
}


@over("name", WRONG_RESULTS)
def test_wrong_arrays_and_results_raise(name):
    call, message = WRONG_RESULTS[name]
    cell = jl.lstm()
    with pytest.raises(ValueError, match=message):
        traced(call, cell, init(cell, 2, 3), ONES)


def test_a_lost_direction_has_exponent_minus_infinity():
    """One unit is cut off once, in a rotation that shrinks by 0.3 per step."""
    cell = jl.simple_rnn(activation="relu")
    params = init(cell, 4, 4)
    params = params._replace(w_h=0.3 * params.w_h, w_x=np.eye(4), b=np.zeros(4))
    xs = np.full((50, 4), 100.0, np.float32)
    xs[5, 0] = -1e6
    found = jax.jit(functools.partial(dg.lyapunov_exponents, cell))(params, xs)
    np.testing.assert_allclose(found[:3], math.log(0.3), atol=0.05)
    assert found[3] == -jnp.inf
    stiff = jl.simple_rnn(activation="identity")
    params = init(stiff, 1, 2)
    params = params._replace(w_h=np.diag([1.0, 1e-7]))
    found = jax.jit(functools.partial(dg.lyapunov_exponents, stiff))(
        params, np.ones((20, 1), np.float32)
    )
    np.testing.assert_allclose(found, [0.0, math.log(1e-7)], rtol=1e-5)


@over("which", ["step_jacobians", "lyapunov_exponents"])
def test_derivatives_of_dynamics_are_finite_with_nan_padding(which, x64):
    q = question(jl.lstm())

    def total(params):
        found = getattr(dg, which)(q.cell, params, q.xs, q.state, **q.steps)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum()

    gradient = jax.jit(jax.grad(total))(q.params)
    assert all(finite(leaf) for leaf in jax.tree.leaves(gradient))


def test_norms_do_not_overflow_or_underflow():
    cell = jl.simple_rnn(activation="identity")
    params = init(cell, 1, 4)
    params = params._replace(
        w_h=np.full((4, 4), 0.01, np.float32), w_x=np.ones((1, 4), np.float32)
    )
    xs = np.ones((20, 1), np.float32)

    @jax.jit
    def run(params, xs):
        flow = dg.gradient_flow(cell, params, xs, loss=lambda state, hs: hs[-1].sum())
        return flow, dg.memory_span(cell, params, xs, share=0.0)

    flow, memory_span = run(params, xs)
    expected = 2 * 0.04 ** np.arange(19.0, -1, -1)
    np.testing.assert_allclose(flow.norm.h, expected, rtol=1e-4)
    assert int(memory_span.span) == 19
    half = jax.tree.map(np.float16, params)

    @jax.jit
    def scaled(params, xs):
        return dg.gradient_flow(
            cell, params, xs, loss=lambda state, hs: 300 * hs[-1].sum()
        )

    flow = scaled(half, np.float16(xs))
    assert flow.norm.h.dtype == jnp.float32
    np.testing.assert_allclose(flow.norm.h[-1], 600)


def test_a_norm_of_zero_has_a_finite_derivative():
    cell = jl.lstm()
    params = init(cell, 2, 3)
    xs = jnp.ones((6, 2))
    resets = np.arange(6) == 3

    def reach(params):
        flow = dg.gradient_flow(
            cell, params, xs, resets=resets, loss=lambda state, hs: hs[-1].sum()
        )
        return flow.norm.h.sum() + flow.norm.c.sum()

    gradient = jax.jit(jax.grad(reach))(params)
    assert all(finite(leaf) for leaf in jax.tree.leaves(gradient))


class Counting(NamedTuple):
    """A state of a vector and one number per row."""

    h: jax.Array
    total: jax.Array


def counting(counted) -> jl.Cell:
    """Return a cell with h_t = h_{t-1} / 2 + x_t, whose total accumulates sum h."""

    def draw(key, input_size, hidden_size, *, dtype=jnp.float32):
        return jnp.float32(0.5)

    def begin(params, batch_shape=(), *, dtype=None):
        h = jnp.zeros((*batch_shape, 3), jnp.float32)
        return Counting(h, jnp.zeros(batch_shape, counted))

    def step(params, state, z):
        h = params * state.h + z
        after = Counting(h, state.total + h.sum(-1).astype(counted))
        return after, after

    return jl.Cell(draw, begin, lambda params, x: x, step)


def test_a_state_with_one_number_per_row():
    cell, xs = counting(jnp.float32), jnp.ones((4, 2, 3))

    @jax.jit
    def run(params, xs):
        return dg.step_jacobians(cell, params, xs), dg.gradient_flow(
            cell, params, xs, loss=lambda state, hs: state.total.sum()
        )

    found, flow = run(jnp.float32(0.5), xs)
    expected = np.zeros((4, 4))
    expected[:3, :3], expected[3, :3], expected[3, 3] = np.eye(3) / 2, 0.5, 1.0
    np.testing.assert_allclose(found[2, 1], expected)
    assert flow.norm.total.shape == flow.norm.h.shape == (4, 2)
    np.testing.assert_array_equal(flow.norm.total, 1.0)
    whole = counting(jnp.int32)
    message = r"state\.total: got dtype int32, expected floating point"
    with pytest.raises(ValueError, match=f"^gradient_flow: {message}"):
        traced(
            dg.gradient_flow,
            whole,
            jnp.float32(0.5),
            xs,
            loss=lambda state, hs: hs.sum(),
        )
    with pytest.raises(ValueError, match=f"^step_jacobians: {message}"):
        traced(dg.step_jacobians, whole, jnp.float32(0.5), xs)


@over(
    ("loss", "message"),
    [
        (lambda state, hs: (hs.sum(), hs), "got a result tuple, expected one array"),
        (lambda state, hs: None, "got a result NoneType, expected one array"),
        (
            lambda state, hs: (hs > 0).sum(),
            "got a result of dtype int32, expected floating point numbers",
        ),
        (lambda hs: hs.sum(), r"called as loss\(state, emitted\): too many"),
        (1.5, r"got 1\.5, expected a function \(state, emitted\); pass for example"),
    ],
)
def test_wrong_losses_raise(loss, message):
    with pytest.raises(ValueError, match=f"^gradient_flow: loss: {message}"):
        with_lstm(dg.gradient_flow, loss=loss)


def test_a_wrapped_loss_is_checked_by_its_own_signature():
    def mean_of(function):
        @functools.wraps(function)  # whose signature is not this one's
        def loss(state, hs):
            return function(hs).mean()

        return loss

    cell = jl.lstm()
    params = init(cell, 2, 3)
    loss = mean_of(lambda hs: hs**2)
    flow = jax.jit(lambda params, xs: dg.gradient_flow(cell, params, xs, loss=loss))(
        params, ONES
    )
    assert (flow.norm.h > 0).all()


def test_wrong_pairs_outputs_and_shares_raise():
    cell = jl.lstm()
    for pair in (cell, (cell,)):
        message = r'cells\["a"\]: got .*, expected a pair \(cell, params\)'
        with pytest.raises(ValueError, match=message):
            dg.compare({"a": pair}, ONES, loss=lambda state, hs: hs.sum())
    message = "output: got a result LSTMState, expected one array"
    with pytest.raises(ValueError, match=message):
        with_lstm(dg.memory_span, output=lambda state: state)
    with pytest.raises(ValueError, match=r"output: called as output\(state\): missing"):
        with_lstm(dg.memory_span, output=lambda state, hs: state.h)
    with pytest.raises(ValueError, match="share: got 'a', expected a plain Python"):
        with_lstm(dg.memory_span, share="a")


# -- reversed runs, and cells with spatial axes ---------------------------------------


def flipped(which):
    """Return the mask and resets of the flipped sequence."""
    active = jnp.asarray(which.active[::-1])
    return {"mask": active, "resets": jnp.asarray(which.resets[::-1])}


@over("kind", daily(KINDS, HOLES), ids=str)
def test_reverse_equals_a_flipped_forward_run(x64, kind):
    q = question(jl.lstm(), kind)
    gates = jl.Gates(*np.random.default_rng(1).random((4, *q.xs.shape[:-1], 4)))
    back = jax.tree.map(lambda gate: gate[::-1], gates)
    found = dg.forget_products(gates, **q.steps, reverse=True)
    assert_same(found[::-1], dg.forget_products(back, **flipped(q)), 1e-12)
    found = dg.closed_intervals(gates.i, threshold=0.5, **q.steps, reverse=True)
    expected = dg.closed_intervals(back.i, threshold=0.5, **flipped(q))
    assert_same(found._replace(closed_for=found.closed_for[::-1]), expected, 1e-12)


def test_the_reversed_product_is_the_derivative_of_the_first_state(x64):
    """Holds without recurrent weights, for `unroll(reverse=True)` with resets."""
    q = question(jl.lstm(), HOLES, Shape(12, (3,), 2, 3))
    q = q._replace(params=q.params._replace(w_h=jnp.zeros_like(q.params.w_h)))

    def end(push, emit=jl.emit.states):
        params = jl.cells.wrappers.Tapped(q.params, push)
        return jl.unroll(
            jl.taps(q.cell), params, q.xs, **q.steps, reverse=True, emit=emit
        )

    @jax.jit
    def run():
        _, gates = end(None, lambda state, gates: gates)
        zeros = jax.tree.map(jnp.zeros_like, end(None)[1])
        slope = jax.grad(lambda push: end(push)[0].c.sum())(zeros).c
        return slope, dg.forget_products(gates, **q.steps, reverse=True)

    slope, products = run()
    assert_same(products, np.where(q.active[..., None], slope, 0), 1e-12)
    assert ((products > 0) & (products < 1)).any()


@functools.cache
def backward_run():
    """Return the products, derivatives and intervals of a layer's backward part."""
    layer = jl.stack(jl.lstm(), (3,), bidirectional=True)

    @jax.jit
    def run(xs, mask, resets):
        params, _ = layer.init(jax.random.key(0), 2)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

        def backward(xs):
            layer_trace = layer.trace(params, xs, mask=mask, resets=resets)[2]
            return layer_trace["0/backward"]

        how = {"mask": mask, "resets": dg.backward_resets(resets, mask=mask)}
        products = dg.forget_products(backward(xs).gates, **how, reverse=True)
        slopes = jax.jacobian(lambda xs: backward(xs).state.c[0])(xs)
        gate = jnp.zeros((6, 1))
        return products, slopes, dg.closed_intervals(gate, **how, reverse=True)

    return run


@over(("reset_at", "intervals"), [(1, 1), (2, 2), (3, 2), (4, 1), (5, 2)])
def test_backward_resets_separate_active_steps(reset_at, intervals, x64):
    """The product is 0 exactly where step t does not reach the first step."""
    xs = jax.random.normal(jax.random.key(1), (6, 2), jnp.float64)
    mask = jnp.array([True, False, True, True, False, True])
    products, slopes, closed = backward_run()(xs, mask, jnp.arange(6) == reset_at)
    arrives = np.abs(slopes).max((0, 2)) > 0
    assert (products > 0).all(1).tolist() == arrives.tolist()
    assert closed.number.item() == intervals


def test_the_backward_part_of_a_layer_has_its_resets_one_step_earlier():
    layer = jl.stack(jl.lstm(), (5,), bidirectional=True)
    resets = np.arange(7) == 3

    @jax.jit
    def run(xs):
        params, _ = layer.init(jax.random.key(0), 3)
        gates = layer.trace(params, xs, resets=resets)[2]["0/backward"].gates
        own = dg.backward_resets(resets)
        first = jax.tree.map(lambda gate: gate[:3], gates)
        return (
            own,
            dg.forget_products(gates, resets=own, reverse=True),
            dg.forget_products(first, reverse=True),
        )

    own, products, first = run(jax.random.normal(jax.random.key(1), (7, 3)))
    assert own.tolist() == [*resets[1:].tolist(), False]
    assert (products[3:] == 0).all()
    assert_same(products[:3], first, 1e-6)
    assert (products[:3] > 0).all()


def positions():
    """Return gates of 3 rows with 2 positions each, and masks per row and position."""
    rng = np.random.default_rng(3)
    gates = jl.Gates(*rng.random((4, 5, 3, 2, 4), np.float32))
    mask, resets = rng.random((5, 3)) < 0.7, rng.random((5, 3)) < 0.3
    repeated = [np.repeat(flags[..., None], 2, -1) for flags in (mask, resets)]
    return gates, (mask, resets), repeated


BY_POSITION = {
    "saturation": lambda g, m, r: dg.saturation(g, low=0.3, high=0.6, mask=m),
    "fractions": lambda g, m, r: dg.fractions(g, mask=m),
    "timescales": lambda g, m, r: dg.timescales(g, mask=m),
    "closed_intervals": lambda g, m, r: dg.closed_intervals(
        g.i, threshold=0.5, mask=m, resets=r
    ),
    "forget_products": lambda g, m, r: dg.forget_products(g, mask=m, resets=r),
    "dead_units": lambda g, m, r: dg.dead_units(g.i, band=0.8, mask=m),
    "duplicate_units": lambda g, m, r: dg.duplicate_units(g.i, mask=m),
}


@over("name", BY_POSITION)
def test_the_mask_of_a_row_holds_at_all_its_positions(name):
    gates, flags, repeated = positions()
    found = BY_POSITION[name](gates, *flags)
    assert_same(found, BY_POSITION[name](gates, *repeated), 1e-6)


def test_statistics_of_a_convolutional_cell_take_the_lengths_of_its_run():
    cell = jl.conv_lstm((3,))
    params = init(cell, 1, 2)
    xs = jax.random.normal(KEY, (4, 2, 5, 1)).at[1:, 1].set(jnp.nan)

    def run(xs, lengths):
        return jl.unroll(cell, params, xs, lengths=lengths, emit=jl.emit.trace)

    @jax.jit
    def statistics(xs):
        gates = run(xs, [4, 1])[1].gates
        valid = jnp.concatenate([gates.f[:, 0], gates.f[:1, 1]])
        attribution = dg.integrated_gradients(
            lambda xs: run(xs, [4, 1])[0].h.sum((1, 2)), xs, lengths=[4, 1]
        )
        found = dg.timescales(gates, lengths=[4, 1]), dg.timescales({"f": valid})
        return gates, found, attribution

    gates, (timescales, expected), attribution = statistics(xs)
    np.testing.assert_allclose(timescales, expected, rtol=1e-6)
    traced = jax.jit(lambda lengths: dg.timescales(gates, lengths=lengths))
    np.testing.assert_allclose(traced(jnp.array([4, 1])), expected, rtol=1e-6)
    assert not finite(traced(jnp.array([4, 5])))
    assert attribution.gap.shape == (2,)
    assert (attribution.values[1:, 1] == 0).all()
    assert abs(attribution.gap).max() < 1e-5 < abs(attribution.values).max()


# -- missing gates, and extreme values of units ---------------------------------------


def test_fractions_use_i_and_o_where_they_exist():
    quarter, half, none = (jnp.full((3, 1), x) for x in (0.25, 0.5, 0.0))
    for record, expected in [
        ({"f": quarter, "o": none}, (0.75, 0.25, 0.0)),
        ({"f": quarter, "i": half}, (0.5, 0.25, 1.0)),
        ({"f": quarter, "i": half, "o": none}, (0.5, 0.25, 0.0)),
        ({"z": quarter}, (0.75, 0.25, 1.0)),
    ]:
        assert [part.item() for part in dg.fractions(record)] == list(expected)


def test_a_dict_of_gates_gives_the_result_of_a_record():
    gates = jl.Gates(*jax.random.uniform(KEY, (4, 5, 3)))
    for function in (dg.fractions, dg.timescales, dg.forget_products):
        assert_same(function(gates._asdict()), function(gates), 0)


@over("scale", [1.0, 1e25, 1e-25])
def test_a_correlation_is_scale_free_and_at_most_1(scale):
    hs = jax.random.normal(KEY, (50, 3, 6)) * 0.3 + 0.1
    hs = np.asarray(hs)
    both = np.concatenate([hs, -hs], -1) * np.float32(scale)
    found = dg.duplicate_units(both).correlation
    rows = np.asarray(hs, np.float64).reshape(-1, 6)
    expected = np.corrcoef(np.concatenate([rows, -rows], -1).T)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(found).max() <= 1


def test_the_correlation_with_a_constant_unit_has_derivative_0(x64):
    varying = np.random.default_rng(0).normal(size=(9, 2, 2))
    constant = np.broadcast_to([0.0, 0.3], (9, 2, 2))
    hs = np.concatenate([varying, constant], -1)
    slope = jax.jit(jax.grad(lambda hs: dg.duplicate_units(hs).correlation[0].sum()))
    found = slope(hs)
    assert (found[..., 2:] == 0).all()
    assert_same(found[..., :2], slope(varying), 1e-12)
    assert abs(found).max() > 0.01


def test_nan_counts_as_open():
    gate = jnp.array([[0.0], [math.nan], [0.0]])
    assert dg.closed_intervals(gate).closed_for[:, 0].tolist() == [1, 0, 1]


# -- errors about records, flags and thresholds --------------------------------------

GATES = jl.Gates(F, F, F, F)
TRACE = jl.Trace(jl.LSTMState(F, F), GATES)
WRONG_ARRAYS = {
    "closed_intervals: gate: got Gates(i, f, g, o), expected one array; pass for "
    "example gate.i.": lambda: dg.closed_intervals(GATES),
    "dead_units: hs: got LSTMState(h, c), expected one array; pass for example hs.h.": (
        lambda: dg.dead_units(TRACE.state)
    ),
    "dead_units: hs: got dict('h'), expected one array; pass for example hs['h'].": (
        lambda: dg.dead_units({"h": F})
    ),
    "duplicate_units: hs: got Trace(state, gates), expected one array; pass for "
    "example hs.state.h.": lambda: dg.duplicate_units(TRACE),
    "saturation: gates: got Trace(state, gates), expected gates only; pass "
    "trace.gates.": lambda: dg.saturation(TRACE),
    "saturation: gates: got Trace(state, gates), expected gates only": (
        lambda: dg.saturation({"0": TRACE, "1": TRACE})
    ),
    "saturation: gates: got LSTMState(h, c), expected gates only": (
        lambda: dg.saturation(TRACE.state)
    ),
    "saturation: gates: got no array, expected the gates of a trace": (
        lambda: dg.saturation({})
    ),
    "timescales: gates: got an array [4, 2], expected a forget gate f or z; pass": (
        lambda: dg.timescales(F)
    ),
    "timescales: gates: got Trace(state, gates), expected a forget gate": (
        lambda: dg.timescales(TRACE)
    ),
    "fractions: gates: got dict('i', 'o'), expected a forget gate": (
        lambda: dg.fractions({"i": F, "o": F})
    ),
    "timescales: lengths: got shape [3], expected the batch shape [2] of gates": (
        lambda: dg.timescales({"f": jnp.ones((4, 2, 5, 1))}, lengths=[1, 2, 3])
    ),
    "dead_units: mask: got shape [4, 3], expected [4, 2]": (
        lambda: dg.dead_units(jnp.ones((4, 2, 1)), mask=jnp.ones((4, 3), bool))
    ),
    "dead_units: lengths[0]: got 9, expected 0 to 4": lambda: dg.dead_units(
        jnp.ones((4, 2, 1)), lengths=[9, 1]
    ),
    "dead_units: mask: got no array of numbers": lambda: dg.dead_units(
        F, mask=[[True], [True, False]]
    ),
    "closed_intervals: reverse: got 'no', expected True or False.": (
        lambda: dg.closed_intervals(ONES, reverse="no")
    ),
    "forget_products: reverse: got 1, expected True or False.": (
        lambda: dg.forget_products(TRACE.gates, reverse=1)
    ),
    "integrated_gradients: function: got a result tuple, expected one floating": (
        lambda: dg.integrated_gradients(lambda xs: (xs.sum(), xs), ONES)
    ),
    "integrated_gradients: function: got a result float, expected one floating": (
        lambda: dg.integrated_gradients(lambda xs: 1.0, ONES)
    ),
    "integrated_gradients: function: got a result int, expected one floating": (
        lambda: dg.integrated_gradients(lambda xs: 1, ONES)
    ),
    "integrated_gradients: function: got a result int32, expected one floating": (
        lambda: dg.integrated_gradients(lambda xs: xs.argmax(), ONES)
    ),
    "integrated_gradients: function: called as function(xs): missing": (
        lambda: dg.integrated_gradients(lambda state, xs: xs.sum(), ONES)
    ),
    "unroll: xs: got LSTMState(h, c), expected one array; pass for example xs.h": (
        lambda: jl.unroll(jl.lstm(), init(jl.lstm(), 2, 3), TRACE.state)
    ),
}


@over("message", WRONG_ARRAYS)
def test_records_in_place_of_arrays_and_other_wrong_types_raise(message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        WRONG_ARRAYS[message]()


THRESHOLDS = [
    (dg.saturation, {"i": F}, "low"),
    (dg.saturation, {"i": F}, "high"),
    (dg.closed_intervals, F, "threshold"),
    (dg.dead_units, F, "band"),
    (dg.duplicate_units, F, "threshold"),
]


@over(("function", "values", "name"), THRESHOLDS)
def test_a_threshold_that_is_not_a_python_number_raises(function, values, name):
    message = f"^{function.__name__}: {name}: got .*, expected a plain Python number"
    for wrong in ("0.2", None, F):
        with pytest.raises(ValueError, match=message):
            function(values, **{name: wrong})
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda traced: function(values, **{name: traced}))(0.2)
    function(values, **{name: np.float32(0.2)})


def test_rows_sharded_over_devices():
    """`tests/test_meshes.py` tests every statistic, and units sharded as well."""
    explicit = jax.make_mesh((4,), ("b",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.sharding.PartitionSpec(None, "b")
    hs = jax.random.normal(KEY, (5, 4, 3))
    split = jax.device_put(hs, jax.sharding.NamedSharding(explicit, rows))
    with jax.set_mesh(explicit):
        found = dg.duplicate_units(split)
    assert_same(jax.device_get(found), dg.duplicate_units(hs), 1e-6)

    def runs(gate):
        return dg.closed_intervals(gate).closed_for

    automatic = jax.make_mesh((4,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.shard_map(runs, mesh=automatic, in_specs=rows, out_specs=rows)
    assert (jax.jit(mapped)(hs) == runs(hs)).all()
