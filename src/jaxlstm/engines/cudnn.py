"""Engine that calls cuDNN's LSTM through `jax.experimental.rnn`.

Its equations are those of `jaxlstm.cells.lstm` with a sum of two biases; ours is passed
as the first, zeros as the second. The weights of all layers and directions are one flat
array, first all matrices and then all biases,

    w_xᵀ w_hᵀ  w_xᵀ w_hᵀ  ...  b 0  b 0  ...

gate by gate in the order of `Gates`. `pack` builds it and `unpack` reads it.

cuDNN executes the first n steps of every row, n at least 1. Active steps are therefore
moved to the front in the order of execution, and their outputs are moved back: lengths,
masks with holes and `reverse` are one permutation of time. A row without active steps
runs one step from zeros, and its result is discarded.

Products use `jax_default_matmul_precision`, and TF32 if it is not set. JAX has no rule
for `vmap` and none for forward mode here, and each call waits until the lengths have
been copied to the host.

Reference:
    Appleyard, Kočiský and Blunsom, "Optimizing performance of recurrent neural
    networks on GPUs", 2016, https://arxiv.org/abs/1604.01946
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import rnn
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import (
    Cell,
    LSTMParams,
    LSTMState,
    Params,
    PerStep,
    State,
)
from jaxlstm.cells.emit import Emit
from jaxlstm.cells.lstm import initial_state
from jaxlstm.cells.parameters import sizes
from jaxlstm.engines import plain
from jaxlstm.engines.given_resets import GivenResets
from jaxlstm.masking import StepMask, select
from jaxlstm.typing import ActiveSteps, Features, is_explicit, is_symbolic, show


class Kernel(NamedTuple):
    """Implementation of the recurrence.

    Attributes:
        lstm: function with the signature of `jax.experimental.rnn.lstm`.
        missing: returns a message that says why it cannot run here, or None.
    """

    lstm: Callable[..., Any]
    missing: Callable[[], str | None]


def no_cuda() -> str | None:
    """Return a message if JAX's default device is not a CUDA device."""
    device = jax.config.values["jax_default_device"]
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    if "cuda" in device.client.platform_version.lower():
        return None
    return (
        f"no GPU: got {device} as JAX's default device, expected a CUDA device; use "
        'engine="adjoint".'
    )


CUDNN = Kernel(rnn.lstm, no_cuda)


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    per_step: PerStep,
    state: State,
    steps: StepMask,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
    kernel: Kernel = CUDNN,
) -> tuple[State, Any]:
    """Run the plain LSTM in float32 by cuDNN; see `Engine` for the arguments.

    Raises:
        NotImplementedError: there is no CUDA device; the cell is not `jl.lstm()`; xs is
            not float32; arrays are on a mesh; resets or `checkpoint_every` are given;
            or `emit` is not hidden or nothing.
    """
    _check_arrays(kernel, xs, (params, state))
    has_resets = steps.resets is not None or isinstance(params, GivenResets)
    _check_options(emit, checkpoint_every, has_resets=has_resets)
    plain.check("cudnn", cell, params, xs, per_step, state)
    (state,), hs = _call_kernel(
        kernel, [cast("LSTMParams", params)], [state], xs, steps.active, reverse=reverse
    )
    return state, hs if emit is emits.hidden else None


def run_stack(
    params: Sequence[Params],
    xs: Features,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    kernel: Kernel = CUDNN,
) -> tuple[State, Features]:
    """Run several layers, in one or both directions, in one call of the kernel.

    The result is that of `jl.stack(jl.lstm(), sizes)` for equal sizes, unidirectional
    or bidirectional, without dropout and residual connections.

    Args:
        params: parameters of such a stack: for each layer `LSTMParams`, or the pair of
            both directions.
        xs: `[T, *b, D]` in float32.
        state: an `LSTMState` in place of each `LSTMParams`; None for zeros.
        lengths: as in `unroll`.

    Returns:
        `(state, ys)`, ys `[T, *b, H]`, or `[T, *b, 2 H]` if bidirectional.

    Raises:
        NotImplementedError: params are not of such a stack, or as in `run`.
        ValueError: the number of features does not fit params.
    """
    layers, tree = jax.tree.flatten(params, is_leaf=_is_params)
    _check_arrays(kernel, xs, (layers, state))
    _check_stack(params, layers, xs)
    states = [initial_state(layer, xs.shape[1:-1], dtype=xs.dtype) for layer in layers]
    if state is not None:
        states = tree.flatten_up_to(jax.tree.map(jnp.asarray, state))
    steps = masking.steps(xs.shape[:-1], lengths=lengths)
    xs = masking.zero_inactive(xs, steps)
    states, ys = _call_kernel(
        kernel, layers, states, xs, steps.active, directions=_directions(params[0])
    )
    if steps.invalid_length is not None:
        states = [masking.nan_rows(state, steps.invalid_length) for state in states]
    return tree.unflatten(states), masking.mask_outputs(ys, steps)


def pack(layers: Sequence[LSTMParams]) -> Array:
    """Return the flat weights of cuDNN, in the dtype of the parameters.

    Args:
        layers: parameters from the first layer to the last, the forward direction of
            each layer before its backward direction.

    Example:
        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> shapes = (3, 4, 5), (5, 4, 5), (4, 5)
        >>> params = jl.LSTMParams(*map(jnp.ones, shapes))
        >>> pack([params]).shape, 4 * 5 * (3 + 5 + 2)
        ((200,), 200)
    """
    matrices = (w for layer in layers for w in (layer.w_x, layer.w_h))
    biases = (b for layer in layers for b in (layer.b, jnp.zeros_like(layer.b)))
    flat = [jnp.moveaxis(w, 0, -1).ravel() for w in matrices]
    return jnp.concatenate([*flat, *(b.ravel() for b in biases)])


def unpack(
    weights: Array,
    *,
    input_size: int,
    hidden_size: int,
    layers: int = 1,
    bidirectional: bool = False,
) -> list[LSTMParams]:
    """Return the parameters in flat weights of cuDNN, the inverse of `pack`.

    The two biases of cuDNN are added.

    Example:
        >>> import jax.numpy as jnp
        >>> [params] = unpack(jnp.arange(200.0), input_size=3, hidden_size=5)
        >>> params.w_x.shape, params.w_h.shape, params.b[0].tolist()
        ((3, 4, 5), (5, 4, 5), [340.0, 342.0, 344.0, 346.0, 348.0])
    """
    parts = rnn.unpack_lstm_weights(
        weights, input_size, hidden_size, layers, bidirectional
    )

    def of_layer(w_x: Array, w_h: Array, b_x: Array, b_h: Array) -> LSTMParams:
        w_x, w_h = (
            jnp.moveaxis(w.reshape(4, hidden_size, -1), -1, 0) for w in (w_x, w_h)
        )
        return LSTMParams(w_x, w_h, (b_x + b_h).reshape(4, hidden_size))

    return [of_layer(*(part[n] for part in parts)) for n in parts[0]]


# -- the call --------------------------------------------------------------------------


def _call_kernel(
    kernel: Kernel,
    layers: list[LSTMParams],
    states: list[LSTMState],
    xs: Features,
    active: ActiveSteps | None,
    *,
    reverse: bool = False,
    directions: int = 1,
) -> tuple[list[LSTMState], Features]:
    """Return the states after the last step, and the outputs of the last layer.

    Batch axes are flattened, and steps are moved to the order of execution.
    """
    (time, *batch_shape, size), hidden = xs.shape, layers[0].b.shape[-1]
    frame = time, rows = time, math.prod(batch_shape)
    if time * rows == 0:
        return states, jnp.zeros((*xs.shape[:-1], directions * hidden), xs.dtype)
    active = None if active is None else active.reshape(frame)
    to_execution, from_execution, counts = _execution_order(
        active, frame, reverse=reverse
    )
    not_empty = counts > 0
    before = [LSTMState(*(s.reshape(rows, hidden) for s in state)) for state in states]
    zeros = LSTMState(jnp.zeros((), xs.dtype), jnp.zeros((), xs.dtype))
    initial = [select(not_empty, state, zeros) for state in before]
    ys, *after = kernel.lstm(
        to_execution(xs.reshape(*frame, size)).swapaxes(0, 1),
        jnp.stack([state.h for state in initial]),
        jnp.stack([state.c for state in initial]),
        pack(jax.tree.map(lambda leaf: leaf.astype(xs.dtype), layers)),
        jnp.maximum(counts, 1),
        size,
        hidden,
        len(layers) // directions,
        0.0,
        directions == 2,
        _precision(),
    )
    pairs = zip(map(LSTMState, *after), before, strict=True)
    final = [select(not_empty, state, old) for state, old in pairs]
    shaped = [
        LSTMState(*(s.reshape(*batch_shape, hidden) for s in state)) for state in final
    ]
    return shaped, from_execution(ys.swapaxes(0, 1)).reshape(*xs.shape[:-1], -1)


Permute = Callable[[Array], Array]


def _execution_order(
    active: ActiveSteps | None, frame: tuple[int, int], *, reverse: bool
) -> tuple[Permute, Permute, Array]:
    """Return functions that permute `[T, B, ...]` to the order of execution and back,
    and the number of active steps of each row.
    """
    time, rows = frame
    if active is None:
        flip: Permute = (lambda a: a[::-1]) if reverse else (lambda a: a)
        return flip, flip, jnp.full(rows, time, jnp.int32)
    row = jnp.arange(rows, dtype=jnp.int32)
    at = (execution_positions(active, reverse=reverse), jnp.broadcast_to(row, frame))
    options: Any = {"unique_indices": True, "mode": "promise_in_bounds"}
    return (
        lambda a: jnp.zeros_like(a).at[at].set(a, **options),
        lambda a: a.at[at].get(**options),
        active.sum(0, dtype=jnp.int32),
    )


def execution_positions(active: ActiveSteps, *, reverse: bool = False) -> Array:
    """Return for each step `[T, B]` its position in the execution, inactive steps last.

    Example:
        >>> execution_positions(jnp.array([[True], [False], [True]])).ravel().tolist()
        [0, 2, 1]
    """
    if reverse:
        return execution_positions(active[::-1])[::-1]
    executed, skipped = (
        jnp.cumsum(a, axis=0, dtype=jnp.int32) for a in (active, ~active)
    )
    return jnp.where(active, executed, executed[-1:] + skipped) - 1


PRECISIONS = {
    None: lax.Precision.HIGH,
    "default": lax.Precision.HIGH,
    "high": lax.Precision.HIGH,
    "tensorfloat32": lax.Precision.HIGH,
    "TF32_TF32_F32": lax.Precision.HIGH,
    "highest": lax.Precision.HIGHEST,
    "float32": lax.Precision.HIGHEST,
    "F32_F32_F32": lax.Precision.HIGHEST,
}


def _precision() -> lax.Precision:
    """Return the precision of products: HIGH is TF32, explicit for both passes."""
    name = jax.config.values["jax_default_matmul_precision"]
    if name not in PRECISIONS:
        raise NotImplementedError(
            f"cudnn: jax_default_matmul_precision: got {name!r}, expected "
            '"high" (TF32) or "highest" (float32).'
        )
    return PRECISIONS[name]


# -- checks ----------------------------------------------------------------------------


def _check_arrays(kernel: Kernel, xs: Features, others: Any) -> None:
    """Raise `NotImplementedError` for a missing device, another dtype, or a mesh."""
    if missing := kernel.missing():
        raise NotImplementedError(f"cudnn: {missing}")
    if xs.dtype != jnp.float32:
        raise NotImplementedError(
            f"cudnn: xs: got dtype {xs.dtype}, expected float32; use "
            'engine="adjoint" for other dtypes.'
        )
    if is_symbolic(xs.shape):
        raise NotImplementedError(
            f"cudnn: got xs of symbolic shape {show(xs.shape)}, expected integers; use "
            'engine="adjoint".'
        )
    for kind in map(jax.typeof, jax.tree.leaves((xs, others))):
        manual = kind.manual_axis_type
        if is_explicit(kind.sharding) or (manual and manual.varying):
            raise NotImplementedError(
                "cudnn: got arrays on a mesh, which the kernel does not support; use "
                'engine="adjoint".'
            )


def _check_options(
    emit: Emit, checkpoint_every: int | Literal["sqrt"] | None, *, has_resets: bool
) -> None:
    """Raise `NotImplementedError` for resets, other outputs and checkpoints."""
    if has_resets:
        raise NotImplementedError(
            "cudnn: resets: got an array, expected None, as the kernel cannot reset a "
            'state; use engine="adjoint".'
        )
    if emit is not emits.hidden and emit is not emits.nothing:
        raise NotImplementedError(
            f"cudnn: emit: got {getattr(emit, '__name__', emit)}, expected "
            "jl.emit.hidden or jl.emit.nothing, as the kernel returns h only."
        )
    if checkpoint_every is not None:
        raise NotImplementedError(
            f"cudnn: checkpoint_every: got {checkpoint_every!r}, expected None, as the "
            'kernel does not recompute steps; use engine="adjoint".'
        )


def _check_stack(params: Sequence[Params], layers: list[Any], xs: Features) -> None:
    """Check that the layers are LSTMs of one size, and fit each other and xs.

    cuDNN itself would not notice.

    Raises:
        NotImplementedError: they are not LSTMs of one size.
        ValueError: a layer expects another number of features than it gets.
    """
    kinds = {_directions(layer) for layer in params}
    found = [sizes(LSTMParams, layer) for layer in layers if _is_params(layer)]
    hidden = {size["H"] for size in found}
    if len(found) < len(layers) or len(kinds) != 1 or len(hidden) != 1:
        raise NotImplementedError(
            f"cudnn: params: got hidden sizes {sorted(hidden)}, expected LSTMParams, "
            "or pairs of them, for each layer and all of one size; use jl.stack."
        )
    [directions], [size] = kinds, hidden
    received = [xs.shape[-1]] * directions
    received += [directions * size] * (len(layers) - directions)
    if (expected := [size["D"] for size in found]) != received:
        raise ValueError(
            f"run_stack: xs: got {received} features for the layers, expected "
            f"{expected} as in params."
        )


def _is_params(node: Any) -> bool:
    return isinstance(node, LSTMParams)


def _directions(layer: Params) -> int:
    return 1 if _is_params(layer) else len(layer)
