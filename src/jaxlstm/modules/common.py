"""Functions that both kinds of modules share."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxlstm import masking
from jaxlstm.cells.base import Cell, Params, State, check_size
from jaxlstm.cells.lstm import lstm
from jaxlstm.engines._jaxpr import Jaxpr, inner_jaxprs
from jaxlstm.layers.base import Layer
from jaxlstm.layers.combine import stack
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Key, is_key, show


def build_stack(
    cell: Cell | None,
    hidden_features: int,
    *,
    num_layers: int,
    bidirectional: bool,
    residual: bool,
    dropout: float,
) -> Layer:
    """Return the stack for the options of `LSTM`.

    Raises:
        ValueError: a size, num_layers or dropout is out of range.
    """
    check_size("num_layers", num_layers)
    if cell is not None and not isinstance(cell, Cell):
        raise ValueError(
            f"LSTM: cell: got {type(cell).__name__}, expected a Cell, such as "
            "jl.gru(); without one it is jl.lstm()."
        )
    return stack(
        lstm() if cell is None else cell,
        (hidden_features,) * num_layers,
        bidirectional=bidirectional,
        residual=residual,
        dropout=dropout,
    )


def check_layer(layer: Layer) -> Layer:
    """Return the layer; raise a `ValueError` if it is not a `Layer`."""
    if not isinstance(layer, Layer):
        raise ValueError(
            f"layer: got {layer!r:.60}, expected a Layer; jl.recurrent(cell, size) "
            "makes one from a cell."
        )
    return layer


PRESET = (
    "cell=jl.lstm(init=jl.initializers.Preset(w_x=..., w_h=..., b=...)), whose "
    "initializers draw [D, 4, H], [H, 4, H] and [4, H]"
)
INSTEAD = {
    "kernel_init": PRESET,
    "recurrent_kernel_init": PRESET,
    "bias_init": PRESET,
    "gate_fn": "cell=jl.lstm(gate_activation=...)",
    "activation_fn": "cell=jl.lstm(candidate_activation=..., output_activation=...)",
    "carry_init": "cell=jl.learned_initial_state(jl.lstm()), or initial_carry in the "
    "call",
    "promote_dtype": "dtype",
    **dict.fromkeys(
        ("unroll", "state_axes", "broadcast_rngs", "keep_rngs", "split_rngs",
         "variable_axes", "variable_broadcast", "variable_carry"),
        "nothing in its place",
    ),
}  # fmt: skip
"""Options of the cells and of the `RNN` of Flax, and what to write instead."""


def refuse_options(module: str, options: Iterable[str]) -> None:
    """Raise a `TypeError` for options of Flax, which says what to write instead."""
    for name in options:
        if name in INSTEAD:
            raise TypeError(
                f"{module}: got the option {name} of Flax; write {INSTEAD[name]}."
            )
        raise TypeError(f"{module}: got an unexpected keyword argument {name!r}.")


NAMES = {
    "lengths": "seq_lengths",
    "state": "initial_carry",
    "key": "rngs",
    "training": "deterministic",
    "train": "deterministic",
}
"""Arguments of layers and of other libraries, and their names in the modules."""


def refuse_arguments(
    module: str, function: Callable[..., Any], unknown: Iterable[str]
) -> None:
    """Raise a `TypeError` for unknown arguments of a call, with the known ones."""
    parameters = inspect.signature(function).parameters.values()
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for name in unknown:
        if name == "reset_state":
            remedy = "call the layer itself, layer.apply, which takes it."
        elif NAMES.get(name) in known:
            remedy = f"it is {NAMES[name]} here."
        elif near := difflib.get_close_matches(name, known, n=1):
            remedy = f"did you mean {near[0]}?"
        else:
            remedy = f"expected {', '.join(known)}."
        raise TypeError(f"{module}: got an unknown argument {name!r}; {remedy}")


def refuse_shapes(inputs: Any, flax_arguments: Iterable[Any]) -> None:
    """Raise a `TypeError` for the arguments of `initialize_carry` of a Flax cell."""
    is_shape = isinstance(inputs, tuple) and all(isinstance(n, int) for n in inputs)
    if is_shape or is_key(inputs) or any(True for _ in flax_arguments):
        raise TypeError(
            "initialize_carry: got a shape or a source of keys, as cells of Flax take "
            "them, expected the inputs alone; pass inputs [*b, T, D], not their shape."
        )


CLASSES = {
    **dict.fromkeys(("RNN", "LSTMCell", "OptimizedLSTMCell"), "LSTM(...)"),
    **dict.fromkeys(("GRU", "GRUCell"), "LSTM(..., cell=jl.gru())"),
    **dict.fromkeys(("SimpleRNN", "SimpleCell"), "LSTM(..., cell=jl.simple_rnn())"),
    **dict.fromkeys(("ConvLSTM", "ConvLSTMCell"), "LSTM(..., cell=jl.conv_lstm(3))"),
    **dict.fromkeys(("Bidirectional", "BiLSTM"), "LSTM(..., bidirectional=True)"),
    **dict.fromkeys(("Linear", "Dense", "Embed", "Dropout"), "Recurrent(layer, ...)"),
}
"""Classes of other libraries, and what to write instead."""


def no_attribute(module: str, name: str) -> AttributeError:
    """Return the error for a name that a module of classes does not have."""
    message = f"module {module!r} has no attribute {name!r}"
    if name in CLASSES:
        message += f"; write {module.replace('jaxlstm', 'jl')}.{CLASSES[name]}."
    return AttributeError(message)


def feature_axes(cell: Cell | None) -> int:
    """Return the number of axes after time: the features and any spatial axes."""
    return 1 + (0 if cell is None else cell.spatial_axes)


def apply(
    layer: Layer,
    params: Params,
    inputs: ArrayLike,
    state: State | None,
    *,
    feature_axes: int,
    time_major: bool,
    reverse: bool = False,
    keep_order: bool = True,
    dtype: DTypeLike | None = None,
    key: Key | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> tuple[State, Features]:
    """Apply a layer to inputs in the layout of Flax, with time after the batch axes.

    Args:
        layer: the layer.
        params: its parameters.
        inputs: `[*b, T, *features]`, or `[T, *b, *features]` if `time_major`.
        state: the state before the first step, or None.
        feature_axes: number of axes after time and batch.
        time_major: whether time is the first axis.
        reverse: whether to run from the last step to the first.
        keep_order: with `reverse`, whether outputs stay at their own steps; False for
            the order of execution, in which padding stays at the end.
        dtype: the dtype that features are cast to; None for their own.
        key: random key; None for no noise.
        lengths: `[*b]`.
        mask: `[*b, T]`, or `[T, *b]` if `time_major`; or a `StepMask`, whose fields are
            always `[T, *b]`.
        resets: as mask.

    Raises:
        ValueError: inputs have too few axes, mask or resets have other axes than the
            inputs before their features, or the state is a `(c, h)` of Flax.
    """
    _check_carry(state)
    xs = input_array(inputs, feature_axes)
    axis = 0 if time_major else xs.ndim - 1 - feature_axes
    frame = xs.shape[: xs.ndim - feature_axes]
    xs = _moved(xs, axis, 0)
    if dtype is not None and feature_axes:
        xs = xs.astype(dtype)
    steps: dict[str, Any] = {
        "lengths": lengths,
        "mask": mask
        if isinstance(mask, StepMask)
        else _flags("mask", mask, frame, axis),
        "resets": _flags("resets", resets, frame, axis),
    }
    active = None
    if reverse:
        found = masking.steps(xs.shape[: len(frame)], **steps)
        active = None if found.active is None else found.active[::-1]
        resets = None if found.resets is None else found.resets[::-1]
        xs, steps = xs[::-1], {"mask": found._replace(active=active, resets=resets)}
    state, ys = layer.apply(params, xs, state, key=key, **steps)
    if reverse:
        ys = ys[::-1] if keep_order else _first_executed_first(ys, active)
    return state, _moved(ys, 0, axis)


def _first_executed_first(ys: Features, active: jax.Array | None) -> Features:
    """Move the inactive steps before the first executed one of each row to its end.

    A reversed run of padded rows begins with padding, which Flax keeps at the end.

    Args:
        ys: `[T, *b, *features]`, in the order of execution.
        active: `[T, *b]`, likewise; None if all steps are executed.
    """
    if active is None or not len(active):
        return ys
    step = jnp.arange(len(active)).reshape(-1, *(1,) * (active.ndim - 1))
    step = (step + jnp.argmax(active, axis=0, keepdims=True)) % len(active)
    step = step.reshape(*step.shape, *(1,) * (ys.ndim - step.ndim))
    return jnp.take_along_axis(ys, step, axis=0)


def _check_carry(carry: State | None) -> None:
    """Raise a `ValueError` for a plain tuple of two arrays, whose order is unknown."""
    leaves: Any = carry if type(carry) is tuple else ()
    if len(leaves) == 2 and all(hasattr(leaf, "shape") for leaf in leaves):
        raise ValueError(
            "initial_carry: got a tuple of two arrays, such as the (c, h) of Flax, "
            "expected a state with names; write jl.LSTMState(h=h, c=c), and for the "
            "module LSTM a tuple with one of them for each layer."
        )


def first(value: bool | None, default: bool) -> bool:
    """Return the value, or the default if it is None."""
    return default if value is None else value


def input_array(inputs: ArrayLike, feature_axes: int) -> Any:
    """Return the inputs as a NumPy or JAX array, without a copy between the two.

    Raises:
        ValueError: they have too few axes.
    """
    xs = _array("inputs", inputs)
    if xs.ndim <= feature_axes:
        raise ValueError(
            f"inputs: got shape {show(xs.shape)}, expected at least {feature_axes + 1} "
            f"axes: time, and {feature_axes} after it (feature_axes)."
        )
    return xs


def without_steps(inputs: ArrayLike, feature_axes: int, time_major: bool) -> Any:
    """Return the inputs with T = 0: a layer then returns the state it starts from."""
    xs = input_array(inputs, feature_axes)
    axis = 0 if time_major else xs.ndim - 1 - feature_axes
    return xs[(slice(None),) * axis + (slice(0),)]


def _array(name: str, value: ArrayLike) -> Any:
    if isinstance(value, jax.Array | np.ndarray):
        return value
    return masking.as_array(name, value)


def _moved(array: Any, source: int, target: int) -> Any:
    """Move an axis: a view of a NumPy array, a transpose of a JAX array."""
    if source == target:
        return array
    numpy: Any = jnp if isinstance(array, jax.Array) else np
    return numpy.moveaxis(array, source, target)


def _flags(
    name: str, value: ArrayLike | None, frame: tuple[int, ...], axis: int
) -> ArrayLike | None:
    if value is None:
        return None
    array = _array(name, value)
    if array.shape != frame:
        raise ValueError(
            f"{name}: got shape {show(array.shape)}, expected {show(frame)}, one "
            "boolean per step of the inputs."
        )
    return _moved(array, axis, 0)


@functools.lru_cache(maxsize=256)
def draws_noise(layer: Layer, in_features: int | None, feature_axes: int) -> bool:
    """Return whether the layer draws noise if it gets a key.

    A layer without noise must not draw a key: Flax counts the keys of a stream, and
    inside a trace it cannot increase a count that was created outside. The layer is
    traced over one step, not run; it draws noise if some operation reads a key and
    returns values that are not keys.
    """
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(lambda key: layer.init(key, in_features)[0], key)
    space = (1,) * (feature_axes - 1)
    shape = (1, *space, in_features or 1) if feature_axes else (1,)
    xs = jax.ShapeDtypeStruct(shape, jnp.float32 if feature_axes else jnp.int32)
    traced = jax.make_jaxpr(lambda p, x, key: layer.apply(p, x, key=key))
    try:
        jaxpr = traced(params, xs, key).jaxpr
    except ValueError:
        token = jax.ShapeDtypeStruct((1,), jnp.int32)
        if feature_axes and _runs(traced, params, token, key):
            raise ValueError(
                f"feature_axes: got {feature_axes} for a layer that reads integer "
                "tokens [*b, T], expected 0; write Recurrent(layer, feature_axes=0)."
            ) from None
        raise
    return _reads_a_key(jaxpr)


def _runs(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except Exception:  # the error for the caller's own inputs says more
        return False
    return True


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
