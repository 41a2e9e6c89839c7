"""Models whose recurrent layers have taps, which are zeros added to their states."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.wrappers import Tapped, taps
from jaxlstm.construction import construction_of
from jaxlstm.layers.base import Layer


def with_taps(layer: Any) -> Any:
    """Return the layer with `jl.taps` around the cell of each recurrent layer inside.

    A layer of your own is returned as it is.

    Example:
        >>> import jaxlstm as jl
        >>> with_taps(jl.serial(jl.recurrent(jl.gru(), 4), jl.linear(2)))
        serial(recurrent(taps(gru()), 4), linear(2))
    """
    if isinstance(layer, Cell):
        return taps(layer)
    if isinstance(layer, tuple) and not isinstance(layer, Layer):
        return tuple(map(with_taps, layer))
    if isinstance(layer, dict):
        return {name: with_taps(inner) for name, inner in layer.items()}
    construction = construction_of(layer) if isinstance(layer, Layer) else None
    if construction is None:
        return layer
    arguments = {k: with_taps(value) for k, value in construction.arguments.items()}
    if "engine" in arguments:  # one that was named may not run taps
        arguments["engine"] = None
    return construction._replace(arguments=arguments).build()


class Recurrent(NamedTuple):
    """A recurrent layer in a model: the path of its parameters, its cell, and these."""

    path: str
    cell: Cell
    params: Params


def tapped_params(
    layer: Any, params: Params, values: Mapping[str, State], *, path: str = ""
) -> tuple[Params, list[Recurrent]]:
    """Return the parameters of `with_taps(layer)`, and the recurrent layers inside.

    Args:
        layer: a layer.
        params: its parameters.
        values: taps `[T, *b, H]` by the path of their recurrent layer, which is also
            that of its trace; without any nothing is added.
        path: the path of the layer.
    """
    construction = construction_of(layer) if isinstance(layer, Layer) else None
    if construction is None:
        return params, []
    found: list[Recurrent] = []

    def tapped(cell: Cell, own: Params, *names: object) -> Tapped:
        at = _join(path, *names)
        found.append(Recurrent(at, cell, own))
        return Tapped(own, values.get(at))

    def inside(inner: Any, own: Params, *names: object) -> Params:
        changed, recurrent = tapped_params(inner, own, values, path=_join(path, *names))
        found.extend(recurrent)
        return changed

    options = construction.arguments
    match construction.function.__name__:
        case "recurrent":
            params = tapped(options["cell"], params)
        case "stack" if options["bidirectional"]:
            params = tuple(
                _map_fields(
                    pair, lambda name, own, n=n: tapped(options["cell"], own, n, name)
                )
                for n, pair in enumerate(params)
            )
        case "stack":
            params = tuple(
                tapped(options["cell"], own, n) for n, own in enumerate(params)
            )
        case "bidirectional":
            params = _map_fields(
                params, lambda name, own: inside(options[name], own, name)
            )
        case "residual":
            params = inside(options["layer"], params)
        case "serial" if options["named"]:
            layers = options["named"].items()
            params = {name: inside(inner, params[name], name) for name, inner in layers}
        case "serial":
            pairs = enumerate(zip(options["layers"], params, strict=True))
            params = tuple(inside(inner, own, n) for n, (inner, own) in pairs)
    return params, found


def _map_fields(pair: Any, function: Callable[[str, Params], Params]) -> Any:
    """Return the pair of both directions with new fields."""
    return pair._make(function(*item) for item in pair._asdict().items())


def _join(*names: object) -> str:
    return "/".join(str(name) for name in names if name != "")
