"""Engines by name, `explain`, checkpointing in time, and caches of programs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, answer, assert_same, draw, expected, same_bits
from problems import CELL, B, problem


@pytest.mark.parametrize("engine", [None, ("adjoint",), ["adjoint", "scan"]])
def test_engine_by_name(engine):
    params, xs, state = problem()
    name = engine[0] if engine else jl.explain(CELL, params, xs, state).engine
    got = jl.unroll(CELL, params, xs, state, engine=engine)
    assert same_bits(got, jl.unroll(CELL, params, xs, state, engine=name))


def test_explain():
    params, xs, _ = problem()
    lengths = jnp.array([1, 2, 3, 4])
    found = jl.explain(CELL, params, xs, lengths=lengths)
    assert found.engine in ("native", "adjoint")
    assert found.reasons["scan"] == f"would serve, but {found.engine} comes first"
    found = jl.explain(CELL, params, xs, lengths=lengths, engine="scan")
    assert found.engine == "scan"
    assert found.reasons["adjoint"] == "would serve, but was not asked for"
    assert str(found).splitlines()[0] == "-> scan     serves"


def test_explain_has_the_arguments_of_unroll():
    def options(function):
        return list(inspect.signature(function).parameters)

    assert options(jl.explain) == options(jl.unroll)
    kinds = inspect.signature(jl.unroll).parameters.values()
    assert [kind.kind.name for kind in kinds][:4] == ["POSITIONAL_OR_KEYWORD"] * 4
    assert {kind.kind.name for kind in kinds}.isdisjoint({"VAR_KEYWORD"})
    assert all(kind.kind.name == "KEYWORD_ONLY" for kind in list(kinds)[4:])


@pytest.mark.parametrize(
    ("every", "masking", "reverse"),
    [(1, "none", True), (5, "lengths", False), (6, "none", False),
     (12, "mask", True), (13, "lengths", True), ("sqrt", "mask", False)]
    + [
        pytest.param(*case, marks=pytest.mark.combinations)
        for case in [
            (1, "none", False), (5, "lengths", True), (6, "none", True),
            (12, "mask", False), (13, "lengths", False), ("sqrt", "mask", True),
        ]
    ],
)  # fmt: skip
def test_checkpointing_does_not_change_results(every, masking, reverse, x64):
    """Divisors of T = 12, other numbers, and more than T; with resets."""
    kind = Kind(masking, True, reverse)
    case = draw(np.random.default_rng(8), Shape(12, (2,), 2, 3), kind)
    assert_same(answer(jl, case, checkpoint_every=every), expected(case))


@pytest.mark.parametrize(("time", "rows"), [(0, B), (1, B), (13, B), (6, 0), (0, 0)])
def test_checkpointing_of_few_steps_and_rows(time, rows):
    params, xs, state = problem((rows,), time)
    for every in (1, 4, "sqrt"):
        got = jl.unroll(CELL, params, xs, state, checkpoint_every=every)
        assert_same(got, jl.unroll(CELL, params, xs, state), 1e-6)


@pytest.mark.parametrize("every", [32, "sqrt"])
def test_checkpointing_saves_memory(every):
    """Compares the temporary memory of the compiled gradients."""
    params, xs, _ = problem((8,), 1024)

    def bytes_of(every):
        def loss(params):
            last, _ = jl.unroll(
                CELL, params, xs, emit=jl.emit.nothing, checkpoint_every=every
            )
            return jnp.sum(last.h)

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of(every) < 0.6 * bytes_of(None)


def test_factories_are_cached():
    assert jl.lstm() is jl.lstm()
    assert jl.lstm(forget_bias=1.0, init="default") is jl.lstm()
    assert jl.lstm(init="torch") is jl.lstm(init="torch")
    assert jl.lstm(forget_bias=2.0) is not jl.lstm()
    assert jl.lstm(candidate_activation="relu") is not jl.lstm()
    assert hash(jl.lstm()) == hash(jl.lstm())


def test_unroll_is_traced_once():
    params, xs, state = problem()
    traces = []

    @jax.jit
    def run(params, xs, lengths):
        traces.append(None)
        return jl.unroll(jl.lstm(), params, xs, lengths=lengths)

    for length in range(3):
        run(params, xs, jnp.full(B, length))
    assert len(traces) == 1
    function = jax.jit(jl.unroll, static_argnums=0)
    function(jl.lstm(), params, xs, state)
    function(jl.lstm(), params, xs, state)
    assert function._cache_size() == 1  # pyright: ignore


def test_the_body_is_traced_once_per_program():
    """emit is called once per program, for any number of steps."""
    params, xs, _ = problem()
    traces = []

    def emit(state, gates):
        traces.append(None)
        return state.h

    run = jax.jit(lambda xs: jl.unroll(CELL, params, xs, emit=emit))
    run(xs)
    first = len(traces)
    run(xs)
    assert len(traces) == first <= 3
    run(jnp.concatenate([xs] * 10))
    assert len(traces) <= 2 * first


def test_two_calls_give_the_same_bits():
    params, xs, state = problem()
    assert same_bits(
        jl.unroll(CELL, params, xs, state), jl.unroll(CELL, params, xs, state)
    )
