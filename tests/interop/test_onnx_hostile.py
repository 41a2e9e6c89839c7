"""Damaged and hostile ONNX files are refused in one sentence, and read nothing else."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import jaxlstm as jl

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

FLOAT = onnx.TensorProto.FLOAT


def zeros(name: str, *shape: int):
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def lstm(name="rnn/LSTM", x="xs", y="ys", **attributes):
    attributes = {"hidden_size": 2, **attributes}
    return helper.make_node("LSTM", [x, "W", "R", "B"], [y], name=name, **attributes)


def model(nodes=None, weights=None, outputs=("ys",), shape=("T", "B", 3)):
    """Return a model of these nodes; by default one LSTM of 3 features and 2 units."""
    weights = weights or [zeros("W", 1, 8, 3), zeros("R", 1, 8, 2), zeros("B", 1, 16)]
    graph = helper.make_graph(
        nodes or [lstm()],
        "model",
        [helper.make_tensor_value_info("xs", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        weights,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def refusal(source, **options) -> str:
    """Return the message, which must be one line."""
    with pytest.raises(ValueError, match=r".") as info:
        jl.interop.onnx.load(source, **options)
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_the_model_itself_is_read():
    params, _ = jl.interop.onnx.load(model())
    assert params["rnn"].w_x.shape == (3, 4, 2)


# --- files ----------------------------------------------------------------------------


def test_truncated_files(tmp_path):
    """Cut anywhere before the end of the graph, a file is refused."""
    path, content = tmp_path / "model.onnx", model().SerializeToString()
    for end in range(0, len(content), 3):
        path.write_bytes(content[:end])
        if end < content.rindex(b"ys"):  # the name of the output
            refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04", bytes(range(30, 30 + 99))]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refusal(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        jl.interop.onnx.load(tmp_path / "none.onnx")
    assert "regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "regular file" in refusal(tmp_path / "pipe.onnx")
    assert "expected a path" in refusal(3)


# --- tensors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 10**10), (-1, 8, 3), (2**40, 2**40, 2**40), (0, 2**60, 2**60), (1, 8, 4)],
)
def test_claimed_shapes(shape):
    """The claim is compared with the bytes before anything is allocated."""
    w = zeros("W", 1, 8, 3)
    w.ClearField("dims")
    w.dims.extend(shape)
    tracemalloc.start()
    message = refusal(model(weights=[w, zeros("R", 1, 8, 2), zeros("B", 1, 16)]))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert "'W'" in message


def test_claimed_numbers():
    w = onnx.TensorProto(name="W", data_type=FLOAT, dims=[1, 8, 10**11])
    w.float_data.extend([0.0] * 24)
    message = refusal(model(weights=[w, zeros("R", 1, 8, 2), zeros("B", 1, 16)]))
    assert "got 24 numbers, expected the 800000000000 numbers" in message


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("W", (1, 9, 3), "W: got the shape [1, 9, 3], expected [1, 8, 3]"),
        ("W", (8, 3), "three axes"),
        ("R", (1, 8, 3), "got the shape"),
        ("R", (2, 8, 2), "for 1 direction(s)"),
        ("B", (16,), "B: got the shape [16]"),
        ("W", (1, 8, 4), "got 3 features, expected 4"),
        ("W", (1, 8, 0), "at least one"),
    ],
)
def test_wrong_shapes(name, shape, part):
    shapes = {"W": (1, 8, 3), "R": (1, 8, 2), "B": (1, 16)} | {name: shape}
    weights = [zeros(*item[:1], *item[1]) for item in shapes.items()]
    assert part in refusal(model(weights=weights))


def test_large_constants_are_not_computed():
    """A graph of some bytes may not ask for 100 GB."""
    size = numpy_helper.from_array(np.array([10**11]), "size")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"], name="fill"),
        lstm(x="big"),
    ]
    weights = [zeros("W", 1, 8, 3), zeros("R", 1, 8, 2), zeros("B", 1, 16), size]
    assert "'fill'" in refusal(model(nodes, weights))
    one = numpy_helper.from_array(np.array([[1.0]]), "one")
    doubled = ["one", *(f"d{n}" for n in range(60))]
    nodes = [
        helper.make_node("Concat", [a, a], [b], axis=0, name=b)
        for a, b in zip(doubled, doubled[1:])  # noqa: B905, RUF007
    ]
    nodes.append(lstm(x="d59"))
    assert "elements" in refusal(model(nodes, [*weights, one]))


# --- graphs ---------------------------------------------------------------------------


def absolute(x, y):
    return helper.make_node("Abs", [x], [y], name=f"abs of {x}")


@pytest.mark.parametrize(
    ("nodes", "outputs", "part"),
    [
        ([lstm(x="a", y="b"), absolute("b", "a")], ("b",), "without cycles"),
        ([lstm(x="ys")], ("ys",), "without cycles"),
        ([lstm(x="other")], ("ys",), "reads 'other', which is no input"),
        ([lstm(), lstm(name="again")], ("ys",), "another origin"),
        ([lstm()], ("zs",), "output 'zs' is computed by no node"),
        ([absolute("xs", "ys")], ("ys",), "got no node LSTM, GRU or RNN"),
        ([lstm(y="y"), absolute("y", "ys")], ("ys",), "'abs of y' (Abs) is not one of"),
        ([lstm(direction="sideways")], ("ys",), "direction: got 'sideways'"),
        ([lstm(hidden_size=3)], ("ys",), "hidden_size: got 3, expected 2"),
        ([lstm(activations=["Sin"] * 3)], ("ys",), "activations: got 'Sin'"),
        ([lstm(activations=["Tanh"])], ("ys",), "got 1 names, expected 3"),
        ([lstm(activation_alpha=[1.0])], ("ys",), "more numbers than"),
        ([lstm(clip=-1.0)], ("ys",), "clip: got -1.0"),
        ([lstm(layout=2)], ("ys",), "layout: got 2"),
        ([lstm(secret=2)], ("ys",), "attribute 'secret'"),
    ],
)
def test_graphs(nodes, outputs, part):
    assert part in refusal(model(nodes, outputs=outputs))


def test_operations_of_other_domains():
    node = helper.make_node("LSTM", ["xs"], ["ys"], name="mine", domain="my.ops")
    assert "got no node LSTM" in refusal(model([node]))
    node = helper.make_node("Relu", ["y"], ["ys"], name="mine", domain="my.ops")
    assert "'mine' (my.ops.Relu)" in refusal(model([lstm(y="y"), node]))


def test_names_that_are_no_text(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(
        model().SerializeToString().replace(b"rnn/LSTM", b"rnn/\xff\xfe\xfdM")
    )
    assert "expected UTF-8" in refusal(path)


def test_missing_weights_and_no_nodes():
    assert "'R', which is no input" in refusal(model(weights=[zeros("W", 1, 8, 3)]))
    empty = model()
    empty.graph.ClearField("node")
    assert "without nodes" in refusal(empty)
    assert "prefix: got 'lstm'" in refusal(model(), prefix="lstm")
    assert "output: got 'zs'" in refusal(model(), output="zs")


# --- external data --------------------------------------------------------------------


def external(location: str, *, offset=None, length=None, shape=(1, 8, 3)):
    """Return a model whose W lies in another file."""
    w = onnx.TensorProto(name="W", data_type=FLOAT, dims=shape)
    w.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            w.external_data.add(key=key, value=str(value))
    return model(weights=[w, zeros("R", 1, 8, 2), zeros("B", 1, 16)])


def saved(folder, model):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_in_the_folder(tmp_path):
    numbers = np.arange(25, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(numbers.tobytes())
    path = saved(tmp_path, external("sub/w.bin", offset=4, length=96))
    params, _ = jl.interop.onnx.load(path)
    np.testing.assert_array_equal(params["rnn"].w_x[:, 0, 0], numbers[1:4])


@pytest.fixture
def folder(tmp_path):
    """A folder for the model, beside a file that must not be read."""
    (tmp_path / "secret.bin").write_bytes(bytes(96))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "short.bin").write_bytes(bytes(95))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.bin")
    return folder


@pytest.mark.parametrize(
    ("location", "part"),
    [
        ("../secret.bin", "may leave"),
        ("sub/../../secret.bin", "may leave"),
        ("/etc/passwd", "may leave"),
        ("", "may leave"),
        ("C:\\secret.bin", "may leave"),
        ("..\\secret.bin", "may leave"),
        ("a\0b", "may leave"),
        ("link.bin", "symbolic link"),
        ("up/secret.bin", "symbolic link"),
        ("pipe.bin", "no regular file"),
        (".", "may leave"),
        ("missing.bin", "No such file"),
        ("short.bin", "of 95, expected 96"),
    ],
)
def test_external_data_elsewhere(folder, location, part, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda p, *a: opened.append(p) or real(p, *a))
    message = refusal(saved(folder, external(location)))
    assert part in message
    assert "external data" in message
    inside = {"short.bin", "pipe.bin", "missing.bin"}
    assert {Path(path).name for path in opened} <= inside


@pytest.mark.parametrize(
    "options",
    [
        {"offset": -4},
        {"offset": 2**70},
        {"offset": "many"},
        {"length": 97},
        {"length": 2**60},
        {"shape": (1, 8, 10**10)},
    ],
)
def test_external_sizes(tmp_path, options):
    (tmp_path / "w.bin").write_bytes(bytes(200))
    refusal(saved(tmp_path, external("w.bin", **options)))


def test_external_data_without_a_folder():
    assert "without a folder" in refusal(external("w.bin"))
