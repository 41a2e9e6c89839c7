"""Constant tensors of a graph: the operations that exporters compute shapes with."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlstm.interop.onnx.graph import Node

Arrays = Sequence[Any]  # an array, or None for an optional input that is absent


def fold(node: Node, inputs: Arrays, limit: int) -> tuple[np.ndarray, ...] | None:
    """Return the outputs of a node with constant inputs.

    Args:
        node: the node.
        inputs: arrays, with None for absent inputs.
        limit: largest number of elements of an output.

    Returns:
        The outputs, or None if the operation is not one of `OPERATIONS`.

    Raises:
        ValueError: the inputs do not fit the operation, or an output would be larger
            than the limit.
    """
    operation = OPERATIONS.get(node.op)
    if operation is None:
        return None
    try:
        result = operation(node.attributes, limit, *inputs)
    except _TooLarge:
        raise ValueError(
            f"onnx.load: {node}: got an output of more than {limit} elements, expected "
            "a constant that is not larger than the weights of the file."
        ) from None
    except (ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"onnx.load: {node}: got constants that do not fit this operation "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})."
        ) from None
    except (ArithmeticError, MemoryError, RuntimeError) as error:
        raise ValueError(f"onnx.load: {node}: {error}, from constants.") from None
    return result if isinstance(result, tuple) else (result,)


class _TooLarge(Exception):
    """An output would be larger than the limit."""


def _bounded(shape: Any, limit: int) -> tuple[int, ...]:
    shape = tuple(int(size) for size in np.ravel(shape))
    if any(size < 0 for size in shape):
        raise ValueError(f"negative size in {list(shape)}")
    if math.prod(shape) > limit:
        raise _TooLarge
    return shape


def axes_of(attributes: Any, axes: Any = None) -> tuple[int, ...] | None:
    """Return the axes of Squeeze or Unsqueeze, an attribute or, later, an input."""
    found = attributes.get("axes") if axes is None else axes
    return None if found is None else tuple(int(axis) for axis in np.ravel(found))


def target_shape(old: tuple[int, ...], new: Any, *, zeros: bool) -> tuple[int, ...]:
    """Return the shape that Reshape gives; 0 copies a size unless `zeros`."""
    shape = [int(size) for size in np.ravel(new)]
    if not zeros:
        shape = [old[i] if size == 0 else size for i, size in enumerate(shape)]
    if shape.count(-1) == 1:
        rest = -math.prod(shape)
        shape[shape.index(-1)] = math.prod(old) // rest if rest else 0
    if math.prod(shape) != math.prod(old) or min(shape, default=0) < 0:
        raise ValueError(f"shape {list(old)} to {list(map(int, np.ravel(new)))}")
    return tuple(shape)


def slices(attributes: Any, *inputs: Any) -> dict[int, slice]:
    """Return the slice of each axis that Slice names, from attributes or inputs."""
    names = ("starts", "ends", "axes", "steps")
    given = dict(zip(names, inputs, strict=False)) if inputs else dict(attributes)
    starts, ends = np.ravel(given["starts"]), np.ravel(given["ends"])
    axes, steps = given.get("axes"), given.get("steps")
    axes = range(len(starts)) if axes is None else np.ravel(axes)
    steps = [1] * len(starts) if steps is None else np.ravel(steps)
    far = 2**31 - 2  # exporters write the largest integer for "to the end"
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        end = None if abs(int(end)) > far else int(end)
        found[int(axis)] = slice(int(start), end, int(step))
    return found


def _squeeze(attributes: Any, limit: int, x: Any, axes: Any = None) -> Any:
    return np.squeeze(x, axes_of(attributes, axes))


def _unsqueeze(attributes: Any, limit: int, x: Any, axes: Any = None) -> Any:
    return np.expand_dims(x, axes_of(attributes, axes) or ())


def _reshape(attributes: Any, limit: int, x: Any, shape: Any) -> Any:
    zeros = bool(attributes.get("allowzero", 0))
    return np.reshape(x, target_shape(x.shape, shape, zeros=zeros))


def _slice(attributes: Any, limit: int, x: Any, *inputs: Any) -> Any:
    for axis, part in slices(attributes, *inputs).items():
        index = [slice(None)] * x.ndim
        index[axis] = part
        x = x[tuple(index)]
    return x


def _gather(attributes: Any, limit: int, x: Any, indices: Any) -> Any:
    axis = attributes.get("axis", 0) % x.ndim
    _bounded((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), limit)
    return np.take(x, indices, axis=axis)


def _concat(attributes: Any, limit: int, *parts: Any) -> Any:
    if sum(part.size for part in parts) > limit:
        raise _TooLarge
    return np.concatenate(parts, axis=attributes["axis"])


def _expand(attributes: Any, limit: int, x: Any, shape: Any) -> Any:
    shape = np.broadcast_shapes(x.shape, tuple(map(int, np.ravel(shape))))
    return np.broadcast_to(x, _bounded(shape, limit)).copy()


def _tile(attributes: Any, limit: int, x: Any, repeats: Any) -> Any:
    _bounded(np.multiply(x.shape, repeats), limit)
    return np.tile(x, repeats)


def _constant_of_shape(attributes: Any, limit: int, shape: Any) -> Any:
    value = attributes.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    return np.full(_bounded(shape, limit), value.reshape(()), value.dtype)


def _constant(attributes: Any, limit: int) -> Any:
    (name, value), *rest = attributes.items()
    if rest or value is None:
        raise ValueError("no numbers")
    dtype = np.float32 if "float" in name else np.int64
    return value if isinstance(value, np.ndarray) else np.array(value, dtype)


def _shape(attributes: Any, limit: int, x: Any) -> Any:
    start, end = attributes.get("start", 0), attributes.get("end")
    return np.array(x.shape[start:end], np.int64)


def _cast(attributes: Any, limit: int, x: Any) -> Any:
    return x.astype(_NUMPY_TYPES[attributes["to"]])


def _range(attributes: Any, limit: int, start: Any, end: Any, step: Any) -> Any:
    start, end, step = (value.reshape(()) for value in (start, end, step))
    _bounded([max(0, math.ceil((end - start) / step))], limit)
    return np.arange(start, end, step, dtype=start.dtype)


def _transpose(attributes: Any, limit: int, x: Any) -> Any:
    return np.transpose(x, attributes.get("perm"))


def _div(attributes: Any, limit: int, x: Any, y: Any) -> Any:
    if x.dtype.kind != "i":
        return np.divide(x, y)
    quotient = np.floor_divide(np.abs(x), np.abs(y))  # toward zero, as ONNX
    return (np.sign(x) * np.sign(y) * quotient).astype(x.dtype)


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(attributes: Any, limit: int, x: Any, y: Any) -> Any:
        _bounded(np.broadcast_shapes(x.shape, y.shape), limit)
        return function(x, y)

    return operation


def _where(attributes: Any, limit: int, chosen: Any, yes: Any, no: Any) -> Any:
    _bounded(np.broadcast_shapes(chosen.shape, yes.shape, no.shape), limit)
    return np.where(chosen, yes, no)


def _split(attributes: Any, limit: int, x: Any, sizes: Any = None) -> Any:
    axis = attributes.get("axis", 0)
    sizes = attributes.get("split") if sizes is None else sizes
    if sizes is None:
        return tuple(np.array_split(x, attributes["num_outputs"], axis))
    return tuple(np.split(x, np.cumsum(np.ravel(sizes))[:-1], axis))


_NUMPY_TYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}

OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": _binary(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _div,
    "Equal": _binary(np.equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _binary(np.greater),
    "Identity": lambda attributes, limit, x: x,
    "Less": _binary(np.less),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Mul": _binary(np.multiply),
    "Neg": lambda attributes, limit, x: -x,
    "Not": lambda attributes, limit, x: ~x,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""The operations, as functions of attributes, limit and inputs."""
