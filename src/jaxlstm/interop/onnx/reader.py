"""Models read from ONNX files.

The graph is walked once, in its order. Every tensor has one of these values:

    Constant    an array that does not depend on the data
    Stream      the data, and the layers that they have passed
    States      final states of recurrent nodes
    Other       anything else, with the reason why it is not a layer's output

`Other` is an error only where the model needs the tensor. Axes of a stream are followed
by name: an axis is a product of elementary axes, those of size 1 left out. A Reshape or
Transpose that keeps them whole mixes neither steps nor rows nor features. Free sizes of
the inputs are replaced by numbers, since exporters compute shapes inside the graph.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.interop.onnx import assemble, constants, functions, nodes
from jaxlstm.interop.onnx.assemble import Entry
from jaxlstm.interop.onnx.graph import FilePorts, Graph, Input, Node, read_graph
from jaxlstm.interop.onnx.nodes import NodeWeights
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams, LinearParams, dropout, embed, linear
from jaxlstm.layers.recurrent import recurrent

Axis = tuple[str, ...]

FREE_SIZES = (11, 13, 17, 19, 23, 29, 31)  # numbers for the free sizes of inputs
NOT_READ = (
    "recurrence that an exporter wrote as Loop, Scan or single steps is not read: "
    "export nn.LSTM, nn.GRU or nn.RNN of torch with dynamo=False, or take the weights "
    "with the reader of the other library."
)
LEAST_LIMIT = 2**20  # elements that a computed constant may always have
LEAST_TOTAL = 2**24  # elements that all of them may always have together

MOVES = {
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"),
    *("Split", "Squeeze", "Transpose", "Unsqueeze"),
}


class Constant(NamedTuple):
    """An array; `sized` if it depends on sizes or lengths of the data."""

    array: np.ndarray
    sized: bool = False


class Stream(NamedTuple):
    """Data on their way through the layers.

    Attributes:
        axes: the elementary axes of each axis, in order, without those of size 1.
        features: the elementary axes that make up the features, in order.
        entries: the layers so far.
        source: the tensor that the data began as.
        last: whether only the last step is left.
    """

    axes: tuple[Axis, ...]
    features: Axis
    entries: tuple[Entry, ...]
    source: str
    last: bool = False


class States(NamedTuple):
    """Final states `[n, *b, H]` of recurrent layers, one stream for each of the n.

    Attributes:
        parts: the state as the last step of a stream `[*b, H]`; None if it is not.
        axes: the axes after the first.
        single: whether the first axis has been removed.
    """

    parts: tuple[Stream | None, ...]
    axes: tuple[Axis, ...]


class Other(NamedTuple):
    """A tensor that is no layer's output.

    Attributes:
        reason: a sentence, for the case that the model needs it.
        origin: 0 for inputs only, 1 for final states too, 2 for outputs of layers.
        moved: whether it was only moved, never computed with.
    """

    reason: str
    origin: int
    moved: bool


Value = Constant | Stream | States | Other | None


def load(
    source: Any, *, prefix: str = "", output: str | None = None
) -> tuple[Any, Layer]:
    """Return params and model of an ONNX file with LSTM, GRU or RNN nodes.

    The model is made of `embed`, `recurrent`, `bidirectional`, `residual`, `linear` and
    `dropout` layers, and has the names that the nodes have. It is always time-major,
    `xs [T, *b, D]` or tokens `[T, *b]`, whatever the file does.

    - A tensor of lengths in the file is the argument `lengths`, initial states are the
      argument `state`, final states are the state that `apply` returns.
    - If the file returns the last step only, the model returns every step: the file's
      output is `ys[-1]`, or with lengths that at the last step of each row.
    - A row of length 0 ends in the state it began with; in onnxruntime, in zeros.
    - Weights keep their dtype; float64 needs JAX's x64.

    All attributes of the nodes are read. Everything that does not correspond to a layer
    is refused with the name of the node.

    Args:
        source: a path, or an `onnx.ModelProto` without external data. External data
            are read from the folder of the file only.
        prefix: read only the nodes whose names begin with it; their input is the data.
        output: tensor at which the model ends, for example the input of a Softmax;
            None for the graph's first output of a layer.

    Raises:
        ValueError: the file is damaged, or not made of such layers.
        ImportError: onnx is not installed.

    Example:
        >>> import jaxlstm as jl
        >>> params, model = jl.interop.onnx.load("lstm.onnx")  # doctest: +SKIP
        >>> state, ys = model.apply(params, xs)  # doctest: +SKIP
    """
    return build(read_graph(source), prefix=prefix, output=output)


def build(
    graph: Graph, *, prefix: str = "", output: str | None = None
) -> tuple[Any, Layer]:
    """Return params and model of a graph, as `load`.

    Raises:
        ValueError: as `load`.
    """
    if not any(node.op in nodes.GATES for node in graph.nodes):
        raise ValueError(f"onnx.load: got no node LSTM, GRU or RNN; {NOT_READ}")
    walk = _Walk(graph, prefix, output)
    entries = walk.main_output().entries
    if not any(entry.sizes for entry in _all(entries)):
        raise ValueError(
            "onnx.load: got a model without a node LSTM, GRU or RNN on the way to its "
            f"output; {NOT_READ}"
        )
    found = list(entries)
    if graph.producer != "jaxlstm":
        found = assemble.without_common(found)
    params, model = assemble.assemble(found)
    return jax.tree.map(jnp.asarray, params), model


def ports(source: Any) -> FilePorts:
    """Return the inputs and the output of a file, and the order of their axes.

    Args:
        source: as for `load`.

    Raises:
        ValueError: the model ends at a tensor that is no output of the file; or as
            `load`.
    """
    graph = read_graph(source)
    walk = _Walk(graph, "", None)
    stream = walk.main_output()
    names = [name for name in graph.outputs if walk.values.get(name) is stream]
    if not names:
        raise ValueError("onnx: got a model that ends at a tensor inside the file")
    data = next(info for info in graph.inputs if info.name == stream.source)
    frame = walk.frames[stream.source]
    axes = [axis for axis in stream.axes if axis]
    time, batch = (axes.index(axis) if axis in axes else None for axis in frame)
    lengths = tuple(i.name for i in graph.inputs if i.name in walk.lengths)
    return FilePorts(
        data,
        _order(data, frame),
        lengths,
        tuple(i for i in graph.inputs if i.name not in (data.name, *lengths)),
        names[0],
        (None if stream.last else time, batch),
        stream.last,
    )


def _order(data: Input, frame: tuple[Axis, Axis]) -> tuple[int, ...]:
    """Return the places of steps, rows and features in an input."""
    found = [int(axis[0].rpartition(".")[2]) if axis else None for axis in frame]
    free = [place for place in range(2) if place not in found]
    time, batch = (free.pop(0) if place is None else place for place in found)
    return (time, batch) if data.is_integer else (time, batch, 2)


def _all(entries: Iterable[Entry]) -> Iterable[Entry]:
    for entry in entries:
        yield entry
        yield from _all(entry.inner)


class _Walk:
    """The values of all tensors of a graph that its outputs need."""

    def __init__(self, graph: Graph, prefix: str, output: str | None) -> None:
        self.graph, self.prefix, self.output = graph, prefix, output
        self.sizes: dict[str, int] = {}  # of the elementary axes
        self.frames: dict[str, tuple[Axis, Axis]] = {}  # T and B of each source
        self.values: dict[str, Value] = {"": None}
        weights = sum(a.size for a in graph.constants.values() if a is not None)
        self.limit = max(LEAST_LIMIT, 4 * weights)
        self.total = max(LEAST_TOTAL, 16 * weights)
        for name, array in graph.constants.items():
            self.values[name] = (
                Other(f"initializer {name!r} holds no numbers", 0, False)
                if array is None
                else Constant(array)
            )
        self._check_names()
        self.lengths = self._names_of(4)
        self._add_inputs()
        for node in self._needed():
            self._add(node)

    # -- names --------------------------------------------------------------------

    def _check_names(self) -> None:
        names = [node.name for node in self.graph.nodes if node.op in nodes.GATES]
        if self.prefix and not any(map(self._is_chosen, self.graph.nodes)):
            raise ValueError(
                f"onnx.load: prefix: got {self.prefix!r}, which begins no node's name; "
                f"the recurrent nodes are {', '.join(map(repr, names)) or 'none'}."
            )
        produced = {name for node in self.graph.nodes for name in node.outputs}
        if self.output is not None and self.output not in produced - {""}:
            raise ValueError(
                f"onnx.load: output: got {self.output!r}, which no node computes; the "
                f"graph's outputs are {', '.join(map(repr, self.graph.outputs))}."
            )

    def _is_chosen(self, node: Node) -> bool:
        return node.name.removeprefix("/").startswith(self.prefix.removeprefix("/"))

    def _names_of(self, place: int) -> set[str]:
        """Return the graph's inputs that recurrent nodes read at one place."""
        read = {
            node.inputs[place]
            for node in self.graph.nodes
            if node.op in nodes.GATES and len(node.inputs) > place
        }
        return read & {i.name for i in self.graph.inputs}

    def _ends(self) -> Sequence[str]:
        """Return the tensors at which the model may end."""
        if self.output is not None:
            return (self.output,)
        if self.graph.producer != "jaxlstm":
            return self.graph.outputs
        # The writer names final states like this.
        return [name for name in self.graph.outputs if not name.endswith("_out")]

    def _needed(self) -> list[Node]:
        """Return the nodes on which the output depends, in their order."""
        if self.prefix:
            return list(self.graph.nodes)
        needed, found = set(self._ends()), []
        for node in reversed(self.graph.nodes):
            if needed & set(node.outputs):
                needed |= set(node.inputs)
                found.append(node)
        return found[::-1]

    # -- inputs -------------------------------------------------------------------

    def _add_inputs(self) -> None:
        """Give each input its axes; equal names of free sizes are equal sizes."""
        free = iter(FREE_SIZES)
        sizes: dict[str, int] = {}
        for info in self.graph.inputs:
            shape = self._shape(info)
            for n, size in enumerate(shape):
                key = size if isinstance(size, str) else f"{info.name}.{n}"
                if not isinstance(size, int) and key not in sizes:
                    sizes[key] = next(free, FREE_SIZES[-1])
            shape = tuple(
                size
                if isinstance(size, int)
                else sizes[size if isinstance(size, str) else f"{info.name}.{n}"]
                for n, size in enumerate(shape)
            )
            if info.name in self.lengths and len(shape) == 1:
                if shape[0] > self.limit:
                    raise ValueError(
                        f"onnx.load: input {info.name!r}: got a size of {shape[0]}, "
                        f"expected at most {self.limit}."
                    )
                counts = np.arange(shape[0], dtype=np.int32) % (FREE_SIZES[0] + 1)
                self.values[info.name] = Constant(counts, sized=True)
            else:
                self.values[info.name] = self._stream(info.name, shape)

    def _shape(self, info: Input) -> tuple[int | str | None, ...]:
        """Return the shape, with what the reading node says where the file does not."""
        tokens = any(
            node.op == "Gather" and node.inputs[1:2] == (info.name,)
            for node in self.graph.nodes
        )
        rank = 1 if info.name in self.lengths else 2 if tokens else 3
        shape = (None,) * rank if info.shape is None else info.shape
        if len(shape) == 3 and not isinstance(shape[2], int):
            shape = (*shape[:2], self._features() or shape[2])
        return shape

    def _features(self) -> int | None:
        """Return the features that the first recurrent node reads."""
        for node in self.graph.nodes:
            if node.op in nodes.GATES and len(node.inputs) > 1:
                w = self.graph.constants.get(node.inputs[1])
                return None if w is None or w.ndim != 3 else w.shape[2]
        return None

    def _stream(self, name: str, shape: Sequence[int]) -> Stream:
        axes = tuple(self.axis(f"{name}.{n}", size) for n, size in enumerate(shape))
        return Stream(axes, axes[-1] if axes else (), (), name)

    def axis(self, name: str, size: int) -> Axis:
        """Return a new elementary axis; of size 1 it is left out."""
        if size == 1:
            return ()
        self.sizes[name] = size
        return (name,)

    def size(self, axis: Axis) -> int:
        """Return the product of the sizes of elementary axes."""
        return math.prod(self.sizes[name] for name in axis)

    # -- nodes --------------------------------------------------------------------

    def _add(self, node: Node) -> None:
        inputs = [self.values[name] for name in node.inputs]
        if self.prefix and not self._is_chosen(node) and not _constant(inputs):
            outputs: Sequence[Value] = [
                Other(f"{node} is outside the prefix {self.prefix!r}", 0, True)
                for _ in node.outputs
            ]
        else:
            outputs = self._outputs(node, inputs)
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                self.values[name] = value
        for name in node.outputs[len(outputs) :]:
            if name:
                self.values[name] = self._refuse(node, inputs, "has this output")

    def _outputs(self, node: Node, inputs: list[Value]) -> Sequence[Value]:
        if _constant(inputs):
            arrays = [i.array if isinstance(i, Constant) else None for i in inputs]
            folded = constants.fold(node, arrays, self.limit)
            if folded is not None:
                self.total -= sum(array.size for array in folded)
                if self.total < 0:
                    raise ValueError(
                        f"onnx.load: {node}: got computed constants that are much "
                        "larger than the weights of the file; expected the weights "
                        "themselves: export with constant folding."
                    )
                sized = any(i.sized for i in inputs if isinstance(i, Constant))
                return [Constant(array, sized) for array in folded]
        if node.op in nodes.GATES:
            return self._recurrent(node, inputs)
        handler = HANDLERS.get(node.op)
        found = None
        if handler is not None:
            try:
                found = handler(self, node, *inputs)
            except _Refused as error:
                raise ValueError(str(error)) from None
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
            ):
                found = None  # inputs or attributes that the operation does not take
        if found is None:
            return [self._refuse(node, inputs) for _ in node.outputs]
        return found if isinstance(found, list) else [found]

    def _refuse(self, node: Node, inputs: Iterable[Value], why: str = "") -> Other:
        """Return the value of a node that is no layer."""
        inputs = list(inputs)
        for value in inputs:
            if isinstance(value, Other) and not value.moved:
                return value
        origin = max((_origin(value) for value in inputs), default=0)
        reason = why or REASONS.get(node.op, "is not one of jaxlstm's layers here")
        if origin == 1:
            reason = (
                "reads final states, and a layer of jaxlstm maps every step; apply it "
                "to the state that the model returns"
            )
        still = all(
            isinstance(value, Constant | States | None)
            or (isinstance(value, Stream) and not value.entries)
            or (isinstance(value, Other) and value.moved)
            for value in inputs
        )
        # A choice between states by lengths is a move as well: rows of length 0.
        moves = node.op in MOVES or (
            node.op == "Where" and isinstance(inputs[0], Constant)
        )
        return Other(f"{node} {reason}", origin, moves and still)

    # -- recurrent nodes ----------------------------------------------------------

    def _recurrent(self, node: Node, inputs: list[Value]) -> Sequence[Value]:
        place = f"onnx.load: {node}"
        values: dict[str, Value] = dict(zip(nodes.INPUTS, inputs, strict=False))
        layout = node.attributes.get("layout", 0)
        if layout not in (0, 1):
            raise ValueError(f"{place}: layout: got {layout}, expected 0 or 1.")
        w, r, b, p = (self._weight(node, name, values.get(name)) for name in "WRBP")
        if w is None or r is None:
            raise ValueError(f"{place}: got no W or no R, expected both.")
        h, c = (
            self._initial(node, name, values.get(name), layout)
            for name in ("initial_h", "initial_c")
        )
        weights = NodeWeights(w, r, b, p, h, c)
        directions = nodes.directions_of(place, node.op, node.attributes, weights)
        x = self.data(values.get("X"))
        if not isinstance(x, Stream):
            reason = x.reason if isinstance(x, Other) else "is a constant"
            return [Other(reason, _origin(x), False) for _ in node.outputs]
        if len(x.axes) != 3 or x.axes[2] != x.features or x.last:
            return [self._refuse(node, [x], "reads data that are not [T, B, D]")] * len(
                node.outputs
            )
        features = w.shape[2]
        if self.size(x.features) != features:
            raise ValueError(
                f"{place}: got {self.size(x.features)} features, expected {features}, "
                f"since W is {list(w.shape)}."
            )
        frame = x.axes[:2] if layout == 0 else (x.axes[1], x.axes[0])
        if self.frames.setdefault(x.source, frame) != frame:
            raise ValueError(
                f"{place}: runs over another axis than the recurrent nodes before it; "
                "expected one axis of time."
            )
        self._check_lengths(node, values.get("sequence_lens"), frame)
        return self._run(node, x, directions, layout)

    def _run(
        self, node: Node, x: Stream, directions: list, layout: int
    ) -> Sequence[Value]:
        """Return Y and the final states."""
        path = assemble.path_of(node.name)
        parts = []
        for d in directions:
            layer = recurrent(d.cell, d.size, reverse=d.reverse)
            signed = (-d.size if d.reverse else d.size,)
            parts.append(Entry(path, layer, d.params, d.cell, signed))
        entry = parts[0]
        if len(parts) == 2:
            both = assemble.both_directions(path, parts[:1], parts[1:])
            assert both is not None
            entry = both
        d = self.axis(f"{node.name}.directions", len(parts))
        h = self.axis(f"{node.name}.units", directions[0].size)
        (t, b), entries = self.frames[x.source], (*x.entries, entry)
        axes = (t, d, b, h) if layout == 0 else (b, t, d, h)
        y = Stream(axes, d + h, entries, x.source)
        forward = len(parts) == 1 and not directions[0].reverse
        last = Stream((b, h), h, entries, x.source, last=True) if forward else None
        if layout == 1:
            final = self._refuse(node, [], "has final states of layout 1")._replace(
                origin=1, moved=True
            )
            return [y, final, final]
        h_states = States((last,) if forward else (None,) * len(parts), (b, h))
        c_states = States((None,) * len(parts), (b, h))
        return [y, h_states, c_states]

    def data(self, value: Value) -> Value:
        """Return the value, as new data if it comes from outside the prefix."""
        outside = self.prefix and isinstance(value, Other) and value.origin == 0
        if not outside:
            return value
        name = f"outside {len(self.frames)}"
        t, b = FREE_SIZES[:2]
        return self._stream(name, (t, b, self._features() or 1))

    def _weight(self, node: Node, name: str, value: Value) -> np.ndarray | None:
        if value is None:
            return None
        if not isinstance(value, Constant) or value.sized:
            raise ValueError(
                f"onnx.load: {node}: {name}: got a tensor that depends on the inputs "
                "of the graph, expected a constant."
            )
        return value.array

    def _initial(
        self, node: Node, name: str, value: Value, layout: int
    ) -> np.ndarray | None:
        """Return the initial state `[d, H]` if it is constant and not zero."""
        if isinstance(value, Constant):
            array = value.array if layout == 0 else np.moveaxis(value.array, 0, 1)
            if array.ndim != 3:
                raise ValueError(
                    f"onnx.load: {node}: {name}: got the shape "
                    f"{list(value.array.shape)}, expected three axes."
                )
            if not array.any():
                return None
            if (array != array[:, :1]).any():
                raise ValueError(
                    f"onnx.load: {node}: {name}: got a constant with unequal rows, "
                    "expected one state for all rows of a batch, or an input."
                )
            return array[:, 0]
        moved = value is None or (isinstance(value, Other) and value.moved)
        is_input = isinstance(value, Stream) and not value.entries
        if not (is_input or moved) or _origin(value) > 0:
            raise ValueError(
                f"onnx.load: {node}: {name} is computed by other nodes; expected an "
                "input of the graph or a constant, since a layer takes its initial "
                "state as an argument."
            )
        return None

    def _check_lengths(self, node: Node, value: Value, frame: tuple) -> None:
        if value is None or node.inputs[4] in self.lengths:
            return
        if isinstance(value, Constant) and (value.array == self.size(frame[0])).all():
            return  # every row has all steps
        raise ValueError(
            f"onnx.load: {node}: sequence_lens is fixed or computed in the graph; "
            "expected an input of the graph, since a layer takes lengths as an "
            "argument."
        )

    # -- output -------------------------------------------------------------------

    def main_output(self) -> Stream:
        """Return the stream that the model computes.

        Raises:
            ValueError: there is none, or an output is not computed by layers.
        """
        if self.prefix and self.output is None:
            streams = [v for v in self.values.values() if isinstance(v, Stream)]
            streams = [stream for stream in streams if stream.entries]
            if not streams:
                self._raise_other(self.values.values())
            return max(streams, key=lambda stream: len(stream.entries))
        names = self._ends()
        values = [self.values[name] for name in names]
        streams = [v for v in values if isinstance(v, Stream) and v.entries]
        computed = [
            v for v in values if isinstance(v, Other) and not (v.moved and v.origin < 2)
        ]
        if computed:
            self._raise_other(computed)
        states = [v for v in values if isinstance(v, States)]
        streams += [p for v in states for p in v.parts if p is not None and not streams]
        if not streams:
            streams = [
                v
                for v in self.values.values()
                if isinstance(v, Stream) and any(e.sizes for e in v.entries)
            ]
        if not streams:
            self._raise_other(self.values.values())
        if not streams[0].last:  # the last h of a recurrent layer is no branch
            streams = [s for s in streams if not s.last or s.entries[-1].cell is None]
        longest = max(streams, key=lambda stream: len(stream.entries))
        for stream in streams:
            if not _same(stream.entries, longest.entries[: len(stream.entries)]):
                raise ValueError(
                    "onnx.load: got outputs of several branches, expected one chain of "
                    f"layers; choose one of {', '.join(map(repr, names))} with output=."
                )
        return streams[0]

    def _raise_other(self, values: Iterable[Value]) -> None:
        reasons = [v.reason for v in values if isinstance(v, Other)]
        named = [r for r in reasons if "outside the prefix" not in r] or reasons
        reason = named[0] if named else "the graph has no recurrent node"
        raise ValueError(
            f"onnx.load: {reason}; choose the part before it with output=, or the "
            "recurrent nodes with prefix=."
        )


class _Refused(ValueError):
    """An error of a handler that is not about the kind of its inputs."""


def _constant(inputs: Iterable[Value]) -> bool:
    return all(value is None or isinstance(value, Constant) for value in inputs)


def _origin(value: Value) -> int:
    match value:
        case Stream():
            return 2 if value.entries else 0
        case States():
            return 1
        case Other():
            return value.origin
    return 0


def _same(entries: Sequence[Entry], others: Sequence[Entry]) -> bool:
    """Return whether these are the same layers, and not only equal ones."""
    pairs = zip(entries, others, strict=False)
    return len(entries) == len(others) and all(a is b for a, b in pairs)


def _numbers(value: Value) -> np.ndarray:
    """Return the array of a constant input.

    Raises:
        TypeError: it is not one.
    """
    if not isinstance(value, Constant):
        raise TypeError
    return value.array


# -- operations on streams: None for a use that is no layer ---------------------------


def _identity(walk: _Walk, node: Node, x: Value, *rest: Value) -> Value:
    return x


def _cast(walk: _Walk, node: Node, x: Value) -> Value:
    """Accept casts of tokens, and of features to float32."""
    to = node.attributes.get("to")
    before = isinstance(x, Stream) and not x.entries
    return x if to == 1 or (before and to in (6, 7)) else None


def _shape_of(walk: _Walk, node: Node, x: Value) -> Value:
    if isinstance(x, States):
        sizes = [len(x.parts), *map(walk.size, x.axes)]
    elif isinstance(x, Stream):
        sizes = list(map(walk.size, x.axes))
    else:
        return None
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return Constant(np.array(sizes[start:end], np.int64), sized=True)


def _transpose(walk: _Walk, node: Node, x: Value) -> Value:
    if not isinstance(x, Stream):
        return None
    perm = node.attributes.get("perm") or range(len(x.axes))[::-1]
    if sorted(perm) != list(range(len(x.axes))):
        return None
    return x._replace(axes=tuple(x.axes[n] for n in perm))


def _squeeze(walk: _Walk, node: Node, x: Value, axes: Value = None) -> Value:
    given = None if axes is None else _numbers(axes)
    chosen = constants.axes_of(node.attributes, given)
    if isinstance(x, States):
        if chosen == (0,) and len(x.parts) == 1:
            return x.parts[0]
        return None
    if not isinstance(x, Stream):
        return None
    rank = len(x.axes)
    if chosen is None:
        gone = {n for n in range(rank) if not x.axes[n]}
    else:
        gone = {n % rank for n in chosen}
    if any(x.axes[n] for n in gone):
        return None
    return x._replace(axes=tuple(a for n, a in enumerate(x.axes) if n not in gone))


def _unsqueeze(walk: _Walk, node: Node, x: Value, axes: Value = None) -> Value:
    if not isinstance(x, Stream):
        return None
    given = None if axes is None else _numbers(axes)
    chosen = constants.axes_of(node.attributes, given) or ()
    new = list(x.axes)
    for n in sorted(axis % (len(x.axes) + len(chosen)) for axis in chosen):
        new.insert(n, ())
    return x._replace(axes=tuple(new))


def _reshape(walk: _Walk, node: Node, x: Value, shape: Value) -> Value:
    if not isinstance(x, Stream):
        return None
    old = tuple(map(walk.size, x.axes))
    zeros = bool(node.attributes.get("allowzero", 0))
    return _regroup(walk, x, constants.target_shape(old, _numbers(shape), zeros=zeros))


def _flatten(walk: _Walk, node: Node, x: Value) -> Value:
    if not isinstance(x, Stream):
        return None
    n = node.attributes.get("axis", 1)
    head, tail = x.axes[:n], x.axes[n:]
    return x._replace(axes=(sum(head, ()), sum(tail, ())))


def _regroup(walk: _Walk, x: Stream, target: Sequence[int]) -> Stream | None:
    """Return the stream in another shape; None if that splits an elementary axis."""
    names = [name for axis in x.axes for name in axis]
    new = []
    for size in target:
        axis: Axis = ()
        while walk.size(axis) < size and names:
            axis = (*axis, names.pop(0))
        if walk.size(axis) != size:
            return None
        new.append(axis)
    return None if names else x._replace(axes=tuple(new))


def _gather(walk: _Walk, node: Node, x: Value, indices: Value) -> Value:
    axis = node.attributes.get("axis", 0)
    if isinstance(x, Constant):
        return _embed(walk, node, x, indices) if axis == 0 else None
    index = _numbers(indices)
    if index.size != 1 or index.ndim > 1:
        return None
    keep = slice(None, None) if index.ndim else 0
    return _select(walk, x, axis, int(index.ravel()[0]), keep_axis=keep != 0)


def _select(walk: _Walk, x: Value, axis: int, index: int, *, keep_axis: bool) -> Value:
    """Return one step, direction or layer."""
    if isinstance(x, States):
        if axis % (1 + len(x.axes)) != 0:
            return None
        part = x.parts[index]
        return x._replace(parts=(part,)) if keep_axis else part
    if not isinstance(x, Stream):
        return None
    n = axis % len(x.axes)
    size = walk.size(x.axes[n])
    new = (*x.axes[:n], *([()] if keep_axis else []), *x.axes[n + 1 :])
    if size == 1 and index in (0, -1):
        return x._replace(axes=new)
    time = walk.frames.get(x.source, ((), ()))[0]
    is_last = index in (-1, size - 1) and x.entries and x.axes[n] == time
    return x._replace(axes=new, last=True) if is_last else None


def _embed(walk: _Walk, node: Node, table: Constant, x: Value) -> Value:
    x = walk.data(x)
    if not isinstance(x, Stream) or x.entries or table.array.ndim != 2 or table.sized:
        return None
    if not jnp.issubdtype(table.array.dtype, jnp.floating):
        return None
    vocabulary, size = table.array.shape
    layer = embed(vocabulary, size, dtype=table.array.dtype)
    entry = Entry(
        assemble.path_of(node.name),
        layer,
        EmbedParams(table.array),  # pyright: ignore
    )
    axis = walk.axis(f"{node.name}.size", size)
    return Stream((*x.axes, axis), axis, (entry,), x.source)


def _slice(walk: _Walk, node: Node, x: Value, *rest: Value) -> Value:
    given = [None if value is None else _numbers(value) for value in rest]
    parts = constants.slices(node.attributes, *given)
    for axis, part in parts.items():
        if not isinstance(x, Stream | States):
            return None
        sizes = [*map(walk.size, x.axes)]
        sizes = [len(x.parts), *sizes] if isinstance(x, States) else sizes
        kept = range(sizes[axis])[part]
        if len(kept) == sizes[axis] and part.step == 1:
            continue
        if len(kept) != 1:
            return None
        x = _select(walk, x, axis, kept[0], keep_axis=True)
    return x


def _split(walk: _Walk, node: Node, x: Value, *rest: Value) -> Any:
    """Split the axis of layers of final states."""
    if not isinstance(x, States) or node.attributes.get("axis", 0) != 0:
        return None
    if len(node.outputs) != len(x.parts):
        return None
    return [x._replace(parts=(part,)) for part in x.parts]


def _matmul(walk: _Walk, node: Node, x: Value, w: Value) -> Value:
    if not isinstance(x, Stream) or not isinstance(w, Constant) or w.sized:
        return None
    return _linear(walk, node, x, w.array, None)


def _gemm(walk: _Walk, node: Node, x: Value, w: Value, c: Value = None) -> Value:
    if not isinstance(x, Stream) or not isinstance(w, Constant) or w.sized:
        return None
    attributes = node.attributes
    if attributes.get("transA", 0) or len(x.axes) != 2:
        return None
    matrix = w.array.T if attributes.get("transB", 0) else w.array
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    matrix = matrix if alpha == 1 else (alpha * matrix).astype(matrix.dtype)
    if c is None:
        return _linear(walk, node, x, matrix, None)
    if not isinstance(c, Constant) or c.sized:
        return None
    b = _bias(c.array, matrix.shape[1])
    if b is None:
        return None
    b = b if beta == 1 else (beta * b).astype(b.dtype)
    return _linear(walk, node, x, matrix, b)


def _bias(array: np.ndarray, size: int) -> np.ndarray | None:
    """Return a bias `[size]`; None if the array is not the same for every row."""
    if array.size not in (1, size) or array.shape[-1:] not in ((), (1,), (size,)):
        return None
    return np.broadcast_to(array.ravel(), size).copy()


def _linear(
    walk: _Walk, node: Node, x: Stream, w: np.ndarray, b: np.ndarray | None
) -> Value:
    if w.ndim != 2 or x.axes[-1] != x.features:
        return None
    if not jnp.issubdtype(w.dtype, jnp.floating) or 0 in w.shape:
        return None
    if walk.size(x.features) != w.shape[0]:
        raise _Refused(
            f"onnx.load: {node}: got {walk.size(x.features)} features, expected "
            f"{w.shape[0]}, since the matrix is {list(w.shape)}."
        )
    size = w.shape[1]
    bias = np.zeros(size, w.dtype) if b is None else b
    params = LinearParams(w, bias)  # pyright: ignore
    entry = Entry(assemble.path_of(node.name), linear(size), params)
    axis = walk.axis(f"{node.name}.size", size)
    return x._replace(
        axes=(*x.axes[:-1], axis), features=axis, entries=(*x.entries, entry)
    )


def _add(walk: _Walk, node: Node, x: Value, y: Value) -> Value:
    if isinstance(x, Constant):
        x, y = y, x
    if not isinstance(x, Stream):
        return None
    if isinstance(y, Constant) and not y.sized:
        return _add_bias(walk, x, y.array)
    if not isinstance(y, Stream):
        return None
    short, long = sorted((x, y), key=lambda stream: len(stream.entries))
    n = len(short.entries)
    is_residual = (
        n < len(long.entries)
        and _same(short.entries, long.entries[:n])
        and (short.source, short.last) == (long.source, long.last)
        and _plain(short) == _plain(long)
        and walk.size(short.features) == walk.size(long.features)
    )
    if not is_residual:
        return None
    inner = long.entries[n:]
    path = assemble.path_of(node.name)
    if walk.graph.producer != "jaxlstm":
        path = inner[0].path
    outer = Entry(path, inner[0].layer, None, inner=inner)
    return long._replace(entries=(*short.entries, outer))


def _plain(x: Stream) -> Any:
    """Return the axes, with None for the features."""
    return [None if axis == x.features else axis for axis in x.axes]


def _add_bias(walk: _Walk, x: Stream, array: np.ndarray) -> Value:
    """Return the stream with a bias in its last layer, a `linear` without one."""
    *before, entry = x.entries
    params = entry.params
    if not isinstance(params, LinearParams) or params.b.any():
        return None
    b = _bias(array, params.w.shape[1])
    if b is None or x.axes[-1] != x.features:
        return None
    entry = entry._replace(params=params._replace(b=b))
    return x._replace(entries=(*before, entry))


def _concat(walk: _Walk, node: Node, *parts: Value) -> Value:
    axis = node.attributes["axis"]
    if all(isinstance(part, States) for part in parts):
        return _concat_states(axis, parts)  # pyright: ignore[reportArgumentType]
    if len(parts) != 2:
        return None
    x, y = parts
    if not isinstance(x, Stream) or not isinstance(y, Stream):
        return None
    pairs = zip(x.entries, y.entries, strict=False)
    n = next((n for n, (a, b) in enumerate(pairs) if a is not b), 0)
    same = (
        x.entries[n:] and y.entries[n:]
        and (x.source, x.last) == (y.source, y.last)
        and x.axes[:-1] == y.axes[:-1]
        and axis % len(x.axes) == len(x.axes) - 1
        and (x.axes[-1], y.axes[-1]) == (x.features, y.features)
    )  # fmt: skip
    if not same:
        return None
    path = assemble.path_of(node.name)
    entry = assemble.both_directions(path, x.entries[n:], y.entries[n:])
    if entry is None:
        return None
    size = walk.size(x.features) + walk.size(y.features)
    new = walk.axis(f"{node.name}.size", size)
    return Stream((*x.axes[:-1], new), new, (*x.entries[:n], entry), x.source)


def _concat_states(axis: int, parts: Sequence[States]) -> Value:
    axes = parts[0].axes
    if axis != 0 or any(part.axes[:1] != axes[:1] for part in parts):
        return None
    return States(tuple(stream for part in parts for stream in part.parts), axes)


def _dropout(walk: _Walk, node: Node, x: Value, *rest: Value) -> Value:
    """Return a dropout layer, which is the identity without a key."""
    if not isinstance(x, Stream):
        return None
    ratio, training = (*rest, None, None)[:2]
    if training is not None and _numbers(training).any():
        return None
    rate = node.attributes.get("ratio", 0.5)
    rate = rate if ratio is None else _numbers(ratio).reshape(())
    # The shortest decimal of the float32 number, 0.1 and not 0.10000000149.
    rate = float(str(np.float32(rate)))
    if not 0 <= rate < 1:
        return None
    entry = Entry(assemble.path_of(node.name), dropout(rate), (), rate=rate)
    return x._replace(entries=(*x.entries, entry))


def _where(walk: _Walk, node: Node, chosen: Value, x: Value, y: Value) -> Value:
    """Pass data that are replaced by zeros after the length of each row.

    A final state that is replaced by the initial one in rows of length 0 passes, too.
    """
    mask = _numbers(chosen)
    lengths = [walk.values[name] for name in walk.lengths]
    if len(lengths) != 1 or not isinstance(lengths[0], Constant):
        return None
    counts = lengths[0].array
    if isinstance(y, Stream) and y.last and _origin(x) == 0:
        return y if np.array_equal(mask.ravel(), counts == 0) else None
    if not isinstance(x, Stream) or not isinstance(y, Constant) or y.array.any():
        return None
    frame = (walk.size(x.axes[0]), len(counts))
    if mask.shape not in (frame, (*frame, 1)):  # and before an array of that size
        return None
    active = np.arange(frame[0])[:, None] < counts
    return x if np.array_equal(mask.reshape(frame), active) else None


def _function(walk: _Walk, node: Node, x: Value) -> Value:
    """Return a function of `jax.nn` as a layer, if the attributes are its defaults."""
    if not isinstance(x, Stream) or x.axes[-1:] != (x.features,):
        return None
    name = functions.read(node.op, node.attributes, len(x.axes))
    if name is None:
        return None
    entry = Entry(assemble.path_of(node.name), name, ())
    return x._replace(entries=(*x.entries, entry))


HANDLERS: Mapping[str, Callable[..., Any]] = {
    "Add": _add,
    "Cast": _cast,
    "Concat": _concat,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Shape": _shape_of,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    **dict.fromkeys((one.op for one in functions.OPERATORS.values()), _function),
}

REASONS = {
    "If": "chooses between graphs, which no layer of jaxlstm does",
    "Loop": "is a loop; only recurrence in the nodes LSTM, GRU and RNN is read",
    "Scan": "is a loop; only recurrence in the nodes LSTM, GRU and RNN is read",
    "ReverseSequence": "reverses the data; jaxlstm reads direction=reverse instead",
}
