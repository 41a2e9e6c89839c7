"""ONNX models of layers.

    embed           Gather
    recurrent       LSTM, GRU or RNN
    bidirectional   one node of both directions, or two and a Concat
    linear          MatMul and Add
    residual        Add
    dropout         Dropout, which does nothing at inference
    a function      see `functions`

The names of nodes, weights and states are the paths of the layers in the parameters.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlstm.cells.base import HiddenState, LSTMState
from jaxlstm.construction import construction_of
from jaxlstm.interop.onnx import cells, functions
from jaxlstm.interop.onnx.cells import CellNode, cell_node, lift
from jaxlstm.interop.onnx.graph import import_onnx
from jaxlstm.interop.onnx.nodes import INPUTS
from jaxlstm.layers import combine, pointwise
from jaxlstm.layers.base import Layer, check_model
from jaxlstm.layers.combine import Pair
from jaxlstm.masking import error_prefix
from jaxlstm.version import __version__

OLDEST_OPSET = 17
LARGEST_MODEL = 2**31 - 2**20


class Ports(NamedTuple):
    """Names of the inputs and outputs of a model.

    Attributes:
        x: the data.
        y: the outputs.
        lengths: the lengths; None if the model takes none.
        states: the pytree of the model's state, with the names of the initial states.
        takes_states: whether the initial states are inputs.
        features: number of features of the data; None for tokens.
        vocabulary: number of tokens; None for features.
    """

    x: str
    y: str
    lengths: str | None
    states: Any
    takes_states: bool
    features: int | None
    vocabulary: int | None


def dump(
    model: Layer,
    params: Any,
    *,
    stream: bool = False,
    lengths: bool = False,
    initial_state: bool = False,
    opset: int = OLDEST_OPSET,
) -> Any:
    """Return the ONNX model of a layer, with native recurrent nodes.

    Its inputs and outputs, with free sizes T and B:

        xs [T, B, D] or tokens [T, B]      ys [T, B, size]
        lengths [B], int32                 with `lengths`
        rnn/0/h [B, H], rnn/0/c            with `initial_state` or `stream`
        rnn/0/h_out [B, H], rnn/0/c_out    the state after the last step of each row

    States are named after the path of the layer in the parameters, and stand in the
    order of `jax.tree.leaves` of the model's state. With `stream` the
    model is a single step from `x [B, D]` or `token [B]` to `y [B, size]`.

    The numbers are those of `model.apply(params, xs, state, lengths=lengths)` without a
    key, in float32. Padding is not read, outputs there are zero, and a row of length 0
    keeps its state. A negative token is not refused: ONNX counts it from the end of the
    table.

    Args:
        model: a layer made by `jl.recurrent`, `stack`, `serial`, `bidirectional`,
            `residual`, `linear`, `embed`, `dropout` and functions of `jax.nn`.
        params: its parameters, which are written in float32.
        stream: write one step.
        lengths: take the length of each row.
        initial_state: take the initial states; otherwise they are zeros or learned.
        opset: version of the operators, at least 17.

    Raises:
        ValueError: ONNX has no counterpart of a layer or cell; the message names it.
        ImportError: onnx is not installed.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(rnn=jl.stack(jl.lstm(), (5, 5)), head=jl.linear(2))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> file = jl.interop.onnx.dump(model, params)  # doctest: +SKIP
        >>> [node.name for node in file.graph.node][:1]  # doctest: +SKIP
        ['rnn/0/LSTM']
    """
    return write(
        model,
        params,
        stream=stream,
        lengths=lengths,
        initial_state=initial_state,
        opset=opset,
    )[0]


def write(
    model: Layer,
    params: Any,
    *,
    stream: bool,
    lengths: bool,
    initial_state: bool,
    opset: int,
) -> tuple[Any, Ports]:
    """Return the ONNX model of a layer, and the names of its inputs and outputs.

    Raises:
        ValueError: as `dump`.
    """
    onnx = import_onnx()
    with error_prefix("onnx.dump"):
        check_model(model)
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise ValueError(f"onnx.dump: opset: got {opset!r}, expected an integer.")
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(
            f"onnx.dump: opset: got {opset}, expected {OLDEST_OPSET} to {newest}, the "
            f"newest that onnx {onnx.__version__} knows."
        )
    if stream and (lengths or initial_state):
        raise ValueError(
            "onnx.dump: got stream=True with lengths or initial_state, expected stream "
            "alone: a step has no lengths and always takes the states."
        )
    writer = _Writer(onnx, stream, lengths, initial_state or stream)
    return writer.model(model, params, opset)


class _Data(NamedTuple):
    """A tensor `[T, B, size]`: its name, and whether it is zero in padding."""

    name: str
    size: int | str
    zero_padded: bool = False


class _Writer:
    """An ONNX graph under construction."""

    def __init__(
        self, onnx: Any, stream: bool, with_lengths: bool, takes_states: bool
    ) -> None:
        self.onnx, self.stream, self.takes_states = onnx, stream, takes_states
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.names: set[str] = set()
        self.x = ""
        self.shared: dict[str, str] = {}
        self.lengths = "lengths" if with_lengths else None

    # -- building blocks ----------------------------------------------------------

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        path: str,
        *,
        outputs: int = 1,
        name: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node named `path/name`, and return the names of its outputs."""
        name = self._unused(_join(path, name or op))
        names = [name] if outputs == 1 else [f"{name}:{n}" for n in range(outputs)]
        self.nodes.append(
            self.onnx.helper.make_node(op, inputs, names, name=name, **attributes)
        )
        return names

    def _unused(self, name: str) -> str:
        """Return the name, with a number if it is taken."""
        found, n = name, 1
        while found in self.names:
            found, n = f"{name}_{n}", n + 1
        self.names.add(found)
        return found

    def constant(self, array: Any, name: str) -> str:
        """Add an initializer, or use an equal one of the same name."""
        array = np.asarray(array, order="C")
        if name.startswith("constant/") and name in self.weights:
            return name
        name = self._unused(name)
        self.weights[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def numbers(self, *numbers: int) -> str:
        """Return the name of a constant of integers."""
        text = "_".join(map(str, numbers))
        return self.constant(np.array(numbers, np.int64), f"constant/{text}")

    def input(self, name: str, kind: str, shape: Sequence[int | str]) -> str:
        """Add an input of the graph."""
        self.names.add(name)
        kind = getattr(self.onnx.TensorProto, kind)
        info = self.onnx.helper.make_tensor_value_info(name, kind, shape)
        self.inputs.append(info)
        return name

    def output(self, tensor: str, name: str, shape: Sequence[int | str]) -> None:
        """Make a tensor an output of the graph, under this name."""
        self.nodes.append(
            self.onnx.helper.make_node(
                "Identity", [tensor], [name], name=self._unused(f"output/{name}")
            )
        )
        kind = self.onnx.TensorProto.FLOAT
        info = self.onnx.helper.make_tensor_value_info(name, kind, shape)
        self.outputs.append(info)

    # -- the model ----------------------------------------------------------------

    def model(self, layer: Layer, params: Any, opset: int) -> tuple[Any, Ports]:
        """Return the model, and its names."""
        helper = self.onnx.helper
        try:
            vocabulary, features = _vocabulary("", layer, params), None
            if vocabulary is None:
                features = _features(layer, params)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise ValueError(
                "onnx.dump: params: got a pytree that does not fit the model, expected "
                "the params that model.init returns."
            ) from None
        _check_params(layer, params, features)
        data = self._data_input(features)
        frame = ["B"] if self.stream else ["T", "B"]
        y, states = self.layer(layer, params, "", data)
        if self.lengths and not y.zero_padded:
            y = y._replace(name=self.masked(y.name))
        out, name = ("y", y.name) if self.stream else ("ys", y.name)
        if self.stream:
            (name,) = self.add("Squeeze", [name, self.numbers(0)], "", name="y/Squeeze")
        self.output(name, out, [*frame, y.size])
        # States stand in the order of the leaves of the model's state.
        order = {name: n for n, name in enumerate(jax.tree.leaves(states))}

        def place(info: Any) -> int:
            return order.get(info.name.removesuffix("_out"), -1)

        graph = helper.make_graph(
            self.nodes,
            "jaxlstm",
            sorted(self.inputs, key=place),
            sorted(self.outputs, key=place),
            self.weights.values(),
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="jaxlstm",
            producer_version=__version__,
        )
        if model.ByteSize() > LARGEST_MODEL:
            raise ValueError(
                f"onnx.dump: got a model of {model.ByteSize()} bytes, expected less "
                "than 2 GiB, the limit of an ONNX file."
            )
        ports = Ports(
            self.x, out, self.lengths, states, self.takes_states, features, vocabulary
        )
        return model, ports

    def _data_input(self, features: int | None) -> _Data:
        names = ("token", "x") if self.stream else ("tokens", "xs")
        frame = ["B"] if self.stream else ["T", "B"]
        if features is None:
            self.x = self.input(names[0], "INT64", frame)
        else:
            self.x = self.input(names[1], "FLOAT", [*frame, features])
        if self.lengths:
            self.input(self.lengths, "INT32", ["B"])
        name = self.x
        if self.stream:
            (name,) = self.add(
                "Unsqueeze", [name, self.numbers(0)], "", name=f"{name}/Unsqueeze"
            )
        return _Data(name, features or 0)

    def size_of(self, axis: int) -> str:
        """Return the name of T (0) or B (1) as a tensor `[1]`."""
        name = f"shape/{'TB'[axis]}"
        if name not in self.shared:
            (self.shared[name],) = self.add(
                "Shape", [self.x], "", name=name, start=axis, end=axis + 1
            )
        return self.shared[name]

    def mask(self) -> str:
        """Return the name of the booleans `[T, B]` of the steps within the lengths."""
        if "mask" not in self.shared:
            assert self.lengths is not None
            (time,) = self.add("Squeeze", [self.size_of(0)], "", name="mask/T")
            zero, one = (
                self.constant(np.array(n, np.int64), f"constant/scalar_{n}")
                for n in (0, 1)
            )
            (steps,) = self.add("Range", [zero, time, one], "", name="mask/Range")
            (steps,) = self.add(
                "Unsqueeze", [steps, self.numbers(1)], "", name="mask/steps"
            )
            kind = self.onnx.TensorProto.INT64
            (counts,) = self.add(
                "Cast", [self.lengths], "", name="mask/lengths", to=kind
            )
            (mask,) = self.add("Less", [steps, counts], "", name="mask/Less")
            self.shared["mask"] = mask
        return self.shared["mask"]

    def masked(self, name: str) -> str:
        """Return the tensor `[T, B, size]` with zeros in padding."""
        if "mask/features" not in self.shared:
            (mask,) = self.add(
                "Unsqueeze", [self.mask(), self.numbers(2)], "", name="mask/features"
            )
            self.shared["mask/features"] = mask
        zero = self.constant(np.float32(0), "constant/zero")
        mask = self.shared["mask/features"]
        return self.add("Where", [mask, name, zero], "", name="mask/Where")[0]

    # -- layers -------------------------------------------------------------------

    def layer(
        self, layer: Layer, params: Any, path: str, x: _Data
    ) -> tuple[_Data, Any]:
        """Add the nodes of a layer; return its outputs and the names of its states.

        Raises:
            ValueError: ONNX has no counterpart.
        """
        if isinstance(layer, str):
            return self.function(layer, path, x), ()
        construction = construction_of(layer)
        function, options = construction or (None, {})
        match function:
            case combine.serial:
                named = options.get("named") or {}
                if not named:
                    parts = list(enumerate(options["layers"]))
                    return self.chain(parts, params, path, x, tuple)
                y, states = self.chain(named.items(), params, path, x, list)
                return y, dict(zip(named, states, strict=True))
            case combine.stack:
                return self.stack(options, params, path, x)
            case combine.bidirectional:
                both = Pair(options["forward"], options["backward"])
                return self.bidirectional(both, params, path, x)
            case combine.residual:
                y, states = self.layer(options["layer"], params, path, x)
                return self.residual(x, y, path), states
            case combine.recurrent:
                node = cell_node(_place(path), options["cell"], params)
                return self.recurrent([node], [options["reverse"]], [path], path, x)
            case pointwise.linear:
                return self.linear(params, path, x), ()
            case pointwise.embed:
                if options["dtype"] != np.float32:
                    raise ValueError(
                        f"{_place(path)}: embed: dtype: got {options['dtype']}, "
                        "expected float32, in which the model is written."
                    )
                return self.embed(params, path, x), ()
            case pointwise.dropout:
                return self.dropout(options["rate"], path, x), ()
        raise _own_layer(path, layer)

    def chain(
        self,
        parts: Iterable[tuple[Any, Layer]],
        params: Any,
        path: str,
        x: _Data,
        collect: Any,
    ) -> tuple[_Data, Any]:
        """Add layers one after the other."""
        states = []
        for name, layer in parts:
            x, state = self.layer(layer, params[name], _join(path, str(name)), x)
            states.append(state)
        return x, collect(states)

    def stack(
        self, options: dict[str, Any], params: Any, path: str, x: _Data
    ) -> tuple[_Data, Any]:
        """Add the layers of a stack, with dropout between them."""
        states = []
        for n, _ in enumerate(options["sizes"]):
            own, start = _join(path, str(n)), x
            if n > 0 and options["dropout"]:
                x = self.dropout(options["dropout"], own, x)
            if options["bidirectional"]:
                x, state = self.both([options["cell"]] * 2, params[n], own, x)
            else:
                node = cell_node(_place(own), options["cell"], params[n])
                x, state = self.recurrent([node], [False], [own], own, x)
            if n > 0 and options["residual"]:
                x = self.residual(start, x, own)
            states.append(state)
        return x, tuple(states)

    def bidirectional(
        self, both: Pair, params: Any, path: str, x: _Data
    ) -> tuple[_Data, Any]:
        """Add two layers over the same inputs."""
        found = [construction_of(layer) for layer in both]
        functions = [None if one is None else one.function for one in found]
        options = [{} if one is None else one.arguments for one in found]
        if functions == [combine.recurrent] * 2:
            reverse = [option["reverse"] for option in options]
            if reverse == [False, True]:
                both_cells = [option["cell"] for option in options]
                return self.both(both_cells, params, path, x)
        forward, backward = (
            self.layer(layer, params[n], _join(path, Pair._fields[n]), x)
            for n, layer in enumerate(both)
        )
        return self.concatenated(forward[0], backward[0], path), Pair(
            forward[1], backward[1]
        )

    def both(
        self, both_cells: Sequence[Any], params: Any, path: str, x: _Data
    ) -> tuple[_Data, Any]:
        """Add one node of two directions, or two nodes if their attributes differ."""
        paths = [_join(path, name) for name in Pair._fields]
        nodes = [
            cell_node(_place(own), cell, p)
            for own, cell, p in zip(paths, both_cells, params, strict=True)
        ]
        if _fit_one_node(*nodes):
            y, states = self.recurrent(nodes, [False, True], paths, path, x)
            return y, Pair(*states)
        results = [
            self.recurrent([node], [reverse], [own], own, x)
            for node, reverse, own in zip(nodes, (False, True), paths, strict=True)
        ]
        (forward, first), (backward, second) = results
        return self.concatenated(forward, backward, path), Pair(first, second)

    def concatenated(self, x: _Data, y: _Data, path: str) -> _Data:
        """Add the concatenation of features."""
        (name,) = self.add("Concat", [x.name, y.name], path, axis=2)
        size = int(x.size) + int(y.size)
        return _Data(name, size, x.zero_padded and y.zero_padded)

    def residual(self, x: _Data, y: _Data, path: str) -> _Data:
        """Add the sum of input and output."""
        (name,) = self.add("Add", [x.name, y.name], path, name="Residual")
        return _Data(name, y.size, x.zero_padded and y.zero_padded)

    def linear(self, params: Any, path: str, x: _Data) -> _Data:
        """Add `x W + b`."""
        w, b = (np.asarray(leaf, np.float32) for leaf in params)
        inputs = [x.name, self.constant(w, _join(path, "w"))]
        (name,) = self.add("MatMul", inputs, path)
        (name,) = self.add("Add", [name, self.constant(b, _join(path, "b"))], path)
        return _Data(name, w.shape[1])

    def embed(self, params: Any, path: str, x: _Data) -> _Data:
        """Add the table. Padding is replaced by token 0, since it may be any number."""
        table = np.asarray(params.table, np.float32)
        tokens = x.name
        if self.lengths:
            zero = self.constant(np.array(0, np.int64), "constant/scalar_0")
            (tokens,) = self.add("Where", [self.mask(), tokens, zero], path)
        inputs = [self.constant(table, _join(path, "table")), tokens]
        return _Data(self.add("Gather", inputs, path)[0], table.shape[1])

    def function(self, name: str, path: str, x: _Data) -> _Data:
        """Add a function of one step, given by its name in `pointwise.FUNCTIONS`."""

        def add(op: str, *inputs: str | float, **attributes: Any) -> str:
            names = [
                self.constant(np.float32(value), f"constant/float_{value:.9g}")
                if not isinstance(value, str)
                else value
                for value in inputs
            ]
            return self.add(op, names, path, **attributes)[0]

        return _Data(functions.write(name, add, x.name), x.size)

    def dropout(self, rate: float, path: str, x: _Data) -> _Data:
        """Add a node that keeps the rate, and does nothing at inference."""
        ratio = self.constant(np.float32(rate), _join(path, "rate"))
        (name,) = self.add("Dropout", [x.name, ratio], path)
        return x._replace(name=name)

    # -- recurrent nodes ----------------------------------------------------------

    def recurrent(
        self,
        nodes: Sequence[CellNode],
        reverse: Sequence[bool],
        paths: Sequence[str],
        path: str,
        x: _Data,
    ) -> tuple[_Data, Any]:
        """Add a recurrent node of one or two directions."""
        if self.stream and any(reverse):
            raise ValueError(
                f"{_place(path)}: got a layer that runs backward, expected forward "
                "layers only for stream=True: its first output needs the last input."
            )
        first, d = nodes[0], len(nodes)
        inputs: dict[str, str] = dict.fromkeys(INPUTS, "")
        inputs["X"] = x.name
        for name in "WRBP":
            leaves = [getattr(node.weights, name) for node in nodes]
            if leaves[0] is not None:
                inputs[name] = self.constant(np.stack(leaves), _join(path, name))
        if self.lengths:
            inputs["sequence_lens"] = self.lengths
        states, begun = self._initial_states(nodes, paths)
        fields = states[0]._fields
        for field in fields:
            if begun[field]:
                inputs[f"initial_{field}"] = self._joined(
                    begun[field], _join(path, field)
                )
        outputs = self.add(
            first.op,
            _trimmed(inputs.values()),
            path,
            outputs=1 + len(fields),
            **_attributes(nodes, reverse),
        )
        for field, final in zip(fields, outputs[1:], strict=True):
            self._final_states(nodes, states, begun, field, final)
        name = self._features_last(outputs[0], path, d * first.size, d)
        if first.projection is not None:
            w_p = self.constant(first.projection, _join(path, "w_p"))
            (name,) = self.add("MatMul", [name, w_p], path, name="projection/MatMul")
        size = sum(node.output_size for node in nodes)
        return _Data(name, size, zero_padded=True), states if d == 2 else states[0]

    def _features_last(self, y: str, path: str, size: int, d: int) -> str:
        """Return Y `[T, d, B, H]` as `[T, B, d H]`."""
        if d == 1:
            return self.add("Squeeze", [y, self.numbers(1)], path)[0]
        (y,) = self.add("Transpose", [y], path, perm=[0, 2, 1, 3])
        return self.add("Reshape", [y, self.numbers(0, 0, size)], path)[0]

    def _initial_states(
        self, nodes: Sequence[CellNode], paths: Sequence[str]
    ) -> tuple[list[Any], dict[str, list[str]]]:
        """Return the names of the states, and the initial tensors `[B, H]` by field."""
        record: Any = LSTMState if nodes[0].op == "LSTM" else HiddenState
        states, begun = [], {field: [] for field in record._fields}
        for node, path in zip(nodes, paths, strict=True):
            states.append(record(*(_join(path, field) for field in record._fields)))
            for field in record._fields:
                found = self._initial_state(node, _join(path, field), field)
                begun[field] += [found] if found else []
        return states, begun

    def _initial_state(self, node: CellNode, name: str, field: str) -> str | None:
        """Return the initial tensor `[B, H]`; None for zeros."""
        projected = node.projection is not None and field == "h"
        size = node.output_size if projected else node.size
        if self.takes_states:
            self.input(name, "FLOAT", ["B", size])
            if not projected:
                return name
            assert node.projection is not None
            inverse = self.constant(lift(name, node.projection), f"{name}/lift")
            return self.add("MatMul", [name, inverse], name, name="lift/MatMul")[0]
        learned = getattr(node.weights, f"initial_{field}")
        if learned is None:
            return None
        row = self.constant(learned[None], f"{name}/initial")
        (shape,) = self.add(
            "Concat", [self.size_of(1), self.numbers(size)], f"{name}/shape", axis=0
        )
        return self.add("Expand", [row, shape], name)[0]

    def _joined(self, tensors: Sequence[str], name: str) -> str:
        """Return the initial states of the directions as one tensor `[d, B, H]`."""
        rows = [
            self.add("Unsqueeze", [tensor, self.numbers(0)], name)[0]
            for tensor in tensors
        ]
        return rows[0] if len(rows) == 1 else self.add("Concat", rows, name, axis=0)[0]

    def _final_states(
        self,
        nodes: Sequence[CellNode],
        states: Sequence[Any],
        begun: dict[str, list[str]],
        field: str,
        final: str,
    ) -> None:
        """Make the final state of each direction an output."""
        for n, (node, state) in enumerate(zip(nodes, states, strict=True)):
            name = getattr(state, field)
            index = self.constant(np.array(n, np.int64), f"constant/scalar_{n}")
            (tensor,) = self.add("Gather", [final, index], f"{name}_out", axis=0)
            if self.lengths and begun[field]:
                tensor = self._kept(tensor, begun[field][n], f"{name}_out")
            size = node.size
            if node.projection is not None and field == "h":
                w_p, size = (
                    self.constant(node.projection, f"{name}/w_p"),
                    node.output_size,
                )
                (tensor,) = self.add("MatMul", [tensor, w_p], f"{name}_out")
            self.output(tensor, f"{name}_out", ["B", size])

    def _kept(self, tensor: str, begun: str, name: str) -> str:
        """Keep the initial state of rows of length 0: onnxruntime returns zeros."""
        if "empty" not in self.shared:
            assert self.lengths is not None
            zero = self.constant(np.array(0, np.int32), "constant/no_steps")
            (empty,) = self.add("Equal", [self.lengths, zero], "", name="empty/Equal")
            (empty,) = self.add(
                "Unsqueeze", [empty, self.numbers(1)], "", name="empty/Unsqueeze"
            )
            self.shared["empty"] = empty
        return self.add("Where", [self.shared["empty"], begun, tensor], name)[0]


def _attributes(nodes: Sequence[CellNode], reverse: Sequence[bool]) -> dict[str, Any]:
    """Return the attributes of a node of these directions."""
    first = nodes[0]
    attributes = {"hidden_size": first.size, **first.options}
    if any(reverse):
        attributes["direction"] = "bidirectional" if len(nodes) == 2 else "reverse"
    functions = [one for node in nodes for one in node.activations]
    if tuple(functions) != cells.default_activations(first.op) * len(nodes):
        attributes["activations"] = [one.name for one in functions]
        for n, key in enumerate(("activation_alpha", "activation_beta")):
            numbers = [one.numbers[n] for one in functions if len(one.numbers) > n]
            if numbers:
                attributes[key] = numbers
    return attributes


def _fit_one_node(forward: CellNode, backward: CellNode) -> bool:
    """Return whether one bidirectional node can have both directions."""

    def kinds(node: CellNode) -> Any:
        return [leaf is None for leaf in node.weights]

    return (
        (forward.op, forward.size, forward.options)
        == (backward.op, backward.size, backward.options)
        and kinds(forward) == kinds(backward)
        and forward.projection is None
        and backward.projection is None
    )


def _trimmed(names: Iterable[str]) -> list[str]:
    """Return the inputs without absent ones at the end."""
    found = list(names)
    while found and not found[-1]:
        found.pop()
    return found


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _place(path: str) -> str:
    return f"onnx.dump: {path}" if path else "onnx.dump"


def _own_layer(path: str, layer: Any) -> ValueError:
    kind = "layer" if isinstance(layer, Layer) else "function"
    known = "layers of jaxlstm" if kind == "layer" else "functions of jax.nn"
    return ValueError(
        f"{_place(path)}: got a {kind} of your own, expected {known}; jax.export "
        "writes any layer, as StableHLO."
    )


def _inner(path: str, layer: Layer, params: Any) -> Iterable[tuple[str, Layer, Any]]:
    """Yield path, layer and params of the layers inside, the first one first.

    The layers after a first one may read its outputs, if it has no weights.

    Raises:
        ValueError: the layer was not made by a constructor of this package.
    """
    if isinstance(layer, str):  # a function of jax.nn
        return
    construction = construction_of(layer)
    if construction is None:
        raise _own_layer(path, layer)
    function, options = construction
    match function:
        case combine.serial:
            named = options.get("named") or {}
            parts = named.items() if named else enumerate(options["layers"])
            for name, part in parts:
                yield _join(path, str(name)), part, params[name]
        case combine.stack:
            first = combine.recurrent(options["cell"], options["sizes"][0])
            own = params[0].forward if options["bidirectional"] else params[0]
            yield _join(path, "0"), first, own
        case combine.bidirectional:
            yield _join(path, "forward"), options["forward"], params[0]
        case combine.residual:
            yield path, options["layer"], params


def _vocabulary(path: str, layer: Layer, params: Any) -> int | None:
    """Return the number of tokens that the first layer reads; None for features."""
    construction = construction_of(layer)
    if construction is not None and construction.function is pointwise.embed:
        return len(params.table)
    for part in _inner(path, layer, params):
        return _vocabulary(*part)
    return None


def _features(layer: Layer, params: Any) -> int:
    """Return the number of features that the layer reads.

    Raises:
        ValueError: no layer inside tells.
    """
    found = _find_features("", layer, params)
    if found is None:
        raise ValueError(
            "onnx.dump: got a model without weights, expected a recurrent or linear "
            "layer in it."
        )
    return found


def _find_features(path: str, layer: Layer, params: Any) -> int | None:
    parts = list(_inner(path, layer, params))
    function, options = construction_of(layer) or (None, {})
    if function is combine.recurrent:
        _, own, _ = cells.unwrap(_place(path), options["cell"], params)
        return own.w_x.shape[0]
    if function is pointwise.linear:
        return params.w.shape[0]
    sizes = (_find_features(*part) for part in parts)
    return next((size for size in sizes if size is not None), None)


def _check_params(layer: Layer, params: Any, features: int | None) -> None:
    """Check that the layer runs with the params, without running it."""
    kind = np.int32 if features is None else np.float32
    shape = (1, 1) if features is None else (1, 1, features)
    xs = jax.ShapeDtypeStruct(shape, kind)
    jax.eval_shape(lambda params, xs: layer.apply(params, xs), params, xs)
