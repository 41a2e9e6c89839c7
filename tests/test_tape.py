"""The gate tape: every gate of every layer, by name, without changing a bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.engines import registry

OPTIMISED = True

T, B, D = 9, 3, 4


def inputs(dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (T, B, D), dtype)


def drawn(layer: jl.Layer):
    params, _ = layer.init(jax.random.key(0), D)
    return params


HOW = {
    "plain": {},
    "ragged": {"lengths": jnp.array([9, 4, 0])},
    "resets": {"resets": jnp.arange(T * B).reshape(T, B) % 4 == 2},
    "masked": {"mask": jnp.arange(T * B).reshape(T, B) % 3 > 0},
    "noisy": {"key": jax.random.key(2)},
}
LAYERS = {
    "one": jl.recurrent(jl.lstm(), 5),
    "stack": jl.stack(jl.lstm(), (5, 5), dropout=0.3, residual=True),
    "both": jl.serial(jl.stack(jl.lstm(), (5, 3), bidirectional=True), jl.linear(2)),
    "grus": jl.stack(jl.gru(), (5, 6)),
}
NAMES = {
    "one": [""],
    "stack": ["0", "1"],
    "both": ["0/0/backward", "0/0/forward", "0/1/backward", "0/1/forward"],
    "grus": ["0", "1"],
}


def assert_bits(ours, theirs) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def also(*cases, mark=pytest.mark.thorough):
    """Return the cases marked, so that the default run leaves them out."""
    return [pytest.param(*case, marks=mark) for case in cases]


EVERY_HOW = [(name, how) for name in LAYERS for how in HOW]
# The default run holds every layer and every option at least once.
FIRST = [
    ("one", "resets"),
    ("stack", "noisy"),
    ("both", "ragged"),
    ("both", "masked"),
    ("grus", "plain"),
]
SECOND = [
    case
    for case in EVERY_HOW
    if case not in FIRST and ("both" in case or "noisy" in case)
]
REST = [case for case in EVERY_HOW if case not in FIRST + SECOND]
COMBINATIONS = pytest.mark.combinations


@pytest.mark.parametrize(
    ("name", "how"), FIRST + also(*SECOND, mark=COMBINATIONS) + also(*REST)
)
def test_tape_names_every_layer_and_changes_no_bit(name, how):
    layer, xs = LAYERS[name], inputs()
    params = drawn(layer)
    plain = jax.jit(layer.apply)(params, xs, **HOW[how])
    state, ys, tape = jax.jit(layer.trace)(params, xs, **HOW[how])
    assert_bits((state, ys), plain)
    assert sorted(tape) == NAMES[name]
    for trace in tape.values():
        assert {leaf.shape[:2] for leaf in jax.tree.leaves(trace)} == {(T, B)}


CELLS = {
    "lstm": jl.lstm(),
    "peephole": jl.peephole_lstm(),
    "coupled": jl.coupled_lstm(),
    "projected": jl.projected_lstm(7),
    "layer norm": jl.layer_norm_lstm(),
    "hard gates": jl.lstm(gate_activation="hard_sigmoid"),
    "zoneout": jl.zoneout(jl.lstm(), h_rate=0.1, c_rate=0.2),
    "gru": jl.gru(),
    "paper's gru": jl.gru(reset_after=False),
}


SIZES = 12, 64  # 12 is no multiple of a vector's lanes
MODES = "adjoint", "adjoint/lean"
EVERY = [(name, size, mode) for name in CELLS for size in SIZES for mode in MODES]
QUICK = [case for case in EVERY if case[1:] == (12, "adjoint") or case[0] == "lstm"]
# Cells that differ from `lstm` or `gru` by one term of a gate.
ALIKE = [case for case in QUICK if case[0] in ("coupled", "hard gates", "paper's gru")]


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [case for case in QUICK if case not in ALIKE]
    + also(*ALIKE, mark=COMBINATIONS)
    + also(*(case for case in EVERY if case not in QUICK)),
)
def test_trace_changes_no_bit_of_the_fast_engine(name, size, mode):
    cell, xs = CELLS[name], inputs()
    params = cell.init(jax.random.key(0), D, size)

    def run(params, xs, emit):
        return jl.unroll(cell, params, xs, engine=mode, emit=emit)

    run = jax.jit(run, static_argnums=2)
    state, hs = run(params, xs, jl.emit.hidden)
    traced_state, trace = run(params, xs, jl.emit.trace)
    assert_bits((traced_state, trace.state.h), (state, hs))


@pytest.mark.parametrize(
    ("how", "reverse"),
    [
        ("plain", False),
        ("ragged", True),
        ("resets", False),
        ("masked", True),
        *also(("plain", True), ("ragged", False), mark=COMBINATIONS),
        *also(("resets", True), ("masked", False), mark=COMBINATIONS),
    ],
)
def test_what_is_written_once_is_what_the_reference_stacks(how, reverse):
    """Of whole vectors, which are computed where they lie: values and gradients."""
    cell, xs = jl.lstm(), inputs()
    params = cell.init(jax.random.key(0), D, 16)

    def traced(params, xs, engine):
        options = {"engine": engine, "reverse": reverse, "emit": jl.emit.trace}
        return jl.unroll(cell, params, xs, **options, **HOW[how])

    def total(params, xs, engine):
        leaves = jax.tree.leaves(traced(params, xs, engine))
        return sum((leaf**2).sum() for leaf in leaves)

    program = str(jax.make_jaxpr(traced, static_argnums=2)(params, xs, "adjoint"))
    assert "dynamic_update_slice" in program  # it is written in place at all
    both = jax.jit(lambda *arguments: traced(*arguments), static_argnums=2)
    slope = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    for function in both, slope:
        ours, reference = (function(params, xs, e) for e in ("adjoint", "scan"))
        for one, other in zip(*map(jax.tree.leaves, (ours, reference)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_default_engine_gives_the_trace():
    cell, xs = jl.lstm(), inputs()
    params = cell.init(jax.random.key(0), D, 5)
    found = jl.explain(cell, params, xs, emit=jl.emit.trace)
    assert found.engine == registry.DEFAULT[0]


def test_tape_of_a_stack_is_the_tape_of_its_layers():
    layer, xs = LAYERS["both"], inputs()
    params = drawn(layer)
    *_, tape = layer.trace(params, xs, lengths=HOW["ragged"]["lengths"])
    cell, (stacked, _) = jl.lstm(), params
    for direction, reverse in ("forward", False), ("backward", True):
        _, alone = jl.unroll(
            cell,
            getattr(stacked[0], direction),
            xs,
            lengths=HOW["ragged"]["lengths"],
            reverse=reverse,
            emit=jl.emit.trace,
        )
        assert_bits(tape[f"0/0/{direction}"], alone)


@pytest.mark.parametrize("how", ["plain", "ragged", "resets", "masked"])
def test_the_tape_is_that_of_the_equations_step_by_step(how):
    """Each gate by hand, in NumPy, and no step that does not happen."""
    layer, xs = LAYERS["one"], inputs()
    params = drawn(layer)
    *_, tape = layer.trace(params, xs, **HOW[how])
    w_x, w_h, b = (np.asarray(leaf, np.float64) for leaf in params)
    ends = np.asarray(HOW[how].get("lengths", np.full(B, T)))
    active = np.asarray(HOW[how].get("mask", np.arange(T)[:, None] < ends))
    resets = np.asarray(HOW[how].get("resets", np.zeros((T, B), bool)))

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for row in range(B):
        h, c = np.zeros(5), np.zeros(5)
        for t in range(T):
            seen = jax.tree.map(lambda leaf, at=(t, row): leaf[at], tape[""])
            if not active[t, row]:
                assert all((leaf == 0).all() for leaf in jax.tree.leaves(seen))
                continue
            if resets[t, row]:
                h, c = np.zeros(5), np.zeros(5)
            z = b + np.einsum("d,dgh->gh", np.asarray(xs[t, row], np.float64), w_x)
            z = z + np.einsum("k,kgh->gh", h, w_h)
            gates = jl.Gates(sigmoid(z[0]), sigmoid(z[1]), np.tanh(z[2]), sigmoid(z[3]))
            c = gates.f * c + gates.i * gates.g
            h = gates.o * np.tanh(c)
            for ours, by_hand in zip(
                jax.tree.leaves(seen), (h, c, *gates), strict=True
            ):
                np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_the_tape():
    layer, xs = LAYERS["one"], inputs()
    params = drawn(layer)

    def openness(params, engine):
        layer = jl.recurrent(jl.lstm(), 5, engine=engine)
        return layer.trace(params, xs)[2][""].gates.f.sum()

    ours = jax.grad(openness)(params, "adjoint")
    reference = jax.grad(openness)(params, "scan")
    assert jnp.abs(reference.w_h).max() > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours,
        reference,
    )


def test_layer_of_two_functions_is_on_no_tape():
    double = jl.Layer(
        lambda key, input_size=None: ((), input_size),
        lambda params, xs, state=None, **said: ((), 2.0 * xs),
    )
    model = jl.serial(double, jl.recurrent(jl.lstm(), 5))
    params = drawn(model)
    _, ys, tape = model.trace(params, inputs())
    assert list(tape) == ["1"]
    assert_bits(ys, model.apply(params, inputs())[1])
