"""A model file rebuilds the model bit for bit, and refuses what is not one."""

import inspect
import json
import re
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxlstm as jl
from jaxlstm.interop import model_file
from jaxlstm.lab.checkpoints.weights import load_weights
from registry import CELLS

KEY = jax.random.key(0)
CELL = jl.zoneout(jl.lstm(init=jl.initializers.chrono(784)), h_rate=0.1)
PRESET = jl.initializers.Preset(
    jl.initializers.glorot_fused(),
    jl.initializers.orthogonal_per_gate(),
    jl.initializers.forget_bias(2),
    jl.initializers.uniform(),
)
MODELS = {
    "named": jl.serial(
        stack=jl.embed(9, 4, dtype=jnp.bfloat16),
        noise=jl.dropout(0.1),
        rnn=jl.stack(CELL, (4, 4), dropout=0.1, bidirectional=True, residual=False),
        head=jl.linear(2),
    ),
    "positions": jl.serial(
        jl.residual(jl.recurrent(jl.gru(init=PRESET), 3, engine=("adjoint", "scan"))),
        jl.bidirectional(
            jl.recurrent(jl.taps(jl.lstm()), 3),
            jl.recurrent(jl.learned_initial_state(jl.lstm()), 3, reverse=True),
        ),
    ),
    "convolution": jl.recurrent(jl.conv_lstm((3, 1)), 3, checkpoint_every="sqrt"),
}
HEAD = jl.linear(2)


def saved(path, model, size=3):
    params, _ = model.init(KEY, size)
    model_file.save(path, model, params)
    return params


def same(ours, theirs):
    pairs = zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)
    return all(a.dtype == b.dtype and (a == b).all() for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_rebuilds_the_model_and_its_parameters(name, tmp_path):
    path = tmp_path / "model.safetensors"
    params = saved(path, MODELS[name])
    again, model = model_file.load(path)
    assert model == MODELS[name]
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert same(again, params)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("row", CELLS, ids=[row.name for row in CELLS])
def test_every_cell_is_described_by_data(row):
    model = jl.stack(row.make(), (3,))
    text = json.dumps(model_file.to_data(model))
    assert model_file.from_data(json.loads(text)) == model


def test_every_public_constructor_can_be_read():
    functions = [getattr(jl, name) for name in jl.__all__]
    public = {
        function.__name__: function
        for function in functions
        if inspect.isfunction(function)
        and inspect.signature(function).return_annotation in (jl.Cell, jl.Layer)
    }
    assert public.items() <= model_file.CONSTRUCTORS.items()


def test_a_file_in_half_precision_keeps_its_bits(tmp_path):
    path = tmp_path / "model.safetensors"
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), HEAD.init(KEY, 3)[0])
    model_file.save(path, HEAD, params)
    assert load_file(path)["w"].dtype == ml_dtypes.bfloat16
    assert same(model_file.load(path)[0], params)


def test_the_names_are_those_of_a_run_which_can_read_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    params = saved(path, MODELS["named"])
    assert "rnn/1/backward/w_h" in load_file(path)
    assert same(load_weights(path, params), params)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (jl.serial(rnn=jl.recurrent(jl.lstm(gate_activation=jax.nn.silu), 3)),
         "model.serial.named.rnn.recurrent.cell.lstm.gate_activation"),
        (jl.serial(HEAD._replace(trace=None)), "model.serial.layers[0]"),
    ],
)  # fmt: skip
def test_what_data_cannot_describe_is_named(model, place, tmp_path):
    params, _ = model.init(KEY, 3)
    with pytest.raises(ValueError, match=f"^{re.escape(place)}: got "):
        model_file.save(tmp_path / "model.safetensors", model, params)
    assert not list(tmp_path.iterdir())


def test_parameters_of_another_model_are_not_written(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"^params: b: got \[3\], expected \[2\]"):
        model_file.save(path, HEAD, jl.linear(3).init(KEY, 3)[0])
    with pytest.raises(ValueError, match=r"got a file named \.npz"):
        model_file.save(tmp_path / "model.npz", HEAD, HEAD.init(KEY, 3)[0])
    assert not list(tmp_path.iterdir())


def refusal(path):
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as error:
        model_file.load(path)
    message = str(error.value).removeprefix(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 800
    return message


def rewritten(path, changes=None, **arrays):
    """Write a file with the metadata of HEAD, apart from some changes."""
    described = {"linear": {"size": 2}}
    metadata = {"format": "1", "model": json.dumps(described), "inputs": "3"}
    metadata |= changes or {}
    shapes = {"w": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    save_file(shapes | arrays, path, metadata=metadata)
    return path


def nested(depth):
    text = '{"linear": {"size": 2}}'
    for _ in range(depth):
        text = f'{{"residual": {{"layer": {text}}}}}'
    return text


STACK = '{{"stack": {{"cell": {}, "sizes": {}}}}}'


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "2"}, "got tensors without a model in format 1"),
        ({"sha256": "0"}, "got a damaged file"),
        ({"model": "{"}, "model: got no valid JSON"),
        ({"model": '{"linear": {"size": NaN}}'}, "model: got no valid JSON (got NaN"),
        ({"model": "[" * 100_000}, "model: got no valid JSON"),
        ({"model": " " * 2**21}, "model: got 2,097,152 characters"),
        ({"model": "3"}, "model: got a cell or initializer, expected a layer"),
        ({"model": '{"lstm": {}}'}, "model: got a cell or initializer"),
        ({"model": '{"os.system": {"x": 1}}'}, "got the constructor 'os.system'"),
        ({"model": '{"linear": {}, "b": {}}'}, "model: got an object with the keys"),
        ({"model": '{"linear": 3}'}, "model: got an object with the keys"),
        ({"model": '{"linear": {"hook": 3}}'}, "model.linear: got the argument 'hook'"),
        ({"model": '{"linear": {}}'}, "model.linear: linear: missing a required"),
        ({"model": '{"linear": {"size": -1}}'}, "model.linear: linear: size: got -1"),
        ({"model": '{"linear": {"size": [2]}}'}, "linear: size: got (2,)"),
        ({"model": '{"serial": {"named": [1]}}'}, "model.serial.named: got [1]"),
        ({"model": nested(80)}, "model.residual"),
        ({"model": STACK.format('{"lstm": {}}', [1] * 20_000)}, "stack.sizes: got"),
        ({"model": STACK.format('{"lstm": {"init": [1]}}', [3])},
         "model.stack.cell.lstm: init: got (1,)"),
        ({"model": STACK.format('{"lstm": {"init": {"preset": {"w_x": 1, "w_h": 1, '
                                '"b": 1}}}}', [3])}, "model: got sizes that fit no"),
        ({"inputs": "[]"}, "linear: input_size: got []"),
        ({"inputs": "1e3"}, "linear: input_size: got 1000.0"),
        ({"inputs": "99999999999999999999"}, "w: got [3, 2], expected"),
        ({"inputs": "4"}, "w: got [3, 2], expected [4, 2] for this model"),
    ],
)  # fmt: skip
def test_hostile_descriptions_are_refused(changes, message, tmp_path):
    assert message in refusal(rewritten(tmp_path / "f.safetensors", changes))


def test_other_tensors_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    extra = rewritten(path, None, other=np.ones(1, np.float32))
    assert "other: got [1], expected no array" in refusal(extra)
    integers = rewritten(path, None, b=np.ones(2, np.int32))
    assert "b: got dtype int32" in refusal(integers)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    saved(path, HEAD)
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    claims = struct.pack("<Q", 10**11) + data[8:]
    for damaged in data[:-4], data[: len(data) // 2], data[:4], claims, flipped:
        path.write_bytes(damaged)
        refusal(path)
    save_file({"w": np.ones(2, np.float32)}, path)
    assert "got tensors without a model" in refusal(path)
