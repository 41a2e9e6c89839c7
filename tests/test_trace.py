"""`Layer.trace` and `emit.trace` return every gate and change no bit of the results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.engines import registry
from traces import (
    COMBINATIONS,
    FIRST,
    LAYERS,
    OPTIONS,
    QUICK,
    B,
    D,
    T,
    also,
    assert_bits,
    check_emit_trace,
    check_trace_of_layers,
    drawn,
    inputs,
)


@pytest.mark.parametrize(("name", "options"), FIRST)
def test_trace_names_every_layer_and_changes_no_bit(name, options):
    check_trace_of_layers(name, options)


@pytest.mark.parametrize(("name", "size", "mode"), QUICK)
def test_emit_trace_changes_no_bit_of_the_adjoint_engine(name, size, mode):
    check_emit_trace(name, size, mode)


@pytest.mark.parametrize(
    ("options", "reverse"),
    [
        ("plain", False),
        ("masked", True),
        *also(("plain", True), ("ragged", False), ("ragged", True), mark=COMBINATIONS),
        *also(("resets", True), ("resets", False), mark=COMBINATIONS),
        *also(("masked", False), mark=COMBINATIONS),
    ],
)
def test_in_place_stacks_equal_those_of_the_reference(options, reverse):
    """Values and gradients, for units that are whole vectors."""
    cell, xs = jl.lstm(), inputs()
    params = cell.init(jax.random.key(0), D, 16)

    def traced(params, xs, engine):
        chosen = {"engine": engine, "reverse": reverse, "emit": jl.emit.trace}
        return jl.unroll(cell, params, xs, **chosen, **OPTIONS[options])

    def total(params, xs, engine):
        leaves = jax.tree.leaves(traced(params, xs, engine))
        return sum((leaf**2).sum() for leaf in leaves)

    program = str(jax.make_jaxpr(traced, static_argnums=2)(params, xs, "adjoint"))
    assert "dynamic_update_slice" in program  # the in-place scan is used
    both = jax.jit(lambda *arguments: traced(*arguments), static_argnums=2)
    slope = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    for function in both, slope:
        ours, reference = (function(params, xs, e) for e in ("adjoint", "scan"))
        for one, other in zip(*map(jax.tree.leaves, (ours, reference)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_default_engine_serves_a_trace():
    cell, xs = jl.lstm(), inputs()
    params = cell.init(jax.random.key(0), D, 5)
    found = jl.explain(cell, params, xs, emit=jl.emit.trace)
    assert found.engine == registry.DEFAULT[0]


def test_trace_of_a_stack_is_that_of_its_layers():
    layer, xs = LAYERS["both"], inputs()
    params = drawn(layer)
    *_, traces = layer.trace(params, xs, lengths=OPTIONS["ragged"]["lengths"])
    cell, (stacked, _) = jl.lstm(), params
    for direction, reverse in ("forward", False), ("backward", True):
        _, alone = jl.unroll(
            cell,
            getattr(stacked[0], direction),
            xs,
            lengths=OPTIONS["ragged"]["lengths"],
            reverse=reverse,
            emit=jl.emit.trace,
        )
        assert_bits(traces[f"0/0/{direction}"], alone)


@pytest.mark.parametrize("options", ["plain", "ragged", "resets", "masked"])
def test_trace_equals_the_equations_step_by_step(options):
    """Each gate computed in NumPy; masked steps are zero."""
    layer, xs = LAYERS["one"], inputs()
    params = drawn(layer)
    *_, traces = layer.trace(params, xs, **OPTIONS[options])
    w_x, w_h, b = (np.asarray(leaf, np.float64) for leaf in params)
    ends = np.asarray(OPTIONS[options].get("lengths", np.full(B, T)))
    active = np.asarray(OPTIONS[options].get("mask", np.arange(T)[:, None] < ends))
    resets = np.asarray(OPTIONS[options].get("resets", np.zeros((T, B), bool)))

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for row in range(B):
        h, c = np.zeros(5), np.zeros(5)
        for t in range(T):
            seen = jax.tree.map(lambda leaf, at=(t, row): leaf[at], traces[""])
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
            for ours, expected in zip(
                jax.tree.leaves(seen), (h, c, *gates), strict=True
            ):
                np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_a_trace():
    layer, xs = LAYERS["one"], inputs()
    params = drawn(layer)

    def sum_of_forget_gates(params, engine):
        layer = jl.recurrent(jl.lstm(), 5, engine=engine)
        return layer.trace(params, xs)[2][""].gates.f.sum()

    ours = jax.grad(sum_of_forget_gates)(params, "adjoint")
    reference = jax.grad(sum_of_forget_gates)(params, "scan")
    assert jnp.abs(reference.w_h).max() > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours,
        reference,
    )


def test_layer_without_trace_is_left_out():
    double = jl.Layer(
        lambda key, input_size=None: ((), input_size),
        lambda params, xs, state=None, **options: ((), 2.0 * xs),
    )
    model = jl.serial(double, jl.recurrent(jl.lstm(), 5))
    params = drawn(model)
    _, ys, traces = model.trace(params, inputs())
    assert list(traces) == ["1"]
    assert_bits(ys, model.apply(params, inputs())[1])
