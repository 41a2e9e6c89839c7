"""Estimates of memory agree with XLA's own analysis, and budgets select modes."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxlstm as jl
from jaxlstm.engines import memory
from jaxlstm.engines.loops import block_size

LENGTHS = {"lengths": jnp.arange(32) + 97}
CASES = [
    (jl.lstm(), {}),
    (jl.lstm(), {"engine": "adjoint/lean"}),
    (jl.lstm(), {"engine": "scan"}),
    (jl.lstm(), {"checkpoint_every": "sqrt"}),
    (jl.lstm(), {"checkpoint_every": 16, "reverse": True, "engine": "scan"}),
    (jl.lstm(), LENGTHS),
    (jl.lstm(), {"emit": jl.emit.trace, "engine": "adjoint/lean"}),
    (jl.lstm(), {"emit": jl.emit.nothing, "checkpoint_every": 10}),
    (jl.gru(), {"engine": "adjoint/lean", **LENGTHS}),
    (jl.layer_norm_lstm(), {}),
    (jl.zoneout(jl.lstm(), h_rate=0.1), {}),
]


def types(cell, time=128, rows=32, size=32, units=64):
    init = functools.partial(cell.init, input_size=size, hidden_size=units)
    params = jax.eval_shape(init, jax.random.key(0))
    return params, jax.ShapeDtypeStruct((time, rows, size), jnp.float32)


def compiled(cell, inputs, options):
    """Return XLA's analysis of the program that `estimate_memory` estimates."""

    def forward(params, xs):
        return jl.unroll(cell, params, xs, **options)

    def both(inputs, dots):
        answer, back = jax.vjp(forward, *inputs)
        return answer, back(dots)

    dots = jax.eval_shape(forward, *inputs)
    return jax.jit(both).lower(inputs, dots).compile().memory_analysis()


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        *CASES[:4],
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in CASES[4:]),
    ],
)
def test_estimate_is_within_15_percent_of_xla(cell, options):
    inputs = types(cell)
    found = jl.estimate_memory(cell, *inputs, **options)
    xla = compiled(cell, inputs, options)
    expected = xla.temp_size_in_bytes + xla.output_size_in_bytes
    assert found.temporaries + found.results == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "cell",
    [
        jl.lstm(),
        *(
            pytest.param(cell, marks=pytest.mark.thorough)
            for cell in (jl.gru(), jl.layer_norm_lstm(), jl.peephole_lstm())
        ),
    ],
)
def test_lean_mode_needs_less_than_a_third_of_the_memory(cell):
    inputs = types(cell, time=256)
    lean, scan = (
        compiled(cell, inputs, {"engine": engine}).temp_size_in_bytes
        for engine in ("adjoint/lean", "scan")
    )
    whole = jl.estimate_memory(cell, *inputs, engine="adjoint").temporaries
    assert lean < scan / 3
    assert lean < whole / 3


@pytest.mark.parametrize(
    ("time", "every", "size"),
    [(128, "sqrt", 8), (100_000, "sqrt", 250), (97, "sqrt", 9), (1, "sqrt", 1),
     (0, "sqrt", 1), (12, 5, 4), (13, 5, 5), (12, 200, 12), (0, 3, 1), (60, 30, 30)],
)  # fmt: skip
def test_block_size(time, every, size):
    assert block_size(time, every) == size


def test_estimates_fit_the_budget():
    """Smaller budgets select the lean mode and then fewer and fewer states."""
    cell = jl.lstm()
    inputs = types(cell, time=1024, rows=8)
    found = {
        size: jl.estimate_memory(cell, *inputs, checkpoint_every=size).temporaries
        for size in ("1 GB", "15 MB", "4 MB", "1 MB")
    }
    for text, size in found.items():
        number, unit = text.split()
        assert size <= float(number) * {"MB": 1e6, "GB": 1e9}[unit]
    assert sorted(found.values(), reverse=True) == list(found.values())
    assert len(set(found.values())) == 4
    everything = jl.estimate_memory(cell, *inputs).temporaries
    assert found["1 GB"] == everything


def test_explain_describes_the_mode_of_a_budget():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 32, 64)
    xs = jnp.zeros((1024, 8, 32))

    def how(size):
        return jl.explain(cell, params, xs, checkpoint_every=size).how

    assert how("1 GB").startswith("stores activations and states;")
    assert how("8 MB").startswith("stores states only;")
    assert "steps at a time in the backward pass" in how("3 MB")


@pytest.mark.thorough
def test_budget_does_not_change_the_gradient():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 5)
    xs = jax.random.normal(jax.random.key(1), (64, 2, 3))

    def gradient(every):
        def total(params):
            return jnp.sum(jl.unroll(cell, params, xs, checkpoint_every=every)[1] ** 2)

        return jax.grad(total)(params)

    expected = gradient(None)
    for size in ("20 kB", "14 kB"):
        got = gradient(size)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_budget_that_is_too_small_says_what_is_needed():
    cell = jl.lstm()
    inputs = types(cell)
    with pytest.raises(ValueError, match=r"got 1 kB, expected at least 1\.\d+ MB"):
        jl.estimate_memory(cell, *inputs, checkpoint_every="1 kB")


@pytest.mark.parametrize("text", ["2", "GB", "2 parsecs", "-1 GB", "sqr", ""])
def test_invalid_budgets_are_refused(text):
    cell = jl.lstm()
    with pytest.raises(ValueError, match='a size such as "2 GB"'):
        jl.estimate_memory(cell, *types(cell), checkpoint_every=text)


def test_format_of_an_estimate():
    assert str(memory.Memory(1_030_000_000, 2_500_000, 12)) == (
        "1.03 GB: arguments 1.03 GB, results 2.5 MB, temporaries 12 B"
    )


def test_fused_and_reused_buffers_are_not_counted():
    """`x @ x` is stored, its sine reuses the buffer, elementwise results are fused."""
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    one = 4_000_000
    found = memory.estimate(lambda x: jnp.sin(x @ x) @ x, x)
    assert found == (one, one, one)
    assert memory.estimate(lambda x: (x + 1) * 2, x) == (one, one, 0)
    assert memory.estimate(lambda x: jnp.sum(jnp.exp(x)), x) == (one, 4, 0)
    two = memory.estimate(lambda x: (x @ x, x @ (x + 1)), x)
    assert two == (one, 2 * one, one)


def test_arguments_of_unroll_are_accepted():
    """Lists, numbers in a state, and types give the same estimate."""
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jnp.zeros((7, 2, 3))
    expected = jl.estimate_memory(cell, params, xs, lengths=jnp.array([7, 3]))
    state = jl.LSTMState(0.0, 0.0)
    assert jl.estimate_memory(cell, params, xs, state, lengths=[7, 3]) == expected
    typed = jax.ShapeDtypeStruct(xs.shape, xs.dtype)
    assert jl.estimate_memory(cell, params, typed, lengths=[7, 3]) == expected
    assert jl.estimate_memory(cell, params, xs.tolist(), lengths=[7, 3]) == expected
