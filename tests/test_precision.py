"""Every cell, wrapper and layer follows the dtype table of `jaxlstm.typing`.

The table is read from the docstring of that module and compared with traced programs.
Further tests cover large values and the memory layouts of NumPy arrays.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import finite, same_bits
from jaxlstm import typing as jl_typing
from problems import CELL, B, D, H, T, problem

pytestmark = pytest.mark.thorough

CELLS = {
    "lstm": jl.lstm(),
    "classic": jl.classic_lstm(),
    "peephole": jl.peephole_lstm(),
    "coupled": jl.coupled_lstm(peepholes=True),
    "projected": jl.projected_lstm(4),
    "layer_norm": jl.layer_norm_lstm(),
    "conv": jl.conv_lstm((3, 1)),
    "simple_rnn": jl.simple_rnn(),
    "gru": jl.gru(),
    "gru_1.0": jl.gru(reset_after=False),
    "zoneout": jl.zoneout(CELL, h_rate=0.1, c_rate=0.2),
    "variational_dropout": jl.variational_dropout(CELL, x_rate=0.1, h_rate=0.2),
    "recurrent_dropout": jl.recurrent_dropout(CELL, 0.1),
    "weight_drop": jl.weight_drop(CELL, 0.1),
    "clip": jl.clip_cell(CELL, 3.0),
    "learned": jl.learned_initial_state(CELL),
    "taps": jl.taps(CELL),
}


class Row(NamedTuple):
    """Dtypes of one row of the table."""

    xs: str
    params: str
    products: str
    sums: str
    h: str
    c: str
    outputs: str


def table() -> list[Row]:
    """Return the rows in the docstring of `jaxlstm.typing`."""
    lines = [line.split() for line in (jl_typing.__doc__ or "").splitlines()]
    return [Row(*words) for words in lines if len(words) == 7 and "any" in words]


every_cell = pytest.mark.parametrize("name", CELLS)
every_row = pytest.mark.parametrize("row", table(), ids=lambda row: row.xs)
every_params = pytest.mark.parametrize(
    "params_dtype", ["float64", "float32", "bfloat16", "float16"]
)


def operands(jaxpr) -> set[tuple[str, str, str]]:
    """Return the dtypes of operands and result of every product in a jaxpr."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            atoms = (*equation.invars, *equation.outvars)
            found.add(tuple(str(atom.aval.dtype) for atom in atoms))
        for inner in jax.tree.leaves(equation.params, is_leaf=has_jaxpr):
            if has_jaxpr(inner):
                found |= operands(getattr(inner, "jaxpr", inner))
    return found


def has_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def structs(cell: jl.Cell, row: Row, params_dtype: str):
    """Return structs of params and xs with these dtypes."""
    xs = jax.ShapeDtypeStruct((T, B, *(2,) * cell.spatial_axes, D), jnp.dtype(row.xs))
    draw = jax.eval_shape(lambda key: cell.init(key, D, H), jax.random.key(0))
    return with_dtype(draw, params_dtype), xs


def with_dtype(tree, dtype: str):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), tree)


def dtypes(tree) -> set[str]:
    leaves = jax.tree.leaves(tree)
    assert not any(leaf.weak_type for leaf in leaves)
    return {str(leaf.dtype) for leaf in leaves}


def test_the_table_has_a_row_for_each_dtype():
    assert [row.xs for row in table()] == ["float64", "float32", "bfloat16", "float16"]


@every_params
@every_row
@every_cell
def test_every_cell_follows_the_table(name, row, params_dtype, x64):
    """Outputs, gradients and operands of products, with noise and all gates."""
    cell = CELLS[name]
    params, xs = structs(cell, row, params_dtype)
    key = jax.random.key(1)

    def run(params, xs):
        return jl.unroll(cell, params, xs, key=key, emit=jl.emit.trace)

    def total(params, xs):
        leaves = jax.tree.leaves(run(params, xs))
        return sum(jnp.sum(leaf, dtype=jnp.float64) for leaf in leaves)

    program, (last, trace) = jax.make_jaxpr(run, return_shape=True)(params, xs)
    assert operands(program) == {(row.products, row.products, row.sums)}
    for state in (last, trace.state):
        assert dtypes(state.h) == {row.h} == {row.outputs}
        assert dtypes(getattr(state, "c", ())) <= {row.c}
    assert dtypes(trace.gates) == {row.sums}

    d_params, d_xs = jax.eval_shape(jax.grad(total, argnums=(0, 1)), params, xs)
    assert dtypes(d_params) == {params_dtype}
    assert dtypes(d_xs) == {row.xs}


@pytest.mark.parametrize("given", [float, "float64", "float32", "bfloat16", "float16"])
@every_row
@pytest.mark.parametrize("name", ["lstm", "projected", "gru", "learned", "taps"])
def test_every_given_state_is_cast_to_the_carry(name, row, given, x64):
    """From Python floats, weak types, and every dtype."""
    cell = CELLS[name]
    params, xs = structs(cell, row, "float32")
    expected, _ = jax.eval_shape(lambda *a: jl.unroll(cell, *a), params, xs)

    def state(leaf):
        if given is float:
            return jnp.broadcast_to(jnp.asarray(0.5), leaf.shape)
        return jnp.zeros(leaf.shape, given)

    def run(params, xs):
        begin = jax.tree.map(state, expected)
        assert all(leaf.weak_type for leaf in jax.tree.leaves(begin)) == (
            given is float
        )
        return jl.unroll(cell, params, xs, begin)

    last, hs = jax.eval_shape(run, params, xs)
    assert dtypes(last.h) == dtypes(hs) == {row.h}
    assert dtypes(getattr(last, "c", ())) <= {row.c}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("promotion", ["strict", "standard"])
def test_weak_types_widen_nothing(promotion, x64):
    """Python floats as a state and weak features, under both promotion rules of JAX."""
    params, xs, _ = problem()
    weak = jnp.broadcast_to(jnp.asarray(0.5), xs.shape)
    with jax.enable_x64(x64), jax.numpy_dtype_promotion(promotion):
        last, hs = jl.unroll(CELL, params, xs, jl.LSTMState(0.0, 0.0))
        _, same = jl.unroll(CELL, params, xs.astype(jnp.float32))
        shown = jax.eval_shape(lambda: jl.unroll(CELL, params, weak.astype(xs.dtype)))
    assert same_bits(hs, same)
    assert dtypes((last, hs, shown)) == {"float32"}


@every_params
@every_row
def test_layers_follow_the_table(row, params_dtype, x64):
    """From the output dtype of `embed` to that of the last layer."""
    model = jl.serial(
        jl.embed(9, 4, dtype=row.xs),
        jl.stack(CELL, (4, 4), dropout=0.5, residual=True),
        jl.stack(jl.gru(), (4,), bidirectional=True),
        jl.dropout(0.5),
        jl.linear(3),
    )
    drawn = jax.eval_shape(lambda key: model.init(key)[0], jax.random.key(0))
    params = with_dtype(drawn, params_dtype)
    tokens = jax.ShapeDtypeStruct((T, B), jnp.int32)

    def run(params, tokens):
        return model.apply(params, tokens, key=jax.random.key(1))

    def total(params, tokens):
        return jnp.sum(run(params, tokens)[1], dtype=jnp.float64)

    program, (state, ys) = jax.make_jaxpr(run, return_shape=True)(params, tokens)
    assert operands(program) == {(row.products, row.products, row.sums)}
    assert dtypes(ys) == {row.outputs}
    assert dtypes([state[1][0].c, state[1][1].c]) == {row.c}
    assert dtypes([state[1][0].h, state[2]]) == {row.h}
    assert dtypes(jax.eval_shape(jax.grad(total), params, tokens)) == {params_dtype}


def test_computed_arrays_follow_the_table(x64):
    """The errors are those of the dtype, too."""
    params, xs, state = problem(dtype=jnp.float64)
    _, expected = jl.unroll(CELL, params, xs, state)
    for row in table():
        narrow = xs.astype(row.xs)
        last, hs = jl.unroll(CELL, params, narrow, state)
        assert (last.h.dtype, last.c.dtype, hs.dtype) == (row.h, row.c, row.outputs)
        near = 8 * float(jnp.finfo(row.products).eps)
        np.testing.assert_allclose(hs.astype(jnp.float64), expected, atol=near)


# -- c is wider than 16 bits ----------------------------------------------------


COUNTING = ["lstm", "classic", "peephole", "projected", "layer_norm", "conv", "learned"]


def with_open_gates(cell: jl.Cell, dtype):
    """Return parameters that open every gate, so that c grows by one per step."""
    zeros = jax.tree.map(
        jnp.zeros_like, cell.init(jax.random.key(0), 1, 4, dtype=dtype)
    )

    def open_gates(record):
        return record._replace(b=jnp.full_like(record.b, 50.0))

    if isinstance(zeros, jl.cells.wrappers.Learned):
        return zeros._replace(params=open_gates(zeros.params))
    return open_gates(zeros)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", COUNTING)
def test_c_counts_past_256_in_16_bits(name, dtype):
    """In bfloat16, 256 + 1 is 256."""
    cell = CELLS[name]
    params = with_open_gates(cell, dtype)
    xs = jnp.zeros((300, *(2,) * cell.spatial_axes, 1), dtype)
    _, states = jl.unroll(cell, params, xs, emit=jl.emit.states)
    steps = np.arange(1.0, 301.0, dtype=np.float32)
    assert np.array_equal(
        states.c.reshape(300, -1).T, np.tile(steps, (states.c[0].size, 1))
    )
    assert states.h.dtype == dtype


@pytest.mark.parametrize("name", [*COUNTING, "coupled", "clip"])
def test_c_exceeds_the_range_of_float16(name):
    """The largest number of float16 is 65504."""
    cell = CELLS[name] if name != "clip" else jl.clip_cell(CELL, 70_002.0)
    params = with_open_gates(cell, jnp.float16)
    xs = jnp.zeros((3, *(2,) * cell.spatial_axes, 1), jnp.float16)
    space = xs.shape[1:-1]
    state = cell.initial_state(params, space, dtype=xs.dtype)
    last, hs = jl.unroll(cell, params, xs, state._replace(c=state.c + 70_000.0))
    expected = {"coupled": 70_000.0, "clip": 70_002.0}.get(name, 70_003.0)
    assert (last.c == expected).all()
    assert finite((hs, last))


# -- extremes and layouts -----------------------------------------------------


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_large_features_stay_finite(size):
    params, xs, state = problem()

    def loss(params, xs):
        last, hs = jl.unroll(CELL, params, xs, state)
        return jnp.sum(hs) + jnp.sum(last.c)

    params = params._replace(w_x=jnp.sign(params.w_x) / D)
    assert finite(jax.value_and_grad(loss, argnums=(0, 1))(params, jnp.sign(xs) * size))


def test_numpy_arrays_of_any_layout():
    params, xs, state = problem()
    plain = np.asarray(xs)
    expected = jl.unroll(CELL, params, xs, state)
    backwards = plain[::-1].copy()[::-1]
    fortran = np.asfortranarray(plain)
    frozen = plain.copy()
    frozen.flags.writeable = False
    for odd in (plain, backwards, fortran, frozen, np.repeat(plain, 2, 1)[:, ::2]):
        assert same_bits(jl.unroll(CELL, params, odd, state), expected)
