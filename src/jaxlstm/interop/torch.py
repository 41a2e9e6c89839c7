"""Weights from and to PyTorch: `nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells, and the
`nn.Linear` and `nn.Embedding` around them.

    torch                                  jaxlstm
    weight_ih_l0 [4H, D]                   w_x [D, 4, H]
    weight_hh_l0 [4H, H]                   w_h [H, 4, H]
    bias_ih_l0, bias_hh_l0 [4H]            b [4, H], their sum
    weight_hr_l0 [P, H]                    w_p [H, P]
    weight_ih_l0_reverse, ...              Pair(forward, backward)
    Linear: weight [K, D], bias [K]        LinearParams(w [D, K], b [K])
    Embedding: weight [V, K]               EmbedParams(table [V, K])

The kind of a layer and its sizes are read from names and shapes: the weights of an LSTM
have 4 rows for each hidden unit, those of a GRU 3, those of a simple RNN 1.

torch has two biases; only their sum matters, except in the candidate of the GRU.
They are added on the way in; on the way out, `bias_hh` is zero.

Torch's models read `[T, b, D]` as ours do, or `[b, T, D]` with `batch_first=True`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlstm.cells.base import Params
from jaxlstm.interop import files, layout, parts
from jaxlstm.interop.layout import Weights
from jaxlstm.interop.parts import Matrix, Part, Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams, LinearParams
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

NAME = re.compile(
    r"(?:(?P<path>.*)\.)?(?P<array>(?:weight|bias)_(?:ih|hh|hr))"
    r"(?:_l(?P<layer>\d+)(?P<reverse>_reverse)?)?"
)
POINTWISE = re.compile(r"(?:(?P<path>.*)\.)?(?P<array>weight|bias)")
FIELDS = {name: field for field, name in layout.ARRAY_NAMES["torch"].items()}
KINDS = {4: "lstm", 3: "gru", 1: "rnn"}


def load(
    source: Any,
    *,
    prefix: str | Sequence[str] = "",
    kind: str | None = None,
    nonlinearity: str | None = None,
) -> tuple[Params, Layer]:
    """Return the parameters and the model of a torch module.

    One layer in one direction becomes `jl.recurrent`, several become `jl.stack`. The
    arrays have the dtype of the tensors; float64 becomes float32 unless JAX's x64 mode
    is on.

    Args:
        source: a `state_dict` (tensors or NumPy arrays), the path of a `.pt`, `.pth`,
            `.ckpt`, `.safetensors` or `.npz` file, or a module. Only the first three
            need torch.
        prefix: the name of one layer if there are several, such as "lstm" (the end of
            its path is enough); or a sequence of names, such as
            `("embed", "lstm", "fc")`, for a `jl.serial` that applies these layers in
            this order.
        kind: "embedding" or "linear", for a weight without bias, where names and
            shapes do not tell.
        nonlinearity: that of an `nn.RNN`, "tanh" (default) or "relu"; a state_dict does
            not tell.

    Returns:
        `(params, model)`; see `jaxlstm.layers` for what a model does.

    Raises:
        ValueError: there are several layers and no prefix (the message lists them), or
            arrays do not fit together.

    Example:
        >>> import jaxlstm as jl, numpy as np
        >>> state_dict = {
        ...     "rnn.weight_ih_l0": np.ones((20, 3), np.float32),
        ...     "rnn.weight_hh_l0": np.ones((20, 5), np.float32),
        ...     "rnn.bias_ih_l0": np.ones(20, np.float32),
        ...     "rnn.bias_hh_l0": np.ones(20, np.float32),
        ...     "fc.weight": np.ones((2, 5), np.float32),
        ...     "fc.bias": np.ones(2, np.float32),
        ... }
        >>> params, model = jl.interop.torch.load(state_dict, prefix=("rnn", "fc"))
        >>> params["rnn"].w_x.shape, params["fc"].w.shape
        ((3, 4, 5), (5, 2))
        >>> state, ys = model.apply(params, np.ones((7, 1, 3), np.float32))
        >>> ys.shape
        (7, 1, 2)
        >>> jl.interop.torch.load(state_dict)
        Traceback (most recent call last):
        ValueError: torch.load: got 2 layers: rnn: LSTM 3 -> 5; fc: Linear 5 -> 2; \
pass prefix='rnn' for one of them, or prefix=('rnn', 'fc'), in the order of the model, \
for several.
    """
    with error_prefix("torch.load"):
        arrays, options = _read(source)
        found, unknown = _find(arrays, options, nonlinearity)
        return parts.select(found, unknown, prefix, kind=kind)


def dump(
    model: Layer, params: Params, *, prefix: str = "", biases: bool = True
) -> dict[str, np.ndarray]:
    """Return a state_dict of NumPy arrays, for the torch modules of a model.

    The names of a `jl.serial` become names of modules; those of positions are numbers,
    as in `nn.Sequential`. Tensors for `load_state_dict` are
    `{name: torch.from_numpy(array) for name, array in state_dict.items()}`.

    Args:
        model: a layer made of `jl.recurrent`, `stack`, `bidirectional`, `serial`,
            `linear` and `embed`. Dropout and functions, which have no parameters, are
            left out.
        params: its parameters.
        prefix: name of the module that holds all others, such as "lstm".
        biases: False for recurrent modules with `bias=False`.

    Raises:
        ValueError: torch has no such layer or cell, or the layers of a stack differ in
            size.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.recurrent(jl.lstm(), 5)
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> arrays = jl.interop.torch.dump(model, params, prefix="lstm")
        >>> {name: array.shape for name, array in arrays.items()}
        {'lstm.weight_ih_l0': (20, 3), 'lstm.weight_hh_l0': (20, 5), \
'lstm.bias_ih_l0': (20,), 'lstm.bias_hh_l0': (20,)}
    """
    with error_prefix("torch.dump"):
        written: dict[str, np.ndarray] = {}
        for path, part in parts.parts_of(model, params).items():
            start = "".join(f"{name}." for name in (prefix, path) if name)
            arrays = _write(path or "model", part, biases)
            written |= {start + name: array for name, array in arrays.items()}
        return written


# -- reading ---------------------------------------------------------------------------


def _read(source: Any) -> tuple[files.Arrays, dict[str, dict[str, Any]]]:
    """Return the arrays by name, and the options of the modules by their path."""
    if files.is_path(source):
        return files.read(source), {}
    if hasattr(source, "named_modules"):
        arrays = files.tensors_to_numpy(source.state_dict())
        modules = dict(source.named_modules())
        return arrays, {path: _options(module) for path, module in modules.items()}
    if isinstance(source, Mapping):
        return files.tensors_to_numpy(files.flatten(source, ".")), {}
    raise ValueError(
        f"got {type(source).__name__}, expected a state_dict, a module or the path of "
        "a file."
    )


def _options(module: Any) -> dict[str, Any]:
    """Return the properties of a module that its state_dict does not tell."""
    options: dict[str, Any] = {}
    if hasattr(module, "nonlinearity"):
        options["nonlinearity"] = module.nonlinearity
    if isinstance(rate := getattr(module, "dropout", None), float):
        options["dropout"] = rate
    if hasattr(module, "num_embeddings"):
        options["kind"] = "embedding"
    elif hasattr(module, "in_features"):
        options["kind"] = "linear"
    return options


def _find(
    arrays: files.Arrays,
    options: Mapping[str, Mapping[str, Any]],
    nonlinearity: str | None,
) -> tuple[dict[str, Part], list[str]]:
    """Return the layers by their path, and the names of all other arrays."""
    recurrent: dict[str, dict[tuple[int, bool], files.Arrays]] = {}
    pointwise: dict[str, files.Arrays] = {}
    order: dict[str, None] = {}
    unknown = []
    for name, array in arrays.items():
        if match := NAME.fullmatch(name):
            place = (int(match["layer"] or 0), bool(match["reverse"]))
            group = recurrent.setdefault(match["path"] or "", {}).setdefault(place, {})
        elif match := POINTWISE.fullmatch(name):
            group = pointwise.setdefault(match["path"] or "", {})
        else:
            unknown.append(name)
            continue
        group[match["array"]] = array
        order[match["path"] or ""] = None
    found: dict[str, Part] = {}
    for path in order:
        told = options.get(path, {})
        if path in recurrent:
            with error_prefix(path or "state_dict"):
                found[path] = _recurrent(recurrent[path], told, nonlinearity, unknown)
        elif part := _pointwise(pointwise[path], told):
            found[path] = part
        else:
            unknown += [f"{path}.{name}".removeprefix(".") for name in pointwise[path]]
    return found, unknown


def _recurrent(
    groups: dict[tuple[int, bool], files.Arrays],
    told: Mapping[str, Any],
    nonlinearity: str | None,
    unknown: Sequence[str],
) -> Recurrent:
    count = 1 + max(layer for layer, _ in groups)
    directions = (False, True) if any(reverse for _, reverse in groups) else (False,)
    layers, kinds = [], set()
    for n in range(count):
        read = []
        for reverse in directions:
            suffix = f"_l{n}" + "_reverse" * reverse
            kind, params = _cell(suffix, groups.get((n, reverse), {}), unknown)
            kinds.add(kind)
            read.append(params)
        layers.append(tuple(read))
    if len(kinds) > 1:
        raise ValueError(f"got layers of {' and '.join(sorted(kinds))}, expected one.")
    activation = nonlinearity or told.get("nonlinearity", "tanh")
    if kinds == {"rnn"} and activation != "tanh":
        options = {"activation": activation}
    else:
        options = {}
    return Recurrent(tuple(layers), options, dropout=told.get("dropout", 0.0))


def _cell(
    suffix: str, arrays: files.Arrays, unknown: Sequence[str]
) -> tuple[str, Params]:
    """Return the kind and the parameters of one direction of one layer."""
    for name in "weight_ih", "weight_hh":
        if name not in arrays:
            raise ValueError(_missing(name + suffix, unknown))
        if arrays[name].ndim != 2:
            raise ValueError(
                f"{name}{suffix}: got shape {show(arrays[name].shape)}, expected two "
                "axes."
            )
    if ("bias_ih" in arrays) != ("bias_hh" in arrays):
        missing = "bias_hh" if "bias_ih" in arrays else "bias_ih"
        raise ValueError(_missing(missing + suffix, unknown))
    rows, hidden = arrays["weight_hh"].shape
    projection = arrays.get("weight_hr")
    gates = 4 if projection is not None else rows // max(hidden, 1)
    if gates not in KINDS or (projection is None and rows != gates * hidden):
        raise ValueError(
            f"weight_hh{suffix}: got shape {show((rows, hidden))}, expected 4, 3 or 1 "
            "times as many rows as columns, for an LSTM, GRU or RNN."
        )
    with error_prefix(suffix.removeprefix("_")):
        weights = Weights(**{FIELDS[name]: array for name, array in arrays.items()})
        return KINDS[gates], layout.to_params(
            layout.layout("torch", KINDS[gates]), weights
        )


def _missing(name: str, unknown: Sequence[str]) -> str:
    """Return the message for a missing array, with the parametrization of it."""
    for other in unknown:
        if name in other:
            return (
                f"{name} is missing, and {other} is there; remove the parametrization "
                "before you save, with torch.nn.utils.parametrize."
                "remove_parametrizations."
            )
    return f"{name} is missing."


def _pointwise(arrays: files.Arrays, told: Mapping[str, Any]) -> Part | None:
    """Return a linear layer or a table; None for other arrays of these names."""
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if weight is None or weight.ndim != 2:
        return None
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            return None
        return parts.linear(np.ascontiguousarray(weight.T), bias)
    return parts.decided(Matrix(weight, weight.T), told.get("kind"))


# -- writing ---------------------------------------------------------------------------


def _write(path: str, part: Part, biases: bool) -> files.Arrays:
    """Return the arrays of one module by name."""
    if isinstance(part, LinearParams):
        w, b = map(np.asarray, part)
        return {"weight": np.ascontiguousarray(w.T), "bias": b}
    if isinstance(part, EmbedParams):
        return {"weight": np.asarray(part.table)}
    assert isinstance(part, Recurrent)
    _check_module(path, part)
    row = layout.layout("torch", layout.kind_of(part.layers[0][0]))
    written = {}
    for n, directions in enumerate(part.layers):
        for params, reverse in zip(directions, ("", "_reverse"), strict=False):
            weights = layout.from_params(row, params, biases=biases)
            for name, field in FIELDS.items():
                if (array := getattr(weights, field)) is not None:
                    written[f"{name}_l{n}{reverse}"] = array
    return written


def _check_module(path: str, part: Recurrent) -> None:
    """Raise a `ValueError` for a part that is not one module of torch."""
    parts.require_options("torch", part, rnn=("tanh", "relu"))
    if part.reverse:
        raise ValueError(
            f"{path}: got jl.recurrent(reverse=True), expected a layer that torch has: "
            "a direction from the end is always the second of a bidirectional module."
        )
    sizes = [directions[0].b.shape[-1] for directions in part.layers]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"{path}: got layers of {', '.join(map(str, sizes))} hidden units, "
            "expected one size, as a torch module has; use jl.serial of several stacks."
        )
