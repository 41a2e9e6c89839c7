"""ONNX files run by onnxruntime, to compare them with the model read from them."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlstm.interop.comparison import Comparison, Difference
from jaxlstm.interop.onnx.graph import Graph, Input, read_graph
from jaxlstm.interop.onnx.reader import Axis, Walk
from jaxlstm.layers.base import Layer


class _Output(NamedTuple):
    """The tensor at which the model ends.

    Attributes:
        name: its name.
        axes: the places of steps and of rows among its axes larger than 1; None for an
            axis of size 1, or of steps if it has the last step only.
        last: whether it has the last step only.
    """

    name: str
    axes: tuple[int | None, int | None]
    last: bool


def compare(
    source: Any,
    model: Layer,
    params: Any,
    *,
    steps: int = 12,
    rows: int = 5,
    seed: int = 0,
) -> Comparison:
    """Return the largest difference between an ONNX file and the model read from it.

    Random inputs are run, ragged ones if the file has lengths. Initial states are zero.

    Args:
        source: the path of the file.
        model: the model that `load` returned.
        params: its parameters.
        steps: T, unless the file has a fixed one.
        rows: b, unless the file has a fixed one.
        seed: of the random numbers.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the model ends at a tensor that is no output of the file.
    """
    import onnxruntime

    graph = read_graph(source)
    walk = Walk(graph)
    output = _output(graph, walk)
    data = next(i for i in graph.inputs if i.name == walk.main_output().source)
    order = _order(data, walk)
    fixed = [(data.shape or (None,) * len(order))[place] for place in order[:2]]
    steps, rows = (
        size if isinstance(size, int) else default
        for size, default in zip(fixed, (steps, rows), strict=True)
    )
    rng = np.random.default_rng(seed)
    xs = _draw(rng, steps, rows, params, data)
    lengths = rng.integers(1, steps + 1, rows).astype(np.int32)
    feed = {data.name: xs.transpose(np.argsort(order))}
    for other in graph.inputs:
        if other.name in walk.lengths:
            feed[other.name] = lengths
        elif other.name != data.name:
            feed[other.name] = _zeros(other, rows)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(source), options, providers=["CPUExecutionProvider"]
    )
    [theirs] = session.run([output.name], feed)
    ragged = lengths if walk.lengths else None
    ours = np.asarray(jax.jit(model.apply)(params, xs, lengths=ragged)[1])
    return Comparison((_difference(output, ours, theirs, ragged),))


def _output(graph: Graph, walk: Walk) -> _Output:
    stream = walk.main_output()
    names = [n for n in graph.outputs if walk.values.get(n) is stream]
    if not names:
        raise ValueError("onnx: got a model that ends at a tensor inside the file")
    axes = [axis for axis in stream.axes if axis]
    time, batch = (_place(axes, axis) for axis in walk.frames[stream.source])
    return _Output(names[0], (None if stream.last else time, batch), stream.last)


def _place(axes: list[Axis], axis: Axis) -> int | None:
    return axes.index(axis) if axis in axes else None


def _order(data: Input, walk: Walk) -> tuple[int, ...]:
    """Return the places of steps, rows and features in an input."""
    rank = 2 if data.is_integer else 3
    found = [
        int(axis[0].rpartition(".")[2]) if axis else None
        for axis in walk.frames[data.name]
    ]
    free = [place for place in range(2) if place not in found]
    time, batch = (free.pop(0) if place is None else place for place in found)
    return (time, batch, 2)[:rank]


def _draw(
    rng: np.random.Generator, steps: int, rows: int, params: Any, data: Input
) -> np.ndarray:
    """Draw tokens, or features of the dtype of the parameters."""
    first: Any = next(iter(params.values())) if isinstance(params, dict) else params
    leaves = jax.tree.leaves(first)
    if data.is_integer:
        return rng.integers(0, len(leaves[0]), (steps, rows))
    shape = (steps, rows, _features(data, leaves))
    return rng.normal(size=shape).astype(leaves[0].dtype)


def _features(data: Input, leaves: list[Any]) -> int:
    size = data.shape[2] if data.shape is not None else None
    return size if isinstance(size, int) else leaves[0].shape[0]


def _zeros(other: Input, rows: int) -> np.ndarray:
    shape = [size if isinstance(size, int) else rows for size in other.shape or ()]
    return np.zeros(shape, np.int64 if other.is_integer else np.float32)


def _difference(
    output: _Output, ours: np.ndarray, theirs: np.ndarray, lengths: np.ndarray | None
) -> Difference:
    """Return the difference of the outputs, of active steps only."""
    steps, rows, features = ours.shape
    theirs = theirs.reshape([n for n in theirs.shape if n != 1] or [1])
    time, batch = output.axes
    front = [place for place in (time, batch) if place is not None]
    theirs = np.moveaxis(theirs, front, range(len(front)))
    if output.last:
        last = np.full(rows, steps - 1) if lengths is None else lengths - 1
        ours, theirs = ours[last, np.arange(rows)], theirs.reshape(rows, features)
    else:
        theirs = theirs.reshape(steps, rows, features)
        if lengths is not None:
            active = np.arange(steps)[:, None] < lengths
            ours, theirs = ours[active], theirs[active]
    distance = np.abs(ours.astype(np.float64) - theirs).max(initial=0.0)
    largest = np.abs(theirs).max(initial=0.0)
    return Difference("outputs", ours.shape, float(distance), float(largest))
