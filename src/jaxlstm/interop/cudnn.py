"""Weights from and to cuDNN's flat buffer, as in `jax.experimental.rnn` and TensorFlow.

The buffer has all matrices first and then all biases, for each layer from the first to
the last the forward direction before the backward one:

    W_x W_h  W_x W_h  ...  b_x b_h  b_x b_h  ...

W_x is `[gates * H, D]` and W_h `[gates * H, H]`, each row by row; the gates are i f g o
for an LSTM and r z n for a GRU. The buffer has no sizes in it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxlstm.cells.base import Params, check_size
from jaxlstm.interop import layout, parts
from jaxlstm.interop.layout import Layout, Weights
from jaxlstm.interop.parts import Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

KINDS = ("lstm", "gru", "rnn")


def load(
    source: Any,
    *,
    input_size: int,
    hidden_size: int,
    layers: int = 1,
    bidirectional: bool = False,
    kind: str = "lstm",
    activation: str = "tanh",
) -> tuple[Params, Layer]:
    """Return the parameters and the model of a flat buffer.

    Args:
        source: the buffer, an array of one axis. Whether it has two biases for each
            gate, one or none is read from its size.
        input_size: D, the number of input features.
        hidden_size: H.
        layers: number of layers.
        bidirectional: whether layers have two directions.
        kind: "lstm", "gru" or "rnn".
        activation: that of a simple RNN, "tanh" or "relu".

    Raises:
        ValueError: the buffer has another size.

    Example:
        >>> import jaxlstm as jl, numpy as np
        >>> buffer = np.arange(200.0)
        >>> params, model = jl.interop.cudnn.load(buffer, input_size=3, hidden_size=5)
        >>> params.w_x.shape, params.b[0].tolist()
        ((3, 4, 5), [340.0, 342.0, 344.0, 346.0, 348.0])
    """
    with error_prefix("cudnn.load"):
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("layers", layers),
        ):
            check_size(name, size)
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}.")
        row = layout.layout("cudnn", kind)
        ways = 1 + bidirectional
        inputs = [input_size] + [ways * hidden_size] * (layers - 1)
        shapes = [
            (len(row.gates) * hidden_size, size)
            for features in inputs
            for _ in range(ways)
            for size in (features, hidden_size)
        ]
        cells = list(_unpacked(row, np.asarray(source), shapes))
        pairs = zip(*(cells[way::ways] for way in range(ways)), strict=True)
        is_default = kind != "rnn" or activation == "tanh"
        options = {} if is_default else {"activation": activation}
        return parts.build(Recurrent(tuple(pairs), options))


def dump(model: Layer, params: Params) -> np.ndarray:
    """Return the flat buffer of a model, with two biases for each gate.

    Args:
        model: a layer made of `jl.recurrent`, `stack` or `bidirectional`, with layers
            of one size.
        params: its parameters.

    Raises:
        ValueError: cuDNN has no such layer or cell.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.stack(jl.lstm(), (5, 5), bidirectional=True)
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> jl.interop.cudnn.dump(model, params).shape
        (1080,)
    """
    with error_prefix("cudnn.dump"):
        found = parts.parts_of(model, params)
        part = found.get("")
        if not isinstance(part, Recurrent):
            described = "; ".join(map(parts.describe, found.values()))
            raise ValueError(f"got {described}; expected recurrent layers only.")
        parts.require_options("cudnn", part, rnn=("tanh", "relu"))
        cells = [params for directions in part.layers for params in directions]
        sizes = {cell.b.shape[-1] for cell in cells}
        if part.reverse or len(sizes) > 1:
            raise ValueError(
                f"got layers of {sorted(sizes)} hidden units"
                f"{' that run in reverse' if part.reverse else ''}, expected layers of "
                "one size that run forward or in both directions."
            )
        row = layout.layout("cudnn", layout.kind_of(cells[0]))
        written = [layout.from_params(row, cell) for cell in cells]
        matrices = [w.ravel() for one in written for w in (one.w_x, one.w_h)]
        biases = [b for one in written for b in (one.b_x, one.b_h) if b is not None]
        return np.concatenate([*matrices, *biases])


def _unpacked(
    row: Layout, buffer: np.ndarray, shapes: list[tuple[int, int]]
) -> Iterator[Params]:
    """Yield the parameters of each direction of each layer.

    Args:
        row: the row of the table.
        buffer: the flat weights.
        shapes: those of W_x and W_h of each, in the order of the buffer.
    """
    sizes = [rows * columns for rows, columns in shapes]
    rows, total = shapes[0][0], sum(sizes)
    places = [total + count * rows * len(shapes) // 2 for count in range(3)]
    if buffer.ndim != 1 or buffer.size not in places:
        raise ValueError(
            f"got an array of shape {show(buffer.shape)}, expected one axis of "
            f"{places[2]:,} numbers, or {places[1]:,} with one bias for each gate, or "
            f"{places[0]:,} without biases."
        )
    flat = np.split(buffer, np.cumsum(sizes))
    matrices = [w.reshape(shape) for w, shape in zip(flat[:-1], shapes, strict=True)]
    biases = flat[-1].reshape(len(shapes) // 2, -1, rows)
    for w_x, w_h, b in zip(matrices[::2], matrices[1::2], biases, strict=True):
        yield layout.to_params(row, Weights(w_x, w_h, *b))
