"""Models from and to the JSON files of RTNeural, which runs them in audio plugins.

    {"in_shape": [null, null, D],
     "layers": [{"type": "lstm", "activation": "tanh", "shape": [null, null, H],
                 "weights": [[D, 4H], [H, 4H], [4H]]}, ...]}

    lstm     kernel [D, 4H], recurrent kernel [H, 4H], bias [4H]; gates i f g o
    gru      kernel [D, 3H], recurrent kernel [H, 3H], biases [2, 3H]; gates z r n, the
             reset gate after the recurrent product
    dense    kernel [D, K], bias [K]; also named time-distributed-dense

The arrays are those of Keras. RTNeural runs one sequence, one step at a time, and
starts from a state of zeros.

Reference:
    Chowdhury, "RTNeural: fast neural inferencing for real-time systems", 2021,
    https://arxiv.org/abs/2106.03037
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxlstm.cells.base import Params
from jaxlstm.interop import files, layout, parts
from jaxlstm.interop.layout import Layout, Weights
from jaxlstm.interop.parts import Part, Recurrent
from jaxlstm.interop.writing import write_atomic
from jaxlstm.layers.base import Layer
from jaxlstm.layers.combine import serial
from jaxlstm.layers.pointwise import LinearParams
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

KINDS = ("lstm", "gru")
DENSE = ("dense", "time-distributed-dense")
MAX_BYTES = 2**28


def dump(model: Layer, params: Params) -> dict[str, Any]:
    """Return a model as the content of a JSON file.

    Args:
        model: a model of `jl.recurrent`, `stack`, `serial`, `linear` and `dropout`,
            with `jl.lstm` or `jl.gru` cells and their default activations.
        params: its parameters.

    Raises:
        ValueError: RTNeural has no such layer or cell, or a parameter is not finite.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(jl.recurrent(jl.lstm(), 8), jl.linear(1))
        >>> params, _ = model.init(jax.random.key(0), 1)
        >>> content = jl.interop.rtneural.dump(model, params)
        >>> [layer["type"] for layer in content["layers"]], content["in_shape"]
        (['lstm', 'dense'], [None, None, 1])
    """
    with error_prefix("rtneural.dump"):
        found = parts.parts_of(model, params)
        parts.refuse_functions(model)
        layers = [
            layer for path, part in found.items() for layer in _written(path, part)
        ]
    if not layers:
        raise ValueError("rtneural.dump: got a model without weights, expected layers.")
    inputs = len(layers[0]["weights"][0])
    return {"in_shape": [None, None, inputs], "layers": layers}


def save(path: str | os.PathLike[str], model: Layer, params: Params) -> None:
    """Write the JSON file of a model.

    Args:
        path: the file; an existing one is replaced.
        model: as in `dump`.
        params: as in `dump`.

    Raises:
        ValueError: as `dump`.
        OSError: the file cannot be written.
    """
    write_atomic(Path(path), json.dumps(dump(model, params)).encode())


def load(source: Any, *, dtype: DTypeLike = jnp.float32) -> tuple[Params, Layer]:
    """Return the parameters and the model of a JSON file.

    Recurrent layers of one kind that follow each other become one `jl.stack`.

    Args:
        source: the path of the file, or its content as a dict.
        dtype: the dtype of the parameters, which the file does not tell.

    Raises:
        ValueError: the file is damaged, or has a layer other than lstm, gru and dense,
            or an activation after a dense layer.
        OSError: it cannot be opened.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(jl.recurrent(jl.gru(), 8), jl.linear(1))
        >>> params, _ = model.init(jax.random.key(0), 1)
        >>> content = jl.interop.rtneural.dump(model, params)
        >>> again, _ = jl.interop.rtneural.load(content)
        >>> bool((again[0].w_h == params[0].w_h).all())
        True
    """
    if not files.is_path(source):
        with error_prefix("rtneural.load"):
            return _model(source, dtype)
    with error_prefix(str(source)):
        return _model(_read(Path(source)), dtype)


# -- to a file -------------------------------------------------------------------------


def _written(path: str, part: Part) -> Iterator[dict[str, Any]]:
    """Yield the layers of a part."""
    place = path or "model"
    if isinstance(part, LinearParams):
        arrays = [_listed(f"{place}.{name}", a) for name, a in part._asdict().items()]
        yield _layer("dense", "", part.b.shape[-1], arrays)
        return
    if not isinstance(part, Recurrent) or part.reverse or parts.is_bidirectional(part):
        raise ValueError(
            f"{place}: got {parts.describe(part)}, expected layers that run forward or "
            "linear layers: RTNeural has no embedding and no other direction."
        )
    parts.require_options("rtneural", part)
    for (params,) in part.layers:
        kind = layout.kind_of(params)
        if kind not in KINDS:
            raise ValueError(
                f"{place}: got {layout.NAMES[kind]}, expected {layout.NAMES['lstm']} "
                f"or {layout.NAMES['gru']}, the cells of RTNeural."
            )
        weights = layout.from_params(_row(kind), params)
        hidden = params.b.shape[-1]
        biases = [weights.b_x] if weights.b_h is None else [weights.b_x, weights.b_h]
        bias = np.stack([np.asarray(b) for b in biases])
        named = {"w_x": weights.w_x, "w_h": weights.w_h}
        arrays = [_listed(f"{place}.{name}", array) for name, array in named.items()]
        arrays.append(_listed(f"{place}.b", bias[0] if kind == "lstm" else bias))
        yield _layer(kind, "tanh", hidden, arrays)


def _row(kind: str) -> Layout:
    return layout.layout("keras", kind)._replace(library="rtneural")


def _layer(kind: str, activation: str, size: int, weights: list[Any]) -> dict[str, Any]:
    return {
        "type": kind,
        "activation": activation,
        "shape": [None, None, size],
        "weights": weights,
    }


def _listed(name: str, array: Any) -> list[Any]:
    """Return an array as nested lists of numbers that JSON can hold."""
    array = np.asarray(array).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers.")
    return array.tolist()


# -- from a file -----------------------------------------------------------------------


def _read(path: Path) -> Any:
    """Return the content of a JSON file of limited size."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"got more than {MAX_BYTES:,} bytes, expected fewer.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"got no valid JSON ({reason}).") from None


def _model(content: Any, dtype: DTypeLike) -> tuple[Params, Layer]:
    layers = content.get("layers") if isinstance(content, Mapping) else None
    if not isinstance(layers, list) or not layers:
        raise ValueError(
            'got no list of layers, expected {"in_shape": [...], "layers": [...]}.'
        )
    size = _size("in_shape", content.get("in_shape"))
    found: list[Part] = []
    for place, layer in enumerate(layers):
        with error_prefix(f"layers[{place}]"):
            part, size = _part(layer, size, jnp.dtype(dtype))
        joined = parts.join([*found[-1:], part])
        if found and joined is not None:
            found[-1] = joined
        else:
            found.append(part)
    built = [parts.build(part) for part in found]
    if len(built) == 1:
        return built[0]
    return tuple(params for params, _ in built), serial(*(layer for _, layer in built))


def _part(layer: Any, inputs: int, dtype: np.dtype) -> tuple[Part, int]:
    """Return a layer, and the number of its output features."""
    if not isinstance(layer, Mapping):
        raise ValueError(f"got {type(layer).__name__}, expected an object.")
    kind, activation = layer.get("type"), layer.get("activation", "")
    if not isinstance(kind, str) or kind not in (*KINDS, *DENSE):
        raise ValueError(
            f"type: got {kind!r:.60}, expected one of {', '.join((*KINDS, *DENSE))}."
        )
    usual = ("", "tanh") if kind in KINDS else ("",)
    if activation not in usual:
        raise ValueError(
            f"activation: got {activation!r:.60} in a layer of type {kind}, expected "
            f"{usual[-1]!r}; load the layers before it, and apply it to their outputs."
        )
    size, gates = _size("shape", layer.get("shape")), {"lstm": 4, "gru": 3}.get(kind, 1)
    width = gates * size
    shapes = {
        "lstm": [(inputs, width), (size, width), (width,)],
        "gru": [(inputs, width), (size, width), (2, width)],
    }.get(kind, [(inputs, size), (size,)])
    weights = layer.get("weights")
    if not isinstance(weights, list) or len(weights) != len(shapes):
        count = len(weights) if isinstance(weights, list) else "no list of"
        raise ValueError(f"weights: got {count} arrays, expected {len(shapes)}.")
    arrays = [
        _array(f"weights[{n}]", value, shape, dtype)
        for n, (value, shape) in enumerate(zip(weights, shapes, strict=True))
    ]
    if kind in DENSE:
        return parts.linear(*arrays), size
    biases = arrays[2] if kind == "gru" else (arrays[2],)
    params = layout.to_params(_row(kind), Weights(arrays[0], arrays[1], *biases))
    return Recurrent(((params,),)), size


def _size(name: str, shape: Any) -> int:
    """Return the last size of a shape."""
    size = shape[-1] if isinstance(shape, list) and shape else None
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}: got {shape!r:.60}, expected [null, null, features].")
    return size


def _array(
    name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Return nested lists of finite numbers as an array of this shape."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(
            f"{name}: got lists of unequal lengths, expected {show(shape)}."
        ) from None
    if array.shape != shape or array.dtype.kind not in "if":
        raise ValueError(
            f"{name}: got {show(array.shape)} of {array.dtype}, expected numbers "
            f"{show(shape)}."
        )
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not np.isfinite(array.astype(np.float64)).all():
        raise ValueError(f"{name}: got numbers that {dtype} cannot hold.")
    return array
