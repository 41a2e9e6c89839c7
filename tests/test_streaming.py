"""`stream` equals `unroll`, for every cell and wrapper."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same
from jaxlstm import streaming
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


every_library = pytest.mark.parametrize("library", [np, jnp])


@pytest.mark.thorough
@every_library
@pytest.mark.parametrize(("row", "wrapper"), PAIRS)
def test_every_cell_streams(row, wrapper, library, x64):
    rng = np.random.default_rng(5)
    cell = wrapper.wrap(row.make(), row)
    params, xs, _ = draw(rng, row, cell, NOTHING).inputs
    got = streamed(cell, params, library.asarray(xs), emit=jl.emit.trace)
    assert_same(got, jl.unroll(cell, params, xs, emit=jl.emit.trace))


@every_library
@pytest.mark.parametrize("rows", [(), (1,), (2, 3)])
def test_streams_of_any_number_of_rows(rows, library, x64):
    cell = jl.recurrent_dropout(jl.peephole_lstm(), rate=0.5)
    params = cell.init(jax.random.key(0), 3, 4)
    xs = jax.random.normal(jax.random.key(1), (5, *rows, 3))
    got = streamed(cell, params, library.asarray(xs))
    assert_same(got, jl.unroll(cell, params, xs))


@pytest.fixture
def kernel():
    """Load the kernel, if there is a compiler."""
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        jl.engines.native.load()


def numpy_problem(rows=(2,), units=5, dtype=np.float32):
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, units, dtype=dtype)
    xs = np.random.default_rng(2).normal(size=(50, *rows, 3)).astype(dtype)
    return cell, params, xs


@pytest.mark.parametrize("loaded", [True, False])
def test_numpy_inputs_give_numpy_results(loaded, kernel, monkeypatch):
    if not loaded:
        monkeypatch.setattr(streaming, "load_built", lambda: "no kernel")
    cell, params, xs = numpy_problem()
    step, state = jl.stream(cell, params, xs[0])
    results = [step(state, x) for x in xs[:2]]
    for leaf in jax.tree.leaves((state, results)):
        assert type(leaf) is np.ndarray
    first, second = results  # results do not change with later steps
    assert not np.array_equal(first[1], second[1])
    assert_same(first[1], jl.unroll(cell, params, xs[:1])[1][0], 1e-6)


def test_numpy_streams_accept_what_other_streams_accept(kernel):
    """Arrays of other libraries and dtypes, strides, lists, and jit."""
    cell, params, xs = numpy_problem()
    step, state = jl.stream(cell, params, xs[0])
    expected = step(state, xs[0])
    for x in (
        jnp.asarray(xs[0]),
        xs[0].astype(np.float64),
        np.asfortranarray(xs[0]),
        np.repeat(xs[0], 2, axis=1)[:, ::2],
        xs[0].tolist(),
    ):
        assert_same(step(state, x), expected, 0)
    assert_same(step(jax.tree.map(jnp.asarray, state), xs[0]), expected, 0)
    assert_same(jax.jit(step)(state, xs[0]), expected, 1e-6)


def test_numpy_streams_refuse_what_other_streams_refuse(kernel):
    cell, params, xs = numpy_problem()
    step, state = jl.stream(cell, params, xs[0])
    state, _ = step(state, xs[0])
    with pytest.raises(ValueError, match=r"x: got shape \[3\], expected \[2, 3\]"):
        step(state, xs[0, 0])
    with pytest.raises(ValueError, match="x: got complex numbers"):
        step(state, xs[0] + 1j)
    for other in (None, tuple(state), state._replace(h=state.h[:1]), (0.0, 0.0)):
        with pytest.raises(ValueError, match="stream: state: got"):
            step(other, xs[0])


def test_a_state_that_is_changed_in_place_is_read_again(kernel):
    cell, params, xs = numpy_problem()
    step, state = jl.stream(cell, params, xs[0])
    state, _ = step(state, xs[0])
    state.h[0] = 0
    state.c[0] = 0
    _, h = step(state, xs[1])
    assert_same(h[0], jl.unroll(cell, params, xs[1:2, :1])[1][0, 0], 1e-6)


def test_one_numpy_stream_serves_several_threads(kernel):
    """Each thread has its own state."""
    cell, params, xs = numpy_problem(rows=(), units=33)
    step, initial = jl.stream(cell, params, xs[0])

    def run(factor):
        state = initial
        for _ in range(20):
            for x in xs:
                state, h = step(state, factor * x)
        return h

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(run, range(8)))
    assert_same(got, [run(factor) for factor in range(8)], 0)


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


# --- models ---------------------------------------------------------------------------


def model_problem(first, xs):
    model = jl.serial(
        first=first,
        tanh=jnp.tanh,
        rnn=jl.stack(jl.zoneout(jl.lstm(), h_rate=0.1), (4, 4), residual=True),
        head=jl.residual(jl.linear(4)),
    )
    return model, model.init(jax.random.key(0), xs.shape[-1])[0], xs


FEATURES = np.random.default_rng(3).normal(size=(5, 2, 3)).astype(np.float32)
TOKENS = np.arange(10, dtype=np.int32).reshape(5, 2)


@every_library
@pytest.mark.parametrize(
    ("first", "xs"),
    [(jl.linear(4), FEATURES), (jl.embed(10, 4), TOKENS), (jl.embed(10, 4), TOKENS[0])],
    ids=["features", "tokens", "scalar tokens"],
)
def test_models_stream(first, xs, library, kernel):
    """Layers of every kind, for rows and for a single row."""
    model, params, xs = model_problem(first, library.asarray(xs))
    got = streamed(model, params, xs)
    state, ys = jax.jit(model.apply)(params, jnp.asarray(xs))
    assert_same(got, (state, ys), 1e-6)
    assert jax.tree.structure(got[0]) == jax.tree.structure(state)


def test_a_layer_of_a_user_streams():
    def apply(params, xs, state=None, **_):
        return state + len(xs), 2 * xs

    layer = jl.Layer(
        lambda key, size: ((), size),
        apply,
        initial_state=lambda params, batch_shape=(), *, dtype=None: jnp.int32(0),
    )
    state, ys = streamed(jl.serial(layer, jl.linear(2)), ((), HEAD), FEATURES[:, 0])
    assert int(state[0]) == len(FEATURES)
    assert_same(ys, 2 * FEATURES[:, 0] @ HEAD.w, 1e-6)


HEAD = jl.layers.LinearParams(jnp.ones((3, 2)), jnp.zeros(2))


@pytest.mark.parametrize(
    "layer",
    [
        jl.recurrent(jl.lstm(), 5, reverse=True),
        jl.serial(jl.linear(3), jl.stack(jl.lstm(), (5,), bidirectional=True)),
    ],
    ids=["reversed", "bidirectional"],
)
def test_layers_that_read_later_steps_are_refused(layer):
    params, _ = layer.init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="whose outputs depend on later steps"):
        jl.stream(layer, params, jnp.zeros(3))


def test_wrong_arguments_of_a_stream_of_a_model():
    model, params, xs = model_problem(jl.embed(10, 4), TOKENS)
    step, state = jl.stream(model, params, xs[0])
    with pytest.raises(ValueError, match="x: got dtype float32, expected integer tok"):
        step(state, xs[0].astype(np.float32))
    with pytest.raises(ValueError, match="stream: emit: got a function with a Layer"):
        jl.stream(model, params, xs[0], emit=jl.emit.states)
    with pytest.raises(ValueError, match="stream: serial: xs: got dtype float32"):
        jl.stream(model, params, FEATURES[0])
    for x, kind in ((np.full(2, None), "object"), (np.ones(2, np.longdouble), "float")):
        with pytest.raises(ValueError, match=f"stream: x: got dtype {kind}"):
            jl.stream(model, params, x)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    with pytest.raises(ValueError, match=r"stream: params.*: got a deleted array"):
        jl.stream(model, params, xs[0])
