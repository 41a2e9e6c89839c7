"""ONNX files run by onnxruntime, to compare them with the model read from them."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxlstm import interop
from jaxlstm.interop.inputs import inputs_of
from jaxlstm.interop.onnx.graph import FilePorts, Input
from jaxlstm.layers.base import Layer

if TYPE_CHECKING:
    from jaxlstm.interop.comparison import Comparison, Difference

LARGEST = 1 << 20  # steps times rows


def compare(
    source: Any,
    model: Layer,
    params: Any,
    *,
    steps: int = 12,
    rows: int = 5,
    seed: int = 0,
) -> "Comparison":
    """Return the largest difference between an ONNX file and the model read from it.

    Random inputs are run, ragged ones if the file has lengths. Initial states are zero.

    Args:
        source: the path of the file, or an `onnx.ModelProto` without external data.
        model: the model that `load` returned.
        params: its parameters.
        steps: T, unless the file has a fixed one.
        rows: b, unless the file has a fixed one.
        seed: of the random numbers.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the model ends at a tensor that is no output, onnxruntime
            does not run the file, or its fixed sizes are too large.
    """
    import onnxruntime

    ports = interop.onnx.ports(source)
    order, data = ports.order, ports.data
    fixed = [(data.shape or (None,) * len(order))[place] for place in order[:2]]
    steps, rows = (
        size if isinstance(size, int) else default
        for size, default in zip(fixed, (steps, rows), strict=True)
    )
    if steps * rows > LARGEST:
        raise ValueError(
            f"onnx: got a file for {steps:,} steps of {rows:,} rows, expected at most "
            f"{LARGEST:,} together for a comparison."
        )
    rng = np.random.default_rng(seed)
    xs = _draw(rng, steps, rows, model, params)
    lengths = rng.integers(1, steps + 1, rows).astype(np.int32)
    feed = {data.name: xs.transpose(np.argsort(order))}
    feed |= dict.fromkeys(ports.lengths, lengths)
    feed |= {other.name: _zeros(other, rows) for other in ports.others}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    file = source.SerializeToString() if hasattr(source, "graph") else str(source)
    try:
        session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        [theirs] = session.run([ports.output], feed)
    except Exception as error:  # onnxruntime's errors have no common class
        reason = str(error).splitlines()[0]
        raise ValueError(f"onnx: onnxruntime does not run it: {reason}") from error
    ragged = lengths if ports.lengths else None
    ours = np.asarray(jax.jit(model.apply)(params, xs, lengths=ragged)[1])
    found = _difference(ports, ours, np.asarray(theirs), ragged)
    return interop.Comparison((found,))


def _draw(
    rng: np.random.Generator, steps: int, rows: int, model: Layer, params: Any
) -> np.ndarray:
    """Draw tokens, or features of the dtype of the parameters."""
    inputs = inputs_of(model, params)
    if inputs.vocabulary is not None:
        return rng.integers(0, inputs.vocabulary, (steps, rows))
    shape = (steps, rows, *(size or 1 for size in inputs.shape))
    return rng.normal(size=shape).astype(inputs.dtype)


def _zeros(other: Input, rows: int) -> np.ndarray:
    shape = [size if isinstance(size, int) else rows for size in other.shape or ()]
    return np.zeros(shape, np.int64 if other.is_integer else np.float32)


def _difference(
    ports: FilePorts, ours: np.ndarray, theirs: np.ndarray, lengths: np.ndarray | None
) -> "Difference":
    """Return the difference of the outputs, of active steps only."""
    steps, rows, features = ours.shape
    theirs = theirs.reshape([n for n in theirs.shape if n != 1] or [1])
    front = [place for place in ports.axes if place is not None]
    theirs = np.moveaxis(theirs, front, range(len(front)))
    if ports.last:
        last = np.full(rows, steps - 1) if lengths is None else lengths - 1
        ours, theirs = ours[last, np.arange(rows)], theirs.reshape(rows, features)
    else:
        theirs = theirs.reshape(steps, rows, features)
        if lengths is not None:
            active = np.arange(steps)[:, None] < lengths
            ours, theirs = ours[active], theirs[active]
    distance = np.abs(ours.astype(np.float64) - theirs).max(initial=0.0)
    largest = np.abs(theirs).max(initial=0.0)
    return interop.Difference("outputs", ours.shape, float(distance), float(largest))
