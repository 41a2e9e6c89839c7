"""What the modules of both kinds share: the stack, the axes, and who needs noise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxlstm import layers, masking
from jaxlstm.cells.base import Cell, Params, State, check_size
from jaxlstm.cells.lstm import lstm
from jaxlstm.engines._jaxpr import Jaxpr, inner_jaxprs
from jaxlstm.layers import Layer
from jaxlstm.typing import Features, Key, show


def stacked(
    cell: Cell | None,
    hidden_features: int,
    *,
    num_layers: int,
    bidirectional: bool,
    residual: bool,
    dropout: float,
) -> Layer:
    """The stack that the options of `LSTM` describe; equal options, one object.

    A module's layer is part of its static description: were it made anew each time,
    two modules of the same options would be compiled apart.

    Errors: `ValueError` where num_layers or dropout cannot be.
    """
    check_size("num_layers", num_layers)
    cell = lstm() if cell is None else cell
    sizes = (hidden_features,) * num_layers
    return _stacked(cell, sizes, bidirectional, residual, dropout)


@functools.cache
def _stacked(
    cell: Cell,
    sizes: tuple[int, ...],
    bidirectional: bool,
    residual: bool,
    dropout: float,
) -> Layer:
    return layers.stack(
        cell, sizes, bidirectional=bidirectional, residual=residual, dropout=dropout
    )


def checked(layer: Layer) -> Layer:
    """Errors: `ValueError` for what is no layer, such as a cell without a size."""
    if not isinstance(layer, Layer):
        raise ValueError(
            f"layer is {layer!r:.60}; a Layer is needed, such as jl.recurrent(cell, "
            "size) makes of a cell."
        )
    return layer


def feature_axes(cell: Cell | None) -> int:
    """How many axes of an input stand behind time: the features, and any space."""
    return 1 + (0 if cell is None else cell.spatial_axes)


def apply(
    layer: Layer,
    params: Params,
    inputs: ArrayLike,
    state: State | None,
    *,
    feature_axes: int,
    time_major: bool,
    key: Key | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> tuple[State, Features]:
    """The layer, with time where Flax has it: behind the batch axes.

    Arguments:
        inputs: `[*b, T, *features]`, or `[T, *b, *features]` where `time_major`.
        feature_axes: how many axes stand behind time and batch.
        mask, resets: `[*b, T]`, or `[T, *b]`.

    Errors: `ValueError` where inputs have too few axes, and where a mask or resets
    have not the axes that the inputs have before their features.
    """
    xs = features(inputs, feature_axes)
    axis = 0 if time_major else xs.ndim - 1 - feature_axes
    frame = xs.shape[: xs.ndim - feature_axes]
    state, ys = layer.apply(
        params,
        _moved(xs, axis, 0),
        state,
        key=key,
        lengths=lengths,
        mask=_steps("mask", mask, frame, axis),
        resets=_steps("resets", resets, frame, axis),
    )
    return state, _moved(ys, 0, axis)


def features(inputs: ArrayLike, feature_axes: int) -> Any:
    """The inputs as an array, on whichever side they are.

    Errors: `ValueError` where they have too few axes.
    """
    xs = _array("inputs", inputs)
    if xs.ndim <= feature_axes:
        raise ValueError(
            f"inputs have shape {show(xs.shape)}; {feature_axes + 1} axes are needed "
            f"at least: time, and {feature_axes} behind it (feature_axes)."
        )
    return xs


def no_steps(inputs: ArrayLike, feature_axes: int, time_major: bool) -> Any:
    """The inputs, but none of their steps: what comes after is the state before."""
    xs = features(inputs, feature_axes)
    axis = 0 if time_major else xs.ndim - 1 - feature_axes
    return xs[(slice(None),) * axis + (slice(0),)]


def _array(name: str, value: ArrayLike) -> Any:
    if isinstance(value, jax.Array | np.ndarray):
        return value
    return masking.as_array(name, value)


def _moved(array: Any, source: int, target: int) -> Any:
    """A view of what is on the host, for the core to judge; a transpose elsewhere."""
    if source == target:
        return array
    numpy: Any = jnp if isinstance(array, jax.Array) else np
    return numpy.moveaxis(array, source, target)


def _steps(
    name: str, value: ArrayLike | None, frame: tuple[int, ...], axis: int
) -> ArrayLike | None:
    if value is None:
        return None
    array = _array(name, value)
    if array.shape != frame:
        raise ValueError(
            f"{name} has shape {show(array.shape)}; inputs have {show(frame)} before "
            "their features, and one boolean per step is needed."
        )
    return _moved(array, axis, 0)


@functools.lru_cache(maxsize=256)
def draws(layer: Layer, in_features: int | None, feature_axes: int) -> bool:
    """Whether the layer draws noise where it is given a key.

    One that does not must not ask for a key: Flax counts each that is drawn, and a
    count made outside a trace cannot be raised inside it. Nothing is computed: the
    layer is traced over one step, and noise is where a key goes in and numbers come
    out.
    """
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(lambda key: layer.init(key, in_features)[0], key)
    space = (1,) * (feature_axes - 1)
    shape = (1, *space, in_features or 1) if feature_axes else (1,)
    xs = jax.ShapeDtypeStruct(shape, jnp.float32 if feature_axes else jnp.int32)
    traced = jax.make_jaxpr(lambda p, x, key: layer.apply(p, x, key=key))
    return _reads_a_key(traced(params, xs, key).jaxpr)


def _reads_a_key(jaxpr: Jaxpr) -> bool:
    for equation in jaxpr.eqns:
        inner = list(inner_jaxprs(equation))
        if any(map(_reads_a_key, inner)):
            return True
        read = any(map(_is_key, equation.invars))
        if not inner and read and not all(map(_is_key, equation.outvars)):
            return True
    return False


def _is_key(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
