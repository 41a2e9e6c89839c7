"""Shapes of the inputs of a model, read from its construction and its parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.cells.base import Cell, Params
from jaxlstm.construction import construction_of
from jaxlstm.layers.base import Layer, check_model


class Inputs(NamedTuple):
    """One step of one row of a model's inputs.

    Attributes:
        shape: `[D]`, `[*space, D]` with None for each spatial size, or `[]` for tokens.
        dtype: the dtype of the inputs.
        vocabulary: the number of tokens; None for features.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype
    vocabulary: int | None = None


def inputs_of(model: Layer, params: Params) -> Inputs:
    """Return the inputs that a model reads.

    Raises:
        ValueError: they cannot be read from the parameters, as for a model that begins
            with a layer of your own.

    Example:
        >>> import jax, jaxlstm as jl
        >>> model = jl.serial(jl.embed(9, 4), jl.recurrent(jl.lstm(), 5))
        >>> params, _ = model.init(jax.random.key(0))
        >>> inputs_of(model, params)
        Inputs(shape=(), dtype=dtype('int32'), vocabulary=9)
    """
    check_model(model)
    found = _inputs(model, params)
    if found is None:
        raise ValueError(
            "inputs: the size of the inputs cannot be read from this model; pass "
            "inputs=Inputs(shape, dtype), such as Inputs((3,), jnp.dtype('float32'))."
        )
    return found


def _inputs(layer: Layer, params: Params) -> Inputs | None:
    construction = construction_of(layer)
    if construction is None:
        return None
    name, options = construction.function.__name__, construction.arguments
    if name == "serial":
        named = options["named"]
        keys = list(named) or range(len(options["layers"]))
        for key in keys:
            inner = named[key] if named else options["layers"][key]
            # Dropout and functions of jax.nn take any number of features.
            if not isinstance(inner, str) and _name(inner) != "dropout":
                return _inputs(inner, params[key])
        return None
    if name == "residual":
        return _inputs(options["layer"], params)
    if name == "bidirectional":
        return _inputs(options["forward"], params.forward)
    if name == "embed":
        return Inputs((), jnp.dtype("int32"), len(params.table))
    if name == "linear":
        return Inputs(params.w.shape[:1], params.w.dtype)
    if name == "stack":
        first = params[0]
        return _cell_inputs(options["cell"], getattr(first, "forward", first))
    if name == "recurrent":
        return _cell_inputs(options["cell"], params)
    return None


def _name(layer: Layer) -> str | None:
    construction = construction_of(layer)
    return None if construction is None else construction.function.__name__


def _cell_inputs(cell: Cell, params: Params) -> Inputs | None:
    """Return the inputs of a cell with an input matrix `w_x [*k, D, ...]`."""
    while hasattr(params, "params"):  # of a wrapper with parameters of its own
        params = params.params
    w_x = getattr(params, "w_x", None)
    if w_x is None:
        return None
    space = cell.spatial_axes
    return Inputs((None,) * space + (w_x.shape[space],), w_x.dtype)


def reads_ahead(layer: Layer) -> bool:
    """Return whether an output may depend on later inputs, so that it cannot stream.

    A layer of your own is taken as one that does not.
    """
    construction = construction_of(layer)
    if construction is None:
        return False
    options = construction.arguments
    if construction.function.__name__ == "bidirectional":
        return True
    if options.get("reverse") or options.get("bidirectional"):
        return True
    return any(map(reads_ahead, _layers_in(options)))


def _layers_in(options: Mapping[str, Any]) -> list[Layer]:
    """Return the layers among the arguments of a constructor."""
    named = options.get("named", {})
    values = [*options.values(), *options.get("layers", ()), *named.values()]
    return [value for value in values if isinstance(value, Layer)]


def example(inputs: Inputs, time: int, rows: int, *, space: int = 4) -> jax.Array:
    """Return random inputs `[T, B, ...]` for a comparison of two programs."""
    random = np.random.default_rng(0)
    shape = (time, rows, *(space if size is None else size for size in inputs.shape))
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return jnp.asarray(random.normal(size=shape), inputs.dtype)
    drawn = random.integers(0, inputs.vocabulary or 1, shape)
    return jnp.asarray(drawn, inputs.dtype)
