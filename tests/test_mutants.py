"""Every seeded bug is found by a fast version of the suite.

The checks are ordered by how many mutants they find; a mutant is killed when one of
them raises an `AssertionError`. A mutant that raises another error is not a plausible
bug, and one that does not fit the source is an error: both fail the test.
"""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm
from cases import Kind, Shape, answer, assert_same, draw, expected
from mutants import ADJOINT, MUTANTS, PARTITION, UNMUTATED, imported_from, plant

pytestmark = pytest.mark.mutants


def agrees_with_the_oracle(jl, shape: Shape, kind: Kind, **options) -> None:
    case = draw(np.random.default_rng(3), shape, kind)
    with jax.enable_x64(True):
        assert_same(answer(jl, case, **options), expected(case))


def check_lengths(jl) -> None:
    agrees_with_the_oracle(jl, Shape(4, (6,), 3, 2), Kind("lengths", True))


def check_mask_in_reverse(jl) -> None:
    agrees_with_the_oracle(jl, Shape(5, (4,), 3, 2), Kind("mask", True, True))


def check_init(jl) -> None:
    assert jl.lstm() is jl.lstm()
    params = jl.lstm(forget_bias=2.0).init(jax.random.key(0), 3, 4)
    assert np.array_equal(
        params.b, np.array([0.0, 2.0, 0.0, 0.0])[:, None] + np.zeros(4)
    )
    state = jl.lstm().initial_state(params, (2,))
    assert not np.any(state.h)
    assert not np.any(state.c)


def check_activations(jl) -> None:
    """One step of one unit with three different functions."""
    cell = jl.lstm(
        gate_activation="hard_sigmoid",
        candidate_activation="hard_tanh",
        output_activation="identity",
    )
    zero = jnp.zeros((1, 4, 1))
    params = jl.LSTMParams(zero, zero, jnp.array([[1.5], [-0.6], [2.0], [0.3]]))
    state = jl.LSTMState(jnp.ones(1), jnp.full(1, 4.0))
    state, _ = cell.step(params, state, cell.project(params, jnp.ones(1)))
    i, f, g, o = 0.75, 0.4, 1.0, 0.55
    np.testing.assert_allclose(state.c, f * 4.0 + i * g, rtol=1e-6)
    np.testing.assert_allclose(state.h, o * (f * 4.0 + i * g), rtol=1e-6)


def check_invalid_lengths(jl) -> None:
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 3)
    run = jax.jit(lambda n: jl.unroll(cell, params, jnp.ones((4, 4, 2)), lengths=n))
    last, hs = run(jnp.array([4, -1, 5, 0]))
    lost = np.array([False, True, True, False])
    assert np.array_equal(np.isnan(hs).all((0, 2)), lost)
    assert np.array_equal(np.isnan(hs).any((0, 2)), lost)
    assert np.array_equal(np.isnan(last.c).all(-1), lost)


def check_refusals(jl) -> None:
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 3)
    xs, steps = jnp.ones((4, 2, 2)), jnp.ones((4, 2), bool)
    for options, message in (
        ({"lengths": np.array([1, 5])}, "expected 0 to 4"),
        ({"lengths": np.array([-1, 4])}, "expected 0 to 4"),
        ({"lengths": np.array([1.0, 2.0])}, "lengths: got dtype"),
        ({"lengths": np.array([1])}, "lengths: got shape"),
        ({"lengths": np.array([1, 2]), "mask": steps}, "lengths and mask"),
        ({"mask": steps.astype(jnp.float32)}, "mask: got dtype"),
        ({"xs": xs.astype(jnp.int32)}, "xs: got dtype"),
    ):
        arguments = {"xs": xs} | options
        assert message in refusal(lambda a=arguments: jl.unroll(cell, params, **a))


def refusal(call) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def check_sixteen_bits(jl) -> None:
    zero = jnp.zeros((1, 4, 1), jnp.bfloat16)
    params = jl.LSTMParams(zero, zero, jnp.full((4, 1), 50.0, jnp.bfloat16))
    last, hs = jl.unroll(jl.lstm(), params, jnp.zeros((300, 1), jnp.bfloat16))
    assert hs.dtype == jnp.bfloat16
    assert last.c == 300.0


def check_blocks(jl) -> None:
    for kind in (Kind("none", True), Kind("mask", True, True)):
        shape = Shape(7, (3,), 2, 2)
        agrees_with_the_oracle(jl, shape, kind, checkpoint_every=3)


def check_memory(jl) -> None:
    """Checkpointing reduces the memory."""
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 2, 8)

    def temporary_bytes(every) -> int:
        def loss(params):
            xs = jnp.ones((1024, 8, 2))
            return jl.unroll(cell, params, xs, checkpoint_every=every)[0].h.sum()

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(32) < 0.6 * temporary_bytes(None)


def check_odd_steps(jl) -> None:
    """A step that uses its weight, its input and its state several times."""

    def odd(params, state, z):
        w, u = params["w"], params["u"]
        seen = jax.lax.dot_general(state.h, u, (((1,), (1,)), ((), ())))
        h = jnp.tanh(z + state.h @ w) * z - u * state.h * seen.sum()
        return jl.LSTMState(h, jnp.tanh(state.c @ w + h)), h

    plain = jl.lstm()
    cell = jl.learned_initial_state(
        plain._replace(
            init=lambda key, d, h, **_: {"w": jnp.ones((h, h)), "u": jnp.ones((2, h))},
            initial_state=lambda params, batch=(), **_: jl.LSTMState(
                *jnp.zeros((2, *batch, 3))
            ),
            project=lambda params, x: x,
            step=odd,
        )
    )
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda leaf: 0.5 * rng.normal(size=leaf.shape),
            cell.init(jax.random.key(0), 3, 3),
        )
        xs, resets = rng.normal(size=(5, 2, 3)), rng.random((5, 2)) < 0.4
        state = jl.LSTMState(*rng.normal(size=(2, 2, 3)))

        def total(engine):
            def of(params, xs, state):
                state, hs = jl.unroll(
                    cell, params, xs, state, resets=resets, engine=engine
                )
                return jnp.sum(hs * jnp.cos(hs)) + jnp.sum(state.c)

            return jax.grad(of, (0, 1, 2))(params, xs, state)

        assert_same(total("adjoint"), total("scan"))


CHECKS = [
    check_lengths,
    check_mask_in_reverse,
    check_refusals,
    check_init,
    check_invalid_lengths,
    check_activations,
    check_sixteen_bits,
    check_blocks,
    check_memory,
    check_odd_steps,
]


def killer(jl, engine: str) -> str | None:
    """Return the name of the first check that fails with this engine, or None."""
    unrolling = importlib.import_module(f"{jl.__name__}.unrolling")
    unrolling.DEFAULT = tuple(dict.fromkeys([engine, *unrolling.DEFAULT]))
    for check in CHECKS:
        try:
            check(jl)
        except AssertionError:
            return check.__name__
    return None


def test_number_of_mutants(record_property):
    names = [mutant.name for mutant in MUTANTS]
    record_property("mutants", len(names))
    assert len(set(names)) == len(names) >= 30


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant, tmp_path, record_property):
    plant(mutant, tmp_path)
    with imported_from(tmp_path) as jl:
        by_hand = mutant.file in (ADJOINT, PARTITION)
        engine = mutant.engine or ("adjoint" if by_hand else "scan")
        killed_by = killer(jl, engine)
    record_property("killed_by", killed_by)
    assert killed_by is not None, f"{mutant.name!r} survives"


def test_unmutated_copy_passes_every_check(tmp_path):
    genuine = jaxlstm.unroll
    plant(UNMUTATED, tmp_path)
    with imported_from(tmp_path) as jl:
        assert jl.__path__ == [str(tmp_path / "jaxlstm")]
        assert jl.unroll is not genuine
        for engine in jl.engines.registry.ENGINES:
            assert killer(jl, engine) is None
    assert sys.modules["jaxlstm"] is jaxlstm
    assert jaxlstm.unroll is genuine


def test_mutant_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(LookupError, match="occurs 0 times"):
        plant(MUTANTS[0]._replace(old="no such text"), tmp_path)
