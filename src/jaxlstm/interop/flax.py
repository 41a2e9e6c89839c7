"""Weights from and to Flax: `LSTMCell`, `OptimizedLSTMCell`, `GRUCell`, `SimpleCell` of
linen and nnx, in an `RNN`, a `Bidirectional` or a `Sequential`, and the `Dense`,
`Linear` and `Embed` around them.

    linen                                  jaxlstm
    LSTM: ii, if, ig, io (kernel [D, H])   w_x [D, 4, H]
          hi, hf, hg, ho (kernel, bias)    w_h [H, 4, H] and b [4, H]
    GRU: ir, iz, in (kernel, bias)         w_x [D, 3, H] and b [3, H]
         hr, hz, hn (kernel; bias of hn)   w_h [H, 3, H] and b_h [H]
    SimpleCell: i (kernel, bias), h        w_x, w_h and b
    nnx                                    the same, with if_ in place of if
    nnx OptimizedLSTMCell: dense_i [D, 4H], dense_h [H, 4H] with bias
    nnx GRUCell: dense_i [D, 3H] with bias, dense_h [H, 3H]: b_h is zero
    nnx SimpleCell: dense_i with bias, dense_h
    Bidirectional: forward_rnn, backward_rnn   Pair(forward, backward)
    Dense, Linear: kernel [D, K], bias [K]     LinearParams(w, b)
    Embed: embedding [V, K]                    EmbedParams(table)

The carry of an LSTM is `(c, h)` in Flax and `LSTMState(h, c)` here.

Flax reads `[b, T, D]`, or `[T, b, D]` with `time_major=True` as ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlstm.cells.base import Params
from jaxlstm.interop import files, layout, parts
from jaxlstm.interop.layout import Layout, Weights
from jaxlstm.interop.parts import Part, Recurrent
from jaxlstm.layers.base import Layer
from jaxlstm.layers.pointwise import EmbedParams, LinearParams
from jaxlstm.masking import error_prefix

Tree = dict[Any, Any]
Arrays = dict[str, np.ndarray]

# The names of the layers inside a cell, by the letters of their gates.
CELLS = {
    frozenset(["ii", "if", "ig", "io", "hi", "hf", "hg", "ho"]): ("linen", "lstm"),
    frozenset(["ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"]): ("nnx", "lstm"),
    frozenset(["ir", "iz", "in", "hr", "hz", "hn"]): ("linen", "gru"),
    frozenset(["i", "h"]): ("linen", "rnn"),
}
FUSED = frozenset(["dense_i", "dense_h"])
MINIMAL = frozenset(["if", "in", "hf", "hn"])
KINDS = {4: "lstm", 3: "gru", 1: "rnn"}
DIRECTIONS = ("forward_rnn", "backward_rnn")


def load(
    source: Any,
    *,
    prefix: str | Sequence[str] = "",
    activation: str = "tanh",
) -> tuple[Params, Layer]:
    """Return the parameters and the model of Flax parameters.

    One cell becomes `jl.recurrent`; numbered cells that fit, such as those of a
    `Sequential`, become `jl.stack`. Arrays keep their
    dtype; float64 needs JAX's x64 mode.

    Args:
        source: the params or variables of a linen module; an nnx module or its state,
            `jl.modules.nnx` included; or the path of a `.safetensors` or `.npz` file
            with names joined by "/".
        prefix: the path of one layer if there are several, such as "layers/0"; or a
            sequence of paths for a `jl.serial` that applies these layers in this order.
        activation: that of a `SimpleCell`; its parameters do not tell.

    Raises:
        ValueError: there are several layers and no prefix (the message lists them), or
            arrays do not fit together.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> from flax import linen as nn
        >>> rnn = nn.RNN(nn.OptimizedLSTMCell(5), time_major=True)
        >>> xs = jnp.ones((7, 2, 3))
        >>> variables = rnn.init(jax.random.key(0), xs)
        >>> params, model = jl.interop.flax.load(variables)
        >>> state, ys = model.apply(params, xs)
        >>> bool(jnp.allclose(ys, rnn.apply(variables, xs), atol=1e-6))
        True
    """
    with error_prefix("flax.load"):
        if isinstance(getattr(source, "layer", None), Layer) and not prefix:
            return _of_own_module(source)
        arrays = _read(source)
        found, unknown = _find(arrays, activation)
        return parts.select(found, unknown, prefix, separator="/", join=True)


def dump(
    model: Layer,
    params: Params,
    *,
    api: str = "linen",
    fused: bool = True,
) -> Tree:
    """Return the parameters of the Flax modules of a model.

    A layer becomes the params of an `RNN`, two directions those of a `Bidirectional`,
    several layers those of a `Sequential`; names of a `jl.serial` become attributes.

    Args:
        model: a layer made of `jl.recurrent`, `stack`, `bidirectional`, `serial`,
            `linear` and `embed`. Dropout and functions, which have no parameters, are
            left out.
        params: its parameters.
        api: "linen" for `module.apply({"params": result}, ...)`, "nnx" for
            `nnx.update(module, result)`.
        fused: whether an LSTM of nnx is an `OptimizedLSTMCell` and not an `LSTMCell`.
            Both have the same parameters in linen.

    Raises:
        ValueError: Flax has no such layer or cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> from flax import nnx
        >>> model = jl.recurrent(jl.lstm(), 5)
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> cell = nnx.OptimizedLSTMCell(3, 5, rngs=nnx.Rngs(0))
        >>> rnn = nnx.RNN(cell, time_major=True, rngs=nnx.Rngs(0))
        >>> nnx.update(rnn, jl.interop.flax.dump(model, params, api="nnx"))
        >>> xs = jnp.ones((7, 2, 3))
        >>> bool(jnp.allclose(rnn(xs), model.apply(params, xs)[1], atol=1e-6))
        True
    """
    if api not in ("linen", "nnx"):
        raise ValueError(f'flax.dump: api: got {api!r}, expected "linen" or "nnx".')
    with error_prefix("flax.dump"):
        found = parts.parts_of(model, params)
        tree: Tree = {}
        for path, part in found.items():
            keys = _sequential_keys(path, api)
            _node(tree, keys).update(_write(part, api, fused))
        return tree


# -- reading ---------------------------------------------------------------------------


def _of_own_module(module: Any) -> tuple[Params, Layer]:
    """Return the parameters and the layer of a module of `jl.modules.nnx`."""
    from flax import nnx

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    params = jax.tree.map(lambda v: v[...], module.params, is_leaf=is_variable)
    return params, module.layer


def _read(source: Any) -> Arrays:
    """Return the arrays of a source by their path, joined with "/"."""
    if files.is_path(source):
        arrays = files.read(source)
    else:
        tree = source if isinstance(source, Mapping) else _pure_dict(source)
        arrays = {
            name: np.asarray(leaf)
            for name, leaf in files.flatten(tree, "/").items()
            if _is_array(leaf) and "rngs" not in name.split("/")
        }
    params = {
        name.removeprefix("params/"): array
        for name, array in arrays.items()
        if name.startswith("params/")
    }
    return params or arrays


def _pure_dict(source: Any) -> Mapping[Any, Any]:
    """Return the parameters of an nnx module or state as nested dicts."""
    from flax import nnx

    if isinstance(source, nnx.Module):
        return nnx.to_pure_dict(nnx.state(source, nnx.Param))
    if isinstance(source, nnx.State):
        return nnx.to_pure_dict(source)
    raise ValueError(
        f"got {type(source).__name__}, expected params of linen, an nnx module, its "
        "state, or the path of a file."
    )


def _is_array(leaf: Any) -> bool:
    """Return whether a leaf holds numbers, and not a key of an nnx stream."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and not str(dtype).startswith("key")


def _find(arrays: Arrays, activation: str) -> tuple[dict[str, Part], list[str]]:
    """Return the layers by their path, and the names of all other arrays."""
    nodes: dict[str, Arrays] = {}
    for name, array in arrays.items():
        path, _, leaf = name.rpartition("/")
        nodes.setdefault(path, {})[leaf] = array
    cells: dict[str, dict[str, Arrays]] = {}
    for path, leaves in nodes.items():
        cell, _, name = path.rpartition("/")
        cells.setdefault(cell, {})[name] = leaves
    found: dict[str, Part] = {}
    used: set[str] = set()
    for path, inner in cells.items():
        with error_prefix(path or "params"):
            if params := _cell(inner):
                options = _options(params, activation)
                found[_without_cell(path)] = Recurrent(((params,),), options)
                used |= {f"{path}/{name}".removeprefix("/") for name in inner}
    unknown = []
    for path, leaves in nodes.items():
        if path in used:
            continue
        with error_prefix(path or "params"):
            if part := _pointwise(leaves):
                found[path] = part
            else:
                unknown += [f"{path}/{name}".removeprefix("/") for name in leaves]
    return _paired(found), unknown


def _without_cell(path: str) -> str:
    """Return the path of the `RNN` around a cell."""
    return "" if path == "cell" else path.removesuffix("/cell")


def _cell(inner: Mapping[str, Arrays]) -> Params | None:
    """Return the parameters of the cell that has these layers inside; None for none."""
    names = frozenset(inner)
    if names == FUSED:
        return _fused(inner["dense_i"], inner["dense_h"])
    if names == MINIMAL:
        raise ValueError("got an MGUCell, expected an LSTM, a GRU or a SimpleCell.")
    if names not in CELLS:
        return None
    row = layout.layout(*CELLS[names])
    sides = [_names(row, side) for side in "ih"]
    kernels = (
        np.concatenate([_kernel(name, inner[name]) for name in side], axis=-1)
        for side in sides
    )
    biases = (
        _biases(side, inner, bias_gates, row)
        for side, bias_gates in zip(
            sides, (row.input_bias, row.recurrent_bias), strict=True
        )
    )
    return layout.to_params(row, Weights(*kernels, *biases))


def _names(row: Layout, side: str) -> list[str]:
    """Return the names of the layers for x (side "i") or for h, in the row's order."""
    if row.kind == "rnn":
        return [side]
    names = [side + gate for gate in row.gates]
    return ["if_" if n == "if" and row.library == "nnx" else n for n in names]


def _kernel(name: str, leaves: Arrays) -> np.ndarray:
    kernel = leaves.get("kernel")
    if kernel is None or kernel.ndim != 2:
        raise ValueError(f"{name}: expected a kernel of two axes.")
    return kernel


def _biases(
    names: Sequence[str], inner: Mapping[str, Arrays], gates: str, row: Layout
) -> np.ndarray | None:
    """Return the biases of the gates that have one, concatenated; None for none."""
    by_gate = dict(zip(row.gates, names, strict=True))
    with_bias = [by_gate[gate] for gate in gates if "bias" in inner[by_gate[gate]]]
    others = [n for n in names if "bias" in inner[n] and n not in with_bias]
    if others or len(with_bias) not in (0, len(gates)):
        raise ValueError(
            f"got biases in {', '.join(with_bias + others)}, expected them in "
            f"{', '.join(by_gate[gate] for gate in gates) or 'none'}."
        )
    found = [inner[name]["bias"] for name in with_bias]
    return np.concatenate(found) if found else None


def _fused(i: Arrays, h: Arrays) -> Params:
    """Return the parameters of a cell of nnx with one layer for x and one for h."""
    w_x, w_h = _kernel("dense_i", i), _kernel("dense_h", h)
    gates = w_h.shape[1] // max(len(w_h), 1)
    if gates not in KINDS or w_h.shape[1] != gates * len(w_h):
        raise ValueError(
            f"dense_h: got a kernel of {w_h.shape[1]} columns, expected 4, 3 or 1 "
            f"times its {len(w_h)} rows, for an LSTM, GRU or SimpleCell."
        )
    row = layout.layout("nnx", KINDS[gates])
    allowed = {"dense_i": bool(row.input_bias), "dense_h": bool(row.recurrent_bias)}
    for name, leaves in ("dense_i", i), ("dense_h", h):
        if "bias" in leaves and not allowed[name]:
            raise ValueError(f"{name}: got a bias, expected none in this cell.")
    return layout.to_params(row, Weights(w_x, w_h, i.get("bias"), h.get("bias")))


def _options(params: Params, activation: str) -> dict[str, str]:
    is_rnn = layout.kind_of(params) == "rnn"
    return {"activation": activation} if is_rnn and activation != "tanh" else {}


def _pointwise(leaves: Arrays) -> Part | None:
    """Return a linear layer or a table; None for other arrays."""
    if set(leaves) == {"embedding"}:
        return parts.table(leaves["embedding"])
    kernel = leaves.get("kernel")
    if kernel is None or kernel.ndim != 2 or not set(leaves) <= {"kernel", "bias"}:
        return None
    return parts.linear(kernel, leaves.get("bias"))


def _paired(found: Mapping[str, Part]) -> dict[str, Part]:
    """Merge `PATH/forward_rnn` and `PATH/backward_rnn` into the layer `PATH`."""
    paired: dict[str, Part] = {}
    for path, part in found.items():
        outer, _, last = path.rpartition("/")
        if last not in DIRECTIONS:
            paired[path] = part
            continue
        both = [found.get(f"{outer}/{name}".removeprefix("/")) for name in DIRECTIONS]
        directions = [p.layers[0][0] for p in both if isinstance(p, Recurrent)]
        if len(directions) < 2:
            raise ValueError(f"{path}: expected both {' and '.join(DIRECTIONS)}.")
        assert isinstance(part, Recurrent)
        paired[outer] = Recurrent((tuple(directions),), part.options)
    return paired


# -- writing ---------------------------------------------------------------------------


def _sequential_keys(path: str, api: str) -> list[Any]:
    """Return the keys of a layer: numbers become those of a `Sequential`."""
    keys: list[Any] = []
    for name in filter(None, path.split(".")):
        keys += _numbered_keys(int(name), api) if name.isdecimal() else [name]
    return keys


def _numbered_keys(number: int, api: str) -> list[Any]:
    return [f"layers_{number}"] if api == "linen" else ["layers", number]


def _node(tree: Tree, keys: Sequence[Any]) -> Tree:
    for key in keys:
        tree = tree.setdefault(key, {})
    return tree


def _write(part: Part, api: str, fused: bool) -> Tree:
    """Return the parameters of one part as nested dicts."""
    if isinstance(part, LinearParams):
        return {"kernel": np.asarray(part.w), "bias": np.asarray(part.b)}
    if isinstance(part, EmbedParams):
        return {"embedding": np.asarray(part.table)}
    assert isinstance(part, Recurrent)
    parts.require_options(api, part, rnn=None)
    if part.reverse:
        raise ValueError(
            "got jl.recurrent(reverse=True), expected a layer that runs forward: the "
            "parameters of an RNN do not tell its direction; write them without "
            "reverse=True, and pass RNN(reverse=True, keep_order=True) to Flax."
        )
    tree: Tree = {}
    for n, directions in enumerate(part.layers):
        keys = _numbered_keys(n, api) if len(part.layers) > 1 else []
        names = DIRECTIONS if len(directions) == 2 else [None]
        for name, params in zip(names, directions, strict=True):
            inner = [*keys, *([name] if name else []), "cell"]
            _node(tree, inner).update(_write_cell(params, api, fused))
    return tree


def _write_cell(params: Params, api: str, fused: bool) -> Tree:
    row = layout.layout(api, layout.kind_of(params))
    weights = layout.from_params(row, params)
    if api == "nnx" and (fused or row.kind != "lstm"):
        return {
            "dense_i": _dense(weights.w_x, weights.b_x),
            "dense_h": _dense(weights.w_h, weights.b_h),
        }
    tree: Tree = {}
    for side, kernel, bias, gates in (
        ("i", weights.w_x, weights.b_x, row.input_bias),
        ("h", weights.w_h, weights.b_h, row.recurrent_bias),
    ):
        kernels = np.split(kernel, len(row.gates), axis=-1)
        biases = (
            {}
            if bias is None
            else dict(zip(gates, np.split(bias, len(gates)), strict=True))
        )
        for gate, name, part in zip(row.gates, _names(row, side), kernels, strict=True):
            tree[name] = _dense(np.ascontiguousarray(part), biases.get(gate))
    return tree


def _dense(kernel: np.ndarray, bias: np.ndarray | None) -> Tree:
    return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
