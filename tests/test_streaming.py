"""`stream` equals `unroll`, for every cell and wrapper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same
from registry import CELLS, WRAPPERS, Option, draw

NOTHING = Option("nothing")
# Each plain cell, and the LSTM in every wrapper except taps, which have a time axis.
PAIRS = [
    *((row, WRAPPERS[0]) for row in CELLS),
    *((CELLS[0], wrapper) for wrapper in WRAPPERS[1:] if "taps" not in wrapper.name),
]


def streamed(cell, params, xs, **options):
    step, state = jl.stream(cell, params, xs[0], **options)
    emitted = []
    for x in xs:
        state, out = step(state, x)
        emitted.append(out)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *emitted)


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "wrapper"), PAIRS)
def test_every_cell_streams(row, wrapper, x64):
    rng = np.random.default_rng(5)
    cell = wrapper.wrap(row.make(), row)
    params, xs, _ = draw(rng, row, cell, NOTHING).inputs
    got = streamed(cell, params, xs, emit=jl.emit.trace)
    assert_same(got, jl.unroll(cell, params, xs, emit=jl.emit.trace))


@pytest.mark.parametrize("rows", [(), (1,), (2, 3)])
def test_streams_of_any_number_of_rows(rows, x64):
    cell = jl.recurrent_dropout(jl.peephole_lstm(), rate=0.5)
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jax.random.normal(jax.random.key(1), (5, *rows, 3))
    assert_same(streamed(cell, params, xs), jl.unroll(cell, params, xs))


def test_16_bit_inputs():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3), jnp.bfloat16)
    state, hs = streamed(cell, params, xs)
    expected, all_hs = jl.unroll(cell, params, xs)
    assert hs.dtype == jnp.bfloat16
    assert state.c.dtype == jnp.float32
    assert jnp.allclose(hs, all_hs, atol=1e-2)
    assert jnp.allclose(state.c, expected.c, atol=1e-2)


def test_values_that_depend_on_parameters_only_are_computed_once():
    """The program of a step has no casts of the weights."""
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    x = jnp.zeros((2, 3), jnp.bfloat16)
    step, state = jl.stream(cell, params, x)

    def whole(state, x):
        return cell.step(params, state, cell.project(params, x))

    cast = "bf16[4,4,4] = convert_element_type"
    assert cast in str(jax.make_jaxpr(whole)(state, x))
    assert cast not in str(jax.make_jaxpr(step)(state, x))


def test_abstract_inputs_are_accepted_and_wrong_ones_refused():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    step, state = jl.stream(cell, params, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    assert step(state, np.zeros((2, 3), np.float32))[1].shape == (2, 4)
    with pytest.raises(ValueError, match="stream: xs: got 5 features"):
        jl.stream(cell, params, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"stream: .*dtype int32"):
        jl.stream(cell, params, jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"x: got shape \[3, 3\], expected \[2, 3\]"):
        step(state, jnp.zeros((3, 3)))


def test_a_step_without_partial_evaluation_is_refused():
    def loud(params, state, z):
        jax.debug.print("{}", z)
        return jl.lstm().step(params, state, z)

    cell = jl.lstm()._replace(step=loud)
    params = cell.init(jax.random.key(0), 3, 4)
    with pytest.raises(NotImplementedError, match="side effects"):
        jl.stream(cell, params, jnp.zeros(3))


@pytest.mark.parametrize(
    "other",
    [
        None,
        (jnp.zeros(4), jnp.zeros(4)),
        jl.LSTMState(jnp.zeros(4), jnp.zeros(1)),
        jl.LSTMState(0.0, 0.0),
        jl.LSTMState(jnp.zeros(4), jnp.zeros(4, jnp.bfloat16)),
    ],
)
def test_a_state_of_another_structure_is_refused(other):
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 4)
    step, _ = jl.stream(cell, params, [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="stream: state: got"):
        step(other, jnp.zeros(3))
