"""Every engine equals the reference in float64 to 1e-12, and refuses what it cannot do.

The properties of `test_registry` and the cases of `test_lstm_oracle` are also checked
on all engines.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast_compilation
import jaxlstm as jl
from cases import assert_same
from jaxlstm.engines import adjoint, matmul
from jaxlstm.engines.adjoint import partition
from jaxlstm.engines.registry import ENGINES
from registry import (
    CELLS,
    FEATURES,
    HIDDEN,
    WRAPPERS,
    CellRow,
    Option,
    draw,
    like,
)

CELL = jl.lstm()
EVERYTHING = Option("everything", "mask", resets=True, reverse=True)
PAIRS = [
    (row, wrapper)
    for row in CELLS
    for wrapper in WRAPPERS
    if wrapper.name not in row.lacks
]
NAMES = [f"{row.name}-{wrapper.name}".replace(" ", "_") for row, wrapper in PAIRS]


def gradients(cell, engine: str, data, cotangents, key=None):
    """Return all outputs, and the gradients of their weighted sum."""

    def total(inputs):
        answer = jl.unroll(
            cell,
            *inputs,
            **data.steps,
            reverse=True,
            emit=jl.emit.trace,
            key=key,
            engine=engine,
        )
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), answer, cotangents)
        return sum(jax.tree.leaves(products)), answer

    program = jax.jit(
        jax.value_and_grad(total, has_aux=True),
        compiler_options=fast_compilation.unoptimised(),
    )
    return program(data.inputs)


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "wrapper"), PAIRS, ids=NAMES)
def test_adjoint_equals_the_reference(row: CellRow, wrapper, x64, monkeypatch):
    """In the default mode and in the opposite one.

    With masks that have holes with NaN in them, resets, reversed time, and noise.
    """
    rng = np.random.default_rng(8)
    cell = wrapper.wrap(row.make(), row)
    data = draw(rng, row, cell, EVERYTHING)
    cotangents = like(
        rng,
        lambda: jl.unroll(cell, *data.inputs, **data.steps, emit=jl.emit.trace),
    )
    key = jax.random.key(3) if wrapper.noisy else None
    every = {"residuals": "states", "first": "weights"}
    monkeypatch.setitem(ENGINES, "opposite", functools.partial(adjoint.run, **every))
    expected, *answers = (
        gradients(cell, engine, data, cotangents, key)
        for engine in ("scan", "adjoint", "opposite")
    )
    for got in answers:
        assert_same(got, expected)


@pytest.mark.parametrize("seed", range(2))
def test_float32_error_is_that_of_automatic_differentiation(seed):
    """Relative to float64, over 300 steps."""
    rng = np.random.default_rng(seed)
    params = like(rng, lambda: CELL.init(jax.random.key(0), 8, 16))
    params = jax.tree.map(lambda leaf: 0.4 * leaf, params)
    xs, weights = rng.normal(size=(2, 300, 4, 8)), rng.normal(size=(300, 4, 16))

    def gradients_of(engine: str, dtype):
        @jax.jit
        def gradient(params, xs):
            def total(params):
                _, hs = jl.unroll(CELL, params, xs, engine=engine)
                return jnp.sum(hs * weights.astype(dtype))

            return jax.grad(total)(params)

        cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, xs[0]))
        return jax.tree.map(np.asarray, gradient(*cast))

    with jax.enable_x64(True):
        expected = gradients_of("scan", jnp.float64)

    def distance(got) -> float:
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
        return max(
            np.linalg.norm(one - other) / np.linalg.norm(other) for one, other in pairs
        )

    ours, theirs = (
        distance(gradients_of(engine, jnp.float32)) for engine in ("adjoint", "scan")
    )
    assert ours < 1e-4
    assert ours <= 1.5 * theirs, (ours, theirs)


# -- structure of the adjoint engine ---------------------------------------------------


class Count(NamedTuple):
    """Numbers of products within loops and outside of them."""

    within: int
    outside: int


def products(function, *arguments) -> Count:
    """Count the products in the jaxpr of a function."""
    count = {True: 0, False: 0}

    def walk(jaxpr, within: bool) -> None:
        for eqn in jaxpr.eqns:
            count[within] += eqn.primitive.name in ("dot_general", "rows_first")
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner, within or eqn.primitive.name in ("scan", "while"))

    walk(jax.make_jaxpr(function)(*arguments).jaxpr, False)
    return Count(count[True], count[False])


def loss(engine: str, cell=CELL):
    def total(params, xs):
        return jnp.sum(jl.unroll(cell, params, xs, engine=engine)[1])

    return total


def test_weight_gradients_are_outside_of_the_loops():
    """Within: W_x x and W_h h in the forward pass, W_hᵀ δ in the backward pass."""
    params, xs = CELL.init(jax.random.key(0), 3, 5), jnp.ones((7, 2, 3))
    both = jax.grad(loss("adjoint"), argnums=(0, 1))
    assert products(both, params, xs) == Count(within=3, outside=3)
    one = jax.grad(loss("adjoint"))
    assert products(one, params, xs) == Count(within=3, outside=2)


@pytest.mark.parametrize(
    ("cell", "share"), [(CELL, 0.95), (jl.layer_norm_lstm(), 0.6)], ids=["lstm", "norm"]
)
def test_less_memory_than_the_reference(cell, share):
    """Bytes of the compiled gradient besides its inputs and outputs."""
    params, xs = cell.init(jax.random.key(0), 64, 64), jnp.ones((512, 16, 64))

    def temporaries(engine: str) -> int:
        program = jax.jit(jax.grad(loss(engine, cell))).lower(params, xs).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries("adjoint") < share * temporaries("scan")


PRODUCTS = {
    "lstm": 1,
    "classic": 1,
    "peephole": 1,
    "coupled": 1,
    "coupled with peepholes": 1,
    "projected": 2,
    "layer norm": 1,
    "conv": 1,
    "simple rnn": 1,
    "gru": 1,
    "gru of the paper": 2,
}


@pytest.mark.parametrize("row", CELLS, ids=lambda row: row.name.replace(" ", "_"))
def test_every_recurrent_product_is_found(row):
    cell = row.make()
    params = cell.init(jax.random.key(0), FEATURES, HIDDEN)
    state = cell.initial_state(params, (2, *row.space))
    z = cell.project(params, jnp.ones((2, *row.space, FEATURES)))
    parts = partition.partition_step(cell.step, params, state, z)
    assert len(parts.products) == PRODUCTS[row.name]


def test_partition_of_a_user_defined_cell():
    def step(params, state, z):
        h = jnp.tanh(z + state.h @ params["w"])
        return jl.cells.base.HiddenState(h), h

    w = jnp.ones((3, 3))
    state = jl.cells.base.HiddenState(jnp.ones((2, 3)))
    parts = partition.partition_step(step, {"w": w}, state, jnp.ones((2, 3)))
    (product,) = parts.products
    assert product.addend is not None


# -- unsupported steps -----------------------------------------------------------------


def with_step(step) -> jl.Cell:
    return CELL._replace(step=step)


def printing_step(params, state, z):
    jax.debug.print("{}", z[0, 0, 0])
    return CELL.step(params, state, z)


@jax.custom_vjp
def clipped(c):
    return c


clipped.defvjp(lambda c: (c, None), lambda _, d: (jnp.clip(d, -1.0, 1.0),))


def custom_vjp_step(params, state, z):
    state, gates = CELL.step(params, state, z)
    return state._replace(c=clipped(state.c)), gates


class Counted(NamedTuple):
    h: jax.Array
    n: jax.Array


COUNTING = CELL._replace(
    initial_state=lambda params, batch_shape=(), dtype=None: Counted(
        jnp.zeros((*batch_shape, 5)), jnp.zeros(batch_shape, jnp.int32)
    ),
    step=lambda params, state, z: (Counted(jnp.tanh(z[..., 0, :]), state.n + 1), z),
)


def callback_step(params, state, z):
    shape = jax.ShapeDtypeStruct(z.shape, z.dtype)

    @jax.custom_jvp
    def sine(z):
        return jax.pure_callback(np.sin, shape, z)

    @sine.defjvp
    def _(primals, tangents):
        return sine(*primals), tangents[0] * jnp.cos(*primals)

    return CELL.step(params, state, sine(z))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (with_step(printing_step), "adjoint: .* has side effects"),
        (with_step(custom_vjp_step), "adjoint: .* calls a custom_vjp function"),
        (with_step(callback_step), "adjoint: .* calls pure_callback"),
        (COUNTING, "adjoint: state: got a leaf of dtype int32"),
    ],
    ids=["printing", "clipping", "calling", "counting"],
)
def test_unsupported_steps_are_refused_and_the_reference_serves(cell, reason, capfd):
    params, xs = CELL.init(jax.random.key(0), 3, 5), jnp.ones((4, 2, 3))
    found = jl.explain(cell, params, xs)
    assert found.engine == "scan"
    with pytest.raises(NotImplementedError, match=reason):
        jl.unroll(cell, params, xs, engine="adjoint")
    state, _ = jl.unroll(cell, params, xs)
    expected, _ = jl.unroll(cell, params, xs, engine="scan")
    assert_same(state, expected)
    jax.effects_barrier()
    assert ("\n" in capfd.readouterr().out) == ("side effects" in reason)
    if cell is not COUNTING:
        total = jax.grad(lambda p: jnp.sum(jl.unroll(cell, p, xs)[1]))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(total(params)))
    jax.effects_barrier()


def test_explain_lists_the_reason():
    params, xs = CELL.init(jax.random.key(0), 3, 5), jnp.ones((4, 2, 3))
    engines = ("adjoint", "scan")
    found = jl.explain(with_step(printing_step), params, xs, engine=engines)
    table = {line[3:].split()[0]: line for line in str(found).splitlines()}
    assert "adjoint  adjoint: the step, or emit, has side" in table["adjoint"]
    assert table["scan"] == "-> scan     serves"


def test_not_implemented_error_of_the_step_is_raised_unchanged():
    def unfinished(params, state, z):
        raise NotImplementedError("unfinished")

    params = CELL.init(jax.random.key(0), 3, 5)
    with pytest.raises(NotImplementedError, match=r"^unfinished"):
        jl.unroll(with_step(unfinished), params, jnp.ones((4, 2, 3)))


def test_step_with_a_collective():
    def mean_step(params, state, z):
        state, gates = CELL.step(params, state, z)
        return state._replace(h=jax.lax.pmean(state.h, "rows")), gates

    params = CELL.init(jax.random.key(0), 3, 5)
    cell, xs = with_step(mean_step), jnp.ones((4, 2, 3))

    def outputs(xs, engine=None):
        return jl.unroll(cell, params, xs, engine=engine)[1]

    def over_rows(engine=None):
        return jax.vmap(lambda x: outputs(x, engine), 1, 1, axis_name="rows")(xs)

    assert_same(over_rows(), over_rows("scan"))
    with pytest.raises(
        NotImplementedError, match=r"adjoint: .* uses collectives, such as psum"
    ):
        over_rows("adjoint")


# -- unusual steps ---------------------------------------------------------------------


def integer_step(params, state, z):
    n = (state.h @ params.w_h[:, 0]).astype(jnp.int32)
    h = jnp.tanh(z[..., 0, :] + n.astype(z.dtype))
    return state._replace(h=h), n


def boolean_step(params, state, z):
    n = (state.h @ params.w_h[:, 0]).astype(bool)
    return state._replace(h=jnp.where(n, z[..., 0, :], state.h)), n


def halving_step(params, state, z):
    return jax.tree.map(lambda leaf: 0.5 * leaf, state), None


def constant_step(params, state, z):
    return state, z


@pytest.mark.parametrize(
    "step", [integer_step, boolean_step, halving_step, constant_step]
)
def test_unusual_steps(step, x64):
    """Forward and reverse mode, with large tangents."""
    cell = with_step(step)
    rng = np.random.default_rng(4)
    inputs = like(
        rng,
        lambda: (
            CELL.init(jax.random.key(0), 3, 5),
            jnp.ones((4, 2, 3)),
            jl.LSTMState(jnp.ones((2, 5)), jnp.ones((2, 5))),
        ),
    )
    tangents = jax.tree.map(lambda leaf: 7.3 + rng.normal(size=leaf.shape), inputs)

    def derivatives(engine: str):
        def hidden(*inputs):
            state, (states, _) = jl.unroll(
                cell, *inputs, engine=engine, emit=jl.emit.trace
            )
            return state.h, states.h

        def total(*inputs):
            return sum(jnp.sum(leaf**2) for leaf in hidden(*inputs))

        return (
            jax.jvp(hidden, inputs, tangents),
            jax.grad(total, argnums=(0, 1, 2))(*inputs),
        )

    assert_same(derivatives("adjoint"), derivatives("scan"))


# -- products with the weights first ---------------------------------------------------


def both_products(seed=0):
    """Return `weights_first`, `jnp.matmul`, and arguments for both."""
    keys = jax.random.split(jax.random.key(seed), 2)
    x, w = jax.random.normal(keys[0], (2, 3, 5)), jax.random.normal(keys[1], (5, 7))

    def first(x, w):
        return matmul.weights_first(x, w, matmul.transposed(w))

    return first, jnp.matmul, (x, w)


TRANSFORMS = {
    "identity": lambda f: f,
    "gradient": lambda f: jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1)),
    "jacobian": lambda f: jax.jacfwd(f, (0, 1)),
    "hessian": lambda f: jax.hessian(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1)),
    "vmap over rows": lambda f: jax.vmap(f, (0, None)),
    "vmap over a middle axis": lambda f: jax.vmap(f, (1, None), 1),
    "vmap over weights": lambda f: (
        lambda x, w: jax.vmap(f, (None, 0))(x, jnp.stack([w, 2 * w]))
    ),
    "vmap over both": lambda f: (
        lambda x, w: jax.vmap(f, (1, 2))(x, jnp.stack([w, w, 2 * w], axis=2))
    ),
    "vmap of the gradient": lambda f: jax.vmap(
        jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1)), (0, None)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_weights_first_equals_matmul(name, x64):
    first, ordinary, arrays = both_products()
    transform = TRANSFORMS[name]
    expected = transform(ordinary)(*arrays)
    assert_same(transform(first)(*arrays), expected)
    assert_same(jax.jit(transform(first))(*arrays), expected)


def test_weights_first_over_devices(x64):
    """Rows split over two devices; gradients of the weights are summed."""
    first, ordinary, (x, w) = both_products()
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = jax.P("rows"), jax.P()

    def total(f):
        return lambda x, w: jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1))(x, w)

    split = jax.shard_map(
        total(first), mesh=mesh, in_specs=(rows, everywhere),
        out_specs=(rows, everywhere),
    )  # fmt: skip
    assert_same(jax.jit(split)(x, w), total(ordinary)(x, w))


def test_weights_first_is_selected_for_large_weights_and_few_rows():
    cell = jl.lstm()

    def how(rows, units, engine="adjoint"):
        init = functools.partial(cell.init, input_size=2, hidden_size=units)
        params = jax.eval_shape(init, jax.random.key(0))
        params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params)
        return jl.explain(cell, params, jnp.zeros((3, rows, 2)), engine=engine).how

    assert how(16, 512).endswith("products with the weights first")
    for rows, units in [(16, 256), (1, 512), (256, 512)]:
        assert how(rows, units).endswith("products with the rows first")
    assert how(16, 512, "adjoint/rows_first").endswith("rows first")
    assert how(16, 8, "adjoint/weights_first").endswith("weights first")
    assert how(16, 8, "scan") == "stores what automatic differentiation needs"


def test_step_whose_derivative_reads_nothing(x64):
    """The values that the lean mode recomputes are the same at every step."""

    class State(NamedTuple):
        h: jax.Array

    def begin(params, batch_shape=(), *, dtype=None):
        return State(jnp.zeros((*batch_shape, 5), dtype))

    cell = jl.Cell(
        None, begin, lambda params, x: x @ params["w"], lambda params, s, z: (s, None)
    )
    params, xs = {"w": jnp.ones((3, 5))}, jnp.ones((7, 2, 3))

    def gradient(engine):
        def total(state):
            return jl.unroll(cell, params, xs, state, engine=engine)[1].sum()

        return jax.grad(total)(State(jnp.ones((2, 5))))

    assert_same(gradient("adjoint/lean"), gradient("scan"))
