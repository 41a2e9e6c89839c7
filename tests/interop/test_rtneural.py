"""Files of RTNeural hold the model's numbers in the layout that RTNeural reads."""

import copy
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop import rtneural

KEY = jax.random.key(0)
MODELS = {
    "lstm": (jl.recurrent(jl.lstm(), 4), 1),
    "gru": (jl.serial(jl.stack(jl.gru(), (4, 3), dropout=0.1), jl.linear(2)), 2),
    "mixed": (
        jl.serial(
            jl.linear(3),
            jl.recurrent(jl.gru(), 4),
            jl.recurrent(jl.lstm(), 2),
            jl.dropout(0.5),
            jl.linear(1),
        ),
        2,
    ),
}


def drawn(model, size):
    """Draw parameters without zeros and without equal values."""

    def shifted(leaf):
        return leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape)

    return jax.tree.map(shifted, model.init(KEY, size)[0])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run(content, xs):
    """Run the layers of a file as RTNeural does: one step at a time, in float64."""
    layers = content["layers"]
    sizes = [layer["shape"][-1] for layer in layers]
    hs, cs = ([np.zeros(size) for size in sizes] for _ in range(2))
    outputs = []
    for x in xs:
        for n, layer in enumerate(layers):
            kernel, *others = map(np.array, layer["weights"])
            if layer["type"] == "dense":
                x = x @ kernel + others[0]
                continue
            recurrent, bias = others
            if layer["type"] == "lstm":
                i, f, g, o = np.split(x @ kernel + hs[n] @ recurrent + bias, 4)
                cs[n] = sigmoid(f) * cs[n] + sigmoid(i) * np.tanh(g)
                hs[n] = sigmoid(o) * np.tanh(cs[n])
            else:
                z, r, g = np.split(x @ kernel + bias[0], 3)
                u_z, u_r, u_g = np.split(hs[n] @ recurrent + bias[1], 3)
                z, g = sigmoid(z + u_z), np.tanh(g + sigmoid(r + u_r) * u_g)
                hs[n] = z * hs[n] + (1 - z) * g
            x = hs[n]
        outputs.append(x)
    return np.array(outputs)


@pytest.mark.parametrize(
    "name", ["lstm", "gru", pytest.param("mixed", marks=pytest.mark.thorough)]
)
def test_a_file_computes_the_model_and_loads_its_bits(name, tmp_path):
    model, size = MODELS[name]
    params, path = drawn(model, size), tmp_path / "model.json"
    rtneural.save(path, model, params)
    content = json.loads(path.read_text())
    assert content == rtneural.dump(model, params)
    assert content["in_shape"] == [None, None, size]
    xs = np.asarray(jax.random.normal(KEY, (9, size)))
    expected = model.apply(params, xs)[1]
    np.testing.assert_allclose(run(content, xs), expected, atol=1e-6)
    again, loaded = rtneural.load(path)
    for ours, theirs in zip(*map(jax.tree.leaves, (params, again)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert rtneural.dump(loaded, again) == content


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            jl.recurrent(jl.gru(reset_after=False), 3),
            "got a GRU with the reset gate be",
        ),
        (jl.recurrent(jl.simple_rnn(), 3), "got a simple RNN"),
        (jl.recurrent(jl.projected_lstm(2), 3), "got an LSTM with a projection"),
        (jl.recurrent(jl.lstm(gate_activation="hard_sigmoid"), 3), "gate_activation="),
        (jl.recurrent(jl.lstm(), 3, reverse=True), "expected layers that run forward"),
        (jl.stack(jl.lstm(), (3,), bidirectional=True), "got LSTM, bidirectional"),
        (jl.recurrent(jl.learned_initial_state(jl.lstm()), 3), "learned_initial_state"),
        (jl.serial(jl.embed(5, 2)), "got Embedding"),
        (jl.residual(jl.linear(2)), "got jl.residual"),
        (jl.dropout(0.1), "got a model without weights"),
    ],
)
def test_what_rtneural_does_not_have_is_refused(model, message):
    with pytest.raises(ValueError, match=r"^rtneural\.dump: ") as error:
        rtneural.dump(model, drawn(model, 2))
    assert message in str(error.value)


def test_numbers_that_json_cannot_hold_are_refused():
    model, size = MODELS["lstm"]
    params = drawn(model, size)._replace(b=jnp.full((4, 4), jnp.nan))
    with pytest.raises(ValueError, match=r"model\.b: got NaN or infinity"):
        rtneural.dump(model, params)


def dense(**changes):
    layer = {"type": "dense", "shape": [None, 1], "weights": [[[1.0], [2.0]], [3.0]]}
    return {"in_shape": [None, 2], "layers": [layer | changes]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "got no list of layers"),
        ({"layers": []}, "got no list of layers"),
        (dense() | {"in_shape": [2.5]}, "in_shape: got [2.5]"),
        (dense() | {"layers": [3]}, "layers[0]: got int"),
        (dense(type="conv1d"), "layers[0]: type: got 'conv1d'"),
        (dense(type=["dense"]), "layers[0]: type: got ['dense']"),
        (dense(activation="relu"), "layers[0]: activation: got 'relu'"),
        (dense(shape=[None, 2]), "layers[0]: weights[0]: got [2, 1] of float64"),
        (dense(shape=[10**30]), "layers[0]: weights[0]: got [2, 1] of float64"),
        (dense(shape=[]), "layers[0]: shape: got []"),
        (dense(weights=[[1.0]]), "layers[0]: weights: got 1 arrays, expected 2"),
        (dense(weights={}), "layers[0]: weights: got no list of arrays"),
        (dense(weights=[[[1.0], [2.0, 3.0]], [3.0]]), "got lists of unequal lengths"),
        (
            dense(weights=[[["1"], ["2"]], [3.0]]),
            "layers[0]: weights[0]: got [2, 1] of",
        ),
        (
            dense(weights=[[[1.0], [True]], [1e39]]),
            "weights[1]: got numbers that float3",
        ),
        (
            dense(weights=[[[1.0], [10**400]], [3.0]]),
            "weights[0]: got [2, 1] of object",
        ),
    ],
)
def test_hostile_contents_are_refused(content, message):
    before = copy.deepcopy(content)
    with pytest.raises(ValueError, match=r"^rtneural\.load: ") as error:
        rtneural.load(content)
    assert message in str(error.value)
    assert content == before


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0", "nul", '{"a": 1} x'])
def test_damaged_files_are_refused(text, tmp_path):
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: got no valid JSON"):
        rtneural.load(path)


def test_a_dense_layer_alone_and_its_dtype():
    params, model = rtneural.load(dense(), dtype=jnp.bfloat16)
    assert model == jl.linear(1)
    assert params.w.dtype == jnp.bfloat16
    assert params.w.tolist() == [[1.0], [2.0]]
