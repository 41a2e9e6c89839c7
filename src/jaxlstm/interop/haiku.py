"""Weights from and to Haiku: `hk.LSTM`, `hk.GRU`, `hk.VanillaRNN`, and the `hk.Linear`
and `hk.Embed` around them.

    Haiku                                      jaxlstm
    lstm/linear: w [D + H, 4H], b [4H]         w_x, w_h, b; gates i g f o there
                 f = σ(z_f + 1)                b includes the 1
    gru: w_i [D, 3H], w_h [H, 3H], b [3H]      gru(reset_after=False); z is 1 - z there
    vanilla_rnn/linear: w [D, H], b            simple_rnn(activation="relu")
    vanilla_rnn/linear_1: w [H, H], b          b is the sum of both
    linear: w [D, K], b [K]                    LinearParams(w, b)
    embed: embeddings [V, K]                   EmbedParams(table)

A forget bias b is written as b - 1. That is exact for b from 0.5 to 2^24 in float32;
for other b the nearest bias that Haiku can represent is written (see `layout`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlstm.cells.base import Params
from jaxlstm.interop import files, layout, parts
from jaxlstm.interop.layout import Weights
from jaxlstm.interop.parts import Part, Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams, LinearParams
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

Arrays = dict[str, np.ndarray]
Tree = dict[str, Arrays]

NAMES = {"lstm": "lstm", "gru_reset_before": "gru", "rnn": "vanilla_rnn"}


def load(
    source: Any, *, prefix: str | Sequence[str] = "", kind: str | None = None
) -> tuple[Params, Layer]:
    """Return the parameters and the model of Haiku parameters.

    One core becomes `jl.recurrent`; numbered cores that fit, such as `lstm` and
    `lstm_1`, become `jl.stack`. Arrays keep their
    dtype; float64 needs JAX's x64 mode.

    Args:
        source: the params of `hk.transform(...).init`, or the path of a `.safetensors`
            or `.npz` file with names joined by "/".
        prefix: the path of one module if there are several, such as "lstm_1"; or a
            sequence of paths for a `jl.serial` that applies them in this order.
        kind: "lstm" or "linear", for a module named `PATH/linear` whose name does not
            tell: an LSTM has one linear layer inside, and "lstm" in its name unless the
            user named it.

    Raises:
        ValueError: there are several modules and no prefix (the message lists them), or
            arrays do not fit together.

    Example:
        >>> import jaxlstm as jl, numpy as np
        >>> weights = {"lstm/linear": {"w": np.ones((8, 20)), "b": np.zeros(20)}}
        >>> params, model = jl.interop.haiku.load(weights)
        >>> params.w_x.shape, params.b[:, 0].tolist()
        ((3, 4, 5), [0.0, 1.0, 0.0, 0.0])
    """
    if kind not in (None, "lstm", "linear"):
        raise ValueError(
            f'haiku.load: kind: got {kind!r}, expected "lstm" or "linear".'
        )
    with error_prefix("haiku.load"):
        if files.is_path(source):
            arrays = files.read(source)
        elif isinstance(source, Mapping):
            flat = files.flatten(source, "/")
            arrays = {name: np.asarray(leaf) for name, leaf in flat.items()}
        else:
            raise ValueError(
                f"got {type(source).__name__}, expected the params of a transformed "
                "function or the path of a file."
            )
        found, unknown = _find(arrays, kind)
        return parts.select(found, unknown, prefix, separator="/", join=True)


def dump(model: Layer, params: Params, *, prefix: str = "") -> Tree:
    """Return Haiku parameters for the modules of a model.

    Cores have the names that Haiku gives: `lstm`, `lstm_1`, `gru`, `vanilla_rnn`. The
    name of a recurrent layer in a `jl.serial` is the module around its cores, as in
    `rnn/lstm`; the names of linear layers and embeddings are their own.

    Args:
        model: a layer made of `jl.recurrent`, `stack`, `serial`, `linear` and `embed`.
            Dropout and functions, which have no parameters, are left out.
        params: its parameters.
        prefix: the path of the module that holds all others.

    Raises:
        ValueError: Haiku has no such layer or cell.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.recurrent(jl.lstm(), 5)
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> tree = jl.interop.haiku.dump(model, params)
        >>> {name: list(arrays) for name, arrays in tree.items()}
        {'lstm/linear': ['w', 'b']}
    """
    with error_prefix("haiku.dump"):
        tree: Tree = {}
        counts: dict[str, int] = {}
        for path, part in parts.parts_of(model, params).items():
            names = [name for name in path.split(".") if not name.isdecimal()]
            for kind, arrays in _write(part):
                own = [kind] if isinstance(part, Recurrent) or not any(names) else []
                module = "/".join(filter(None, [prefix, *names, *own]))
                taken = counts.get(module, 0)
                counts[module] = taken + 1
                module += f"_{taken}" if taken else ""
                tree |= {module + inner: leaves for inner, leaves in arrays.items()}
        return tree


# -- reading ---------------------------------------------------------------------------


def _find(arrays: Arrays, kind: str | None) -> tuple[dict[str, Part], list[str]]:
    """Return the modules by their path, and the names of all other arrays."""
    nodes: Tree = {}
    for name, array in arrays.items():
        path, _, leaf = name.rpartition("/")
        nodes.setdefault(path, {})[leaf] = array
    found: dict[str, Part] = {}
    unknown = []
    for path in nodes:
        outer, _, last = path.rpartition("/")
        inside = {p for p in nodes if p.startswith(f"{outer}/")} if outer else set()
        with error_prefix(path):
            if inside == {f"{outer}/linear", f"{outer}/linear_1"}:
                if _is_vanilla(nodes, outer):
                    found[outer] = _vanilla(nodes, outer)
                    continue
            elif inside == {path} and last == "linear" and _is_lstm(outer, kind):
                found[outer] = _lstm(nodes[path])
                continue
            if part := _module(nodes[path]):
                found[path] = part
            else:
                unknown += [f"{path}/{name}" for name in nodes[path]]
    return found, unknown


def _is_lstm(name: str, kind: str | None) -> bool:
    return "lstm" in name.rpartition("/")[2].lower() if kind is None else kind == "lstm"


def _is_vanilla(nodes: Tree, path: str) -> bool:
    """Return whether two linear layers are one for x and one for h."""
    w_x, w_h = (nodes[f"{path}/{name}"].get("w") for name in ("linear", "linear_1"))
    if w_x is None or w_h is None or "rnn" not in path.rpartition("/")[2].lower():
        return False
    return w_h.shape == 2 * w_x.shape[1:]


def _lstm(leaves: Arrays) -> Part:
    w = leaves.get("w")
    if w is None or w.ndim != 2 or w.shape[1] % 4 or len(w) <= w.shape[1] // 4:
        raise ValueError(
            f"w: got shape {show(() if w is None else w.shape)}, expected [D + H, 4 H] "
            "for an LSTM."
        )
    inputs = len(w) - w.shape[1] // 4
    weights = Weights(w[:inputs], w[inputs:], leaves.get("b"))
    params = layout.to_params(layout.layout("haiku", "lstm"), weights)
    return Recurrent(((params,),))


def _vanilla(nodes: Tree, path: str) -> Part:
    i, h = nodes[f"{path}/linear"], nodes[f"{path}/linear_1"]
    weights = Weights(i["w"], h["w"], i.get("b"), h.get("b"))
    params = layout.to_params(layout.layout("haiku", "rnn"), weights)
    return Recurrent(((params,),), {"activation": "relu"})


def _module(leaves: Arrays) -> Part | None:
    """Return a GRU, a linear layer or a table; None for other arrays."""
    if set(leaves) == {"w_i", "w_h", "b"}:
        weights = Weights(leaves["w_i"], leaves["w_h"], leaves["b"])
        row = layout.layout("haiku", "gru_reset_before")
        return Recurrent(((layout.to_params(row, weights),),))
    if set(leaves) == {"embeddings"}:
        return parts.table(leaves["embeddings"])
    w = leaves.get("w")
    if w is None or w.ndim != 2 or not set(leaves) <= {"w", "b"}:
        return None
    return parts.linear(w, leaves.get("b"))


# -- writing ---------------------------------------------------------------------------


def _write(part: Part) -> list[tuple[str, Tree]]:
    """Return for each module of a part its default name and its arrays.

    The arrays are by the path below the module: "" or "/linear".
    """
    if isinstance(part, LinearParams):
        w, b = map(np.asarray, part)
        return [("linear", {"": {"w": w, "b": b}})]
    if isinstance(part, EmbedParams):
        return [("embed", {"": {"embeddings": np.asarray(part.table)}})]
    assert isinstance(part, Recurrent)
    parts.require_options("haiku", part, rnn=("relu",))
    if part.reverse or parts.is_bidirectional(part):
        raise ValueError(
            "got a layer that runs from the last step to the first, expected forward "
            "layers: Haiku has no such layer; write the directions one by one."
        )
    return [_write_cell(params) for (params,) in part.layers]


def _write_cell(params: Params) -> tuple[str, Tree]:
    row = layout.layout("haiku", layout.kind_of(params))
    weights = layout.from_params(row, params)
    b_x = weights.b_x
    assert b_x is not None
    if row.kind == "lstm":
        w = np.concatenate([weights.w_x, weights.w_h])
        return NAMES[row.kind], {"/linear": {"w": w, "b": b_x}}
    if row.kind == "rnn":
        assert weights.b_h is not None
        return NAMES[row.kind], {
            "/linear": {"w": weights.w_x, "b": b_x},
            "/linear_1": {"w": weights.w_h, "b": weights.b_h},
        }
    return NAMES[row.kind], {"": {"w_i": weights.w_x, "w_h": weights.w_h, "b": b_x}}
