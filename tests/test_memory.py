"""Estimates of memory, against XLA's own analysis; modes, blocks and budgets."""

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
    """XLA's analysis of the program that `estimate_memory` tells of."""

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
def test_the_estimate_is_within_15_percent_of_what_xla_finds(cell, options):
    inputs = types(cell)
    found = jl.estimate_memory(cell, *inputs, **options)
    xla = compiled(cell, inputs, options)
    wanted = xla.temp_size_in_bytes + xla.output_size_in_bytes
    assert found.temporaries + found.results == pytest.approx(wanted, rel=0.15)


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
def test_the_lean_mode_remembers_a_third_of_what_automatic_differentiation_does(cell):
    inputs = types(cell, time=256)
    lean, scan = (
        compiled(cell, inputs, {"engine": engine}).temp_size_in_bytes
        for engine in ("adjoint/lean", "scan")
    )
    assert lean < scan / 3


@pytest.mark.parametrize(
    ("time", "every", "size"),
    [(128, "sqrt", 8), (100_000, "sqrt", 250), (97, "sqrt", 9), (1, "sqrt", 1),
     (0, "sqrt", 1), (12, 5, 4), (13, 5, 5), (12, 200, 12), (0, 3, 1), (60, 30, 30)],
)  # fmt: skip
def test_the_size_of_a_block(time, every, size):
    assert block_size(time, every) == size


def test_a_budget_is_kept():
    """From what is fast to what is lean, and to fewer and fewer states."""
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


def test_what_a_budget_chooses_is_told():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 32, 64)
    xs = jnp.zeros((1024, 8, 32))

    def how(size):
        return jl.explain(cell, params, xs, checkpoint_every=size).how

    assert how("1 GB").startswith("remembers activations and states;")
    assert how("8 MB").startswith("remembers states only;")
    assert "steps at a time again on the way back" in how("3 MB")


@pytest.mark.thorough
def test_a_budget_changes_no_number():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 5)
    xs = jax.random.normal(jax.random.key(1), (64, 2, 3))

    def gradient(every):
        def total(params):
            return jnp.sum(jl.unroll(cell, params, xs, checkpoint_every=every)[1] ** 2)

        return jax.grad(total)(params)

    wanted = gradient(None)
    for size in ("20 kB", "14 kB"):
        got = gradient(size)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert jnp.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_budget_that_nothing_keeps_is_refused_with_what_would_do():
    cell = jl.lstm()
    inputs = types(cell)
    with pytest.raises(
        ValueError, match=r"1 kB, and the gradient takes at least 1\.\d+ MB"
    ):
        jl.estimate_memory(cell, *inputs, checkpoint_every="1 kB")


@pytest.mark.parametrize("text", ["2", "GB", "2 parsecs", "-1 GB", "sqr", ""])
def test_a_budget_that_is_none_is_refused(text):
    cell = jl.lstm()
    with pytest.raises(ValueError, match='a size such as "2 GB"'):
        jl.estimate_memory(cell, *types(cell), checkpoint_every=text)


def test_an_estimate_reads_well():
    assert str(memory.Memory(1_030_000_000, 2_500_000, 12)) == (
        "1.03 GB: arguments 1.03 GB, results 2.5 MB, temporaries 12 B"
    )


def test_what_is_fused_or_reused_is_not_counted():
    """`x @ x` is stored, its sine takes its place, and what is read once is not."""
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    one = 4_000_000
    found = memory.estimate(lambda x: jnp.sin(x @ x) @ x, x)
    assert found == (one, one, one)
    assert memory.estimate(lambda x: (x + 1) * 2, x) == (one, one, 0)
    assert memory.estimate(lambda x: jnp.sum(jnp.exp(x)), x) == (one, 4, 0)
    two = memory.estimate(lambda x: (x @ x, x @ (x + 1)), x)
    assert two == (one, 2 * one, one)


def test_what_unroll_takes_is_taken():
    """Lists, numbers for a state, types: all the same."""
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jnp.zeros((7, 2, 3))
    wanted = jl.estimate_memory(cell, params, xs, lengths=jnp.array([7, 3]))
    state = jl.LSTMState(0.0, 0.0)
    assert jl.estimate_memory(cell, params, xs, state, lengths=[7, 3]) == wanted
    typed = jax.ShapeDtypeStruct(xs.shape, xs.dtype)
    assert jl.estimate_memory(cell, params, typed, lengths=[7, 3]) == wanted
    assert jl.estimate_memory(cell, params, xs.tolist(), lengths=[7, 3]) == wanted
