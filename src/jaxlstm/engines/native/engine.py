"""Calls of the compiled LSTM kernel: a CPU, float32, reverse mode only.

The kernel in `lstm_loop.cpp` runs the loops of the forward and of the backward pass,
which overwrites the gates by δ; its derivation is in that file. Gradients of weights
and inputs are products over all steps after the loop, computed by XLA. The kernel runs
on XLA's thread pool: each thread keeps its share of the weights in its cache for all
steps, and threads that share rows synchronize once per step.

`jl.engines.native.load()` compiles the kernel with the user's compiler; until then the
engine refuses. Rows added by `vmap` are computed one after the other.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import (
    Cell,
    Gates,
    LSTMParams,
    LSTMState,
    Params,
    PerStep,
    State,
)
from jaxlstm.cells.emit import Emit, Trace
from jaxlstm.engines import plain
from jaxlstm.engines.matmul import match_varying_axes
from jaxlstm.masking import StepMask
from jaxlstm.typing import ActiveSteps, Features, is_explicit

TARGETS = {"lstm_forward": "jaxlstm_forward", "lstm_backward": "jaxlstm_backward"}

SKIP, CONTINUE, RESET = 0, 1, 2  # `StepKind` of the kernel

LOADED_KERNELS: list[Any] = []


def register(kernel: Any) -> None:
    """Register the functions of a compiled kernel with XLA, once per process.

    Args:
        kernel: the library as loaded by `ctypes`.
    """
    if not LOADED_KERNELS:
        for name, target in TARGETS.items():
            capsule = jax.ffi.pycapsule(getattr(kernel, name))
            jax.ffi.register_ffi_target(target, capsule, platform="cpu")
        LOADED_KERNELS.append(kernel)


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
) -> tuple[State, Any]:
    """Run the plain LSTM in float32 on a CPU; see `Engine` for the arguments.

    Raises:
        NotImplementedError: the kernel is not loaded; the backend is not a CPU; the
            cell is not `jl.lstm()`; a dtype is not float32; arrays are on an explicit
            mesh; `emit` is not hidden, trace or nothing; `checkpoint_every` is given;
            or a trace is differentiated.
    """
    _check_arrays(params, xs, state)
    plain.check("native", cell, params, xs, per_step, state)
    _check_options(emit, checkpoint_every)
    rows, units = xs.shape[1:-1], state.h.shape[-1]
    if not len(xs) or not state.h.size:
        hs = jnp.zeros((len(xs), *state.h.shape), xs.dtype)
        return state, _emitted(emit, hs, (hs,) * 5)
    kinds = step_kinds(*(_flatten_rows(mask) for mask in (steps.active, steps.resets)))
    xs = xs.reshape(len(xs), math.prod(rows), xs.shape[-1])
    initial = LSTMState(*(leaf.reshape(-1, units) for leaf in state))
    if reverse:
        xs, kinds = xs[::-1], kinds[::-1]
    leaves, tree = jax.tree.flatten((params, xs, initial, kinds))
    loop = traced_lstm if emit is emits.trace else lstm
    hs, after, *others = loop(*jax.tree.unflatten(tree, match_varying_axes(*leaves)))

    def restore_order(leaf: Array) -> Array:
        return (leaf[::-1] if reverse else leaf).reshape(len(xs), *rows, units)

    state = LSTMState(*(leaf.reshape(*rows, units) for leaf in after))
    return state, _emitted(emit, *jax.tree.map(restore_order, (hs, *others)))


def _emitted(emit: Emit, hs: Array, c_and_gates: tuple[Array, ...] = ()) -> Any:
    if emit is emits.trace:
        c, *gates = c_and_gates
        return Trace(LSTMState(hs, c), Gates(*gates))
    return hs if emit is emits.hidden else None


def _check_arrays(params: Params, xs: Features, state: State) -> None:
    """Raise `NotImplementedError` for arrays that the kernel cannot be called with."""
    if not LOADED_KERNELS:
        raise NotImplementedError(
            "native: the kernel is not loaded; call jl.engines.native.load() once, "
            "which compiles it with your C++ compiler."
        )
    if jax.default_backend() != "cpu":
        raise NotImplementedError(
            f"native: got the backend {jax.default_backend()}, expected cpu; use "
            'engine="adjoint".'
        )
    for leaf in jax.tree.leaves((params, xs, state)):
        if leaf.dtype != jnp.float32:
            raise NotImplementedError(
                f"native: got {leaf.dtype}, expected float32 for params, xs and state; "
                'use engine="adjoint" for other dtypes.'
            )
        if is_explicit(jax.typeof(leaf).sharding):
            raise NotImplementedError(
                "native: got arrays on an explicit mesh, which the kernel does not "
                'support; use engine="adjoint".'
            )


def _check_options(emit: Emit, checkpoint_every: int | Literal["sqrt"] | None) -> None:
    """Raise `NotImplementedError` for other outputs and for checkpoints."""
    if emit not in (emits.hidden, emits.trace, emits.nothing):
        raise NotImplementedError(
            f"native: emit: got {getattr(emit, '__name__', emit)}, expected "
            "jl.emit.hidden, jl.emit.trace or jl.emit.nothing."
        )
    if checkpoint_every is not None:
        raise NotImplementedError(
            f"native: checkpoint_every: got {checkpoint_every!r}, expected None, as "
            'the kernel does not recompute steps; use engine="adjoint".'
        )


def _flatten_rows(mask: ActiveSteps | None) -> ActiveSteps | None:
    return None if mask is None else mask.reshape(len(mask), -1)


def step_kinds(active: ActiveSteps | None, resets: ActiveSteps | None) -> Array:
    """Return the kind of each step, uint8 `[T, B]`; `[0, 0]` if all are `CONTINUE`."""
    if active is None and resets is None:
        return jnp.zeros((0, 0), jnp.uint8)
    kinds = jnp.uint8(CONTINUE)
    if resets is not None:
        kinds = jnp.where(resets, jnp.uint8(RESET), kinds)
    return kinds if active is None else jnp.where(active, kinds, jnp.uint8(SKIP))


@jax.custom_vjp
def lstm(
    params: LSTMParams, xs: Array, state: LSTMState, kinds: Array
) -> tuple[Array, LSTMState]:
    """Return h of all steps, `[T, B, H]`, and the last state.

    Args:
        params: of the plain LSTM.
        xs: `[T, B, D]`, T at least 1.
        state: `[B, H]`, before the first step.
        kinds: `[T, B]` of `step_kinds`, or empty if all are `CONTINUE`.
    """
    return _call_forward(params, xs, state, kinds, ())[:2]


@jax.custom_vjp
def traced_lstm(
    params: LSTMParams, xs: Array, state: LSTMState, kinds: Array
) -> tuple[Array, LSTMState, tuple[Array, ...]]:
    """Return the results of `lstm` and c, i, f, g, o of all steps, each `[T, B, H]`."""
    shape = (*xs.shape[:2], state.h.shape[-1])
    return _call_forward(params, xs, state, kinds, (shape,) * 5)


def _refuse_gradient(*arguments: Any) -> Any:
    raise NotImplementedError(
        "native: the kernel has no gradient of emit.trace; "
        'use engine="adjoint" to differentiate a trace.'
    )


traced_lstm.defvjp(_refuse_gradient, _refuse_gradient)


def _call_forward(
    params: LSTMParams,
    xs: Array,
    state: LSTMState,
    kinds: Array,
    stored: tuple[tuple[int, ...], ...],
) -> tuple[Array, LSTMState, tuple[Array, ...]]:
    """Return h of all steps, the last state, and the stored values.

    Args:
        params: as in `lstm`.
        xs: as in `lstm`.
        state: as in `lstm`.
        kinds: as in `lstm`.
        stored: shapes of c `[T, B, H]` and of the gates, either all in one
            `[T, B, 4, H]` or one array each; empty to store nothing.
    """
    struct = functools.partial(jax.ShapeDtypeStruct, dtype=xs.dtype)
    hidden = struct((*xs.shape[:2], state.h.shape[-1]))
    unused = [struct((0, 0, 0))] * (5 - len(stored))
    hs, c, *values = jax.ffi.ffi_call(
        TARGETS["lstm_forward"],
        (hidden, struct(state.c.shape), *map(struct, stored), *unused),
        input_output_aliases={5: 1},
        vmap_method="sequential",
    )(xs, params.w_x, params.w_h, params.b, *state, kinds)
    # JAX does not know over which mesh axes the results of a foreign call vary.
    _, hs, c, *values = match_varying_axes(xs, hs, c, *values)
    return hs, LSTMState(hs[-1], c), tuple(values[: len(stored)])


def _lstm_forward(
    params: LSTMParams, xs: Array, state: LSTMState, kinds: Array
) -> tuple[tuple[Array, LSTMState], Any]:
    *frame, units = *xs.shape[:2], state.h.shape[-1]
    stored = ((*frame, units), (*frame, 4, units))
    hs, after, (cs, gates) = _call_forward(params, xs, state, kinds, stored)
    return (hs, after), (params, xs, state, kinds, gates, hs, cs)


def _lstm_backward(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    """Compute δ by the kernel, then each gradient as one product over all steps."""
    params, xs, state, kinds, gates, hs, cs = residuals
    d_hs, d_state = cotangents
    struct = jax.ShapeDtypeStruct(state.h.shape, state.h.dtype)
    deltas, dh, dc = jax.ffi.ffi_call(
        TARGETS["lstm_backward"],
        (jax.ShapeDtypeStruct(gates.shape, gates.dtype), struct, struct),
        input_output_aliases={0: 0, 5: 1, 6: 2},
        vmap_method="sequential",
    )(gates, params.w_h, state.c, cs, d_hs, *d_state, kinds)
    _, deltas, dh, dc = match_varying_axes(xs, deltas, dh, dc)
    before = jnp.concatenate([state.h[None], hs[:-1]])
    if kinds.size:
        before = jnp.where((kinds == RESET)[..., None], 0, before)
    rows, units = xs.shape[0] * xs.shape[1], state.h.shape[-1]
    delta, x, h = (
        a.reshape(rows, math.prod(a.shape[2:])) for a in (deltas, xs, before)
    )
    d_params = LSTMParams(
        w_x=(x.T @ delta).reshape(params.w_x.shape),
        w_h=(h.T @ delta).reshape(params.w_h.shape),
        b=delta.sum(0).reshape(params.b.shape),
    )
    d_xs = (delta @ params.w_x.reshape(-1, 4 * units).T).reshape(xs.shape)
    return d_params, d_xs, LSTMState(dh, dc), None


lstm.defvjp(_lstm_forward, _lstm_backward)
