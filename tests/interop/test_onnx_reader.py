"""Graphs that exporters write become models with the numbers of onnxruntime."""

import io

import jax
import numpy as np
import pytest

import jaxlstm as jl

OPTIMISED = True

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
helper = onnx.helper
FLOAT, INT32, INT64 = (
    getattr(onnx.TensorProto, kind) for kind in ("FLOAT", "INT32", "INT64")
)

pytestmark = pytest.mark.filterwarnings("ignore")


def ran(model, **inputs):
    """Return the first output of onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def normal(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- torch ----------------------------------------------------------------------------


def exported(kind, *, both=False, batch_first=True, tokens=False, last=None, free=True):
    """Return a torch module, two recurrent layers and a head, and its ONNX model."""
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(9, 3)
            recurrent = getattr(torch.nn, kind)
            self.rnn = recurrent(3, 5, 2, bidirectional=both, batch_first=batch_first)
            self.head = torch.nn.Linear(10 if both else 5, 4)

        def forward(self, x):
            ys, state = self.rnn(self.words(x) if tokens else x)
            if last == "state":
                return self.head((state[0] if kind == "LSTM" else state)[-1])
            return self.head(ys[:, -1] if last == "output" else ys)

    torch.manual_seed(0)
    module, file = Module().eval(), io.BytesIO()
    shape = (2, 7) if tokens else (2, 7, 3)
    x = torch.zeros(shape, dtype=torch.int64 if tokens else torch.float32)
    axes = {"dynamic_axes": {"x": {0: "first", 1: "second"}}} if free else {}
    torch.onnx.export(
        module, (x,), file, input_names=["x"], output_names=["y"], dynamo=False, **axes
    )
    return module, onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "LSTM", "both": True, "tokens": True},
        {"kind": "LSTM", "both": True, "batch_first": False, "free": False},
        {"kind": "LSTM", "last": "output"},
        {"kind": "GRU", "last": "state"},
        {"kind": "GRU", "both": True, "free": False},
        {"kind": "RNN", "batch_first": False},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_torch(options):
    """The names of the modules, and the outputs of torch."""
    torch = pytest.importorskip("torch")
    module, model = exported(**options)
    params, layer = jl.interop.onnx.load(model)
    names = {"words"} if options.get("tokens") else set()
    assert set(params) == {"rnn", "head"} | names
    assert len(params["rnn"]) == 2
    x = normal(2, 7, 3)
    if options.get("tokens"):
        x = np.random.default_rng(0).integers(0, 9, (2, 7))
    with torch.no_grad():
        expected = module(torch.as_tensor(x)).numpy()
    batch_first = options.get("batch_first", True)
    _, ys = layer.apply(params, x.swapaxes(0, 1) if batch_first else x)
    if options.get("last"):
        close(ys[-1], expected)
    else:
        close(ys.swapaxes(0, 1) if batch_first else ys, expected)
    assert jl.interop.onnx.compare(model, layer, params).largest < 1e-5


# --- graphs by hand -------------------------------------------------------------------


class Builder:
    """A graph under construction."""

    def __init__(self):
        self.nodes, self.weights, self.inputs = [], [], []

    def input(self, name, shape, kind=FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, array):
        name = f"constant {len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op, *inputs, outputs=1, name="", **attributes):
        names = [f"{op} {len(self.nodes)} {n}" for n in range(outputs)]
        self.nodes.append(
            helper.make_node(op, inputs, names, name=name or names[0], **attributes)
        )
        return names[0] if outputs == 1 else names

    def recurrent(
        self, x, features, size, *, op="LSTM", both=False, rest=(), **options
    ):
        """Add a recurrent node with three outputs; `rest` are its inputs after B."""
        n, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + both
        seed = len(self.nodes)
        w, r = normal(d, n * size, features, seed=seed), normal(d, n * size, size)
        weights = map(self.constant, (w, r, normal(d, 2 * n * size, seed=seed)))
        if both:
            options["direction"] = "bidirectional"
        count = 3 if op == "LSTM" else 2
        return self.add(
            op, x, *weights, *rest, outputs=count, hidden_size=size, **options
        )

    def model(self, *outputs):
        kinds = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "model", self.inputs, kinds, self.weights)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def squeezed(b, y):
    return b.add("Squeeze", y, b.constant(np.array([1])))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{}, {"clip": 0.5}], ids=["", "clip"])
def test_lengths_and_states_are_arguments(op, options):
    b = Builder()
    x = b.input("x", ("T", "B", 3))
    lengths = b.input("lengths", ("B",), INT32)
    states = [b.input(f"{n}0", (2, "B", 4)) for n in ("h", "c")[: 1 + (op == "LSTM")]]
    y, *finals = b.recurrent(
        x, 3, 4, op=op, both=True, rest=(lengths, *states), **options
    )
    y = b.add("Transpose", y, perm=[0, 2, 1, 3])
    y = b.add("Reshape", y, b.constant(np.array([0, 0, -1])))
    model = b.model(y, *finals)
    params, layer = jl.interop.onnx.load(model)
    xs, counts = normal(6, 3, 3), np.array([6, 1, 4], np.int32)
    begin = [normal(2, 3, 4, seed=n) for n in range(len(states))]
    expected = ran(
        model, x=xs, lengths=counts, **dict(zip(("h0", "c0"), begin, strict=False))
    )
    zero, _ = layer.apply(params, xs[:0])
    state = jl.Pair(
        *(type(z)(*(leaf[n] for leaf in begin)) for n, z in enumerate(zero))
    )
    state, ys = layer.apply(params, xs, state, lengths=counts)
    close(ys, expected[0])
    for n, final in enumerate(expected[1:]):
        close(np.stack([state.forward[n], state.backward[n]]), final)


@pytest.mark.parametrize("last", [False, True])
def test_a_file_is_compared_with_its_model(last):
    """Rows first, and lengths or the last step."""
    b = Builder()
    x = b.add("Transpose", b.input("x", ("B", "T", 3)), perm=[1, 0, 2])
    rest = () if last else (b.input("lengths", ("B",), INT32),)
    y, h, _ = b.recurrent(x, 3, 4, rest=rest)
    y = squeezed(b, y)
    zeroth = b.constant(np.array([0]))
    y = b.add("Squeeze", h, zeroth) if last else b.add("Transpose", y, perm=[1, 0, 2])
    model = b.model(y)
    params, layer = jl.interop.onnx.load(model)
    ports = jl.interop.onnx.ports(model)
    assert (ports.order, ports.last) == ((1, 0, 2), last)
    [found] = jl.interop.onnx.compare(model, layer, params).differences
    assert found.difference < 1e-5
    assert found.shape[-1] == 4
    wrong = params._replace(w_h=params.w_h[:, np.array([1, 0, 2, 3])])
    assert jl.interop.onnx.compare(model, layer, wrong).largest > 1e-2


def test_reset_before_the_product():
    b = Builder()
    y, _ = b.recurrent(b.input("x", ("T", "B", 3)), 3, 4, op="GRU")
    model = b.model(y)
    params, layer = jl.interop.onnx.load(model)
    assert params.b_h is None
    xs = normal(5, 2, 3)
    close(layer.apply(params, xs)[1], ran(model, x=xs)[0][:, 0])


def test_batch_first_nodes():
    """The layout 1, which onnxruntime does not run, changes axes only."""
    b = Builder()
    y, _, _ = b.recurrent(b.input("x", ("B", "T", 3)), 3, 4)
    params, layer = jl.interop.onnx.load(b.model(y))
    b.nodes[0].attribute.append(helper.make_attribute("layout", 1))
    batch_first, same = jl.interop.onnx.load(b.model(y))
    assert same == layer
    jax.tree.map(np.testing.assert_array_equal, params, batch_first)


def test_the_names_of_torchs_newer_exporter():
    """It names nodes by numbers, and their modules in the metadata."""
    b = Builder()
    y = squeezed(b, b.recurrent(b.input("x", ("T", "B", 3)), 3, 4)[0])
    b.nodes[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'body', 'body.rnn', 'lstm']"
    )
    y = b.add("MatMul", y, b.constant(normal(4, 2)))
    b.nodes[-1].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'head', 'linear']"
    )
    params, _ = jl.interop.onnx.load(b.model(y))
    assert params["body"]["rnn"].w_h.shape == (4, 4, 4)
    assert params["head"].w.shape == (4, 2)


def test_two_nodes_are_two_directions():
    b = Builder()
    x = b.input("x", ("T", "B", 3))
    forward, *_ = b.recurrent(x, 3, 4)
    backward, *_ = b.recurrent(x, 3, 2, direction="reverse")
    y = b.add("Concat", squeezed(b, forward), squeezed(b, backward), axis=2)
    model = b.model(y)
    params, layer = jl.interop.onnx.load(model)
    assert params.forward.w_h.shape == (4, 4, 4)
    assert params.backward.w_h.shape == (2, 4, 2)
    xs = normal(5, 2, 3)
    close(layer.apply(params, xs)[1], ran(model, x=xs)[0])


def test_residual_layers_and_a_gemm_over_all_steps():
    b = Builder()
    x = b.input("x", ("T", "B", 3))
    y = squeezed(b, b.recurrent(x, 3, 3)[0])
    y = b.add("Add", x, y)
    flat = b.add("Reshape", y, b.constant(np.array([-1, 3])))
    w, bias = map(b.constant, (normal(4, 3), normal(4)))
    flat = b.add("Gemm", flat, w, bias, transB=1, alpha=0.5, beta=2.0)
    sizes = b.add(
        "Slice", b.add("Shape", y), *(b.constant(np.array([n])) for n in (0, 2))
    )
    shape = b.add("Concat", sizes, b.constant(np.array([4])), axis=0)
    model = b.model(b.add("Reshape", flat, shape))
    params, layer = jl.interop.onnx.load(model)
    xs = normal(5, 2, 3)
    close(layer.apply(params, xs)[1], ran(model, x=xs)[0])


def test_constant_initial_states_are_learned_ones():
    b = Builder()
    rows = normal(1, 1, 4)
    h = b.constant(np.repeat(rows, 2, axis=1))
    y, _, _ = b.recurrent(b.input("x", ("T", 2, 3)), 3, 4, rest=("", h))
    model = b.model(y)
    params, layer = jl.interop.onnx.load(model)
    np.testing.assert_array_equal(params.state.h, rows[0, 0])
    xs = normal(5, 2, 3)
    close(layer.apply(params, xs)[1], ran(model, x=xs)[0][:, 0])


def test_prefix_and_output_choose_a_part():
    b = Builder()
    x = b.add("Abs", b.input("x", ("T", "B", 3)), name="front/Abs")
    hidden = squeezed(b, b.recurrent(x, 3, 4, name="rnn/LSTM")[0])
    logits = b.add("MatMul", hidden, b.constant(normal(4, 2)), name="head/MatMul")
    model = b.model(b.add("Softmax", logits, axis=2, name="probabilities"))
    for source, options, part in (
        (model, {}, r"'front/Abs' \(Abs\) is not one of"),
        (model, {"output": logits}, "front/Abs"),
        (b.model(hidden), {}, "front/Abs"),
    ):
        with pytest.raises(ValueError, match=part):
            jl.interop.onnx.load(source, **options)
    params, layer = jl.interop.onnx.load(model, prefix="rnn")
    rectified = np.abs(normal(5, 2, 3))
    expected = ran(b.model(hidden), x=normal(5, 2, 3))[0]
    close(layer.apply(params, rectified)[1], expected)


def test_functions_with_other_attributes_are_named():
    b = Builder()
    y = squeezed(b, b.recurrent(b.input("x", ("T", "B", 3)), 3, 4)[0])
    for op, attributes in ("Softmax", {"axis": 0}), ("LeakyRelu", {"alpha": 0.5}):
        model = b.model(b.add(op, y, name=f"last/{op}", **attributes))
        with pytest.raises(ValueError, match=rf"'last/{op}' \({op}\) is not one of"):
            jl.interop.onnx.load(model)
    model = b.model(b.add("Softmax", y, axis=2, name="probabilities"))
    params, layer = jl.interop.onnx.load(model)
    xs = np.ones((5, 2, 3), np.float32)
    close(layer.apply(params, xs)[1], ran(model, x=xs)[0])


def test_what_a_layer_cannot_do_is_refused():
    """Each reason names the node."""

    def transposed(b, x):
        y = squeezed(b, b.recurrent(x, 3, 4)[0])
        return b.recurrent(b.add("Transpose", y, perm=[1, 0, 2]), 4, 4)[0]

    def fixed_lengths(b, x):
        return b.recurrent(x, 3, 4, rest=(b.constant(np.array([2, 1], np.int32)),))[0]

    def decoder(b, x):
        _, h, _ = b.recurrent(x, 3, 4)
        return b.recurrent(x, 3, 4, rest=("", h))[0]

    def coupled(b, x):
        activations = ["Tanh", "Tanh", "Tanh"]
        return b.recurrent(x, 3, 4, input_forget=1, activations=activations)[0]

    def mixed_steps(b, x):
        y = squeezed(b, b.recurrent(x, 3, 4)[0])
        return b.add(
            "MatMul", b.add("Transpose", y, perm=[2, 1, 0]), b.constant(normal(5, 5))
        )

    def final_states(b, x):
        _, h, _ = b.recurrent(x, 3, 4, both=True)
        h = b.add("Transpose", h, perm=[1, 0, 2])
        h = b.add("Reshape", h, b.constant(np.array([-1, 8])))
        return b.add("MatMul", h, b.constant(normal(8, 5)))

    for graph, part in (
        (final_states, "reads final states, and a layer"),
        (transposed, "another axis"),
        (fixed_lengths, "sequence_lens"),
        (decoder, "initial_h is computed"),
        (coupled, "input_forget: got the gate activation Tanh"),
        (mixed_steps, "MatMul"),
    ):
        b = Builder()
        model = b.model(graph(b, b.input("x", (5, 2, 3))))
        with pytest.raises(ValueError, match=part):
            jl.interop.onnx.load(model)
