"""Weights from and to Equinox: `eqx.nn.LSTMCell`, `GRUCell`, `Linear`, `Embedding`.

    Equinox                               jaxlstm
    LSTMCell: weight_ih [4H, D]           w_x [D, 4, H]
              weight_hh [4H, H]           w_h [H, 4, H]
              bias [4H]                   b [4, H]
    GRUCell:  bias [3H], bias_n [H]       b [3, H], b_h [H]
    Linear:   weight [K, D], bias [K]     LinearParams(w [D, K], b [K])
    Embedding: weight [V, K]              EmbedParams(table [V, K])

Equinox has single steps of single rows only: its users scan and map them, and a stack
is a list of cells.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxlstm.cells.base import Params
from jaxlstm.interop import layout, parts
from jaxlstm.interop.layout import Weights
from jaxlstm.interop.parts import Part, Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams, LinearParams
from jaxlstm.masking import error_prefix

Module = TypeVar("Module")

FIELDS = layout.ARRAY_NAMES["equinox"]
KINDS = {4: "lstm", 3: "gru"}


def load(source: Any, *, prefix: str | Sequence[str] = "") -> tuple[Params, Layer]:
    """Return the parameters and the model of an Equinox module.

    One cell becomes `jl.recurrent`; a list of cells that fit becomes `jl.stack`. Arrays
    keep their dtype; float64 needs JAX's x64 mode.

    Args:
        source: a cell, a list of cells, or a module with such fields.
        prefix: the path of one layer if there are several, such as "rnn.0"; or a
            sequence of paths for a `jl.serial` that applies these layers in this order.

    Raises:
        ValueError: there are several layers and no prefix (the message lists them), or
            arrays do not fit together.

    Example:
        >>> import jaxlstm as jl, numpy as np, types
        >>> cell = types.SimpleNamespace(  # as equinox.nn.LSTMCell(3, 5, key=key)
        ...     weight_ih=np.ones((20, 3)), weight_hh=np.ones((20, 5)), bias=np.ones(20)
        ... )
        >>> params, model = jl.interop.equinox.load(cell)
        >>> params.w_x.shape, model == jl.recurrent(jl.lstm(), 5)
        ((3, 4, 5), True)
    """
    with error_prefix("equinox.load"):
        found: dict[str, Part] = {}
        unknown = []
        for path, module in _modules("", source):
            with error_prefix(path or type(module).__name__):
                part = _part(module)
            if part is None:
                unknown.append(path)
            else:
                found[path] = part
        return parts.select(found, unknown, prefix, join=True)


def dump(
    model: Layer, params: Params, *, into: Module | None = None
) -> dict[str, np.ndarray] | Module:
    """Return the arrays of a model, or a module that has them.

    Args:
        model: a layer made of `jl.recurrent`, `stack`, `serial`, `linear` and `embed`.
            Dropout and functions, which have no parameters, are left out.
        params: its parameters.
        into: a module with the layers of the model in their order; needs Equinox.

    Returns:
        The arrays by the path of their field, such as `weight_ih`, or `0.weight_ih` for
        the first cell of a list; or a copy of `into` with these arrays.

    Raises:
        ValueError: Equinox has no such layer or cell, or `into` has other layers.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.recurrent(jl.gru(), 5)
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> arrays = jl.interop.equinox.dump(model, params)
        >>> {name: array.shape for name, array in arrays.items()}
        {'weight_ih': (15, 3), 'weight_hh': (15, 5), 'bias': (15,), 'bias_n': (5,)}
    """
    with error_prefix("equinox.dump"):
        layers: dict[str, dict[str, np.ndarray]] = {}
        for path, part in parts.parts_of(model, params).items():
            layers |= _write(path, part)
        if into is not None:
            return _replaced(into, list(layers.values()))
        return {
            f"{path}.{name}".removeprefix("."): array
            for path, arrays in layers.items()
            for name, array in arrays.items()
        }


# -- reading ---------------------------------------------------------------------------


def _modules(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the cells, linear layers, embeddings and other arrays of a module."""
    if hasattr(node, "weight_ih") or hasattr(node, "weight"):
        yield path, node
    elif isinstance(node, Mapping):
        yield from _inside(path, node.items())
    elif isinstance(node, list | tuple):
        yield from _inside(path, enumerate(node))
    elif dataclasses.is_dataclass(node):
        names = [field.name for field in dataclasses.fields(node)]
        yield from _inside(path, ((name, getattr(node, name)) for name in names))
    elif hasattr(node, "shape"):
        yield path, node


def _inside(path: str, items: Any) -> Iterator[tuple[str, Any]]:
    for name, inner in items:
        yield from _modules(f"{path}.{name}" if path else str(name), inner)


def _part(module: Any) -> Part | None:
    if hasattr(module, "weight_ih"):
        arrays = {
            field: np.asarray(array)
            for field, name in FIELDS.items()
            if (array := getattr(module, name, None)) is not None
        }
        rows, hidden = arrays["w_h"].shape
        kind = KINDS.get(rows // max(hidden, 1), "lstm")
        weights = Weights(**arrays)
        return Recurrent(
            ((layout.to_params(layout.layout("equinox", kind), weights),),)
        )
    if hasattr(module, "num_embeddings"):
        return parts.table(np.asarray(module.weight))
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(module, "in_features"):
        return None
    bias = None if module.bias is None else np.asarray(module.bias)
    return parts.linear(np.ascontiguousarray(np.asarray(weight).T), bias)


# -- writing ---------------------------------------------------------------------------


def _write(path: str, part: Part) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each module of a part by its path."""
    if isinstance(part, LinearParams):
        w, b = map(np.asarray, part)
        return {path: {"weight": np.ascontiguousarray(w.T), "bias": b}}
    if isinstance(part, EmbedParams):
        return {path: {"weight": np.asarray(part.table)}}
    assert isinstance(part, Recurrent)
    parts.require_options("equinox", part)
    if part.reverse or parts.is_bidirectional(part):
        raise ValueError(
            "got a layer that runs from the last step to the first, expected forward "
            "layers: Equinox has cells only; write the directions one by one."
        )
    written = {}
    for n, (params,) in enumerate(part.layers):
        weights = layout.from_params(
            layout.layout("equinox", layout.kind_of(params)), params
        )
        place = ".".join([path] * bool(path) + [str(n)] * (len(part.layers) > 1))
        written[place] = {
            name: array
            for field, name in FIELDS.items()
            if (array := getattr(weights, field)) is not None
        }
    return written


def _replaced(into: Module, layers: list[dict[str, np.ndarray]]) -> Module:
    """Return the module with the arrays of its layers replaced."""
    try:
        import equinox  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "into: replacing arrays of a module needs Equinox: pip install equinox"
        ) from error
    modules = [module for _, module in _modules("", into)]
    if len(modules) != len(layers):
        raise ValueError(
            f"into: got a module of {len(modules)} layers, expected {len(layers)}."
        )
    arrays = []
    for module, layer in zip(modules, layers, strict=True):
        for name, array in layer.items():
            old = getattr(module, name, None)
            if old is None and not array.any():
                continue  # a layer without biases
            if old is None or old.shape != array.shape:
                shape = "no array" if old is None else f"shape {old.shape}"
                raise ValueError(
                    f"into: got {shape} for {name}, expected {array.shape}."
                )
            arrays.append((module, name, array.astype(old.dtype)))

    def where(tree: Any) -> list[Any]:
        found = [module for _, module in _modules("", tree)]
        places = {id(module): n for n, module in enumerate(modules)}
        return [getattr(found[places[id(m)]], name) for m, name, _ in arrays]

    return equinox.tree_at(where, into, [array for _, _, array in arrays])
