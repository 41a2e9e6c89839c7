"""Diagnostics: against derivatives by brute force, and against answers that are known.

By brute force is a Python loop over one row and its steps, differentiated forwards
with respect to a push on the state after every step. It knows no scan, no batch, no
mask arithmetic and no reverse pass.
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
from cases import Kind, Shape, assert_same, draw_which, finite, steps_that_happen
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
    """The cases, of which only those chosen are tested every day."""
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
    """A cell on a ragged batch, with NaN where no step happens."""

    cell: jl.Cell
    params: object
    xs: jax.Array
    state: object
    steps: dict
    active: np.ndarray
    resets: np.ndarray


def question(cell, kind=RAGGED, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    time, batch, features, hidden = shape
    which = draw_which(rng, shape, kind)
    if which.lengths is not None:  # the whole, a part, and nothing
        which = which._replace(lengths=np.array([time, time - 2, 0], np.int32))
    active = steps_that_happen(which, time, batch)
    xs = rng.normal(size=(time, *batch, features))
    xs[~active] = np.nan
    resets = np.zeros_like(active) if which.resets is None else which.resets.copy()
    drawn = cell.init(jax.random.key(0), features, hidden, dtype=jnp.float64)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), drawn)
    state = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape)),
        cell.initial_state(params, batch),
    )
    steps = {n: getattr(which, n) for n in ("lengths", "mask", "resets")}
    return Question(cell, params, jnp.asarray(xs), state, steps, active, resets)


def asked(function, q, **options):
    """The diagnostic's answer, compiled as a whole."""
    call = jax.jit(
        lambda params, xs, state: function(
            q.cell, params, xs, state, **q.steps, **options
        )
    )
    return call(q.params, q.xs, q.state)


def row_of(tree, row):
    return jax.tree.map(lambda leaf: leaf[row], tree)


def ran(q, row, xs, push):
    """One row, step by step: its last state, and the h of every step."""
    state, hs = row_of(q.state, row), []
    for t in range(len(xs)):
        if not q.active[t, row]:
            hs.append(jnp.zeros_like(state.h))
            continue
        if q.resets[t, row]:
            state = q.cell.initial_state(q.params, dtype=xs.dtype)
        state, _ = q.cell.step(q.params, state, q.cell.project(q.params, xs[t]))
        state = jax.tree.map(jnp.add, state, row_of(push, t))
        hs.append(state.h)
    return state, jnp.stack(hs)


def no_push(q):
    time = len(q.xs)
    return jax.tree.map(lambda leaf: jnp.zeros((time, *leaf.shape[1:])), q.state)


def rows(q):
    return range(q.xs.shape[1])


def memory(state):
    return state.c if hasattr(state, "c") else state.h


def of_rows(answers):
    """What was found row by row `[T, ...]`, as `[T, *b, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, 1), *answers)


# -- what flows back ---------------------------------------------------------------


def loss(state, hs):
    return (jnp.sin(hs) ** 2).sum() + (memory(state) ** 2).sum()


@over(("name", "kind"), FLOWS)
def test_gradient_flow_is_the_derivative_by_a_push_on_the_state(x64, name, kind):
    q = question(CELLS[name], kind)
    found = asked(dg.gradient_flow, q, loss=loss)
    wanted = of_rows(
        jax.jacfwd(lambda push, row=row: loss(*ran(q, row, q.xs[:, row], push)))(
            no_push(q)
        )
        for row in rows(q)
    )
    assert_same(found.gradient, wanted, 1e-10)
    norm = jax.tree.map(lambda leaf: np.linalg.norm(leaf, axis=-1), wanted)
    assert_same(found.norm, norm, 1e-10)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 0.1


@over(("name", "kind"), FLOWS)
def test_the_carousel_stands_beside_the_true_derivative(x64, name, kind):
    q = question(CELLS[name], kind)
    found = asked(dg.carousel, q)
    field = "c" if hasattr(q.state, "c") else "h"

    def last(push, row):
        pushes = no_push(q)._replace(**{field: push})
        return memory(ran(q, row, q.xs[:, row], pushes)[0])

    push = memory(no_push(q))
    whole = of_rows(
        np.moveaxis(jax.jacfwd(lambda p, row=row: last(p, row))(push), 0, -2)
        for row in rows(q)
    )
    whole = np.where(q.active[..., None, None], whole, 0)
    assert_same(found.derivative, np.diagonal(whole, axis1=-2, axis2=-1), 1e-10)
    assert_same(found.norm, np.linalg.norm(whole, axis=(-2, -1)), 1e-10)
    assert_same(found.product, products(q), 1e-10)
    assert np.abs(whole).max() > 0.1


def products(q):
    """The forget gates that follow, multiplied one by one."""
    _, trace = jl.unroll(q.cell, q.params, q.xs, q.state, **q.steps, emit=jl.emit.trace)
    f = np.asarray(trace.gates.f if hasattr(trace.gates, "f") else trace.gates.z)
    wanted = np.zeros_like(f)
    for row in rows(q):
        product = np.ones(f.shape[-1])
        for t in reversed(range(len(f))):
            if q.active[t, row]:
                wanted[t, row] = product
                product = product * (0 if q.resets[t, row] else f[t, row])
    return wanted


def test_without_recurrent_weights_the_carousel_is_the_derivative(x64):
    q = question(jl.lstm())
    q = q._replace(params=q.params._replace(w_h=0 * q.params.w_h))
    found = asked(dg.carousel, q)
    assert_same(found.derivative, found.product, 1e-10)
    assert_same(found.norm, np.linalg.norm(found.product, axis=-1), 1e-10)


@pytest.mark.thorough
@over("kind", daily(KINDS, RAGGED), ids=str)
def test_the_memory_span_is_the_derivative_by_each_input(x64, kind):
    q = question(jl.lstm(), kind)
    found = asked(dg.memory_span, q, share=0.2)
    zero = jnp.where(q.active[..., None], q.xs, 0.0)
    for row in rows(q):
        full = jax.jacfwd(lambda xs, row=row: ran(q, row, xs, no_push(q))[0].h)(
            zero[:, row]
        )
        norms = np.linalg.norm(np.moveaxis(full, 1, 0), axis=(1, 2))
        norms = norms[q.active[:, row]][::-1]
        wanted = np.zeros(len(q.xs))
        wanted[: len(norms)] = norms
        np.testing.assert_allclose(found.sensitivity[:, row], wanted, atol=1e-10)
        above = np.flatnonzero(wanted > 0.2 * wanted.max())
        assert found.span[row] == (above.max() if above.size else -1)


@thorough
def test_an_output_of_ones_own_has_a_span_of_its_own(x64):
    q = question(jl.lstm(), Kind())
    whole = asked(dg.memory_span, q, output=lambda state: 2 * state.h)
    one = asked(dg.memory_span, q, output=lambda state: state.h[..., :1])
    assert_same(whole.sensitivity, 2 * asked(dg.memory_span, q).sensitivity, 1e-10)
    assert (one.sensitivity < whole.sensitivity).all()


def halving(size=2):
    """h_t = h_{t-1} / 2 + x_t."""
    cell = jl.simple_rnn(activation="identity")
    eye = jnp.eye(size)
    params = cell.init(jax.random.key(0), size, size)
    return cell, params._replace(w_x=eye, w_h=eye / 2, b=jnp.zeros(size))


def test_a_network_that_halves_halves_its_gradient(x64):
    cell, params = halving()
    powers = 0.5 ** np.arange(6) * math.sqrt(2)

    @jax.jit
    def found(xs):
        cells = {"RNN": (cell, params)}
        flows = dg.compare(cells, xs, loss=lambda state, hs: hs[-1].sum())
        return flows["RNN"], dg.memory_span(cell, params, xs, share=0.1)

    flow, span = found(jnp.ones((6, 2)))
    np.testing.assert_allclose(flow.norm.h[::-1], powers, rtol=1e-12)
    np.testing.assert_allclose(span.sensitivity, powers, rtol=1e-12)
    assert span.span == 3  # 1/8 is above a tenth, 1/16 is not


@thorough
def test_cells_are_compared_on_the_same_steps(x64):
    q = question(jl.lstm())._replace(state=None)
    gru = question(jl.gru())
    cells = {"b": (q.cell, q.params), "a": (gru.cell, gru.params)}
    flows = dg.compare(cells, q.xs, loss=loss, **q.steps)
    assert list(flows) == ["b", "a"]
    assert_same(flows["b"], asked(dg.gradient_flow, q, loss=loss), 1e-12)
    assert flows["a"].norm.h.shape == (5, 3)


@thorough
def test_gradient_flow_sees_what_emit_gives(x64):
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


@thorough
def test_a_convolutional_cell_has_a_flow():
    cell = jl.conv_lstm((3,))
    params = cell.init(KEY, 1, 2)
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
    """{(t, row): ∂s_t / ∂s_{t-1}} of the steps that happen, each by itself."""
    found = {}
    for row in rows(q):
        state = row_of(q.state, row)
        for t in np.flatnonzero(q.active[:, row]):
            if q.resets[t, row]:
                state = q.cell.initial_state(q.params, dtype=q.xs.dtype)
            z = q.cell.project(q.params, q.xs[t, row])

            def push(state, z=z):
                return q.cell.step(q.params, state, z)[0]

            blocks = jax.jacrev(push)(state)
            found[t, row] = np.block([list(line) for line in blocks])
            state = push(state)
    return found


@over(("name", "kind"), FLOWS)
def test_step_jacobians_are_those_of_single_steps(x64, name, kind):
    q = question(CELLS[name], kind)
    found = np.asarray(asked(dg.step_jacobians, q))
    by_hand = jacobians_by_hand(q)
    for t, row in np.ndindex(q.active.shape):
        wanted = by_hand.get((t, row), np.zeros(found.shape[2:]))
        np.testing.assert_allclose(found[t, row], wanted, atol=1e-10)


@thorough
def test_the_spectrum_is_that_of_the_jacobians(x64):
    q = question(jl.lstm())
    found, jacobians = asked(dg.jacobian_spectrum, q), asked(dg.step_jacobians, q)
    trace = np.trace(jacobians, axis1=-2, axis2=-1)
    np.testing.assert_allclose(found.eigenvalues.sum(-1), trace, atol=1e-10)
    squares = (np.asarray(jacobians) ** 2).sum((-2, -1))
    np.testing.assert_allclose((found.singular_values**2).sum(-1), squares, atol=1e-10)
    assert (np.diff(found.singular_values, axis=-1) <= 0).all()


def linear_rnn(w_h):
    cell = jl.simple_rnn(activation="identity")
    params = cell.init(KEY, 2, len(w_h), dtype=jnp.float64)
    return cell, params._replace(w_h=jnp.asarray(w_h))


def test_a_random_orthogonal_network_neither_grows_nor_shrinks(x64):
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
def test_the_exponents_of_a_diagonal_network_are_the_logs_of_its_entries(x64, sign):
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
def test_the_exponents_are_those_of_qr_by_hand(x64, kind):
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
        wanted = sorted(total / (seen - 1))[::-1]
        np.testing.assert_allclose(found[row], wanted, rtol=1e-8)


@thorough
def test_a_wild_network_is_chaotic_and_a_tame_one_is_not(x64):
    cell = jl.simple_rnn()
    params = cell.init(KEY, 1, 20, dtype=jnp.float64)
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
def test_dynamics_are_of_the_parameters_that_prepare_brings(x64):
    cell, params = halving()

    def prepare(params, xs, *, key=None):
        return params._replace(w_h=2 * params.w_h), None

    prepared = cell._replace(prepare=prepare)
    found = dg.step_jacobians(prepared, params, jnp.ones((3, 2)))
    np.testing.assert_allclose(found, [np.eye(2)] * 3, rtol=1e-12)


@thorough
def test_sixteen_bits_are_pushed_in_thirty_two():
    cell = jl.gru()
    params = cell.init(KEY, 2, 3)
    xs = jax.random.normal(KEY, (5, 2), jnp.bfloat16)
    jacobians = dg.step_jacobians(cell, params, xs)
    wide = dg.step_jacobians(cell, params, xs.astype(jnp.float32))
    assert jacobians.dtype == jnp.float32
    np.testing.assert_allclose(jacobians, wide, atol=0.05)


# -- gates -------------------------------------------------------------------------


def logit(p):
    return math.log(p / (1 - p))


def test_a_counter_keeps_everything_and_writes_what_it_counts(x64):
    cell = jl.lstm(candidate_activation="identity", output_activation="identity")
    zeros = cell.init(KEY, 1, 1, dtype=jnp.float64)
    params = jl.LSTMParams(
        w_x=jnp.array([[[80.0], [0.0], [0.0], [0.0]]]),  # i opens where x is 1
        w_h=jnp.zeros_like(zeros.w_h),
        b=jnp.array([[-40.0], [40.0], [1.0], [40.0]]),  # f and o open, g = 1
    )
    xs = jnp.array([1.0, 0, 0, 1, 1, 0, 0, 0])[:, None]
    state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
    assert state.c.item() == pytest.approx(3)
    write, keep, read = dg.fractions(trace.gates)
    assert (write.item(), keep.item(), read.item()) == pytest.approx((3 / 8, 1, 1))
    low, high = dg.saturation(trace.gates)
    assert (low.i.item(), high.i.item()) == (5 / 8, 3 / 8)
    assert (low.f.item(), high.f.item()) == (0, 1)
    assert (low.g.item(), high.g.item()) == (0, 1)
    assert dg.timescales(trace.gates).item() > 1e12
    shut = dg.closed_intervals(trace.gates.i)
    assert shut.closed_for[:, 0].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert (shut.number.item(), shut.longest.item(), shut.mean.item()) == (2, 3, 2.5)
    held = jax.jit(lambda xs: dg.carousel(cell, params, xs))(xs)
    np.testing.assert_allclose(held.product, 1, rtol=1e-12)
    np.testing.assert_allclose(held.derivative, 1, rtol=1e-12)


def test_an_integrator_remembers_for_its_timescale(x64):
    taus = np.array([1.0, 20.0, 500.0])
    cell = jl.lstm()
    params = cell.init(KEY, 2, 3, dtype=jnp.float64)
    b_f = jnp.array([logit(math.exp(-1 / tau)) for tau in taus])
    params = params._replace(
        w_x=params.w_x.at[:, 1].set(0),
        w_h=params.w_h.at[:, 1].set(0),
        b=params.b.at[1].set(b_f),
    )
    xs = jnp.ones((6, 2, 2)).at[3:, 1].set(jnp.nan)
    _, trace = jl.unroll(cell, params, xs, lengths=[6, 3], emit=jl.emit.trace)
    found = dg.timescales(trace.gates, lengths=[6, 3])
    np.testing.assert_allclose(found, taus, rtol=1e-10)
    products = dg.forget_products(trace.gates, lengths=[6, 3])
    np.testing.assert_allclose(products[0, 0], np.exp(-5 / taus), rtol=1e-10)
    np.testing.assert_allclose(products[0, 1], np.exp(-2 / taus), rtol=1e-10)


def test_a_timescale_is_of_the_geometric_mean_and_may_be_endless(x64):
    f = jnp.array([[0.5, 1.0, 0.0], [0.125, 1.0, 0.9]])
    found = dg.timescales(jl.Gates(f, f, f, f))
    np.testing.assert_allclose(found, [1 / math.log(4), math.inf, 0], rtol=1e-12)


@thorough
def test_without_a_forget_gate_memory_is_endless(x64):
    q = question(jl.classic_lstm())
    _, trace = jl.unroll(q.cell, q.params, q.xs, **q.steps, emit=jl.emit.trace)
    assert (dg.timescales(trace.gates, lengths=q.steps["lengths"]) == math.inf).all()


@thorough
def test_a_timescale_can_be_learned(x64):
    f = jnp.full((3, 2, 1), 0.5).at[2, 1].set(0.0)  # zeros, as emitted at padding

    def tau(f):
        return dg.timescales(jl.Gates(f, f, f, f), lengths=jnp.array([3, 2])).sum()

    assert finite(jax.jit(jax.grad(tau))(f))


@over("masking", daily(["lengths", "mask"], "lengths"))
def test_padding_counts_in_no_statistic(x64, masking):
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
    wanted = [real.i.mean(0), real.f.mean(0), real.o.mean(0)]
    np.testing.assert_allclose(dg.fractions(gates, **steps), wanted, rtol=1e-12)
    np.testing.assert_allclose(
        dg.timescales(gates, **steps), -1 / np.log(real.f).mean(0), rtol=1e-12
    )
    hs = gates.o
    spread = real.o.max(0) - real.o.min(0)
    band = float(np.median(spread))
    found = dg.dead_units(hs, band=band + 1e-12, **steps)
    assert found.tolist() == (spread <= band + 1e-12).tolist()
    found = dg.duplicate_units(hs, threshold=0.1, **steps)
    wanted = np.corrcoef(real.o.T)
    np.testing.assert_allclose(found.correlation, wanted, atol=1e-10)
    assert (found.pairs == np.triu(abs(wanted) > 0.1, 1)).all()


def test_of_a_gru_z_keeps_and_what_is_held_is_shown():
    z = jnp.array([[0.25], [0.75]])
    gates = jl.cells.gru.GRUGates(r=z, z=z, n=z)
    assert [part.item() for part in dg.fractions(gates)] == [0.5, 0.5, 1.0]
    assert dg.forget_products(gates)[:, 0].tolist() == [0.75, 1.0]


def intervals_by_hand(gate, active, resets):
    """For each step, for how many that happen one unit's gate has been closed."""
    run, found = 0, []
    for value, step, begins in zip(gate, active, resets, strict=True):
        if not step:
            found.append(0)
            continue
        run = (0 if begins else run) + 1 if value < 0.5 else 0
        found.append(run)
    return found


@over("kind", daily(KINDS, HOLES), ids=str)
def test_closed_intervals_are_counted_as_by_hand(x64, kind):
    q = question(jl.lstm(), kind, Shape(20, (3,), 2, 4))
    gate = np.random.default_rng(1).random((20, 3, 4))
    gate[~q.active] = np.nan
    found = jax.tree.map(
        np.asarray, dg.closed_intervals(gate, threshold=0.5, **q.steps)
    )
    for row, unit in np.ndindex(3, 4):
        wanted = intervals_by_hand(
            gate[:, row, unit], q.active[:, row], q.resets[:, row]
        )
        assert found.closed_for[:, row, unit].tolist() == wanted
        number = wanted.count(1)
        assert found.number[row, unit] == number
        assert found.longest[row, unit] == max(wanted)
        closed = sum(run > 0 for run in wanted)
        assert found.mean[row, unit] == pytest.approx(closed / max(number, 1))
    assert found.longest.max() > 2


# -- units -------------------------------------------------------------------------


def test_dead_units_and_copies_are_found(x64):
    a, b = np.random.default_rng(0).normal(size=(2, 40, 2))
    units = [a, np.full_like(a, 0.3), b, 2 - a, a + 0.001 * b, np.full_like(a, 1e3)]
    hs = np.stack(units, axis=-1)
    assert dg.dead_units(hs).tolist() == [False, True, False, False, False, True]
    found = dg.duplicate_units(hs)
    assert np.argwhere(found.pairs).tolist() == [[0, 3], [0, 4], [3, 4]]
    assert found.correlation[0, 3] == pytest.approx(-1)
    assert (found.correlation[1] == 0).all()
    assert (found.correlation[5] == 0).all()


# -- attribution -------------------------------------------------------------------


def test_of_a_sum_of_squares_each_input_contributes_its_own(x64):
    xs = jax.random.normal(KEY, (4, 3, 2), jnp.float64)
    found = dg.integrated_gradients(lambda xs: (xs**2).sum(), xs, nodes=1)
    assert_same(found.values, xs**2, 1e-12)  # one node is exact to degree one
    ragged = xs.at[2:, 1].set(jnp.nan)
    found = dg.integrated_gradients(
        lambda xs: (xs**2).sum(), ragged, nodes=1, lengths=[4, 2, 4]
    )
    assert_same(found.values, xs.at[2:, 1].set(0) ** 2, 1e-12)
    assert abs(found.gap) < 1e-12
    base = jnp.full_like(xs, 0.5)
    found = dg.integrated_gradients(lambda xs: (xs**2).sum((0, 2)), xs, baseline=base)
    assert_same(found.values, xs**2 - 0.25, 1e-12)
    assert found.gap.shape == (3,)
    weights = jax.random.normal(KEY, xs.shape, jnp.float64)
    found = dg.integrated_gradients(
        lambda xs: (weights * xs).sum(), xs, baseline=2.0, nodes=1
    )
    assert_same(found.values, weights * (xs - 2), 1e-12)


@pytest.mark.thorough
@over("kind", daily([RAGGED, HOLES], RAGGED), ids=str)
def test_attributions_add_up_to_what_the_output_changed_by(x64, kind):
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


# -- every function, under every transformation --------------------------------------


def output_of(params, lengths):
    def output(xs):
        return jl.unroll(jl.lstm(), params, xs, lengths=lengths)[0].h.sum(-1)

    return output


def of_a_trace(function):
    """A statistic of what is stacked, as a function of parameters and inputs."""

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
    """Parameters, inputs and lengths, two of each."""
    keys = jax.random.split(KEY)
    params = jax.vmap(lambda key: jl.lstm().init(key, 2, 3, dtype=jnp.float64))(keys)
    xs = jax.random.normal(KEY, (2, 4, 2, 2), jnp.float64)
    xs = xs.at[0, 3:, 1].set(jnp.nan).at[1, 2:, 0].set(jnp.nan)
    return params, xs, jnp.array([[4, 3], [2, 4]])


def test_every_public_function_is_put_under_every_transformation():
    public = {name for name in vars(dg) if callable(getattr(dg, name))}
    assert {name for name in public if name.islower()} == set(FUNCTIONS)


@thorough
@over("name", FUNCTIONS)
def test_jit_and_vmap_change_nothing(x64, name):
    params, xs, lengths = data()
    together = jax.jit(jax.vmap(FUNCTIONS[name]))(params, xs, lengths)
    for one in range(2):
        alone = FUNCTIONS[name](*row_of((params, xs), one), lengths[one])
        leaves = jax.tree.leaves(alone)
        assert leaves
        assert finite(alone)
        if name == "jacobian_spectrum":  # eigenvalues come in no order
            alone, own = alone.singular_values, together.singular_values[one]
        else:
            own = row_of(together, one)
        assert_same(own, alone, 1e-9)


@thorough
@over(
    "name",
    [name for name in FUNCTIONS if name not in ("dead_units", "closed_intervals")],
)
def test_a_traced_length_that_cannot_be_is_not_a_number(x64, name):
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
def test_rows_apart_by_vmap(x64, name):
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
def test_no_step_or_a_single_one(x64, time):
    params, xs, _ = data()
    params, xs = row_of(params, 0), xs[0, :time]
    for name, function in FUNCTIONS.items():
        if name == "compare":
            continue
        found = function(params, xs, jnp.array([time, time]))
        shaped = jax.eval_shape(function, params, xs, jnp.array([time, time]))
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, shaped)


# -- what is refused -----------------------------------------------------------------

F = jnp.full((4, 2), 0.5)
ONES = jnp.ones((4, 2))


def lstm_run(function, **options):
    cell = jl.lstm()
    return function(cell, cell.init(KEY, 2, 3), ONES, **options)


WRONG = {
    "saturation: low is 0.9": lambda: dg.saturation({"i": F}, low=0.9, high=0.1),
    "saturation: gates.i has shape [4]": lambda: dg.saturation({"i": F[:, 0]}),
    "timescales: gates is a RNNGates(g), without": lambda: dg.timescales(
        jl.cells.simple.RNNGates(F)
    ),
    "fractions: lengths[1] is 5": lambda: dg.fractions(
        jl.Gates(*jnp.ones((4, 3, 2, 2))), lengths=[1, 5]
    ),
    "closed_intervals: threshold is 2": lambda: dg.closed_intervals(F, threshold=2),
    "dead_units: band is -1": lambda: dg.dead_units(F, band=-1),
    "duplicate_units: threshold is 1": lambda: dg.duplicate_units(F, threshold=1),
    "gradient_flow: loss gives an array of shape [4, 3]": lambda: lstm_run(
        dg.gradient_flow, loss=lambda state, hs: hs
    ),
    "gradient_flow: unroll: lengths": lambda: lstm_run(
        dg.gradient_flow, loss=loss, lengths=9
    ),
    "memory_span: share is 1": lambda: lstm_run(dg.memory_span, share=1),
    "memory_span: output gives []": lambda: lstm_run(
        dg.memory_span, output=lambda state: state.h.sum()
    ),
    "lyapunov_exponents: count is 7": lambda: lstm_run(
        dg.lyapunov_exponents, count=7, key=KEY
    ),
    "lyapunov_exponents: count is 1 of 6 and key is None": lambda: lstm_run(
        dg.lyapunov_exponents, count=1
    ),
    "lyapunov_exponents: warm_up is -1": lambda: lstm_run(
        dg.lyapunov_exponents, warm_up=-1
    ),
    "compare: cells is []": lambda: dg.compare([], ONES, loss=loss),
    'compare: cells["a"]: gradient_flow: unroll: ': lambda: dg.compare(
        {"a": (jl.lstm(), None)}, ONES, loss=loss
    ),
    "integrated_gradients: function gives [4, 2]": lambda: dg.integrated_gradients(
        lambda xs: xs, ONES
    ),
    "integrated_gradients: baseline has shape [2]": lambda: dg.integrated_gradients(
        lambda xs: xs.sum(), ONES, baseline=jnp.ones(2)
    ),
    "integrated_gradients: nodes is 0": lambda: dg.integrated_gradients(
        lambda xs: xs.sum(), ONES, nodes=0
    ),
}


@over("sentence", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        WRONG[sentence]()


@over(
    "function",
    [dg.carousel, dg.memory_span, dg.step_jacobians, dg.lyapunov_exponents],
)
def test_a_cell_with_spatial_axes_is_refused_where_rows_must_be_apart(function):
    cell = jl.conv_lstm((3,))
    with pytest.raises(ValueError, match="1 spatial axes"):
        function(cell, cell.init(KEY, 1, 2), jnp.ones((4, 2, 5, 1)))


def test_a_seed_is_no_key():
    with pytest.raises(TypeError, match="lyapunov_exponents: key: got 3"):
        lstm_run(dg.lyapunov_exponents, key=3)


def test_statistics_of_16_bits_are_kept_in_32():
    """1,003 steps: in bfloat16 neither their number nor their sum would be right."""
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


def test_exponents_of_an_lstm_without_recurrence_are_those_of_its_forget_gates():
    """c_t = f c_{t-1} + i g with gates of the input alone; h is made anew each step."""
    cell = jl.lstm()
    params = cell.init(KEY, 2, 3)
    params = params._replace(
        w_h=jnp.zeros_like(params.w_h), w_x=params.w_x.at[:, 1].set(0)
    )
    kept = jnp.array([0.9, 0.5, 0.99])
    params = params._replace(b=params.b.at[1].set(jnp.log(kept / (1 - kept))))
    found = dg.lyapunov_exponents(cell, params, jnp.ones((20, 2)))
    np.testing.assert_allclose(found[:3], jnp.sort(jnp.log(kept))[::-1], rtol=1e-5)
    assert (found[3:] == -jnp.inf).all()


def test_what_single_precision_resolves_is_not_lost(x64):
    """Of output gates that are nearly shut: exponents far down, and finite."""
    cell = jl.lstm()
    params = cell.init(KEY, 2, 16, dtype=jnp.float64)
    params = params._replace(b=params.b.at[3].add(-6.0).at[1].set(2.0))
    xs = jax.random.normal(KEY, (20, 2), jnp.float64)
    exact = dg.lyapunov_exponents(cell, params, xs)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, xs))
    found = dg.lyapunov_exponents(cell, *single)
    np.testing.assert_allclose(found, exact, atol=0.01)


def test_eigenvalues_and_singular_values_of_a_step_that_is_known(x64):
    cell = jl.simple_rnn(activation="identity")
    params = cell.init(KEY, 1, 3, dtype=jnp.float64)
    step = jnp.array([[2.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, -0.25]])
    found = dg.jacobian_spectrum(cell, params._replace(w_h=step), jnp.ones((2, 1)))
    for eigen, singular in zip(found.eigenvalues, found.singular_values, strict=True):
        assert_same(jnp.sort(eigen.real), jnp.array([-0.25, 0.5, 2.0]), 1e-12)
        assert_same(singular, np.linalg.svd(step, compute_uv=False), 1e-12)


def test_cells_side_by_side_keep_what_each_of_them_keeps(x64):
    """A linear network that halves at each step, and one that keeps everything."""
    cell = jl.simple_rnn(activation="identity")
    params = cell.init(KEY, 1, 1, dtype=jnp.float64)
    halves, keeps = (params._replace(w_h=jnp.full((1, 1), w)) for w in (0.5, 1.0))
    flows = dg.compare(
        {"halves": (cell, halves), "keeps": (cell, keeps)},
        jnp.ones((6, 1)),
        loss=lambda state, hs: hs[-1].sum(),
    )
    assert_same(flows["halves"].norm.h, 0.5 ** jnp.arange(5.0, -1, -1), 1e-12)
    assert_same(flows["keeps"].norm.h, jnp.ones(6), 1e-12)


def test_who_is_compared_is_named_when_the_loss_fails():
    cells = {"g": (jl.gru(), jl.gru().init(KEY, 2, 3))}
    with pytest.raises(AttributeError, match="c") as caught:
        dg.compare(cells, jnp.ones((4, 2)), loss=lambda state, hs: state.c.sum())
    assert 'compare: this came of cells["g"].' in caught.value.__notes__


UNEVEN = {"f": jnp.ones((3, 2)), "i": jnp.ones((9, 2)), "o": jnp.ones((3, 2))}
NONSENSE = {
    "complex loss": (
        lambda cell, params, xs: dg.gradient_flow(
            cell, params, xs, loss=lambda state, hs: lax.complex(hs, hs).sum()
        ),
        "gradient_flow: loss gives complex64; floating point numbers are needed",
    ),
    "complex output": (
        lambda cell, params, xs: dg.memory_span(
            cell, params, xs, output=lambda state: lax.complex(state.h, state.h)
        ),
        "memory_span: output gives complex64",
    ),
    "complex baseline": (
        lambda cell, params, xs: dg.integrated_gradients(
            lambda xs: xs.sum(), xs, baseline=1j
        ),
        "integrated_gradients: baseline is complex64; real numbers are needed",
    ),
    "gates that do not fit": (
        lambda cell, params, xs: dg.saturation(UNEVEN),
        r"saturation: gates.f is \[3, 2\] and gates.i \[9, 2\]; all gates",
    ),
    "fractions of gates that do not fit": (
        lambda cell, params, xs: dg.fractions(UNEVEN),
        r"fractions: gates.i is \[9, 2\] and gates.f \[3, 2\]; all gates",
    ),
    "a traced share": (
        lambda cell, params, xs: jax.jit(
            lambda share: dg.memory_span(cell, params, xs, share=share)
        )(0.1),
        "memory_span: share is .*; a plain Python number is needed",
    ),
    "a boolean threshold": (
        lambda cell, params, xs: dg.dead_units(xs, band=True),
        "dead_units: band is True; a plain Python number is needed",
    ),
    "a layer for a cell": (
        lambda cell, params, xs: dg.carousel(jl.stack(cell, (3,)), params, xs),
        "cell is a layer; the cell that it was made of is needed",
    ),
    "resets of no steps": (
        lambda cell, params, xs: dg.backward_resets(True),
        "backward_resets: resets is one value",
    ),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_cannot_be_answered_is_refused_in_words(name):
    call, words = NONSENSE[name]
    cell = jl.lstm()
    with pytest.raises(ValueError, match=words):
        call(cell, cell.init(KEY, 2, 3), jnp.ones((4, 2)))


def test_a_direction_that_a_step_loses_is_minus_infinity_and_not_rounding():
    """A unit that is cut off once, in a rotation that shrinks by 0.3 a step."""
    cell = jl.simple_rnn(activation="relu")
    params = cell.init(jax.random.key(0), 4, 4)
    params = params._replace(w_h=0.3 * params.w_h, w_x=jnp.eye(4), b=jnp.zeros(4))
    xs = jnp.full((50, 4), 100.0).at[5, 0].set(-1e6)
    found = dg.lyapunov_exponents(cell, params, xs)
    np.testing.assert_allclose(found[:3], math.log(0.3), atol=0.05)
    assert found[3] == -jnp.inf
    stiff = jl.simple_rnn(activation="identity")
    params = stiff.init(jax.random.key(0), 1, 2)
    params = params._replace(w_h=jnp.diag(jnp.array([1.0, 1e-7])))
    found = dg.lyapunov_exponents(stiff, params, jnp.ones((20, 1)))
    np.testing.assert_allclose(found, [0.0, math.log(1e-7)], rtol=1e-5)


@over("which", ["step_jacobians", "lyapunov_exponents"])
def test_what_is_differentiated_never_sees_padding(which, x64):
    q = question(jl.lstm())

    def total(params):
        found = getattr(dg, which)(q.cell, params, q.xs, q.state, **q.steps)
        return jnp.where(jnp.isfinite(found), found, 0.0).sum()

    gradient = jax.grad(total)(q.params)
    assert all(finite(leaf) for leaf in jax.tree.leaves(gradient))


def test_norms_neither_overflow_nor_underflow_with_their_squares():
    cell = jl.simple_rnn(activation="identity")
    params = cell.init(jax.random.key(0), 1, 4)
    params = params._replace(w_h=jnp.full((4, 4), 0.01), w_x=jnp.ones((1, 4)))
    xs = jnp.ones((20, 1))
    flow = dg.gradient_flow(cell, params, xs, loss=lambda state, hs: hs[-1].sum())
    wanted = 2 * 0.04 ** np.arange(19.0, -1, -1)
    np.testing.assert_allclose(flow.norm.h, wanted, rtol=1e-4)
    span = dg.memory_span(cell, params, xs, share=0.0)
    assert int(span.span) == 19
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    flow = dg.gradient_flow(
        cell, half, xs.astype(jnp.float16), loss=lambda state, hs: 300 * hs[-1].sum()
    )
    assert flow.norm.h.dtype == jnp.float32
    np.testing.assert_allclose(flow.norm.h[-1], 600)


def test_a_norm_of_nothing_has_a_derivative():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 3)
    xs = jnp.ones((6, 2))
    resets = jnp.zeros(6, bool).at[3].set(True)

    def reach(params):
        flow = dg.gradient_flow(
            cell, params, xs, resets=resets, loss=lambda state, hs: hs[-1].sum()
        )
        return flow.norm.h.sum() + flow.norm.c.sum()

    gradient = jax.grad(reach)(params)
    assert all(finite(leaf) for leaf in jax.tree.leaves(gradient))


class Counting(NamedTuple):
    """A state of two vectors, of which one is a number for each row."""

    h: jax.Array
    total: jax.Array


def counting(counted) -> jl.Cell:
    """h turns into a half of itself and x; the total adds up what h sums to."""

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


def test_a_state_with_a_number_for_each_row():
    cell, xs = counting(jnp.float32), jnp.ones((4, 2, 3))
    found = dg.step_jacobians(cell, jnp.float32(0.5), xs)
    wanted = np.zeros((4, 4))
    wanted[:3, :3], wanted[3, :3], wanted[3, 3] = np.eye(3) / 2, 0.5, 1.0
    np.testing.assert_allclose(found[2, 1], wanted)
    flow = dg.gradient_flow(
        cell, jnp.float32(0.5), xs, loss=lambda state, hs: state.total.sum()
    )
    assert flow.norm.total.shape == flow.norm.h.shape == (4, 2)
    np.testing.assert_array_equal(flow.norm.total, 1.0)
    whole = counting(jnp.int32)
    with pytest.raises(ValueError, match=r"state's leaf \.total is int32"):
        dg.gradient_flow(whole, jnp.float32(0.5), xs, loss=lambda state, hs: hs.sum())
    with pytest.raises(ValueError, match=r"step_jacobians: .*\.total is int32"):
        dg.step_jacobians(whole, jnp.float32(0.5), xs)


@over(
    ("loss", "words"),
    [
        (lambda state, hs: (hs.sum(), hs), "loss gives a tuple; one array is needed"),
        (lambda state, hs: None, "loss gives a NoneType; one array is needed"),
        (lambda state, hs: (hs > 0).sum(), "loss gives int32; floating point"),
        (lambda hs: hs.sum(), r"loss is called as loss\(state, emitted\): too many"),
        (1.5, r"loss is 1\.5; a function \(state, emitted\) is needed, such as lambda"),
    ],
)
def test_losses_that_are_none(loss, words):
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 3)
    with pytest.raises(ValueError, match=f"^gradient_flow: {words}"):
        dg.gradient_flow(cell, params, jnp.ones((4, 2)), loss=loss)


def test_a_loss_that_stands_for_another_is_called_as_itself():
    def mean_of(function):
        @functools.wraps(function)  # whose signature is not this one's
        def loss(state, hs):
            return function(hs).mean()

        return loss

    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 3)
    loss = mean_of(lambda hs: hs**2)
    flow = dg.gradient_flow(cell, params, jnp.ones((4, 2)), loss=loss)
    assert (flow.norm.h > 0).all()


def test_pairs_outputs_and_shares_that_are_none():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 3)
    xs = jnp.ones((4, 2))
    for pair in (cell, (cell,)):
        with pytest.raises(ValueError, match=r'cells\["a"\]: .*pair \(cell, params\)'):
            dg.compare({"a": pair}, xs, loss=lambda state, hs: hs.sum())
    with pytest.raises(ValueError, match="output gives a LSTMState; one array"):
        dg.memory_span(cell, params, xs, output=lambda state: state)
    with pytest.raises(ValueError, match=r"output: called as output\(state\): missing"):
        dg.memory_span(cell, params, xs, output=lambda state, hs: state.h)
    with pytest.raises(ValueError, match="share is 'a'; a plain Python number"):
        dg.memory_span(cell, params, xs, share="a")


# -- a run in reverse, and cells with spatial axes ------------------------------------


def flipped(which):
    """The run from the last step to the first, as one from the first to the last."""
    active = jnp.asarray(which.active[::-1])
    return {"mask": active, "resets": jnp.asarray(which.resets[::-1])}


@over("kind", daily(KINDS, HOLES), ids=str)
def test_of_a_run_in_reverse_time_is_counted_backward(x64, kind):
    q = question(jl.lstm(), kind)
    gates = jl.Gates(*np.random.default_rng(1).random((4, *q.xs.shape[:-1], 4)))
    back = jax.tree.map(lambda gate: gate[::-1], gates)
    found = dg.forget_products(gates, **q.steps, reverse=True)
    assert_same(found[::-1], dg.forget_products(back, **flipped(q)), 1e-12)
    found = dg.closed_intervals(gates.i, threshold=0.5, **q.steps, reverse=True)
    wanted = dg.closed_intervals(back.i, threshold=0.5, **flipped(q))
    assert_same(found._replace(closed_for=found.closed_for[::-1]), wanted, 1e-12)


def test_in_reverse_the_product_is_the_derivative_of_the_first_step(x64):
    """Without recurrent weights, of `unroll(reverse=True)`, beyond a reset."""
    q = question(jl.lstm(), HOLES, Shape(12, (3,), 2, 3))
    q = q._replace(params=q.params._replace(w_h=jnp.zeros_like(q.params.w_h)))

    def end(push, emit=jl.emit.states):
        params = jl.cells.wrappers.Tapped(q.params, push)
        return jl.unroll(
            jl.taps(q.cell), params, q.xs, **q.steps, reverse=True, emit=emit
        )

    _, gates = end(None, lambda state, gates: gates)
    zeros = jax.tree.map(jnp.zeros_like, end(None)[1])
    slope = jax.grad(lambda push: end(push)[0].c.sum())(zeros).c
    products = dg.forget_products(gates, **q.steps, reverse=True)
    assert_same(products, jnp.where(q.active[..., None], slope, 0), 1e-12)
    assert ((products > 0) & (products < 1)).any()


@pytest.mark.parametrize(("border", "runs"), [(1, 1), (2, 2), (3, 2), (4, 1), (5, 2)])
def test_borders_of_a_backward_part_lie_between_steps_that_happen(border, runs, x64):
    """The product is 0 just where nothing comes from step t to what is first."""
    layer = jl.stack(jl.lstm(), (3,), bidirectional=True)
    params, _ = layer.init(jax.random.key(0), 2)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    xs = jax.random.normal(jax.random.key(1), (6, 2), jnp.float64)
    how = {
        "mask": jnp.array([True, False, True, True, False, True]),
        "resets": jnp.arange(6) == border,
    }

    def last(xs):
        return layer.trace(params, xs, **how)[2]["0/backward"]

    own = dg.backward_resets(**how)
    products = dg.forget_products(
        last(xs).gates, mask=how["mask"], resets=own, reverse=True
    )
    slopes = jax.jacobian(lambda xs: last(xs).state.c[0])(xs)
    arrives = jnp.abs(slopes).max((0, 2)) > 0
    assert (products > 0).all(1).tolist() == arrives.tolist()
    shut = dg.closed_intervals(
        jnp.zeros((6, 1)), mask=how["mask"], resets=own, reverse=True
    )
    assert shut.number.item() == runs


def test_the_backward_part_of_a_layer_has_the_resets_one_step_earlier():
    layer = jl.stack(jl.lstm(), (5,), bidirectional=True)
    params, _ = layer.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (7, 3))
    resets = jnp.zeros(7, bool).at[3].set(True)
    gates = layer.trace(params, xs, resets=resets)[2]["0/backward"].gates
    own = dg.backward_resets(resets)
    assert own.tolist() == [*resets[1:].tolist(), False]
    products = dg.forget_products(gates, resets=own, reverse=True)
    assert (products[3:] == 0).all()
    rest = dg.forget_products(jax.tree.map(lambda g: g[:3], gates), reverse=True)
    assert_same(products[:3], rest, 1e-6)
    assert (products[:3] > 0).all()


def places():
    """Gates over 3 rows of 2 places each, and what tells their steps apart."""
    rng = np.random.default_rng(3)
    gates = jl.Gates(*jnp.asarray(rng.random((4, 5, 3, 2, 4), np.float32)))
    mask = jnp.asarray(rng.random((5, 3)) < 0.7)
    resets = jnp.asarray(rng.random((5, 3)) < 0.3)
    spread = [jnp.repeat(flags[..., None], 2, -1) for flags in (mask, resets)]
    return gates, (mask, resets), spread


OF_PLACES = {
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


@over("name", OF_PLACES)
def test_what_a_row_does_all_its_places_do(name):
    gates, flags, spread = places()
    found = OF_PLACES[name](gates, *flags)
    assert_same(found, OF_PLACES[name](gates, *spread), 1e-6)


def test_statistics_of_a_convolutional_cell_take_the_lengths_of_its_run():
    cell, lengths = jl.conv_lstm((3,)), jnp.array([4, 1])
    params = cell.init(KEY, 1, 2)
    xs = jax.random.normal(KEY, (4, 2, 5, 1)).at[1:, 1].set(jnp.nan)

    def run(xs):
        return jl.unroll(cell, params, xs, lengths=lengths, emit=jl.emit.trace)

    gates = run(xs)[1].gates
    alone = jnp.concatenate([gates.f[:, 0], gates.f[:1, 1]])
    wanted = dg.timescales({"f": alone})
    np.testing.assert_allclose(dg.timescales(gates, lengths=lengths), wanted, rtol=1e-6)
    traced = jax.jit(lambda lengths: dg.timescales(gates, lengths=lengths))
    np.testing.assert_allclose(traced(lengths), wanted, rtol=1e-6)
    assert not finite(traced(jnp.array([4, 5])))
    found = dg.integrated_gradients(
        lambda xs: run(xs)[0].h.sum((1, 2)), xs, lengths=lengths
    )
    assert found.gap.shape == (2,)
    assert (found.values[1:, 1] == 0).all()
    assert abs(found.gap).max() < 1e-5 < abs(found.values).max()


# -- gates that a cell does not have, and units at the edge of numbers --------------


def test_each_of_i_and_o_is_taken_where_it_is():
    quarter, half, none = (jnp.full((3, 1), x) for x in (0.25, 0.5, 0.0))
    for record, wanted in [
        ({"f": quarter, "o": none}, (0.75, 0.25, 0.0)),
        ({"f": quarter, "i": half}, (0.5, 0.25, 1.0)),
        ({"f": quarter, "i": half, "o": none}, (0.5, 0.25, 0.0)),
        ({"z": quarter}, (0.75, 0.25, 1.0)),
    ]:
        assert [part.item() for part in dg.fractions(record)] == list(wanted)


def test_a_dict_of_gates_is_read_as_a_record_is():
    gates = jl.Gates(*jax.random.uniform(KEY, (4, 5, 3)))
    for function in (dg.fractions, dg.timescales, dg.forget_products):
        assert_same(function(gates._asdict()), function(gates), 0)


@over("scale", [1.0, 1e25, 1e-25])
def test_a_correlation_has_no_scale_and_is_at_most_one(scale):
    hs = jax.random.normal(KEY, (50, 3, 6)) * 0.3 + 0.1
    found = dg.duplicate_units(jnp.concatenate([hs, -hs], -1) * scale).correlation
    rows = np.asarray(hs, np.float64).reshape(-1, 6)
    wanted = np.corrcoef(np.concatenate([rows, -rows], -1).T)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert abs(found).max() <= 1


def test_the_correlation_with_a_unit_that_never_changes_has_the_derivative_0(x64):
    varying = jax.random.normal(KEY, (9, 2, 2), jnp.float64)
    hs = jnp.concatenate([varying, jnp.full((9, 2, 2), jnp.array([0.0, 0.3]))], -1)

    def correlation(hs):
        return dg.duplicate_units(hs).correlation[0].sum()

    slope = jax.grad(correlation)(hs)
    assert (slope[..., 2:] == 0).all()
    assert_same(slope[..., :2], jax.grad(correlation)(varying), 1e-12)
    assert abs(slope).max() > 0.01


def test_nan_is_open():
    gate = jnp.array([[0.0], [math.nan], [0.0]])
    assert dg.closed_intervals(gate).closed_for[:, 0].tolist() == [1, 0, 1]


# -- what else is refused ------------------------------------------------------------

GATES = jl.Gates(F, F, F, F)
TRACE = jl.Trace(jl.LSTMState(F, F), GATES)
REFUSED = {
    "closed_intervals: gate is a Gates(i, f, g, o); one array of it is needed, such "
    "as gate.i.": lambda: dg.closed_intervals(GATES),
    "dead_units: hs is a LSTMState(h, c); one array of it is needed, such as hs.h.": (
        lambda: dg.dead_units(TRACE.state)
    ),
    "dead_units: hs is a dict('h'); one array of it is needed, such as hs['h'].": (
        lambda: dg.dead_units({"h": F})
    ),
    "duplicate_units: hs is a Trace(state, gates); one array of it is needed, such as "
    "hs.state.h.": lambda: dg.duplicate_units(TRACE),
    "saturation: gates holds a Trace(state, gates); take trace.gates alone.": (
        lambda: dg.saturation(TRACE)
    ),
    "saturation: gates holds a Trace(state, gates); take trace.gates": (
        lambda: dg.saturation({"0": TRACE, "1": TRACE})
    ),
    "saturation: gates holds a LSTMState(h, c); take trace.gates": (
        lambda: dg.saturation(TRACE.state)
    ),
    "timescales: gates is an array [4, 2], without a forget gate f or z; take": (
        lambda: dg.timescales(F)
    ),
    "timescales: gates is a Trace(state, gates), without": lambda: dg.timescales(TRACE),
    "fractions: gates is a dict('i', 'o'), without": lambda: dg.fractions(
        {"i": F, "o": F}
    ),
    "timescales: lengths has shape [3], gates has batch shape [2]": (
        lambda: dg.timescales({"f": jnp.ones((4, 2, 5, 1))}, lengths=[1, 2, 3])
    ),
    "dead_units: mask has shape [4, 3]; one boolean for each of the steps [4, 2]": (
        lambda: dg.dead_units(jnp.ones((4, 2, 1)), mask=jnp.ones((4, 3), bool))
    ),
    "dead_units: lengths[0] is 9; hs has 4 steps": lambda: dg.dead_units(
        jnp.ones((4, 2, 1)), lengths=[9, 1]
    ),
    "dead_units: mask is not an array of numbers": lambda: dg.dead_units(
        F, mask=[[True], [True, False]]
    ),
    "closed_intervals: reverse is 'no'; True or False is needed.": (
        lambda: dg.closed_intervals(ONES, reverse="no")
    ),
    "forget_products: reverse is 1; True or False is needed.": (
        lambda: dg.forget_products(TRACE.gates, reverse=1)
    ),
    "integrated_gradients: function gives tuple; one array of floating point": (
        lambda: dg.integrated_gradients(lambda xs: (xs.sum(), xs), ONES)
    ),
    "integrated_gradients: function gives float; one array of floating point": (
        lambda: dg.integrated_gradients(lambda xs: 1.0, ONES)
    ),
    "integrated_gradients: function gives int; one array of floating point": (
        lambda: dg.integrated_gradients(lambda xs: 1, ONES)
    ),
    "integrated_gradients: function gives int32; one array of floating point": (
        lambda: dg.integrated_gradients(lambda xs: xs.argmax(), ONES)
    ),
    "integrated_gradients: function is called as function(xs): missing": (
        lambda: dg.integrated_gradients(lambda state, xs: xs.sum(), ONES)
    ),
    "unroll: xs is a LSTMState(h, c); one array of it is needed, such as xs.h": (
        lambda: jl.unroll(jl.lstm(), jl.lstm().init(KEY, 2, 3), TRACE.state)
    ),
}


@over("sentence", REFUSED)
def test_a_record_where_one_array_is_wanted_is_refused(sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        REFUSED[sentence]()


THRESHOLDS = [
    (dg.saturation, {"i": F}, "low"),
    (dg.saturation, {"i": F}, "high"),
    (dg.closed_intervals, F, "threshold"),
    (dg.dead_units, F, "band"),
    (dg.duplicate_units, F, "threshold"),
]


@over(("function", "values", "name"), THRESHOLDS)
def test_a_threshold_is_a_python_number(function, values, name):
    said = f"^{function.__name__}: {name} is .*; a plain Python number is needed"
    for wrong in ("0.2", None, F):
        with pytest.raises(ValueError, match=said):
            function(values, **{name: wrong})
    with pytest.raises(ValueError, match=said):
        jax.jit(lambda traced: function(values, **{name: traced}))(0.2)
    function(values, **{name: np.float32(0.2)})


def test_rows_split_over_devices():
    """`tests/test_meshes.py` has every statistic, and units on a mesh as well."""
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
