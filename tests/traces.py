"""Layers, options and checks of `test_trace` and `test_trace_optimised`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast_compilation
import jaxlstm as jl

T, B, D = 9, 3, 4


def inputs(dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (T, B, D), dtype)


def drawn(layer: jl.Layer):
    params, _ = layer.init(jax.random.key(0), D)
    return params


OPTIONS = {
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
    """Return the cases with a mark, which excludes them from the default run."""
    return [pytest.param(*case, marks=mark) for case in cases]


COMBINATIONS = pytest.mark.combinations

# Each layer and each option at least once.
FIRST = [
    ("one", "resets"),
    ("stack", "noisy"),
    ("both", "ragged"),
    ("one", "masked"),
    ("grus", "plain"),
]


CELLS = {
    "lstm": jl.lstm(),
    "peephole": jl.peephole_lstm(),
    "coupled": jl.coupled_lstm(),
    "projected": jl.projected_lstm(7),
    "layer norm": jl.layer_norm_lstm(),
    "hard gates": jl.lstm(gate_activation="hard_sigmoid"),
    "zoneout": jl.zoneout(jl.lstm(), h_rate=0.1, c_rate=0.2),
    "gru": jl.gru(),
    "gru of the paper": jl.gru(reset_after=False),
}


QUICK = [
    ("lstm", 12, "adjoint"),
    ("lstm", 64, "adjoint/lean"),
    ("peephole", 12, "adjoint"),
    ("projected", 12, "adjoint"),
    ("zoneout", 12, "adjoint"),
    ("gru", 12, "adjoint"),
]


def check_trace_of_layers(name, options):
    """Assert that `trace` names every recurrent layer and changes no bit of `apply`."""
    layer, xs = LAYERS[name], inputs()
    params = drawn(layer)
    plain = jax.jit(layer.apply)(params, xs, **OPTIONS[options])
    state, ys, traces = jax.jit(layer.trace)(params, xs, **OPTIONS[options])
    assert_bits((state, ys), plain)
    assert sorted(traces) == NAMES[name]
    for trace in traces.values():
        assert {leaf.shape[:2] for leaf in jax.tree.leaves(trace)} == {(T, B)}


def check_emit_trace(name, size, mode):
    """Assert that `emit.trace` changes no bit of the outputs and the last state."""
    cell, xs = CELLS[name], inputs()
    init = functools.partial(cell.init, input_size=D, hidden_size=size)
    compile_options = fast_compilation.unoptimised()
    params = jax.jit(init, compiler_options=compile_options)(jax.random.key(0))

    def run(params, xs, emit):
        return jl.unroll(cell, params, xs, engine=mode, emit=emit)

    run = jax.jit(run, static_argnums=2)
    state, hs = run(params, xs, jl.emit.hidden)
    traced_state, trace = run(params, xs, jl.emit.trace)
    assert_bits((traced_state, trace.state.h), (state, hs))
