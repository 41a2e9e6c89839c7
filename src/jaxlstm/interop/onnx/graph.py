"""ONNX files as plain records: nodes, constants and inputs, with every claim checked.

Only the bytes of the file, and of external data beside it, are read. A tensor is read
after its claimed shape has been compared with the bytes that are there.
"""

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

LARGEST_FILE = 2**31  # the limit of a protobuf message


class Node(NamedTuple):
    """One operation.

    Attributes:
        name: the node's name, or else the operation and the first output.
        op: the operation, with its domain unless that is ONNX's own.
        inputs: names of tensors; "" for an optional one that is absent.
        outputs: likewise.
        attributes: numbers, strings, lists of them, or arrays; None for a subgraph.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the words that messages use for this node."""
        return f"node {self.name!r} ({self.op})"


class Input(NamedTuple):
    """An input of the graph: sizes are numbers, names, or None; shape None: unknown."""

    name: str
    shape: tuple[int | str | None, ...] | None
    is_integer: bool


class Graph(NamedTuple):
    """A graph whose nodes stand in the order in which they can be computed.

    Attributes:
        inputs: inputs that have no constant as default.
        outputs: names of tensors.
        nodes: see `Node`.
        constants: array of each initializer; None for one that holds no numbers.
        producer: name of the program that wrote the file, as the file claims.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray | None]
    producer: str = ""


class FilePorts(NamedTuple):
    """Inputs and output of a file, and the order of their axes.

    Attributes:
        data: the input that holds the sequences.
        order: the places of steps, rows and features among its axes.
        lengths: the names of inputs that hold the lengths of the rows.
        others: all other inputs, such as initial states.
        output: the name of the output.
        axes: the places of steps and rows among the axes of the output that are larger
            than 1; None for an axis of size 1, and for steps if `last`.
        last: whether the output has the last step only.
    """

    data: Input
    order: tuple[int, ...]
    lengths: tuple[str, ...]
    others: tuple[Input, ...]
    output: str
    axes: tuple[int | None, int | None]
    last: bool


def import_onnx() -> Any:
    """Return the package onnx.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "jaxlstm.interop.onnx needs the package onnx, which is not installed: "
            'pip install "jaxlstm[onnx]"'
        ) from error
    return onnx


def read_graph(source: Any) -> Graph:
    """Return the graph of an ONNX file or `onnx.ModelProto`.

    Args:
        source: a path, or a model without external data.

    Raises:
        ValueError: the file is damaged, or its claims contradict each other.
        OSError: the file cannot be read.
        ImportError: onnx is not installed.
    """
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        return _graph(onnx, source, None)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"onnx.load: got {type(source).__name__}, expected a path or an "
            "onnx.ModelProto."
        )
    path = Path(source)
    content = _read_file(path)
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # the protobuf implementations raise different types
        raise ValueError(
            f"{path}: got {len(content)} bytes that are not an ONNX model, or only a "
            "part of one; export or copy the file again."
        ) from error
    return _graph(onnx, model, path.parent)


def _read_file(path: Path) -> bytes:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: got no regular file, expected an ONNX file.")
    if found.st_size > LARGEST_FILE:
        raise ValueError(
            f"{path}: got {found.st_size} bytes, expected at most {LARGEST_FILE}, the "
            "limit of an ONNX file; store larger weights as external data."
        )
    return path.read_bytes()


def _graph(onnx: Any, model: Any, folder: Path | None) -> Graph:
    graph = model.graph
    if not graph.node:
        raise ValueError(
            "onnx.load: got a model without nodes, expected at least one; the file may "
            "be cut off: export or copy it again."
        )
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ValueError(
            f"onnx.load: initializer {name!r}: got a sparse tensor, expected a dense "
            "one."
        )
    constants = {_text(t.name): _array(onnx, t, folder) for t in graph.initializer}
    nodes = tuple(_node(onnx, node, folder) for node in graph.node)
    _check_order(graph, nodes, constants)
    inputs = (_input(onnx, i) for i in graph.input if i.name not in constants)
    outputs = tuple(_text(output.name) for output in graph.output)
    producer = _text(model.producer_name)
    return Graph(tuple(inputs), outputs, nodes, constants, producer)


def _text(name: str | bytes) -> str:
    """Return a name. Protobuf returns bytes for one that is not valid UTF-8."""
    if isinstance(name, bytes):
        raise ValueError(
            f"onnx.load: got the name {name!r:.60}, expected UTF-8; the file is "
            "damaged."
        )
    return name


def _check_order(graph: Any, nodes: tuple[Node, ...], constants: Mapping) -> None:
    """Check that every tensor has one origin, which precedes the nodes that read it."""
    known = {*constants, *(i.name for i in graph.input), ""}
    produced = {name for node in nodes for name in node.outputs}
    for node in nodes:
        for name in node.inputs:
            if name not in known and name in produced:
                raise ValueError(
                    f"onnx.load: {node} reads {name!r}, which only this node or a "
                    "later one computes; expected a graph without cycles, sorted as "
                    "ONNX requires."
                )
            if name not in known:
                raise ValueError(
                    f"onnx.load: {node} reads {name!r}, which is no input, no "
                    "initializer and no output of a node; the file is incomplete."
                )
        for name in node.outputs:
            if name and name in known:
                raise ValueError(
                    f"onnx.load: {node} computes {name!r}, which has another origin "
                    "already; expected one origin for each tensor."
                )
        known.update(node.outputs)
    for output in graph.output:
        if output.name not in known:
            raise ValueError(
                f"onnx.load: the graph's output {output.name!r} is computed by no "
                "node; the file is incomplete."
            )


def _input(onnx: Any, info: Any) -> Input:
    kind, kinds = info.type.tensor_type, onnx.TensorProto
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else _text(dim.dim_param) or None
            for dim in kind.shape.dim
        )
        for size in shape:
            if isinstance(size, int) and not 0 < size < 2**40:
                raise ValueError(
                    f"onnx.load: input {info.name!r}: got a size of {size}, expected "
                    "at least 1."
                )
    integers = (kinds.INT8, kinds.INT16, kinds.INT32, kinds.INT64, kinds.UINT8)
    return Input(_text(info.name), shape, kind.elem_type in integers)


def _node(onnx: Any, node: Any, folder: Path | None) -> Node:
    domain = _text(node.domain)
    op = ("" if domain in ("", "ai.onnx") else f"{domain}.") + _text(node.op_type)
    inputs, outputs = (tuple(map(_text, names)) for names in (node.input, node.output))
    name = _scope(node) + (_text(node.name) or f"{op} of {next(iter(outputs), '')}")
    attributes = {_text(a.name): _attribute(onnx, a, folder) for a in node.attribute}
    return Node(name, op, inputs, outputs, attributes)


def _scope(node: Any) -> str:
    """Return the path of the module in which torch's exporter recorded the node.

    Its list `['', 'rnn', 'lstm']` names the modules around an operation, each in full,
    and then the operation.
    """
    for entry in getattr(node, "metadata_props", ()):
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = re.findall(r"'([^']*)'", _text(entry.value))
            if len(scopes) > 1 and scopes[-2]:
                return scopes[-2].replace(".", "/") + "/"
    return ""


def _attribute(onnx: Any, attribute: Any, folder: Path | None) -> Any:
    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.FLOAT:
            return attribute.f
        case kinds.INT:
            return attribute.i
        case kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        case kinds.FLOATS:
            return tuple(attribute.floats)
        case kinds.INTS:
            return tuple(attribute.ints)
        case kinds.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in attribute.strings)
        case kinds.TENSOR:
            return _array(onnx, attribute.t, folder)
    return None


def _array(onnx: Any, tensor: Any, folder: Path | None) -> np.ndarray | None:
    """Return the numbers of a tensor; None if it holds none, such as strings."""
    place = f"onnx.load: tensor {tensor.name!r}"
    field = _fields(onnx.TensorProto).get(tensor.data_type)
    if field is None:
        return None
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape):
        raise ValueError(f"{place}: got the shape {list(shape)}, with a negative size.")
    if math.prod(size or 1 for size in shape) >= 2**62 or len(shape) > 32:
        raise ValueError(f"{place}: got the shape {list(shape)}, which is too large.")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    count = math.prod(shape)
    claimed = f"the {count} numbers of its shape {list(shape)}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        content = _external(place, tensor, count * dtype.itemsize, folder)
        return np.frombuffer(content, dtype.newbyteorder("<")).reshape(shape)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != count * dtype.itemsize:
            raise ValueError(
                f"{place}: got {len(tensor.raw_data)} bytes, expected "
                f"{count * dtype.itemsize} for {claimed}."
            )
        little = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<"))
        return little.astype(dtype, copy=False).reshape(shape)
    if len(getattr(tensor, field)) != count:
        raise ValueError(
            f"{place}: got {len(getattr(tensor, field))} numbers, expected {claimed}."
        )
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def _fields(kinds: Any) -> dict[int, str]:
    """Return the field of a tensor that holds the numbers of each type."""
    narrow = (kinds.INT32, kinds.INT16, kinds.INT8, kinds.UINT16, kinds.UINT8)
    others = (kinds.BOOL, kinds.FLOAT16, kinds.BFLOAT16)
    return {
        kinds.FLOAT: "float_data",
        kinds.DOUBLE: "double_data",
        kinds.INT64: "int64_data",
        kinds.UINT32: "uint64_data",
        kinds.UINT64: "uint64_data",
        **dict.fromkeys((*narrow, *others), "int32_data"),
    }


def _external(place: str, tensor: Any, count: int, folder: Path | None) -> bytes:
    """Return `count` bytes of a file in the folder of the model.

    Raises:
        ValueError: the path leaves the folder or passes a link, or the file does not
            have these bytes.
    """
    entries = {_text(e.key): _text(e.value) for e in tensor.external_data}
    location = entries.get("location", "")
    place = f"{place}: external data {location!r}"
    if folder is None:
        raise ValueError(f"{place}: got a model without a folder; load it by its path.")
    path = _inside(place, folder, location)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", count))
    except ValueError:
        raise ValueError(
            f"{place}: got an offset or a length that is no integer."
        ) from None
    # O_NONBLOCK: opening a named pipe would wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ValueError(f"{place}: {error.strerror}; copy it beside the model.") from (
            error
        )
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{place}: got no regular file.")
        if length != count or offset < 0 or offset + count > found.st_size:
            raise ValueError(
                f"{place}: got {length} bytes from byte {offset} of "
                f"{found.st_size}, expected {count} inside the file for the shape "
                f"{list(tensor.dims)}."
            )
        file.seek(offset)
        content = file.read(count)
    if len(content) != count:
        raise ValueError(f"{place}: got {len(content)} bytes, expected {count}.")
    return content


def _inside(place: str, folder: Path, location: str) -> Path:
    """Return the path of a location, if it stays in the folder and passes no link."""
    parts = PurePosixPath(location).parts
    outside = (
        not parts
        or ".." in parts
        or "\0" in location
        or "\\" in location
        or PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).drive
    )
    if outside:
        raise ValueError(
            f"{place}: got a path that may leave the model's folder, expected a file "
            "in it; nothing was read."
        )
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ValueError(
                f"{place}: got a symbolic link, expected a file in the model's folder; "
                "nothing was read."
            )
    return path
