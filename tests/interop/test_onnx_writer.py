"""ONNX files of models have the model's numbers, and give the model back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop.onnx import NodeActivation
from jaxlstm.interop.onnx.functions import OPERATORS
from jaxlstm.layers import pointwise

OPTIMISED = True

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")

ELU = NodeActivation("Elu", (0.5,))
CLIPPED = {
    "gate_activation": NodeActivation("Sigmoid", clip=0.5),
    "candidate_activation": NodeActivation("ScaledTanh", (0.5, 2.0), clip=0.5),
    "output_activation": ELU,
}
CELLS = {
    "lstm": jl.lstm(),
    "lstm clip": jl.lstm(**CLIPPED),
    "lstm elu": jl.lstm(candidate_activation="elu", gate_activation="hard_sigmoid"),
    "peephole": jl.peephole_lstm(),
    "peephole clip": jl.peephole_lstm(**CLIPPED),
    "coupled": jl.coupled_lstm(),
    "coupled peephole": jl.coupled_lstm(peepholes=True, output_activation="softsign"),
    "classic": jl.classic_lstm(),
    "classic relu": jl.classic_lstm(gate_activation="relu"),
    "gru": jl.gru(),
    "gru before": jl.gru(reset_after=False, candidate_activation="softsign"),
    "rnn": jl.simple_rnn(),
    "rnn identity": jl.simple_rnn(activation="identity"),
    "learned": jl.learned_initial_state(jl.lstm()),
    "learned gru": jl.learned_initial_state(jl.gru()),
}


def drawn(model, features, seed: int = 0):
    """Return params of normal numbers, so that every leaf matters."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: model.init(key, features)[0], jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.4), jnp.float32),
        shapes,
    )


def random_model(n: int):
    """Return a model, its features (None for tokens) and params."""
    rng = np.random.default_rng([7, n])
    cells, features = list(CELLS.values()), int(rng.integers(1, 5))

    def size():
        return int(rng.integers(1, 6))

    def cell():
        return cells[int(rng.integers(len(cells)))]

    def layer(width):
        """Return a random layer and its output size."""
        match int(rng.integers(5)):
            case 0:
                units = size()
                one = jl.recurrent(cell(), units, reverse=bool(rng.integers(2)))
                return one, units
            case 1:
                residual, both = bool(rng.integers(2)), bool(rng.integers(2))
                units = [size()] * 3 if residual else [size() for _ in range(2)]
                options = {"bidirectional": both, "residual": residual}
                deep = jl.stack(
                    cell(), units, dropout=0.1 * int(rng.integers(3)), **options
                )
                return deep, units[-1] * (1 + both)
            case 2:
                a, b = size(), size()
                forward, backward = (
                    jl.recurrent(cell(), a),
                    jl.recurrent(cell(), b, reverse=True),
                )
                return jl.bidirectional(forward, backward), a + b
            case 3:
                return jl.residual(jl.recurrent(cell(), width)), width
        units = size()
        inner = jl.serial(
            jl.linear(units), jl.dropout(0.25), jl.recurrent(cell(), width)
        )
        return jl.residual(inner), width

    width, parts = features, {}
    if rng.integers(2):
        parts["words"] = jl.embed(11, features)
    for name in ("first", "second")[: int(rng.integers(1, 3))]:
        parts[name], width = layer(width)
    if rng.integers(2):
        parts["noise"] = jl.dropout(0.5)
        parts["head"] = jl.linear(size())
    tokens = "words" in parts
    model = jl.serial(**parts) if rng.integers(2) else jl.serial(*parts.values())
    return (
        model,
        None if tokens else features,
        drawn(model, None if tokens else features, n),
    )


def same(params, others):
    """Check that two pytrees are equal, bit for bit."""
    assert jax.tree.structure(params) == jax.tree.structure(others)
    for leaf, other in zip(
        jax.tree.leaves(params), jax.tree.leaves(others), strict=True
    ):
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes()


TENS = [0, *(pytest.param(n, marks=pytest.mark.thorough) for n in range(10, 200, 10))]


@pytest.mark.parametrize("start", TENS)
def test_random_models_come_back_bit_for_bit(start):
    """Names, structure, dropout rates and cells included."""
    for n in range(start, start + 10):
        model, features, params = random_model(n)
        again, layer = jl.interop.onnx.load(
            jl.interop.onnx.dump(model, params, lengths=bool(n % 2))
        )
        same(params, again)
        if layer != model:
            # A stack of one layer and the layer alone in a serial have equal params.
            inputs = np.zeros((3, 2), np.int32)
            if features is not None:
                inputs = np.ones((3, 2, features), np.float32)
            jax.tree.map(
                np.testing.assert_array_equal,
                jax.jit(model.apply)(params, inputs),
                jax.jit(layer.apply)(again, inputs),
            )


def alternating(names):
    """Return a model of these functions with linear layers between them."""
    layers = [part for name in names for part in (name, jl.linear(3))]
    return jl.serial(jl.recurrent(jl.gru(), 4), *layers, names[0])


@pytest.mark.parametrize("lengths", [False, True])
def test_functions_of_one_step(lengths, tmp_path):
    """`save` compares onnxruntime with the model."""
    read = list(OPERATORS)
    path = tmp_path / "model.onnx"
    model = alternating([name for name in pointwise.FUNCTIONS if name not in read])
    jl.interop.onnx.save(path, model, drawn(model, 2), lengths=lengths)
    model = alternating(read)
    params = drawn(model, 2)
    jl.interop.onnx.save(path, model, params, lengths=lengths)
    again, layer = jl.interop.onnx.load(path)
    same(params, again)
    assert layer == model


DEFAULT = ("peephole clip", "gru before")


def by_default(name):
    marks = () if name in DEFAULT else pytest.mark.thorough
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [by_default(name) for name in CELLS])
def test_cells(name, tmp_path):
    """A stack in both directions: ragged rows, rows of length 0, initial states."""
    model = jl.stack(CELLS[name], (5, 4), bidirectional=True)
    params = drawn(model, 3)
    report = jl.interop.onnx.save(
        tmp_path / "model.onnx",
        model,
        params,
        lengths=True,
        initial_state=name[0] != "l",
    )
    assert max(report.outputs, report.states) < 1e-5
    again, layer = jl.interop.onnx.load(tmp_path / "model.onnx")
    same(params, again)
    assert layer == model


@pytest.mark.parametrize(
    "n", [pytest.param(n, marks=pytest.mark.thorough) for n in range(40)]
)
def test_random_models(n, tmp_path):
    model, _, params = random_model(n)
    options = [{}, {"lengths": True}, {"lengths": True, "initial_state": True}][n % 3]
    jl.interop.onnx.save(tmp_path / "model.onnx", model, params, **options)


# --- in onnxruntime, without the comparison of `save` ---------------------------------


def session(file):
    content = file.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


QUICKSTART = jl.serial(
    embed=jl.embed(65, 16),
    rnn=jl.stack(jl.lstm(), (24, 24), dropout=0.1),
    head=jl.linear(65),
)
BOTH = jl.serial(
    jl.embed(65, 16), jl.stack(jl.gru(), (12, 8), bidirectional=True), jl.linear(9)
)


@pytest.mark.parametrize(
    "model", [QUICKSTART, BOTH], ids=["quickstart", "both directions"]
)
@pytest.mark.parametrize(
    ("time", "rows"),
    [
        (1, 17),
        (200, 1),
        pytest.param(1, 1, marks=pytest.mark.thorough),
        pytest.param(200, 17, marks=pytest.mark.thorough),
    ],
)
def test_tokens(model, time, rows):
    """Padding may be any number."""
    params, rng = drawn(model, None), np.random.default_rng(0)
    apply = jax.jit(lambda xs, lengths: model.apply(params, xs, lengths=lengths))
    tokens = rng.integers(0, 65, (time, rows))
    full = np.full(rows, time, np.int32)
    lengths = rng.integers(0, time + 1, rows).astype(np.int32)
    padded = np.where(np.arange(time)[:, None] < lengths, tokens, 10**6)
    for file, feed, expected in (
        ({}, {"tokens": tokens}, apply(tokens, full)),
        ({"lengths": True}, {"tokens": tokens, "lengths": full}, apply(tokens, full)),
        (
            {"lengths": True},
            {"tokens": padded, "lengths": lengths},
            apply(padded, lengths),
        ),
    ):
        got = session(jl.interop.onnx.dump(model, params, **file)).run(None, feed)
        state, ys = expected
        for leaf, other in zip(got, [ys, *jax.tree.leaves(state)], strict=True):
            close(leaf, other)


@pytest.mark.combinations
def test_padding_is_not_read():
    """NaN in padding reaches neither outputs nor states."""
    both = jl.stack(jl.lstm(), (4, 4), bidirectional=True)
    model = jl.serial(jl.residual(jl.linear(3)), both, jl.linear(2))
    params, lengths = drawn(model, 3), np.array([0, 3, 5], np.int32)
    xs = np.random.default_rng(0).normal(size=(5, 3, 3)).astype(np.float32)
    xs = np.where(np.arange(5)[:, None, None] < lengths[:, None], xs, np.nan)
    file = session(jl.interop.onnx.dump(model, params, lengths=True))
    ys, *final = file.run(None, {"xs": xs, "lengths": lengths})
    state, expected = model.apply(params, xs, lengths=lengths)
    close(ys, expected)
    for got, leaf in zip(final, jax.tree.leaves(state), strict=True):
        close(got, leaf)


def test_steps_equal_the_whole():
    """Initial states are inputs, and outputs of the same name feed the next step."""
    params, rng = drawn(QUICKSTART, None), np.random.default_rng(0)
    tokens = rng.integers(0, 65, (30, 4))
    step = session(jl.interop.onnx.dump(QUICKSTART, params, stream=True))
    names = [i.name for i in step.get_inputs()][1:]
    assert names == ["rnn/0/h", "rnn/0/c", "rnn/1/h", "rnn/1/c"]
    assert [o.name for o in step.get_outputs()] == ["y", *(f"{n}_out" for n in names)]
    states, ys = {name: np.zeros((4, 24), np.float32) for name in names}, []
    for token in tokens:
        y, *after = step.run(None, {"token": token, **states})
        states = dict(zip(names, after, strict=True))
        ys.append(y)
    whole = session(jl.interop.onnx.dump(QUICKSTART, params))
    expected, *final = whole.run(None, {"tokens": tokens})
    close(np.stack(ys), expected)
    for got, leaf in zip(states.values(), final, strict=True):
        close(got, leaf)
    close(expected, QUICKSTART.apply(params, tokens)[1])


@pytest.mark.combinations
def test_a_state_carried_between_chunks():
    params, tokens = drawn(QUICKSTART, None), np.arange(20).reshape(10, 2)
    file = session(jl.interop.onnx.dump(QUICKSTART, params, initial_state=True))
    names = [i.name for i in file.get_inputs()][1:]
    states, ys = {name: np.zeros((2, 24), np.float32) for name in names}, []
    for chunk in (tokens[:3], tokens[3:4], tokens[4:]):
        y, *after = file.run(None, {"tokens": chunk, **states})
        states = dict(zip(names, after, strict=True))
        ys.append(y)
    close(np.concatenate(ys), QUICKSTART.apply(params, tokens)[1])


@pytest.mark.combinations
def test_projection(tmp_path):
    """h = m W_p is computed after a node that carries m; h_0 determines m_0."""
    model = jl.serial(rnn=jl.stack(jl.projected_lstm(2), (5, 4)), head=jl.linear(3))
    params = drawn(model, 3)
    for options in ({"lengths": True, "initial_state": True}, {"stream": True}):
        jl.interop.onnx.save(tmp_path / "model.onnx", model, params, **options)
    xs = np.ones((4, 2, 3), np.float32)
    again, layer = jl.interop.onnx.load(jl.interop.onnx.dump(model, params))
    close(layer.apply(again, xs)[1], model.apply(params, xs)[1])


def test_wrappers_without_a_key(tmp_path):
    cell = jl.variational_dropout(
        jl.weight_drop(jl.lstm(), 0.5), x_rate=0.1, h_rate=0.1
    )
    cell = jl.zoneout(jl.taps(jl.recurrent_dropout(cell, 0.5)), h_rate=0.0)
    model = jl.recurrent(cell, 4)
    params = drawn(model, 3)
    jl.interop.onnx.save(tmp_path / "model.onnx", model, params)


# --- files ----------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 21])
def test_the_file(tmp_path, opset):
    path, params = tmp_path / "model.onnx", drawn(QUICKSTART, None)
    report = jl.interop.onnx.save(path, QUICKSTART, params, opset=opset, lengths=True)
    assert report.size == path.stat().st_size
    assert "onnxruntime" in str(report)
    file = onnx.load(path)
    assert file.opset_import[0].version == opset
    names = {node.name for node in file.graph.node}
    assert {
        "embed/Gather",
        "rnn/0/LSTM",
        "rnn/1/Dropout",
        "rnn/1/LSTM",
        "head/MatMul",
    } <= names
    weights = {weight.name for weight in file.graph.initializer}
    assert {
        "embed/table",
        "rnn/0/W",
        "rnn/0/R",
        "rnn/0/B",
        "head/w",
        "head/b",
    } <= weights
    assert [i.name for i in file.graph.input] == ["tokens", "lengths"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_differs_is_not_kept(tmp_path):
    path, params = tmp_path / "model.onnx", drawn(QUICKSTART, None)
    path.write_text("before")
    with pytest.raises(ValueError, match=r"outputs that differ by .* was not written"):
        jl.interop.onnx.save(path, QUICKSTART, params, tolerance=0.0)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


OWN = jl.lstm()._replace(initial_state=lambda *args, **options: None)


@pytest.mark.parametrize(
    ("cell", "part"),
    [
        (jl.layer_norm_lstm(), "0: layer_norm_lstm: ONNX's LSTM has no layer norm"),
        (jl.clip_cell(jl.lstm(), 1.0), "clip_cell: ONNX's clip limits pre-activations"),
        (jl.zoneout(jl.lstm(), c_rate=0.1), "zoneout: mixes the old and the new"),
        (jl.lstm(gate_activation="hard_tanh"), "hard_tanh.* do not have"),
        (jl.lstm(gate_activation=abs), "gate_activation: got <built-in"),
        (jl.classic_lstm(gate_activation="softsign"), "expected one that reaches 1"),
        (jl.coupled_lstm(gate_activation="tanh"), "expected sigmoid or hard_sigmoid"),
        (jl.lstm(gate_activation=NodeActivation("Tanh", clip=1.0)), "got the clips"),
        (jl.lstm(output_activation=NodeActivation("Tanh", clip=1.0)), "got the clips"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cells_that_onnx_cannot_express(cell, part):
    model = jl.stack(cell, (3,))
    params = drawn(model, 2)
    with pytest.raises(ValueError, match=part):
        jl.interop.onnx.dump(model, params)


def test_layers_that_onnx_cannot_express():
    model = jl.serial(jl.recurrent(jl.lstm(), 2), jl.Layer(*jl.linear(3)))
    backward = jl.stack(jl.lstm(), (3,), bidirectional=True)
    own = jl.serial(jl.linear(3)._replace(trace=None))
    for layer, options, part in (
        (own, {}, "dump: 0: got a layer of your own"),
        (jl.serial(jl.linear(3), jnp.abs), {}, "dump: 1: got a function of your own"),
        (backward, {"stream": True}, "runs backward"),
        (jl.linear(3), {"stream": True, "lengths": True}, "expected stream alone"),
        (jl.linear(3), {"opset": 16}, "opset: got 16, expected 17 to"),
        (jl.linear(3), {"opset": 10**6}, "newest that onnx"),
        (jl.dropout(0.1), {}, "without weights"),
        (jl.serial(jl.embed(9, 2, dtype=np.float16)), {}, "embed: dtype: got float16"),
    ):
        features = None if "embed" in part else 2
        params = drawn(layer, features)
        with pytest.raises(ValueError, match=part):
            jl.interop.onnx.dump(layer, params, **options)
    with pytest.raises(ValueError, match="params: got a pytree that does not fit"):
        jl.interop.onnx.dump(model, ())
