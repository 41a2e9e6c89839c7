"""The vendor's engine: cuDNN's LSTM, as `jax.experimental.rnn` calls it.

Its equations are those of `jaxlstm.cells.lstm` with two biases, which are added up;
ours goes into the first and zeros into the second. The weights of all layers and
directions come in one flat array, the matrices of each and then the biases of each,

    w_xᵀ w_hᵀ  w_xᵀ w_hᵀ  ...  b 0  b 0  ...

gate by gate in the order of `Gates`. `pack` makes it and `unpack` reads it.

cuDNN runs the first steps of every row, as many as it is told, and one at least. So the
steps that happen are put first, in the order in which they are run, and their outputs
are put back: lengths, masks with holes and `reverse` are one permutation of time. A row
that has no steps runs one from zeros, and what comes of it is dropped.

Products are taken as `jax_default_matmul_precision` has it: in TF32 if it says nothing.
JAX has no rule for `vmap` and none for forward mode here, and each call waits until
the lengths have reached the host.

Reference: Appleyard, Kočiský and Blunsom, "Optimizing performance of recurrent neural
networks on GPUs", 2016, https://arxiv.org/abs/1604.01946
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

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
from jaxlstm.masking import StepMask, select
from jaxlstm.typing import ActiveSteps, Features, is_explicit


class Kernel(NamedTuple):
    """What runs the recurrence, and where.

    lstm      with the arguments and the results of `jax.experimental.rnn.lstm`
    missing   what it lacks here, or None
    """

    lstm: Callable[..., Any]
    missing: Callable[[], str | None]


def no_cuda() -> str | None:
    """Says so where JAX's default device is none of CUDA's."""
    device = jax.config.values["jax_default_device"]
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    if "cuda" in device.client.platform_version.lower():
        return None
    return f"no GPU: the kernel needs CUDA, and JAX's default device is {device}."


CUDNN = Kernel(rnn.lstm, no_cuda)


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    each: PerStep,
    state: State,
    steps: StepMask,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
    kernel: Kernel = CUDNN,
) -> tuple[State, Any]:
    """As the reference does, for the LSTM in float32.

    Errors: `NotImplementedError` without a CUDA device, for another cell or dtype, for
    resets, for outputs other than h, with `checkpoint_every`, and on a mesh.
    """
    _check_place(kernel, xs, (params, state))
    plain.check("cudnn", cell, params, xs, each, state)
    _check_options(steps, emit, checkpoint_every)
    (state,), hs = _through(
        kernel, [params], [state], xs, steps.active, reverse=reverse
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
    """Many layers, and both directions of each, in one call of the kernel.

    It is what `jl.stack(jl.lstm(), sizes)` applies, for sizes that are all the same,
    one-way or bidirectional, without dropout and residuals.

    Arguments:
        params: an entry for each layer, `LSTMParams` or the pair of both directions:
            the parameters of such a stack.
        xs: `[T, *b, D]` in float32.
        state: as params, with an `LSTMState` for each `LSTMParams`; None for zeros.
        lengths: as in `unroll`.

    Returns: `(state, ys)`, ys `[T, *b, H]`, or `[T, *b, 2 H]` of both directions.

    Errors: `NotImplementedError` for what is not such a stack, and as `run`;
    `ValueError` for parameters made for other features.
    """
    layers, tree = jax.tree.flatten(params, is_leaf=_is_params)
    _check_place(kernel, xs, (layers, state))
    _check_stack(params, layers, xs)
    states = [initial_state(layer, xs.shape[1:-1], dtype=xs.dtype) for layer in layers]
    if state is not None:
        states = tree.flatten_up_to(jax.tree.map(jnp.asarray, state))
    steps = masking.steps(xs.shape[:-1], lengths=lengths)
    xs = masking.zero_inactive(xs, steps)
    states, ys = _through(
        kernel, layers, states, xs, steps.active, directions=_directions(params[0])
    )
    if steps.invalid_length is not None:
        states = [masking.nan_rows(state, steps.invalid_length) for state in states]
    return tree.unflatten(states), masking.mask_outputs(ys, steps)


def pack(layers: Sequence[LSTMParams]) -> Array:
    """The flat weights of cuDNN, of the dtype of the parameters.

    Arguments:
        layers: from the first layer to the last, and of each layer first the forward
            direction and then, if there is one, the backward direction.

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
    """The parameters in flat weights of cuDNN, both biases in one; `pack` undone.

    >>> import jax.numpy as jnp
    >>> [params] = unpack(jnp.arange(200.0), input_size=3, hidden_size=5)
    >>> params.w_x.shape, params.w_h.shape, params.b[0].tolist()
    ((3, 4, 5), (5, 4, 5), [340.0, 342.0, 344.0, 346.0, 348.0])
    """
    parts = rnn.unpack_lstm_weights(
        weights, input_size, hidden_size, layers, bidirectional
    )

    def one(w_x: Array, w_h: Array, b_x: Array, b_h: Array) -> LSTMParams:
        w_x, w_h = (
            jnp.moveaxis(w.reshape(4, hidden_size, -1), -1, 0) for w in (w_x, w_h)
        )
        return LSTMParams(w_x, w_h, (b_x + b_h).reshape(4, hidden_size))

    return [one(*(part[n] for part in parts)) for n in parts[0]]


# -- the call --------------------------------------------------------------------------


def _through(
    kernel: Kernel,
    layers: list[LSTMParams],
    states: list[LSTMState],
    xs: Features,
    active: ActiveSteps | None,
    *,
    reverse: bool = False,
    directions: int = 1,
) -> tuple[list[LSTMState], Features]:
    """The states after the last step, and the outputs of the last layer.

    Rows are put into one axis and steps in the order in which they are run.
    """
    (time, *batch_shape, size), hidden = xs.shape, layers[0].b.shape[-1]
    frame = time, rows = time, math.prod(batch_shape)
    if time * rows == 0:  # nothing to run
        return states, jnp.zeros((*xs.shape[:-1], directions * hidden), xs.dtype)
    active = None if active is None else active.reshape(frame)
    there, back, counts = _order(active, frame, reverse=reverse)
    some = counts > 0
    before = [LSTMState(*(s.reshape(rows, hidden) for s in state)) for state in states]
    zeros = LSTMState(jnp.zeros((), xs.dtype), jnp.zeros((), xs.dtype))
    begin = [select(some, state, zeros) for state in before]
    ys, *after = kernel.lstm(
        there(xs.reshape(*frame, size)).swapaxes(0, 1),
        jnp.stack([state.h for state in begin]),
        jnp.stack([state.c for state in begin]),
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
    ended = [select(some, state, old) for state, old in pairs]
    shaped = [
        LSTMState(*(s.reshape(*batch_shape, hidden) for s in state)) for state in ended
    ]
    return shaped, back(ys.swapaxes(0, 1)).reshape(*xs.shape[:-1], -1)


Move = Callable[[Array], Array]


def _order(
    active: ActiveSteps | None, frame: tuple[int, int], *, reverse: bool
) -> tuple[Move, Move, Array]:
    """How arrays `[T, B, ...]` get into the order of the run and back, and how many
    steps each row has in it.
    """
    time, rows = frame
    if active is None:
        turn: Move = (lambda a: a[::-1]) if reverse else (lambda a: a)
        return turn, turn, jnp.full(rows, time, jnp.int32)
    row = jnp.arange(rows, dtype=jnp.int32)
    at = (places(active, reverse=reverse), jnp.broadcast_to(row, frame))
    sure: Any = {"unique_indices": True, "mode": "promise_in_bounds"}
    return (
        lambda a: jnp.zeros_like(a).at[at].set(a, **sure),
        lambda a: a.at[at].get(**sure),
        active.sum(0, dtype=jnp.int32),
    )


def places(active: ActiveSteps, *, reverse: bool = False) -> Array:
    """For each step `[T, B]` its place in the run; those that do not happen are last.

    >>> places(jnp.array([[True], [False], [True]])).ravel().tolist()
    [0, 2, 1]
    """
    if reverse:
        return places(active[::-1])[::-1]
    done, left = (jnp.cumsum(a, axis=0, dtype=jnp.int32) for a in (active, ~active))
    return jnp.where(active, done, done[-1:] + left) - 1


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
    """HIGH is TF32; said outright, so that both passes take the same."""
    name = jax.config.values["jax_default_matmul_precision"]
    if name not in PRECISIONS:
        raise NotImplementedError(
            f"cudnn: jax_default_matmul_precision is {name!r}; this kernel knows TF32 "
            '("high") and float32 ("highest") only.'
        )
    return PRECISIONS[name]


# -- what it refuses -------------------------------------------------------------------


def _check_place(kernel: Kernel, xs: Features, others: Any) -> None:
    """Errors: `NotImplementedError` for no device, another dtype, and a mesh."""
    if missing := kernel.missing():
        raise NotImplementedError(f"cudnn: {missing}")
    if xs.dtype != jnp.float32:
        raise NotImplementedError(
            f"cudnn: xs has dtype {xs.dtype}; JAX brings this kernel in float32 only."
        )
    for kind in map(jax.typeof, jax.tree.leaves((xs, others))):
        manual = kind.manual_axis_type
        if is_explicit(kind.sharding) or (manual and manual.varying):
            raise NotImplementedError(
                "cudnn: arrays are split over a mesh, and the kernel has no rule for "
                'one; engine="adjoint" has.'
            )


def _check_options(
    steps: StepMask, emit: Emit, checkpoint_every: int | Literal["sqrt"] | None
) -> None:
    """Errors: `NotImplementedError` for resets, other outputs and checkpoints."""
    if steps.resets is not None:
        raise NotImplementedError(
            "cudnn: resets were given, and the kernel cannot begin a row again; "
            'engine="adjoint" can.'
        )
    if emit is not emits.hidden and emit is not emits.nothing:
        raise NotImplementedError(
            f"cudnn: emit is {getattr(emit, '__name__', emit)}, and the kernel shows h "
            "only; jl.emit.hidden and jl.emit.nothing are served."
        )
    if checkpoint_every is not None:
        raise NotImplementedError(
            f"cudnn: checkpoint_every is {checkpoint_every!r}, and the kernel computes "
            'nothing again; engine="adjoint" does.'
        )


def _check_stack(params: Sequence[Params], layers: list[Any], xs: Features) -> None:
    """Errors: `NotImplementedError` for other than equal layers of LSTMs, `ValueError`
    where a layer is made for other features than it gets: nobody looks after this.
    """
    kinds = {_directions(layer) for layer in params}
    found = [sizes(LSTMParams, layer) for layer in layers if _is_params(layer)]
    hidden = {size["H"] for size in found}
    if len(found) < len(layers) or len(kinds) != 1 or len(hidden) != 1:
        raise NotImplementedError(
            "cudnn: params must be LSTMParams, or pairs of them, one for each layer "
            f"and all of one size; these have the sizes {sorted(hidden)}."
        )
    [ways], [size] = kinds, hidden
    wanted = [xs.shape[-1]] * ways + [ways * size] * (len(layers) - ways)
    if (made_for := [size["D"] for size in found]) != wanted:
        raise ValueError(
            f"run_stack: layers get {wanted} features, but these params were made for "
            f"{made_for}."
        )


def _is_params(node: Any) -> bool:
    return isinstance(node, LSTMParams)


def _directions(layer: Params) -> int:
    return 1 if _is_params(layer) else len(layer)
