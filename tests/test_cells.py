"""One step of the LSTM: records, equations, initialisation, errors."""

import inspect
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, assert_same, draw, finite, same_bits
from jaxlstm.cells import lstm as mathematics
from oracle import step

KEY = jax.random.key(5)
PRESETS = ["default", "torch", "keras", "chrono"]


def one_step():
    """Return weights, and x, h and c of three rows."""
    case = draw(np.random.default_rng(2), Shape(1, (3,), 4, 5), Kind())
    return jl.LSTMParams(*case.weights), case.xs[0], jl.LSTMState(case.h, case.c)


def oracle_step(params, x, state):
    values = [step(params, 0, False, *row) for row in zip(x, *state, strict=True)]
    names = ("i", "f", "g", "o", "h", "c")
    return [np.stack([getattr(m, name) for m in values]) for name in names]


def test_records():
    assert jl.Gates._fields == ("i", "f", "g", "o")
    assert jl.LSTMState._fields == ("h", "c")
    assert jl.LSTMParams._fields == ("w_x", "w_h", "b")
    assert jl.Cell._fields[:4] == ("init", "initial_state", "project", "step")
    assert jl.Cell._field_defaults == {"prepare": None, "spatial_axes": 0}
    assert jl.Trace._fields == ("state", "gates")
    assert isinstance(jl.lstm(), jl.Cell)


def test_signatures():
    cell = jl.lstm()
    names = {
        cell.init: "key input_size hidden_size *dtype",
        cell.initial_state: "params batch_shape *dtype",
        cell.project: "params x",
        cell.step: "params state z *edit",
    }
    for function, expected in names.items():
        parameters = inspect.signature(function).parameters.values()
        stars = [("*" if p.kind is p.KEYWORD_ONLY else "") + p.name for p in parameters]
        assert " ".join(stars) == expected


def test_the_equations(x64):
    params, x, state = one_step()
    cell = jl.lstm()
    after, gates = cell.step(params, state, cell.project(params, x))
    assert isinstance(after, jl.LSTMState)
    assert isinstance(gates, jl.Gates)
    assert_same([*gates, *after], oracle_step(params, x, state))


def test_the_public_functions_compose_to_the_step(x64):
    """`preactivations`, `activate`, `transition` are the step."""
    params, x, (h, c) = one_step()
    z = jl.lstm().project(params, x)
    gates = mathematics.activate(mathematics.preactivations(params, h, z))
    after = mathematics.transition(gates, c)
    assert_same([*gates, *after], oracle_step(params, x, (h, c)))


def test_a_step_is_the_body_of_a_scan(x64):
    params, _, state = one_step()
    cell, xs = jl.lstm(), jax.random.normal(KEY, (6, 3, 4), jnp.float64)
    state = jax.tree.map(jnp.asarray, state)
    body = partial(cell.step, params)
    last, gates = jax.lax.scan(body, state, cell.project(params, xs))
    expected, trace = jl.unroll(cell, params, xs, state, emit=jl.emit.trace)
    assert_same((last, gates), (expected, trace.gates))


@pytest.mark.parametrize("init", PRESETS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", None])
def test_init_gives_shapes_and_dtypes(init, dtype, x64):
    options = {} if dtype is None else {"dtype": jnp.dtype(dtype)}
    params = jax.eval_shape(
        lambda key: jl.lstm(init=init).init(key, 3, 8, **options), KEY
    )
    assert [leaf.shape for leaf in params] == [(3, 4, 8), (8, 4, 8), (4, 8)]
    assert all(leaf.dtype == (dtype or "float32") for leaf in params)


@pytest.mark.parametrize("init", PRESETS)
def test_init_is_a_function_of_its_key(init):
    cell = jl.lstm(init=init)
    params = cell.init(KEY, 8, 8)
    assert finite(params)
    assert same_bits(params, cell.init(KEY, 8, 8))
    assert not same_bits(params, cell.init(jax.random.key(6), 8, 8))
    assert not np.array_equal(params.w_x, params.w_h)


def test_default_is_orthogonal_gate_by_gate_with_a_forget_bias():
    w_x, w_h, b = jl.lstm(forget_bias=1.5).init(KEY, 500, 64)
    for k in range(4):
        np.testing.assert_allclose(w_h[:, k].T @ w_h[:, k], np.eye(64), atol=1e-5)
        np.testing.assert_allclose(w_x[:, k].std(), 500**-0.5, rtol=0.03)
    assert not np.array_equal(w_h[:, 0], w_h[:, 1])
    assert np.array_equal(b[1], np.full(64, 1.5))
    assert not np.any(b[np.array([0, 2, 3])])


def test_torch_is_uniform():
    """Every number is within 1/√H; the bias is the sum of two."""
    params = jl.lstm(init="torch").init(KEY, 100, 64)
    for leaf, limit in zip(params, (1 / 8, 1 / 8, 2 / 8), strict=True):
        assert 0.97 * limit * (0.8 if leaf is params.b else 1) < abs(leaf).max() < limit
    np.testing.assert_allclose(params.w_x.std(), 1 / 8 / 3**0.5, rtol=0.02)


def test_keras_initialises_the_fused_matrices():
    """Glorot over [D, 4H]; the rows of the fused [H, 4H] are orthonormal."""
    w_x, w_h, b = jl.lstm(init="keras").init(KEY, 100, 64)
    fused = w_h.reshape(64, 256)
    np.testing.assert_allclose(fused @ fused.T, np.eye(64), atol=1e-5)
    limit = (6 / (100 + 256)) ** 0.5
    assert 0.99 * limit < abs(w_x).max() < limit
    assert np.array_equal(b[1], np.ones(64))
    assert not np.any(b[np.array([0, 2, 3])])


def test_chrono_spreads_the_forget_biases():
    b = jl.initializers.chrono(100).b(KEY, (4, 2000), jnp.float32)
    steps = np.exp(b[1])
    assert 1 <= steps.min() < 2
    assert 97 < steps.max() <= 99
    np.testing.assert_allclose(b[0], -b[1], rtol=1e-6)
    assert not np.any(b[2:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_initial_state(batch, dtype, x64):
    cell = jl.lstm()
    params = cell.init(KEY, 3, 8)
    state = cell.initial_state(params, batch, dtype=jnp.dtype(dtype))
    assert state.h.shape == state.c.shape == (*batch, 8)
    assert state.h.dtype == dtype
    assert state.c.dtype == ("float64" if dtype == "float64" else "float32")
    assert cell.initial_state(params).h.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"gate_activation": "relu "}, "gate_activation.*relu .*sigmoid"),
        ({"candidate_activation": "Tanh"}, "candidate_activation.*tanh"),
        ({"output_activation": ""}, "output_activation"),
        ({"init": "orthogonal"}, "init.*orthogonal.*default"),
        ({"init": "torch", "forget_bias": 2.0}, "forget_bias"),
    ],
)
def test_errors_for_unknown_options_list_the_known_ones(options, piece):
    with pytest.raises(ValueError, match=piece):
        jl.lstm(**options)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (-1, 4), (4, -2)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="size"):
        jl.lstm().init(KEY, *sizes)


@pytest.mark.parametrize("sizes", [(2.5, 4), (4, 8.0), ("3", 4), (None, 4)])
def test_non_integer_sizes_are_refused(sizes):
    with pytest.raises((TypeError, ValueError)):
        jl.lstm().init(KEY, *sizes)


def test_huge_sizes_do_not_overflow():
    shapes = jax.eval_shape(partial(jl.lstm().init, KEY, 10**5, 10**5))
    assert shapes.w_h.shape == (10**5, 4, 10**5)


def test_a_preset_by_name_or_function_is_the_same_object():
    presets = jl.initializers
    assert presets.default() is presets.default(1.0) is presets.default(1)
    assert presets.chrono(784) is presets.chrono(784.0)
    assert jl.lstm() is jl.lstm(init=presets.default())
    assert jl.lstm(init="chrono") is jl.lstm(init=presets.chrono())


@pytest.mark.parametrize(
    "options",
    [
        {"forget_bias": 5.0, "init": jl.initializers.default()},
        {"forget_bias": float("nan")},
        {"init": None},
        {"init": {}},
    ],
)
def test_options_without_effect_are_refused(options):
    with pytest.raises(ValueError, match=r"forget_bias|init"):
        jl.lstm(**options)


def test_project_refuses_other_dtypes_and_deleted_features():
    cell = jl.lstm()
    params = cell.init(jax.random.key(0), 3, 5)
    with pytest.raises(ValueError, match="int32"):
        cell.project(params, jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match="expected float64 or less"):
        cell.project(params, np.ones(3, np.longdouble))
    (deleted := jnp.ones(3)).delete()
    with pytest.raises(ValueError, match="xs: got a deleted array"):
        cell.project(params, deleted)


@pytest.mark.parametrize("drawn", [0, None, np.zeros(3), jax.random.split(KEY, 2)])
def test_init_refuses_values_that_are_not_keys(drawn):
    expected = (
        r"^(init|serial|linear): key: got .*expected one key.*jax\.random\.key\(0\)"
    )
    layers = jl.serial(jl.embed(5, 3), jl.recurrent(jl.lstm(), 4)), jl.linear(2)
    for cell in (jl.lstm(), jl.gru(), jl.simple_rnn(), jl.projected_lstm(3)):
        with pytest.raises(TypeError, match=expected):
            cell.init(drawn, 3, 5)
    for layer in layers:
        with pytest.raises(TypeError, match=expected):
            layer.init(drawn, 3)


@pytest.mark.parametrize("name", ["lstm", "gru", "simple_rnn", "coupled_lstm"])
def test_an_unprojected_input_of_a_step_is_refused(name):
    cell = getattr(jl, name)()
    params = cell.init(KEY, 3, 5)
    with pytest.raises(ValueError, match=r"z: got shape \[3\].*cell\.project"):
        cell.step(params, cell.initial_state(params), jnp.ones(3))


def test_unknown_names_suggest_close_ones():
    with pytest.raises(AttributeError, match=r"has no LSTM; did you mean lstm"):
        jl.LSTM  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no conv2d_transposed$"):
        jl.conv2d_transposed  # noqa: B018


@pytest.mark.parametrize(
    "size",
    [(), *(pytest.param(s, marks=pytest.mark.combinations) for s in ((2, 1), (2, 2)))],
    ids=str,
)
@pytest.mark.parametrize(
    "build",
    [
        lambda f: jl.lstm(gate_activation=f),
        lambda f: jl.lstm(candidate_activation=f),
        lambda f: jl.lstm(output_activation=f),
        lambda f: jl.gru(gate_activation=f),
        lambda f: jl.simple_rnn(activation=f),
        lambda f: jl.coupled_lstm(gate_activation=f),
    ],
)
def test_an_activation_that_changes_the_shape_is_refused(build, size):
    cell = build(lambda x: jnp.zeros(size, x.dtype))
    params = cell.init(jax.random.key(0), input_size=3, hidden_size=4)
    with pytest.raises(
        ValueError, match=r"activation: got a function from \[2, 4\] to"
    ):
        jl.unroll(cell, params, jnp.ones((5, 2, 3)))


# --- forget biases --------------------------------------------------------------------

FORGET_BIASES = [
    jl.lstm,
    jl.peephole_lstm,
    jl.coupled_lstm,
    jl.layer_norm_lstm,
    partial(jl.projected_lstm, 2),
    partial(jl.conv_lstm, (3,)),
]


@pytest.mark.parametrize("make", FORGET_BIASES)
def test_a_traced_forget_bias_is_the_number(make):
    """Under `vmap`, in every cell with a forget gate."""

    def bias_of(value):
        return make(forget_bias=value).init(KEY, 3, 5).b

    values = jnp.array([0.5, 2.0])
    got = jax.vmap(bias_of)(values)
    assert same_bits(got, jnp.stack([bias_of(0.5), bias_of(2.0)]))


def test_networks_of_several_forget_biases_are_one_program(x64):
    """Values and the derivative with respect to the bias."""
    xs = jax.random.normal(KEY, (6, 2, 3), jnp.float64)

    def total(value):
        cell = jl.lstm(forget_bias=value)
        params = cell.init(KEY, 3, 5, dtype=jnp.float64)
        return jnp.sum(jl.unroll(cell, params, xs, engine="scan")[1] ** 2)

    values = jnp.array([0.5, 2.0])
    got, slopes = jax.jit(jax.vmap(jax.value_and_grad(total)))(values)
    assert_same(got, jnp.stack([total(0.5), total(2.0)]))
    expected = (total(0.5 + 1e-6) - total(0.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-6)


def test_a_forget_bias_for_each_unit():
    values = np.linspace(0, 4, 5)
    cell = jl.lstm(forget_bias=values)
    assert (
        cell
        is jl.lstm(forget_bias=jnp.asarray(values))
        is jl.lstm(forget_bias=(0, 1, 2, 3, 4))
    )
    assert pickle.loads(pickle.dumps(cell)) is cell
    b = cell.init(KEY, 3, 5).b
    assert_same(b, np.zeros((4, 5)) + values * (np.arange(4) == 1)[:, None])
    assert jl.lstm(forget_bias=jnp.float32(2)) is jl.lstm(forget_bias=2)
    keras = jl.lstm(init=jl.initializers.keras(values))
    assert_same(keras.init(KEY, 3, 5).b, b)
    with pytest.raises(ValueError, match=r"forget_bias: got shape \[5\], expected one"):
        cell.init(KEY, 3, 4)
    with pytest.raises(ValueError, match=r"forget_bias: got array.*, expected a fin"):
        jl.lstm(forget_bias=np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="together with a Preset"):
        jl.lstm(forget_bias=values, init=jl.initializers.default())
    with pytest.raises(ValueError, match="with init='torch', which draws biases"):
        jax.eval_shape(lambda bias: jl.lstm(forget_bias=bias, init="torch"), 1.0)
