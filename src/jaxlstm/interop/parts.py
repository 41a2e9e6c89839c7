"""Models as lists of parts, the common ground of all converters.

A part is what another library calls a layer: a `Recurrent`, `LinearParams` or
`EmbedParams`. Loading names parts and builds a model of them (`select`); dumping takes
a model apart (`parts_of`). Converters translate single parts.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.cells import base
from jaxlstm.cells.base import Cell, LSTMParams, Params
from jaxlstm.cells.coupled import CoupledLSTMParams
from jaxlstm.cells.gru import GRUParams, gru
from jaxlstm.cells.lstm import lstm
from jaxlstm.cells.peephole import PeepholeLSTMParams
from jaxlstm.cells.projected import ProjectedLSTMParams, projected_lstm
from jaxlstm.cells.simple import RNNParams, simple_rnn
from jaxlstm.construction import construction_of
from jaxlstm.interop.layout import kind_of
from jaxlstm.layers.base import Layer, check_model
from jaxlstm.layers.combine import Pair, serial, stack
from jaxlstm.layers.pointwise import EmbedParams, LinearParams
from jaxlstm.layers.pointwise import embed as embed_layer
from jaxlstm.layers.pointwise import linear as linear_layer
from jaxlstm.layers.recurrent import recurrent
from jaxlstm.typing import show


class Recurrent(NamedTuple):
    """Recurrent layers of one cell.

    Attributes:
        layers: for each layer the parameters of its directions: one, or the forward
            and the backward one.
        options: options of the cell that differ from its defaults.
        reverse: whether a single direction runs from the last step to the first.
        dropout: rate of the dropout between layers.
    """

    layers: tuple[tuple[Params, ...], ...]
    options: Mapping[str, Any] = {}
    reverse: bool = False
    dropout: float = 0.0


class Matrix(NamedTuple):
    """A matrix that is a table or the weight of a linear layer without bias.

    Attributes:
        table: `[V, K]`, if it is a table.
        w: `[D, K]`, if it is a weight.
    """

    table: np.ndarray
    w: np.ndarray


LISTED = 8  # layers and arrays that a message names

Part = Recurrent | LinearParams | EmbedParams | Matrix


def linear(w: np.ndarray, b: np.ndarray | None = None) -> LinearParams:
    """Return the parameters of a linear layer, with zeros for a missing bias.

    Raises:
        ValueError: w is not `[D, K]` or b is not `[K]`.
    """
    if w.ndim != 2 or (b is not None and b.shape != w.shape[1:]):
        shapes = show(w.shape) if b is None else f"{show(w.shape)} and {show(b.shape)}"
        raise ValueError(f"got a linear layer of {shapes}, expected [D, K] and [K].")
    arrays: Any = (w, np.zeros(w.shape[1], w.dtype) if b is None else b)
    return LinearParams(*arrays)


def table(rows: Any) -> EmbedParams:
    """Return the parameters of an embedding.

    Raises:
        ValueError: rows are not `[V, K]`.
    """
    if rows.ndim != 2:
        raise ValueError(f"got a table of {show(rows.shape)}, expected [V, K].")
    return EmbedParams(rows)


# -- building a model ------------------------------------------------------------------


def build(part: Part) -> tuple[Params, Layer]:
    """Return the parameters, as JAX arrays, and the layer of a part.

    One direction of one layer becomes `jl.recurrent`, all else `jl.stack`.
    """
    if isinstance(part, LinearParams):
        return on_device(part), linear_layer(part.w.shape[1])
    if isinstance(part, EmbedParams):
        params = on_device(part)
        return params, embed_layer(*params.table.shape, dtype=params.table.dtype)
    if isinstance(part, Matrix):
        raise ValueError(
            f"got a weight of shape {show(part.table.shape)} without bias, which may "
            'be an Embedding or a Linear; pass kind="embedding" or kind="linear".'
        )
    return _build_recurrent(part)


def on_device(params: Params) -> Params:
    """Return the parameters as JAX arrays."""
    return jax.tree.map(jnp.asarray, params)


def _build_recurrent(part: Recurrent) -> tuple[Params, Layer]:
    _check_chain(part)
    first = part.layers[0][0]
    cell = cell_of(first, part.options)
    sizes = tuple(directions[0].b.shape[-1] for directions in part.layers)
    bidirectional = is_bidirectional(part)
    if len(sizes) == 1 and not bidirectional:
        layer = recurrent(cell, sizes[0], reverse=part.reverse)
        return on_device(first), layer
    params = tuple(
        Pair(*directions) if bidirectional else directions[0]
        for directions in part.layers
    )
    model = stack(cell, sizes, bidirectional=bidirectional, dropout=float(part.dropout))
    return on_device(params), model


def cell_of(params: Params, options: Mapping[str, Any]) -> Cell:
    """Return the cell that has these parameters."""
    if isinstance(params, ProjectedLSTMParams):
        return projected_lstm(params.w_p.shape[1], **options)
    if isinstance(params, GRUParams):
        return gru(reset_after=params.b_h is not None, **options)
    if isinstance(params, RNNParams):
        return simple_rnn(**options)
    return lstm(**options)


def is_bidirectional(part: Recurrent) -> bool:
    """Return whether the layers have two directions."""
    return len(part.layers[0]) == 2


def input_size(part: Part) -> int | None:
    """Return the number of features that a part reads; None for tokens."""
    if isinstance(part, Recurrent):
        return part.layers[0][0].w_x.shape[0]
    return part.w.shape[0] if isinstance(part, LinearParams) else None


def output_size(part: Part) -> int | None:
    """Return the number of features that a part returns; None if that is unknown."""
    if isinstance(part, Recurrent):
        return sum(_hidden_size(params) for params in part.layers[-1])
    if isinstance(part, LinearParams):
        return part.w.shape[1]
    return part.table.shape[1] if isinstance(part, EmbedParams) else None


def _hidden_size(params: Params) -> int:
    """Return the size of h."""
    return params.w_h.shape[0]


def _check_chain(part: Recurrent) -> None:
    """Raise a `ValueError` if a layer does not fit the one before it."""
    expected = None
    for n, directions in enumerate(part.layers):
        if len(directions) != len(part.layers[0]):
            raise ValueError(
                f"layer {n}: got {len(directions)} directions, expected "
                f"{len(part.layers[0])} as in layer 0."
            )
        shapes = {tuple(np.shape(a) for a in jax.tree.leaves(p)) for p in directions}
        if len(shapes) > 1 or len({kind_of(p) for p in directions}) > 1:
            raise ValueError(
                f"layer {n}: got two directions of different shapes, expected equal "
                "ones."
            )
        got = directions[0].w_x.shape[0]
        if expected is not None and got != expected:
            raise ValueError(
                f"layer {n}: got {got} input features, expected {expected}, the "
                f"outputs of layer {n - 1}."
            )
        expected = sum(map(_hidden_size, directions))


def describe(part: Part) -> str:
    """Describe a part in a few words, such as "LSTM of 2 layers, 16 -> 128"."""
    if isinstance(part, Matrix):
        return f"Embedding, or Linear without bias, {show(part.table.shape)}"
    if isinstance(part, EmbedParams):
        return f"Embedding {show(part.table.shape)}"
    sizes = f"{input_size(part)} -> {output_size(part)}"
    if isinstance(part, LinearParams):
        return f"Linear {sizes}"
    kind = {"lstm": "LSTM", "rnn": "RNN"}.get(kind_of(part.layers[0][0]), "GRU")
    count = f" of {len(part.layers)} layers" if len(part.layers) > 1 else ""
    both = ", bidirectional" if is_bidirectional(part) else ""
    return f"{kind}{count}{both} {sizes}"


# -- choosing parts of a file ----------------------------------------------------------


def select(
    parts: Mapping[str, Part],
    unknown: Collection[str],
    prefix: str | Sequence[str],
    *,
    separator: str = ".",
    kind: str | None = None,
    join: bool = False,
) -> tuple[Params, Layer]:
    """Return the parameters and the model of the parts that `prefix` names.

    Args:
        parts: the parts by their path, in the order of the source.
        unknown: names of other arrays in the source.
        prefix: the path of a part or of a module with one part in it, or the end of a
            path; or a sequence of such paths, which gives a `jl.serial` of them in this
            order, with names.
        separator: between the components of a path.
        kind: "embedding" or "linear", for a `Matrix`.
        join: whether recurrent parts that are numbered, such as `lstm` and `lstm_1`,
            are layers of one stack.

    Raises:
        ValueError: there is no such part, or more than one. The message lists them.
    """
    if not isinstance(prefix, str):
        return _select_all(parts, list(prefix), separator, kind, join)
    found = _below(parts, prefix, separator, join)
    rest = [] if prefix else list(unknown)
    if len(found) == 1 and not rest:
        [part] = found.values()
        return build(decided(part, kind))
    raise ValueError(_choice(parts, found, rest, prefix))


def _below(
    parts: Mapping[str, Part], prefix: str, separator: str, join: bool
) -> dict[str, Part]:
    """Return the parts at or below a path; one part if they can be joined.

    If there are none, a part is found by the end of its path, if only one ends so.
    """
    prefix = prefix.removesuffix(separator)
    if prefix in parts:
        return {prefix: parts[prefix]}
    start = prefix + separator if prefix else ""
    found = {path: part for path, part in parts.items() if path.startswith(start)}
    if not found:
        ends = [path for path in parts if path.endswith(separator + prefix)]
        return {path: parts[path] for path in ends} if len(ends) == 1 else {}
    if join and len(found) > 1 and (joined := _join(found)):
        return {prefix: joined}
    return found


def _select_all(
    parts: Mapping[str, Part],
    prefixes: list[str],
    separator: str,
    kind: str | None,
    join: bool,
) -> tuple[Params, Layer]:
    found: dict[str, Part] = {}
    for prefix in prefixes:
        if prefix in found:
            raise ValueError(f"prefix: got {prefix!r} twice, expected each layer once.")
        below = _below(parts, prefix, separator, join)
        if len(below) != 1:
            raise ValueError(_choice(parts, below, [], prefix))
        found[prefix] = next(iter(below.values()))
    if not found:
        raise ValueError(_choice(parts, {}, [], ""))
    chosen = _decide_by_neighbours(list(found.values()), kind)
    built = [build(part) for part in chosen]
    names = layer_names(found, separator)
    params = {name: params for name, (params, _) in zip(names, built, strict=True)}
    model = serial(**dict(zip(names, (layer for _, layer in built), strict=True)))
    return params, model


def layer_names(paths: Iterable[str], separator: str) -> list[str]:
    """Return a name for each path: its last component if that is unambiguous."""
    paths = [path.removesuffix(separator) for path in paths]
    last = [path.rpartition(separator)[2] for path in paths]
    chosen = last if len(set(last)) == len(last) else paths
    names = [re.sub(r"\W", "_", name) for name in chosen]
    if len(set(names)) < len(names):
        names = [f"{name}_{n}" for n, name in enumerate(names)]
    return [name if name.isidentifier() else f"layer_{name}" for name in names]


def decided(part: Part, kind: str | None) -> Part:
    """Return the part that a `Matrix` is, if the kind says so."""
    if not isinstance(part, Matrix) or kind is None:
        return part
    if kind == "embedding":
        return table(part.table)
    if kind == "linear":
        return linear(np.ascontiguousarray(part.w))
    raise ValueError(f'kind: got {kind!r}, expected "embedding" or "linear".')


def _decide_by_neighbours(found: list[Part], kind: str | None) -> list[Part]:
    """Decide each `Matrix` by the sizes of the layers around it.

    A table is not after another layer.
    """
    chosen: list[Part] = []
    for place, part in enumerate(found):
        if isinstance(part, Matrix) and kind is None:
            before = output_size(chosen[-1]) if chosen else None
            after = input_size(found[place + 1]) if place + 1 < len(found) else None
            is_table = before is None and after in (None, part.table.shape[1])
            sizes = part.w.shape
            is_linear = before in (None, sizes[0]) and after in (None, sizes[1])
            if is_table != is_linear:
                part = decided(part, "embedding" if is_table else "linear")
        chosen.append(decided(part, kind))
    return chosen


def _join(found: Mapping[str, Part]) -> Part | None:
    """Return one stack of numbered recurrent layers; None if they are something else.

    A name without a number counts as number 0, as in `lstm`, `lstm_1`.
    """
    numbered = [_numbered(path) for path in found]
    order = sorted(range(len(numbered)), key=lambda place: numbered[place][1])
    parts = [list(found.values())[place] for place in order]
    if len({stem for stem, _ in numbered}) > 1:
        return None
    return join(parts)


def join(found: Sequence[Part]) -> Recurrent | None:
    """Return one stack of recurrent parts, in their order; None if that is impossible.

    The parts must have the same kind of cell, the same directions and sizes that fit.
    """
    parts = [part for part in found if isinstance(part, Recurrent)]
    if len(parts) < len(found) or any(part.reverse for part in parts):
        return None
    if any(a.options != parts[0].options for a in parts):
        return None
    joined = Recurrent(
        tuple(layer for part in parts for layer in part.layers), parts[0].options
    )
    shapes = {(kind_of(layer[0]), type(layer[0])) for layer in joined.layers}
    try:
        _check_chain(joined)
    except ValueError:
        return None
    return joined if len(shapes) == 1 else None


def _numbered(path: str) -> tuple[str, int]:
    """Return the path without the last number in it, and the number."""
    match = re.fullmatch(r"(.*?)[_./]?(\d+)(\D*)", path)
    return (path, 0) if match is None else (match[1] + match[3], int(match[2]))


def _choice(
    parts: Mapping[str, Part],
    found: Mapping[str, Part],
    rest: list[str],
    prefix: str,
) -> str:
    """Return the message that lists the parts to choose from."""
    if not parts:
        shown = ", ".join(sorted(rest)[:LISTED]) or "no arrays"
        return f"got {shown}; expected the weights of an LSTM, GRU or RNN."
    recurrent_first = sorted(parts, key=lambda n: not isinstance(parts[n], Recurrent))
    shown = list(parts) if len(parts) <= LISTED else recurrent_first[:LISTED]
    listed = "; ".join(f"{path or '(top)'}: {describe(parts[path])}" for path in shown)
    listed += f"; {len(parts) - LISTED} more" if len(parts) > LISTED else ""
    other = f"; other arrays: {', '.join(sorted(rest)[:LISTED])}" if rest else ""
    if prefix and not found:
        return f"prefix: got {prefix!r}, expected one of: {listed}."
    names = list(parts if "" in found or not found else found)
    one = next((n for n in names if isinstance(parts[n], Recurrent)), names[0])
    if one == "":
        return f"got other layers or arrays beside {listed}{other}; remove them."
    if len(names) == 1:
        return f"got 1 layer: {listed}{other}; pass prefix={one!r}."
    every = ", ".join(map(repr, names)) if len(names) <= LISTED else "..."
    return (
        f"got {len(names)} layers: {listed}{other}; pass prefix={one!r} for one of "
        f"them, or prefix=({every}), in the order of the model, for several."
    )


def as_options(message: str) -> str:
    """Return a message of `select` with prefixes written for the command line.

    Example:
        >>> as_options("pass prefix='lstm' for one, or prefix=('lstm', 'fc') for both.")
        'pass --prefix lstm for one, or --prefix lstm,fc for both.'
    """

    def option(match: re.Match[str]) -> str:
        return "--prefix " + ",".join(re.findall(r"'([^']*)'|(?<!')\.\.\.", match[1]))

    return re.sub(r"prefix=(\([^)]*\)|'[^']*')", option, message)


# -- taking a model apart --------------------------------------------------------------

# Wrappers that change nothing without a key, and have the parameters of their cell.
NOISE = ("variational_dropout", "recurrent_dropout", "weight_drop")

CELLS = {
    "lstm": ("candidate_activation", "output_activation", "gate_activation"),
    "projected_lstm": ("candidate_activation", "output_activation", "gate_activation"),
    "peephole_lstm": ("candidate_activation", "output_activation", "gate_activation"),
    "coupled_lstm": ("candidate_activation", "output_activation", "gate_activation"),
    "gru": ("candidate_activation", "gate_activation"),
    "simple_rnn": ("activation",),
}

RECORDS = {
    "lstm": LSTMParams,
    "projected_lstm": ProjectedLSTMParams,
    "peephole_lstm": PeepholeLSTMParams,
    "coupled_lstm": CoupledLSTMParams,
    "gru": GRUParams,
    "simple_rnn": RNNParams,
}

DEFAULTS = {"gate_activation": "sigmoid"}  # all other activations: tanh


def parts_of(model: Layer, params: Params) -> dict[str, Part]:
    """Return the parts of a model by the path of their layer, joined with ".".

    A model that is one part has the path "". Dropout and functions have no parameters
    and are left out; `functions_of` names the functions.

    Raises:
        ValueError: a layer or cell has no counterpart in other libraries.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(rnn=jl.stack(jl.lstm(), (5, 5)), head=jl.linear(2))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> {path: describe(part) for path, part in parts_of(model, params).items()}
        {'rnn': 'LSTM of 2 layers 3 -> 5', 'head': 'Linear 5 -> 2'}
    """
    check_model(model)
    return dict(_parts("", model, params))


def _parts(path: str, layer: Layer, params: Params) -> Iterable[tuple[str, Part]]:
    if not isinstance(layer, Layer):
        return  # a function, or the name of one
    construction = construction_of(layer)
    place = path or "model"
    if construction is None:
        raise ValueError(
            f"{place}: got a layer that no constructor of jaxlstm made, expected one "
            "of jl.recurrent, stack, bidirectional, serial, linear, embed; convert its "
            "parts one by one."
        )
    name, options = construction.function.__name__, construction.arguments
    if name == "serial":
        layers = options.get("named") or dict(enumerate(options["layers"]))
        _check_entries(place, params, layers)
        for key, inner in layers.items():
            inner_path = f"{path}.{key}" if path else str(key)
            yield from _parts(inner_path, inner, params[key])
    elif name in POINTWISE:
        if not isinstance(params, POINTWISE[name]):
            raise ValueError(_unfit(place, params, POINTWISE[name].__name__))
        yield path, params
    elif name in RECURRENT:
        yield path, RECURRENT[name](place, options, params)
    elif name != "dropout":
        raise ValueError(
            f"{place}: got jl.{name}, expected one of jl.recurrent, stack, "
            "bidirectional, serial, linear, embed, dropout: other libraries have no "
            "such layer; convert the layers inside one by one."
        )


def functions_of(model: Layer, *, path: str = "") -> dict[str, str]:
    """Return the functions in a `serial` by their path: names, or "function".

    Example:
        >>> import jaxlstm as jl
        >>> functions_of(jl.serial(jl.linear(5), "relu", jl.linear(2)))
        {'1': 'relu'}
    """
    found: dict[str, str] = {}
    construction = construction_of(model)
    if construction is None or construction.function.__name__ != "serial":
        return found
    options = construction.arguments
    for key, inner in (options["named"] or dict(enumerate(options["layers"]))).items():
        inner_path = f"{path}.{key}" if path else str(key)
        if isinstance(inner, Layer):
            found |= functions_of(inner, path=inner_path)
        else:
            name = getattr(inner, "__name__", "function")
            found[inner_path] = inner if isinstance(inner, str) else name
    return found


def refuse_functions(model: Layer) -> None:
    """Raise a `ValueError` for a model with functions, which would be left out."""
    for path, name in functions_of(model).items():
        raise ValueError(
            f"{path}: got the function {name}, expected layers with parameters only; "
            "convert the parts before and after it one by one."
        )


POINTWISE = {"linear": LinearParams, "embed": EmbedParams}


def _check_entries(place: str, params: Params, layers: Collection[Any]) -> None:
    """Raise a `ValueError` if the params have other entries than the layers."""
    is_mapping = isinstance(params, Mapping)
    keys = params if is_mapping else range(len(params) if type(params) is tuple else 0)
    if set(keys) != set(layers):
        expected = ", ".join(map(str, layers))
        raise ValueError(_unfit(place, params, f"entries for the layers {expected}"))


def _unfit(place: str, params: Params, expected: str) -> str:
    names = f" of {', '.join(map(str, params))}" if isinstance(params, Mapping) else ""
    return (
        f"{place}: params: got {type(params).__name__}{names}, expected {expected}, as "
        "init of this model returns them."
    )


def _check_cell(place: str, cell: Cell, size: int, params: Params) -> dict[str, Any]:
    """Return the options of the cell; raise a `ValueError` for other parameters."""
    name, options = _cell_options(place, cell)
    if not isinstance(params, RECORDS[name]) or params.b.shape[-1] != size:
        expected = f"{RECORDS[name].__name__} of {size} units"
        raise ValueError(_unfit(place, params, expected))
    return options


def _recurrent_part(place: str, options: Mapping[str, Any], params: Params) -> Part:
    changed = _check_cell(place, options["cell"], options["hidden_size"], params)
    return Recurrent(((params,),), changed, reverse=options["reverse"])


def _stack_part(place: str, options: Mapping[str, Any], params: Params) -> Part:
    if options["residual"] and len(options["sizes"]) > 1:
        raise ValueError(
            f"{place}: got jl.stack(residual=True), expected residual=False: other "
            "libraries have no layer that adds its input."
        )
    sizes = options["sizes"]
    _check_entries(place, params, range(len(sizes)))
    layers = tuple(tuple(p) if isinstance(p, Pair) else (p,) for p in params)
    changed: dict[str, Any] = {}
    for size, directions in zip(sizes, layers, strict=True):
        if len(directions) != 1 + options["bidirectional"]:
            raise ValueError(_unfit(place, params, "one Pair for both directions"))
        for cell_params in directions:
            changed = _check_cell(place, options["cell"], size, cell_params)
    return Recurrent(layers, changed, dropout=options["dropout"])


def _bidirectional_part(place: str, options: Mapping[str, Any], params: Params) -> Part:
    names = ("forward", "backward")
    if not isinstance(params, Pair):
        raise ValueError(_unfit(place, params, "Pair(forward, backward)"))
    inner = [
        part
        for name in names
        for _, part in _parts(f"{place}.{name}", options[name], getattr(params, name))
    ]
    simple = [p for p in inner if isinstance(p, Recurrent) and _is_single(p)]
    if (
        len(inner) != 2
        or len(simple) != 2
        or [part.reverse for part in simple] != [False, True]
        or simple[0].options != simple[1].options
    ):
        raise ValueError(
            f"{place}: got jl.bidirectional of other layers than two jl.recurrent of "
            "equal cells, the second with reverse=True; other libraries have no such "
            "layer."
        )
    both = tuple(part.layers[0][0] for part in simple)
    return Recurrent((both,), simple[0].options)


def _is_single(part: Recurrent) -> bool:
    """Return whether the part is one layer in one direction."""
    return len(part.layers) == 1 and len(part.layers[0]) == 1


RECURRENT: Mapping[str, Callable[[str, Mapping[str, Any], Params], Part]] = {
    "recurrent": _recurrent_part,
    "stack": _stack_part,
    "bidirectional": _bidirectional_part,
}


def _cell_options(place: str, cell: Cell) -> tuple[str, dict[str, Any]]:
    """Return the constructor of a cell, and the activations that it changes."""
    construction = construction_of(cell)
    if construction is None:
        raise ValueError(
            f"{place}: got a cell that no constructor of jaxlstm made, expected one of "
            f"jl.{', '.join(CELLS)}."
        )
    name, options = construction.function.__name__, construction.arguments
    if name in NOISE:
        return _cell_options(place, options["cell"])
    if name not in CELLS:
        raise ValueError(
            f"{place}: got the cell jl.{name}, expected one of {', '.join(CELLS)}: "
            "other libraries have no such cell."
        )
    return name, {
        option: options[option]
        for option in CELLS[name]
        if base.activation(option, options[option])
        is not base.ACTIVATIONS[DEFAULTS.get(option, "tanh")]
    }


def require_options(
    library: str, part: Recurrent, *, rnn: Collection[str] | None = ("tanh",)
) -> None:
    """Raise a `ValueError` for activations that the library's cells do not have.

    Args:
        library: its name.
        part: the part to write.
        rnn: names of the activations that its simple RNN has; None for any.
    """
    options = dict(part.options)
    if isinstance(part.layers[0][0], RNNParams):
        activation = options.pop("activation", "tanh")
        if rnn is not None and activation not in rnn:
            raise ValueError(
                f"{library}: got activation={activation!r}, expected "
                f"{' or '.join(rnn)}, which its simple RNN has."
            )
    for option, value in options.items():
        raise ValueError(
            f"{library}: got {option}={value!r}, expected "
            f"{DEFAULTS.get(option, 'tanh')}, which its cells have."
        )
