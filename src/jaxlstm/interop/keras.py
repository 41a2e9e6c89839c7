"""Weights from and to Keras 3: `LSTM`, `GRU`, `SimpleRNN`, `Bidirectional`, and the
`Dense` and `Embedding` around them.

    Keras                                    jaxlstm
    kernel [D, 4H]                           w_x [D, 4, H]
    recurrent_kernel [H, 4H]                 w_h [H, 4, H]
    bias [4H]                                b [4, H]
    GRU, bias [2, 3H] with reset_after       b [3, H] and b_h [H]
    Bidirectional: forward, backward         Pair(forward, backward)
    Dense: kernel [D, K], bias [K]           LinearParams(w, b)
    Embedding: embeddings [V, K]             EmbedParams(table)

The gates of a GRU are in the order z r n here and r z n there. Keras draws the forget
bias with the initializer (`unit_forget_bias`), so that it is part of the bias as ours.

Keras reads `[b, T, D]`, and our models `[T, b, D]`. With `go_backwards`, Keras returns
the outputs in the order in which they were computed, and our `reverse=True` each output
at its own step.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlstm.cells.base import ACTIVATIONS, Params
from jaxlstm.interop import files, layout, parts
from jaxlstm.interop.layout import Weights
from jaxlstm.interop.parts import Matrix, Part, Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.layers.combine import serial
from jaxlstm.layers.pointwise import EmbedParams, LinearParams
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

KINDS = {4: "lstm", 3: "gru", 1: "rnn"}


def load(
    source: Any,
    *,
    prefix: str | Sequence[str] = "",
    kind: str | None = None,
    bidirectional: bool | None = None,
    reset_after: bool = True,
) -> tuple[Params, Layer]:
    """Return the parameters and the model of a Keras layer or model.

    One layer in one direction becomes `jl.recurrent`, several of one kind become
    `jl.stack`. The arrays keep their dtype; float64 becomes float32 unless JAX's x64
    mode is on.

    Args:
        source: the arrays of `get_weights()` in their order, the path of a
            `.weights.h5` or `.keras` file (which needs h5py), or a layer or model. Only
            a layer tells its activations.
        prefix: the name of one layer if there are several, such as "lstm_1"; or a
            sequence of names for a `jl.serial` that applies these layers in this order.
        kind: "embedding" or "linear", for a matrix without bias whose name does not
            tell.
        bidirectional: whether arrays without names are of layers in two directions, if
            their shapes do not tell.
        reset_after: that of a GRU without biases, whose shapes do not tell.

    Raises:
        ValueError: there are several layers and no prefix (the message lists them), or
            arrays do not fit together.

    Example:
        >>> import jaxlstm as jl, numpy as np
        >>> weights = [np.ones((3, 20)), np.ones((5, 20)), np.ones(20)]
        >>> params, model = jl.interop.keras.load(weights)
        >>> params.w_x.shape, model == jl.recurrent(jl.lstm(), 5)
        ((3, 4, 5), True)
    """
    with error_prefix("keras.load"):
        if not files.is_path(source) and isinstance(source, list | tuple):
            if prefix:
                raise ValueError(
                    f"prefix: got {prefix!r} for a list of arrays, expected none; pass "
                    "the arrays of one layer."
                )
            arrays = [np.asarray(array) for array in source]
            return _from_list(arrays, kind, bidirectional, reset_after)
        if files.is_path(source):
            found, unknown = _from_file(files.read(source), reset_after)
        elif hasattr(source, "get_weights"):
            unknown = []
            found = dict(_from_layer("", source, unknown))
        else:
            raise ValueError(
                f"got {type(source).__name__}, expected a list of arrays, a layer or "
                "the path of a .weights.h5 or .keras file."
            )
        return parts.select(found, unknown, prefix, separator="/", kind=kind, join=True)


def dump(model: Layer, params: Params, *, biases: bool = True) -> list[np.ndarray]:
    """Return the arrays of a model in the order of `set_weights`.

    Layers are in the order of the model, and in each the forward direction first, as in
    a `keras.Sequential` of `LSTM` or `Bidirectional` layers.

    Args:
        model: a layer made of `jl.recurrent`, `stack`, `bidirectional`, `serial`,
            `linear` and `embed`. Dropout and functions, which have no parameters, are
            left out.
        params: its parameters.
        biases: False for recurrent layers with `use_bias=False`.

    Raises:
        ValueError: Keras has no such layer or cell.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.stack(jl.gru(), (5, 5))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> [array.shape for array in jl.interop.keras.dump(model, params)]
        [(3, 15), (5, 15), (2, 15), (5, 15), (5, 15), (2, 15)]
    """
    with error_prefix("keras.dump"):
        found = parts.parts_of(model, params)
        return [array for part in found.values() for array in _write(part, biases)]


# -- arrays ----------------------------------------------------------------------------


def _cell(arrays: Sequence[np.ndarray], reset_after: bool) -> Params:
    """Return the parameters of a cell from kernel, recurrent kernel and bias."""
    kernel, recurrent, *rest = arrays
    bias = rest[0] if rest else None
    if recurrent.ndim != 2 or kernel.ndim != 2:
        raise ValueError(
            f"kernel and recurrent_kernel: got shapes {show(kernel.shape)} and "
            f"{show(recurrent.shape)}, expected two axes each."
        )
    rows, columns = recurrent.shape
    gates = columns // max(rows, 1)
    if gates not in KINDS or columns != gates * rows:
        raise ValueError(
            f"recurrent_kernel: got shape {show(recurrent.shape)}, expected 4, 3 or 1 "
            "times as many columns as rows, for an LSTM, GRU or SimpleRNN."
        )
    kind, b_h = KINDS[gates], None
    if kind == "gru":
        if bias is None:
            kind = "gru" if reset_after else "gru_reset_before"
        elif bias.ndim != 2:
            kind = "gru_reset_before"
        elif len(bias) == 2:
            bias, b_h = bias
    weights = Weights(kernel, recurrent, bias, b_h)
    return layout.to_params(layout.layout("keras", kind), weights)


def _from_list(
    arrays: list[np.ndarray],
    kind: str | None,
    bidirectional: bool | None,
    reset_after: bool,
) -> tuple[Params, Layer]:
    readings = [
        reading
        for reading in _readings(arrays, None, reset_after)
        if bidirectional is None or _has_directions(reading, both=bidirectional)
    ]
    # A kernel may also be read as a table; the layers of a model are mostly recurrent.
    most = max(map(_recurrent_arrays, readings), default=0)
    readings = [r for r in readings if _recurrent_arrays(r) == most]
    if not arrays or len(readings) != 1:
        shapes = ", ".join(show(array.shape) for array in arrays[:9]) or "none"
        advice = (
            "pass bidirectional=True or False, or the arrays of one layer at a time"
            if len(readings) > 1
            else "expected those of get_weights(): kernel, recurrent kernel and bias "
            "of each layer and direction"
        )
        raise ValueError(
            f"got arrays of shapes {shapes}, which fit {len(readings)} models; "
            f"{advice}."
        )
    found = [parts.decided(part, kind) for part, _ in readings[0]]
    if joined := parts.join(found):
        return parts.build(joined)
    built = [parts.build(part) for part in found]
    if len(built) == 1:
        return built[0]
    return tuple(params for params, _ in built), serial(*(layer for _, layer in built))


Reading = list[tuple[Part, int]]
"""Layers, each with the number of its arrays."""


def _has_directions(reading: Reading, *, both: bool) -> bool:
    """Return whether all recurrent layers have two directions, or all have one."""
    found = (part for part, _ in reading if isinstance(part, Recurrent))
    return all(parts.is_bidirectional(part) == both for part in found)


def _recurrent_arrays(reading: Reading) -> int:
    return sum(used for part, used in reading if isinstance(part, Recurrent))


def _readings(
    arrays: list[np.ndarray], features: int | None, reset_after: bool
) -> Iterator[Reading]:
    """Yield every sequence of layers that has these arrays and whose sizes fit.

    Args:
        arrays: the arrays that are left.
        features: outputs of the layer before them; None at the start.
        reset_after: as in `load`.
    """
    if not arrays:
        yield []
        return
    for part, used in _first_layer(arrays, features is None, reset_after):
        size = parts.input_size(part)
        if size is None or features is None or size == features:
            rest = _readings(arrays[used:], parts.output_size(part), reset_after)
            yield from ([(part, used), *reading] for reading in rest)


def _first_layer(
    arrays: list[np.ndarray], is_start: bool, reset_after: bool
) -> Iterator[tuple[Part, int]]:
    """Yield every layer that the first arrays may be, and the number of its arrays."""
    one = _recurrent_length(arrays)
    if one:
        there = _cell(arrays[:one], reset_after)
        yield Recurrent(((there,),)), one
        both = arrays[: 2 * one]
        shapes = [array.shape for array in both]
        if len(both) == 2 * one and shapes[:one] == shapes[one:]:
            back = _cell(both[one:], reset_after)
            yield Recurrent(((there, back),)), 2 * one
    first = arrays[0]
    if first.ndim == 2:
        if len(arrays) > 1 and arrays[1].shape == first.shape[1:]:
            yield parts.linear(first, arrays[1]), 2
        elif is_start:
            yield parts.table(first), 1


def _recurrent_length(arrays: list[np.ndarray]) -> int:
    """Return the number of leading arrays that are one cell; 0 for none."""
    if len(arrays) < 2 or arrays[0].ndim != 2 or arrays[1].ndim != 2:
        return 0
    (_, columns), (rows, recurrent_columns) = arrays[0].shape, arrays[1].shape
    if columns != recurrent_columns or columns not in [rows * gates for gates in KINDS]:
        return 0
    has_bias = len(arrays) > 2 and arrays[2].shape in ((columns,), (2, columns))
    return 2 + has_bias


# -- files -----------------------------------------------------------------------------


def _from_file(
    arrays: files.Arrays, reset_after: bool
) -> tuple[dict[str, Part], list[str]]:
    """Return the layers by their path, and the names of other arrays.

    Variables are named `layers/lstm/cell/vars/0`, in the order of `get_weights()`.
    """
    groups: dict[str, dict[int, np.ndarray]] = {}
    unknown = []
    for name, array in arrays.items():
        path, _, number = name.rpartition("/vars/")
        if number.isdecimal() and len(number) < 4:
            path = path.removeprefix("layers/").removesuffix("/cell")
            groups.setdefault(path, {})[int(number)] = array
        else:
            unknown.append(name)
    found: dict[str, Part] = {}
    for path, group in groups.items():
        members = [group[n] for n in sorted(group)]
        with error_prefix(path):
            if part := _part_of_file(path, members, reset_after):
                found[path] = part
            else:
                unknown.append(path)
    return _paired(found), unknown


def _part_of_file(
    path: str, arrays: list[np.ndarray], reset_after: bool
) -> Part | None:
    first, name = arrays[0], path.rpartition("/")[2]
    if first.ndim != 2:
        return None
    if len(arrays) >= 2 and arrays[1].ndim == 2:
        return Recurrent(((_cell(arrays, reset_after),),))
    if len(arrays) == 2 and arrays[1].shape == first.shape[1:]:
        return parts.linear(*arrays)
    if len(arrays) > 1:
        return None
    matrix = Matrix(first, first)
    known = {"embedding": "embedding", "dense": "linear"}
    return parts.decided(matrix, known.get(name.rstrip("_0123456789")))


def _paired(found: Mapping[str, Part]) -> dict[str, Part]:
    """Merge `NAME/forward_layer` and `NAME/backward_layer` into the layer `NAME`."""
    paired: dict[str, Part] = {}
    for path, part in found.items():
        outer, _, last = path.rpartition("/")
        back = found.get(f"{outer}/backward_layer")
        if last == "backward_layer" and f"{outer}/forward_layer" in found:
            continue
        if last == "forward_layer" and back is not None:
            paired[outer] = _pair(outer, part, back)
        else:
            paired[path] = part
    return paired


def _pair(path: str, there: Part, back: Part) -> Recurrent:
    if not isinstance(there, Recurrent) or not isinstance(back, Recurrent):
        raise ValueError(f"{path}: got directions without a cell, expected recurrent.")
    both = (*there.layers[0], *back.layers[0])
    if len(both) != 2 or there.options != back.options:
        raise ValueError(
            f"{path}: got two directions that differ, expected cells of one kind."
        )
    return Recurrent((both,), there.options)


# -- layers ----------------------------------------------------------------------------


def _from_layer(
    path: str, layer: Any, unknown: list[str]
) -> Iterator[tuple[str, Part]]:
    """Yield the parts of a Keras layer or model by their path."""
    if hasattr(layer, "forward_layer") and hasattr(layer, "backward_layer"):
        if layer.merge_mode != "concat":
            raise ValueError(
                f"{path or layer.name}: got merge_mode={layer.merge_mode!r}, expected "
                '"concat".'
            )
        there, back = layer.forward_layer, layer.backward_layer
        yield path, _pair(path or layer.name, _of_rnn(there), _of_rnn(back))
    elif hasattr(layer, "cell") or hasattr(layer, "recurrent_kernel"):
        yield path, _of_rnn(layer)
    elif hasattr(layer, "embeddings"):
        yield path, parts.table(_array(layer.embeddings))
    elif hasattr(layer, "units") and hasattr(layer, "kernel"):
        bias = None if layer.bias is None else _array(layer.bias)
        if (name := layer.activation.__name__) != "linear":
            warnings.warn(
                f"{layer.name}: activation {name!r} is not part of jl.linear; apply it "
                "to the outputs.",
                stacklevel=4,
            )
        yield path, parts.linear(_array(layer.kernel), bias)
    elif hasattr(layer, "layers"):
        for inner in layer.layers:
            inner_path = f"{path}/{inner.name}" if path else inner.name
            yield from _from_layer(inner_path, inner, unknown)
    else:
        unknown += [variable.path for variable in layer.weights]


def _of_rnn(layer: Any) -> Recurrent:
    """Return the part of an RNN layer or of a cell."""
    cell = getattr(layer, "cell", layer)
    cells = getattr(cell, "cells", [cell])
    read = []
    for one in cells:
        if not hasattr(one, "recurrent_kernel"):
            raise ValueError(
                f"{layer.name}: got {type(one).__name__}, expected an LSTM, GRU or "
                "SimpleRNN that is built; call it once on data."
            )
        bias = [] if one.bias is None else [_array(one.bias)]
        arrays = [_array(one.kernel), _array(one.recurrent_kernel), *bias]
        params = _cell(arrays, getattr(one, "reset_after", True))
        read.append((params, _activations(one)))
    if any(options != read[0][1] for _, options in read):
        raise ValueError(f"{layer.name}: got cells of different activations.")
    return Recurrent(
        tuple((params,) for params, _ in read),
        read[0][1],
        reverse=bool(getattr(layer, "go_backwards", False)),
    )


def _activations(cell: Any) -> dict[str, str]:
    """Return the activations of a cell that are not the defaults."""
    activation = _activation(cell, "activation")
    if not hasattr(cell, "recurrent_activation"):
        return {} if activation == "tanh" else {"activation": activation}
    options = {}
    if activation != "tanh":
        options["candidate_activation"] = activation
        if hasattr(cell, "unit_forget_bias"):  # an LSTM, which squashes c as well
            options["output_activation"] = activation
    if (gate := _activation(cell, "recurrent_activation")) != "sigmoid":
        options["gate_activation"] = gate
    return options


def _activation(cell: Any, option: str) -> str:
    name = getattr(cell, option).__name__
    name = {"linear": "identity"}.get(name, name)
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{cell.name}: got {option}={name!r}, expected one of "
            f"{', '.join(ACTIVATIONS)}."
        )
    return name


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable.value if hasattr(variable, "value") else variable)


# -- writing ---------------------------------------------------------------------------


def _write(part: Part, biases: bool) -> Iterator[np.ndarray]:
    """Yield the arrays of one layer in the order of `get_weights()`."""
    if isinstance(part, LinearParams | EmbedParams):
        yield from map(np.asarray, part)
        return
    assert isinstance(part, Recurrent)
    _check_activations(part)
    for directions in part.layers:
        for params in directions:
            row = layout.layout("keras", layout.kind_of(params))
            weights = layout.from_params(row, params, biases=biases)
            yield weights.w_x
            yield weights.w_h
            biases_found = [b for b in (weights.b_x, weights.b_h) if b is not None]
            if biases_found:
                yield (
                    np.stack(biases_found) if len(biases_found) > 1 else biases_found[0]
                )


def _check_activations(part: Recurrent) -> None:
    """Raise a `ValueError` for an LSTM with two activations, as Keras has only one."""
    candidate, output = (
        part.options.get(f"{name}_activation", "tanh")
        for name in ("candidate", "output")
    )
    if layout.kind_of(part.layers[0][0]) == "lstm" and candidate != output:
        raise ValueError(
            f"keras: got candidate_activation={candidate!r} and output_activation="
            f"{output!r}, expected equal ones: Keras has one option for both."
        )
