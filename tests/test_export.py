"""Programs that `jax.export` writes for any batch and time compute as layers do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxlstm as jl
from registry import CELLS

KEY = jax.random.key(0)
SIZES = [(1, 1), (6, 1), (1, 3), (5, 4)]
T, B, C = export.symbolic_shape("T, B, C")
CELL = jl.lstm()

LENGTHS = ("lengths",)
FLAGS = ("mask", "resets")
MODELS = {
    "stack": (jl.stack(CELL, (3, 3), bidirectional=True, residual=True), LENGTHS),
    "packed": (jl.stack(jl.gru(), (3, 2), bidirectional=True, dropout=0.1), FLAGS),
    "serial": (
        jl.serial(jl.linear(4), jl.residual(jl.recurrent(CELL, 4)), jl.dropout(0.5)),
        (),
    ),
    "reverse": (jl.recurrent(CELL, 16, reverse=True), (*LENGTHS, "resets")),
}
ENGINES = ["adjoint", "adjoint/lean", "adjoint/weights_first", "scan"]


def structs(time, batch, names):
    kinds = {
        "lengths": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((time, batch), bool),
        "resets": jax.ShapeDtypeStruct((time, batch), bool),
    }
    return {name: kinds[name] for name in names}


def options(time, batch, names):
    random = np.random.default_rng(0)
    kinds = {
        "lengths": random.integers(0, time + 1, batch).astype(np.int32),
        "mask": random.random((time, batch)) < 0.7,
        "resets": random.random((time, batch)) < 0.3,
    }
    return {name: kinds[name] for name in names}


def check(model, names, features=(3,), *, sizes=SIZES, difference=1e-6):
    """Check the model's outputs and state for concrete sizes of one symbolic export."""
    params, _ = model.init(KEY, features[-1])

    @jax.jit
    def apply(xs, options):
        state, ys = model.apply(params, xs, **options)
        return jax.tree.leaves(state), ys

    xs = jax.ShapeDtypeStruct((T, B, *features), jnp.float32)
    exported = export.export(apply)(xs, structs(T, B, names))
    for time, batch in sizes:
        xs = jax.random.normal(KEY, (time, batch, *features))
        given = options(time, batch, names)
        got, expected = exported.call(xs, given), apply(xs, given)
        for ours, theirs in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=difference)


def test_a_ragged_bidirectional_stack_with_symbolic_axes():
    check(*MODELS["stack"], sizes=[(5, 4)])


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_layers_with_symbolic_axes(name):
    check(*MODELS[name])


@pytest.mark.thorough
@pytest.mark.parametrize("every", [None, 2, "sqrt", "1 MB"])
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_with_symbolic_axes(engine, every):
    layer = jl.recurrent(CELL, 16, engine=engine, checkpoint_every=every)
    check(layer, (*LENGTHS, "resets"))


@pytest.mark.thorough
@pytest.mark.parametrize("row", CELLS, ids=[row.name for row in CELLS])
def test_cells_with_symbolic_axes(row):
    features = (*row.space, 2)
    check(jl.recurrent(row.make(), 3), (*LENGTHS, "resets"), features)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "wrap",
    [
        functools.partial(jl.zoneout, h_rate=0.1, c_rate=0.2),
        functools.partial(jl.variational_dropout, x_rate=0.1, h_rate=0.2),
        functools.partial(jl.recurrent_dropout, rate=0.1),
        functools.partial(jl.weight_drop, rate=0.1),
        functools.partial(jl.clip_cell, limit=0.1),
        jl.learned_initial_state,
        jl.taps,
    ],
)
def test_wrappers_with_symbolic_axes(wrap):
    check(jl.recurrent(wrap(CELL), 3), (*LENGTHS, "resets"))


@pytest.mark.thorough
@pytest.mark.parametrize("every", [None, "sqrt"])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_with_symbolic_axes(engine, every):
    model = jl.recurrent(CELL, 3, engine=engine, checkpoint_every=every)
    params, _ = model.init(KEY, 2)

    @jax.jit
    def gradient(params, xs):
        return jax.grad(lambda params: (model.apply(params, xs)[1] ** 2).sum())(params)

    xs = jax.ShapeDtypeStruct((T, B, 2), jnp.float32)
    exported = export.export(gradient)(params, xs)
    for size in SIZES:
        xs = jax.random.normal(KEY, (*size, 2))
        pairs = zip(exported.call(params, xs), gradient(params, xs), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_kernel_refuses_symbolic_axes_in_a_sentence():
    def refusal(engine):
        model = jl.recurrent(CELL, 3, engine=engine)
        params, _ = model.init(KEY, 2)
        xs = jax.ShapeDtypeStruct((T, B, 2), jnp.float32)
        with pytest.raises(NotImplementedError) as error:
            export.export(jax.jit(model.apply))(params, xs)
        return str(error.value)

    assert refusal("cudnn").startswith("cudnn: ")
    assert refusal("native").startswith("native: ")


def test_memory_of_symbolic_shapes_is_not_estimated():
    params = CELL.init(KEY, 2, 3)
    xs = jax.ShapeDtypeStruct((T, B, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"estimate_memory: xs: .* shape \[T, B, 2\]"):
        jl.estimate_memory(CELL, params, xs)


def test_lengths_of_other_rows_are_an_error():
    model = jl.recurrent(CELL, 3)
    params, _ = model.init(KEY, 2)
    xs = jax.ShapeDtypeStruct((T, B, 2), jnp.float32)
    lengths = jax.ShapeDtypeStruct((C,), jnp.int32)
    apply = jax.jit(lambda xs, lengths: model.apply(params, xs, lengths=lengths))
    with pytest.raises(ValueError, match=r"got shape \[C\], expected the batch shape"):
        export.export(apply)(xs, lengths)


def test_records_are_arguments_and_results_of_a_written_program():
    pytest.importorskip("flatbuffers")  # jax.export writes with it
    cells = [row.make() for row in CELLS if not row.space]
    cells += [jl.learned_initial_state(CELL), jl.taps(CELL)]
    layer = jl.bidirectional(
        jl.recurrent(CELL, 3), jl.serial(jl.recurrent(CELL, 3, reverse=True))
    )

    def records():
        for cell in cells:
            params = cell.init(KEY, 2, 3)
            yield params, cell.initial_state(params)
            yield jl.unroll(cell, params, jnp.ones((1, 2)), emit=jl.emit.trace)
        yield layer.init(KEY, 2)[0], jl.linear(2).init(KEY, 3)[0]
        yield jl.embed(5, 2).init(KEY)[0], jl.conv_lstm(3).init(KEY, 2, 3)
        yield jl.StepMask(active=jnp.ones(1, bool))

    values = jax.eval_shape(lambda: list(records()))
    exported = export.export(jax.jit(lambda values: values))(values)
    again = export.deserialize(exported.serialize())
    assert again.in_tree == jax.tree.structure(((values,), {}))
