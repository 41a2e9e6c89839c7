"""Every seeded bug of the cells and wrappers is found by a check of its file.

As in `test_mutants`, a mutant is killed if a check raises an `AssertionError`.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import family_oracle
import registry
from family_mutants import (
    BASE,
    CELL_MUTANTS,
    CLASSIC,
    CLIPPING,
    CONVOLUTIONAL,
    COUPLED,
    DROPPING,
    GRU,
    LEARNING,
    NORMALIZED,
    PARAMETERS,
    PEEPHOLE,
    PROJECTED,
    SIMPLE,
    TAPPING,
    WEIGHTS,
    WRAPPER_MUTANTS,
    ZONES,
)
from mutants import UNMUTATED, imported_from, plant

pytestmark = pytest.mark.mutants

MUTANTS = [*CELL_MUTANTS, *WRAPPER_MUTANTS]
PLAIN = registry.Option("plain", "mask", reverse=True)
RESETS = registry.Option("initial states", "mask", resets=True)


def named(rows, name: str):
    return next(row for row in rows if row.name == name)


# -- cells -----------------------------------------------------------------------


def assert_agrees(jl, cell_name: str, wrapper_name: str = "none") -> None:
    """Assert that values, gates and a directional derivative equal the oracle's."""
    row = named(registry.CELLS, cell_name)
    wrapper = named(registry.WRAPPERS, wrapper_name)
    cell, model = wrapper.wrap(row.make(), row), wrapper.model(row.model, row)
    option = RESETS if "learned" in wrapper_name else PLAIN
    rng = np.random.default_rng(11)
    with jax.enable_x64(True):
        inputs, steps = registry.draw(rng, row, cell, option)

        def answer(inputs):
            return jl.unroll(
                cell, *inputs, reverse=option.reverse, emit=jl.emit.trace, **steps
            )

        direction, weights = (
            registry.like(rng, make)
            for make in (lambda: inputs, lambda: answer(inputs))
        )
        got, moved = jax.jit(lambda *pair: jax.jvp(answer, *zip(pair)))(
            inputs, direction
        )
    expected, slope = family_oracle.along(
        model,
        registry.question(inputs),
        registry.question(direction),
        tuple(map(family_oracle.plain, weights)),
        registry.which(option, steps),
        len(row.space),
    )
    assert_same(tuple(map(family_oracle.plain, got)), expected)
    moved = tuple(map(family_oracle.plain, moved))
    assert_same(
        family_oracle.dot(moved, tuple(map(family_oracle.plain, weights))), slope
    )


def assert_same(got, expected) -> None:
    pairs = zip(family_oracle.leaves(got), family_oracle.leaves(expected), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def agrees(*cells: str):
    """Return a check that these cells of the registry agree with the oracle."""
    return lambda jl: [assert_agrees(jl, cell) for cell in cells]


def agrees_in(*wrappers: str):
    """Return a check that the plain LSTM in these wrappers agrees."""
    return lambda jl: [assert_agrees(jl, "lstm", wrapper) for wrapper in wrappers]


def check_activations(factory: str):
    """Return a check that each of the three activations is applied in its place."""

    def run(jl) -> None:
        cell = getattr(jl, factory)(
            *(
                ((2,),)
                if factory == "conv_lstm"
                else (2,) * (factory == "projected_lstm")
            ),
            gate_activation=half,
            candidate_activation=two,
            **({} if factory == "gru" else {"output_activation": three}),
        )
        params = cell.init(jax.random.key(0), 2, 3)
        xs = jnp.ones((2, 4, 2))
        _, (state, gates) = jl.unroll(cell, params, xs, emit=jl.emit.trace)
        values = gates._asdict()
        candidate = values.pop("n" if factory == "gru" else "g")
        assert np.all(candidate == 2.0)
        for name, gate in values.items():
            assert np.all(gate == (1.0 if (factory, name) == CLASSIC_F else 0.5))
        if factory not in ("gru", "projected_lstm"):
            assert np.all(state.h == 1.5)

    return run


CLASSIC_F = "classic_lstm", "f"


def half(z):
    return 0 * z + 0.5


def two(z):
    return 0 * z + 2.0


def three(c):
    return 0 * c + 3.0


def check_init(jl) -> None:
    """`init` sets the biases of each gate, and scales weights by their fan-in."""
    key = jax.random.key(0)
    assert not np.any(jl.classic_lstm().init(key, 2, 3).b)
    assert np.all(jl.classic_lstm(init="chrono").init(key, 2, 3).b[0] < 0)
    b = jl.coupled_lstm(forget_bias=3.0).init(key, 2, 3).b
    assert np.array_equal(b[:, 0], [3.0, 0.0, 0.0])
    peephole = jl.peephole_lstm().init(key, 2, 3)
    assert not np.any(peephole.p_i)
    assert not np.any(peephole.p_o)
    normal = jl.layer_norm_lstm().init(key, 2, 3)
    for scale in (normal.s_x, normal.s_h, normal.s_c):
        assert np.all(scale == 1.0)
    b = jl.gru(init="chrono").init(key, 2, 3).b
    assert np.all(b[1] > 0)
    assert not np.any(b[0])
    assert not np.any(b[2])
    w_p = jl.projected_lstm(3).init(key, 2, 3).w_p
    np.testing.assert_allclose(w_p.T @ w_p, np.eye(3), atol=1e-5)
    w_x = jl.conv_lstm((5, 5)).init(key, 8, 32).w_x
    np.testing.assert_allclose(np.std(w_x), 1 / np.sqrt(5 * 5 * 8), rtol=0.1)
    square = jl.lstm(init="torch").init(key, 3, 3)
    assert not np.array_equal(square.w_x, square.w_h)


def refuses(sentence: str, call) -> None:
    said = "nothing"
    try:
        call()
    except ValueError as error:
        said = str(error)
    assert sentence in said


def check_refusals(jl) -> None:
    key, xs = jax.random.key(0), jnp.ones((2, 3))

    def run(cell, params=None):
        return jl.unroll(cell, cell.init(key, 3, 4) if params is None else params, xs)

    params = jl.peephole_lstm().init(key, 3, 4)._replace(p_i=jnp.ones(5))
    refuses("got shapes", lambda: run(jl.peephole_lstm(), params))
    for cell in (jl.simple_rnn(), jl.gru()):
        refuses("the cell state", lambda cell=cell: run(jl.clip_cell(cell, 1.0)))
    noisy = jl.recurrent_dropout(jl.simple_rnn(), 0.5)
    refuses(
        "edit of the candidate",
        lambda: jl.unroll(noisy, noisy.init(key, 3, 4), xs, key=key),
    )


def check_hidden_edits(jl) -> None:
    """A mask on h affects the input of the recurrent product only."""
    for factory in (jl.classic_lstm, jl.gru, jl.lstm):
        cell = factory()
        params = cell.init(jax.random.key(0), 2, 3)
        state = jax.tree.map(jnp.ones_like, cell.initial_state(params))
        z = cell.project(params, jnp.ones(2))
        edit = jl.cells.base.Edit(hidden=jnp.zeros_like)
        blind = params._replace(w_h=jnp.zeros_like(params.w_h))
        assert_same(
            cell.step(params, state, z, edit=edit)[0], cell.step(blind, state, z)[0]
        )


def check_candidate_edits(jl) -> None:
    for factory, name in (
        (jl.classic_lstm, "g"),
        (jl.gru, "n"),
        (jl.coupled_lstm, "g"),
    ):
        cell = factory()
        params = cell.init(jax.random.key(0), 2, 3)
        z = cell.project(params, jnp.ones(2))
        edit = jl.cells.base.Edit(candidate=jnp.zeros_like)
        state, gates = cell.step(params, cell.initial_state(params), z, edit=edit)
        assert not np.any(getattr(gates, name))
        assert not np.any(state.h)


# -- wrappers --------------------------------------------------------------------

UNITS, STEPS, KEY = 500, 4, 5


def noisy_trace(jl, wrap, *, key=KEY, cell=None, features=1, **options):
    """Return a trace of STEPS steps of two equal rows of UNITS units, with noise."""
    wrapped = wrap(jl.lstm() if cell is None else cell)
    shape = (features, 4, UNITS)
    params = jl.LSTMParams(
        jnp.ones(shape), jnp.zeros((UNITS, 4, UNITS)), jnp.zeros((4, UNITS))
    )
    xs = jnp.linspace(0.5, 1.5, STEPS * 2 * features).reshape(STEPS, 2, features)
    xs = jnp.broadcast_to(xs[:, :1], xs.shape)
    return jl.unroll(
        wrapped, params, xs, key=jax.random.key(key), emit=jl.emit.trace, **options
    )[1]


def share(mask) -> float:
    return float(np.mean(mask))


def check_zoneout(jl) -> None:
    """c and h are kept at their own rates, with a new mask for each step and row."""
    state, gates = noisy_trace(jl, lambda c: jl.zoneout(c, h_rate=0.2, c_rate=0.6))
    h, c = (np.concatenate([np.zeros_like(v[:1]), v]) for v in state)
    made = np.asarray(gates.f) * c[:-1] + np.asarray(gates.i) * np.asarray(gates.g)
    shown = np.asarray(gates.o) * np.tanh(made)
    for before, new, after, rate in ((c, made, c, 0.6), (h, shown, h, 0.2)):
        keeps = np.isclose(after[1:], before[:-1], rtol=1e-6, atol=0)
        renews = np.isclose(after[1:], new, rtol=1e-5, atol=0)
        assert np.all(keeps | renews)
        for t in range(1, STEPS):
            assert abs(share(keeps[t]) - rate) < 0.06
            others = [keeps[t, 1], *([keeps[t - 1, 0]] if t > 1 else [])]
            for other in others:
                differ = share(keeps[t, 0] != other)
                assert abs(differ - 2 * rate * (1 - rate)) < 0.08
    both = np.isclose(h[2:], h[1:-1], rtol=1e-6) & np.isclose(c[2:], c[1:-1], rtol=1e-6)
    assert abs(share(both) - 0.12) < 0.04


def check_variational(jl) -> None:
    """One mask per sequence and row is applied to x, and one to h."""
    cell = jl.lstm(gate_activation="identity", output_activation=three)
    wrapped = jl.variational_dropout(cell, x_rate=0.2, h_rate=0.6)
    n = 300
    eye, zero = jnp.eye(n), jnp.zeros((n, n))
    params = jl.LSTMParams(
        jnp.stack([eye, zero, zero, zero], 1),
        jnp.stack([zero, eye, zero, zero], 1),
        jnp.zeros((4, n)).at[3].set(1.0),
    )
    xs = jnp.full((STEPS, 2, n), 4.0)
    _, (state, gates) = jl.unroll(
        wrapped, params, xs, key=jax.random.key(KEY), emit=jl.emit.trace
    )
    for read, whole, rate in ((gates.i, 4.0, 0.2), (gates.f[1:], 3.0, 0.6)):
        read = np.asarray(read)
        zeros = np.isclose(read, 0)
        assert np.all(zeros | np.isclose(read, whole / (1 - rate)))
        assert abs(share(zeros) - rate) < 0.08
        assert np.all(zeros == zeros[:1])
        assert not np.array_equal(zeros[0, 0], zeros[0, 1])
    assert np.all(state.h == 3.0)


def check_recurrent_dropout(jl) -> None:
    """Candidates are dropped and c is not, with a new mask for each step and row."""
    cell = jl.lstm(candidate_activation=two)
    trace = noisy_trace(jl, lambda c: jl.recurrent_dropout(c, 0.3), cell=cell)
    state, gates = trace
    g, c = np.asarray(gates.g), np.asarray(state.c)
    zeros = g == 0
    assert np.all(zeros | np.isclose(g, 2.0 / 0.7))
    assert abs(share(zeros) - 0.3) < 0.05
    for one, other in ((zeros[0], zeros[1]), (zeros[:, 0], zeros[:, 1])):
        assert abs(share(one != other) - 0.42) < 0.08
    before = np.concatenate([np.zeros_like(c[:1]), c[:-1]])
    np.testing.assert_allclose(
        c, np.asarray(gates.f) * before + np.asarray(gates.i) * g, rtol=1e-5
    )


def check_weight_drop(jl) -> None:
    cell = jl.weight_drop(jl.lstm(), 0.3)
    params = cell.init(jax.random.key(0), 3, 40)
    xs = jnp.ones((3, 2, 3))
    dropped, _ = cell.prepare(params, xs, key=jax.random.key(KEY))
    zeros = np.asarray(dropped.w_h) == 0
    assert abs(share(zeros) - 0.3) < 0.05
    kept = np.where(zeros, 0, np.asarray(params.w_h) / 0.7)
    np.testing.assert_allclose(dropped.w_h, kept, rtol=1e-6)
    assert np.array_equal(dropped.w_x, params.w_x)
    hs = jl.unroll(cell, params, xs, key=jax.random.key(KEY))[1]
    assert_same(hs, jl.unroll(jl.lstm(), dropped, xs)[1])
    nameless = jl.Cell(
        lambda key, d, h, *, dtype=None: (jnp.ones((d, h)),), *jl.lstm()[1:]
    )
    refuses("w_h", lambda: jl.weight_drop(nameless, 0.3).init(jax.random.key(0), 2, 3))


def check_keys(jl) -> None:
    """Without a key nothing is dropped; the same key gives the same noise."""
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3))
    plain = jl.unroll(cell, params, xs)
    for wrapped in (
        jl.variational_dropout(cell, x_rate=0.5, h_rate=0.5),
        jl.recurrent_dropout(cell, 0.5),
        jl.weight_drop(cell, 0.5),
        jl.zoneout(cell),
    ):
        assert_same(jl.unroll(wrapped, params, xs), plain)
        one, again, other = (
            jl.unroll(wrapped, params, xs, key=jax.random.key(k))[1] for k in (1, 1, 2)
        )
        assert np.array_equal(one, again)
        noisy = wrapped is not jl.zoneout(cell)
        assert np.array_equal(one, other) != noisy
    for call in (
        lambda: jl.zoneout(cell, h_rate=1.0),
        lambda: jl.recurrent_dropout(cell, -0.1),
        lambda: jl.weight_drop(cell, float("nan")),
        lambda: jl.clip_cell(cell, 0.0),
        lambda: jl.clip_cell(cell, float("inf")),
    ):
        refuses("got", call)
    assert jl.zoneout(cell, h_rate=0.5) is jl.zoneout(cell, h_rate=0.5)


def check_nesting(jl) -> None:
    """Each wrapper draws independent noise and passes a key to the inner one."""
    twice = noisy_trace(jl, lambda c: jl.zoneout(jl.zoneout(c, c_rate=0.5), c_rate=0.5))
    c = np.asarray(twice.state.c)
    keeps = np.isclose(c[1:], c[:-1], rtol=1e-6, atol=0)
    assert abs(share(keeps[1:]) - 0.75) < 0.05
    for wrap in (jl.taps, jl.learned_initial_state):
        cell = wrap(jl.recurrent_dropout(jl.lstm(), 0.5))
        params = cell.init(jax.random.key(0), 3, 400)
        noise = jax.random.key(1)
        _, trace = jl.unroll(
            cell, params, jnp.ones((2, 3)), key=noise, emit=jl.emit.trace
        )
        assert abs(share(np.asarray(trace.gates.g) == 0) - 0.5) < 0.1


def check_order(jl) -> None:
    """The edit of the inner wrapper is applied first, then that of the outer one."""
    cell = jl.zoneout(jl.clip_cell(jl.lstm(), 0.01), h_rate=0.5)
    params = cell.init(jax.random.key(0), 3, 4)
    z = cell.project(params, jnp.ones(3))
    edit = jl.cells.base.Edit(cell=lambda c: c + 1)
    state, _ = cell.step(params, cell.initial_state(params), z, edit=edit)
    assert np.all((state.c >= 0.99) & (state.c <= 1.01))


def check_learned(jl) -> None:
    cell = jl.learned_initial_state(jl.lstm())
    params = cell.init(jax.random.key(0), 3, 4)
    assert not any(np.any(leaf) for leaf in params.state)
    learned = params._replace(state=jl.LSTMState(jnp.arange(4.0), jnp.ones(4)))
    start = cell.initial_state(learned, (2,))
    assert np.array_equal(start.h, [[0, 1, 2, 3], [0, 1, 2, 3]])
    wrong = params._replace(state=jl.LSTMState(jnp.ones(4), jnp.ones(5)))
    refuses("params.state", lambda: cell.initial_state(wrong))


STATE_CHECKS = [
    agrees_in("clip", "learned initial state", "taps"),
    check_keys,
    check_nesting,
    check_learned,
    check_refusals,
]
NOISE_CHECKS = [
    agrees_in("zoneout"),
    check_keys,
    check_zoneout,
    check_variational,
    check_recurrent_dropout,
    check_weight_drop,
    check_nesting,
    check_order,
]
CHECKS = {
    CLASSIC: [agrees("classic"), check_activations("classic_lstm"), check_init,
              check_hidden_edits, check_candidate_edits],
    PEEPHOLE: [agrees("peephole"), check_activations("peephole_lstm"), check_init,
               lambda jl: assert_agrees(jl, "peephole", "clip")],
    COUPLED: [agrees("coupled", "coupled with peepholes"),
              check_activations("coupled_lstm"), check_init],
    PROJECTED: [agrees("projected"), check_activations("projected_lstm"),
                check_init, lambda jl: assert_agrees(jl, "projected", "clip")],
    NORMALIZED: [agrees("layer norm"), check_activations("layer_norm_lstm"),
                 check_init],
    CONVOLUTIONAL: [agrees("conv"), check_activations("conv_lstm"), check_init,
                    lambda jl: assert_agrees(jl, "conv", "clip")],
    SIMPLE: [agrees("simple rnn"), check_refusals],
    GRU: [agrees("gru", "gru of the paper"), check_activations("gru"),
          check_init, check_hidden_edits, check_candidate_edits, check_refusals],
    PARAMETERS: [check_refusals, check_init, agrees("projected")],
    **dict.fromkeys((CLIPPING, LEARNING, TAPPING), STATE_CHECKS),
    **dict.fromkeys((ZONES, DROPPING, WEIGHTS), NOISE_CHECKS),
    BASE: [check_order, check_keys, agrees_in("taps on zoneout on learned"),
           check_nesting, check_zoneout, check_variational, check_recurrent_dropout,
           check_learned, check_refusals],
}  # fmt: skip


@contextlib.contextmanager
def with_bug(mutant, folder, monkeypatch):
    """Yield the library with a bug; the registry builds its cells from it."""
    plant(mutant, folder)
    with imported_from(folder) as jl, monkeypatch.context() as patch:
        patch.setattr(registry, "jl", jl)
        with jax.disable_jit():  # each mutant would need its own compilation
            yield jl


def test_number_of_mutants(record_property):
    names = [mutant.name for mutant in MUTANTS]
    record_property("family_mutants", len(names))
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant, tmp_path, monkeypatch):
    with with_bug(mutant, tmp_path, monkeypatch) as jl:
        for run in CHECKS[mutant.file]:
            try:
                run(jl)
            except AssertionError:
                return
    pytest.fail(f"{mutant.name!r} survives")


@pytest.mark.parametrize("file", CHECKS)
def test_unmutated_copy_passes_every_check(file, tmp_path, monkeypatch):
    with with_bug(UNMUTATED, tmp_path, monkeypatch) as jl:
        for run in CHECKS[file]:
            run(jl)
