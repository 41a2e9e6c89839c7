"""A compiled kernel for the two loops of the LSTM, on a CPU, in float32.

The loops are `lstm_loop.cpp`, by `jax.ffi`, where the derivation of its way back
stands: there the gates become δ in place. The gradients of the weights and of the input
are products over all steps after it, and XLA's. The kernel's threads are those of XLA;
each keeps its share of the weights in its cache for all steps, and those that need each
other's h meet once per step.

The kernel is compiled by the user's own compiler, when `jl.lab.native.load()` is
called, and this engine refuses before that. It has a reverse mode only, and many rows
at a time by `vmap` are taken one after the other.
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

SKIPPED, GOES_ON, AFRESH = 0, 1, 2  # the kinds of a step, as the kernel has them

_loaded: list[Any] = []


def register(kernel: Any) -> None:
    """Make the functions of a compiled kernel known to XLA, once per process.

    Arguments:
        kernel: the library, as `ctypes` loads it.
    """
    if not _loaded:
        for name, target in TARGETS.items():
            capsule = jax.ffi.pycapsule(getattr(kernel, name))
            jax.ffi.register_ffi_target(target, capsule, platform="cpu")
        _loaded.append(kernel)


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
) -> tuple[State, Any]:
    """As the reference does, for the LSTM in float32 on a CPU.

    Errors: `NotImplementedError` before the kernel is loaded, elsewhere than on a CPU,
    for another cell or dtype, for outputs other than `emit.hidden`, `trace` and
    `nothing`, with `checkpoint_every`, and for the gradient of a trace.
    """
    _check_place(params, xs, state)
    plain.check("native", cell, params, xs, each, state)
    _check_options(emit, checkpoint_every)
    rows, units = xs.shape[1:-1], state.h.shape[-1]
    if not len(xs) or not state.h.size:
        hs = jnp.zeros((len(xs), *state.h.shape), xs.dtype)
        return state, _emitted(emit, hs, (hs,) * 5)
    kind = kinds(*(_flat(flags) for flags in (steps.active, steps.resets)))
    xs = xs.reshape(len(xs), math.prod(rows), xs.shape[-1])
    before = LSTMState(*(leaf.reshape(-1, units) for leaf in state))
    if reverse:
        xs, kind = xs[::-1], kind[::-1]
    leaves, tree = jax.tree.flatten((params, xs, before, kind))
    loop = traced if emit is emits.trace else lstm
    hs, after, *seen = loop(*jax.tree.unflatten(tree, match_varying_axes(*leaves)))

    def stacked(leaf: Array) -> Array:
        return (leaf[::-1] if reverse else leaf).reshape(len(xs), *rows, units)

    state = LSTMState(*(leaf.reshape(*rows, units) for leaf in after))
    return state, _emitted(emit, *jax.tree.map(stacked, (hs, *seen)))


def _emitted(emit: Emit, hs: Array, seen: tuple[Array, ...] = ()) -> Any:
    if emit is emits.trace:
        c, *gates = seen
        return Trace(LSTMState(hs, c), Gates(*gates))
    return hs if emit is emits.hidden else None


def _check_place(params: Params, xs: Features, state: State) -> None:
    """Errors: `NotImplementedError` for what the kernel cannot be called with."""
    if not _loaded:
        raise NotImplementedError(
            "native: the kernel is not loaded; jl.lab.native.load() compiles it with "
            "your C++ compiler, once, and loads it."
        )
    if jax.default_backend() != "cpu":
        raise NotImplementedError(
            f"native: the kernel is for a CPU, and JAX's backend is "
            f"{jax.default_backend()}."
        )
    for leaf in jax.tree.leaves((params, xs, state)):
        if leaf.dtype != jnp.float32:
            raise NotImplementedError(
                f"native: an array is {leaf.dtype}, and the kernel computes in float32 "
                'only; engine="adjoint" takes any dtype.'
            )
        if is_explicit(jax.typeof(leaf).sharding):
            raise NotImplementedError(
                "native: the arrays are split over an explicit mesh, of which the "
                'kernel knows nothing; engine="adjoint" does.'
            )


def _check_options(emit: Emit, checkpoint_every: int | Literal["sqrt"] | None) -> None:
    """Errors: `NotImplementedError` for other outputs and checkpoints."""
    if emit not in (emits.hidden, emits.trace, emits.nothing):
        raise NotImplementedError(
            f"native: emit is {getattr(emit, '__name__', emit)}, which the kernel does "
            "not know; it serves jl.emit.hidden, jl.emit.trace and jl.emit.nothing."
        )
    if checkpoint_every is not None:
        raise NotImplementedError(
            f"native: checkpoint_every is {checkpoint_every!r}, and the kernel "
            'computes nothing again; engine="adjoint" does.'
        )


def _flat(flags: ActiveSteps | None) -> ActiveSteps | None:
    return None if flags is None else flags.reshape(len(flags), -1)


def kinds(active: ActiveSteps | None, resets: ActiveSteps | None) -> Array:
    """What each step is, uint8 `[T, B]`; `[0, 0]` where every step just goes on."""
    if active is None and resets is None:
        return jnp.zeros((0, 0), jnp.uint8)
    kind = jnp.uint8(GOES_ON)
    if resets is not None:
        kind = jnp.where(resets, jnp.uint8(AFRESH), kind)
    return kind if active is None else jnp.where(active, kind, jnp.uint8(SKIPPED))


@jax.custom_vjp
def lstm(
    params: LSTMParams, xs: Array, state: LSTMState, kinds: Array
) -> tuple[Array, LSTMState]:
    """(h of all steps `[T, B, H]`, the last state).

    Arguments:
        params: of the plain LSTM.
        xs: `[T, B, D]`, T at least 1.
        state: `[B, H]`, before the first step.
        kinds: `[T, B]`, or empty where every step just goes on.
    """
    return _forward(params, xs, state, kinds, ())[:2]


@jax.custom_vjp
def traced(
    params: LSTMParams, xs: Array, state: LSTMState, kinds: Array
) -> tuple[Array, LSTMState, tuple[Array, ...]]:
    """As `lstm`, and c, i, f, g, o of all steps, each `[T, B, H]`."""
    shape = (*xs.shape[:2], state.h.shape[-1])
    return _forward(params, xs, state, kinds, (shape,) * 5)


def _refuse_gradient(*arguments: Any) -> Any:
    raise NotImplementedError(
        "native: the kernel has no gradient of what emit.trace shows; "
        'engine="adjoint" has.'
    )


traced.defvjp(_refuse_gradient, _refuse_gradient)


def _forward(
    params: LSTMParams,
    xs: Array,
    state: LSTMState,
    kinds: Array,
    shown: tuple[tuple[int, ...], ...],
) -> tuple[Array, LSTMState, tuple[Array, ...]]:
    """(h of all steps, the last state, what else is shown).

    Arguments:
        shown: the shapes of c `[T, B, H]` and of the gates, all in one `[T, B, 4, H]`
            or one each; none to show nothing.
    """
    like = functools.partial(jax.ShapeDtypeStruct, dtype=xs.dtype)
    hidden = like((*xs.shape[:2], state.h.shape[-1]))
    unseen = like((0, 0, 0))
    hs, c, *seen = jax.ffi.ffi_call(
        TARGETS["lstm_forward"],
        (hidden, like(state.c.shape), *map(like, shown), *[unseen] * (5 - len(shown))),
        input_output_aliases={5: 1},
        vmap_method="sequential",
    )(xs, params.w_x, params.w_h, params.b, *state, kinds)
    _, hs, c, *seen = match_varying_axes(
        xs, hs, c, *seen
    )  # what JAX does not know of a call
    return hs, LSTMState(hs[-1], c), tuple(seen[: len(shown)])


def _lstm_forward(
    params: LSTMParams, xs: Array, state: LSTMState, kinds: Array
) -> tuple[tuple[Array, LSTMState], Any]:
    *at, units = *xs.shape[:2], state.h.shape[-1]
    shown = ((*at, units), (*at, 4, units))
    hs, after, (cs, gates) = _forward(params, xs, state, kinds, shown)
    return (hs, after), (params, xs, state, kinds, gates, hs, cs)


def _lstm_backward(residuals: Any, dots: Any) -> tuple[Any, ...]:
    """δ by the kernel; then each gradient is one product, all rows along one axis."""
    params, xs, state, kinds, gates, hs, cs = residuals
    d_hs, d_state = dots
    like = jax.ShapeDtypeStruct(state.h.shape, state.h.dtype)
    deltas, dh, dc = jax.ffi.ffi_call(
        TARGETS["lstm_backward"],
        (jax.ShapeDtypeStruct(gates.shape, gates.dtype), like, like),
        input_output_aliases={0: 0, 5: 1, 6: 2},
        vmap_method="sequential",
    )(gates, params.w_h, state.c, cs, d_hs, *d_state, kinds)
    _, deltas, dh, dc = match_varying_axes(xs, deltas, dh, dc)
    before = jnp.concatenate([state.h[None], hs[:-1]])
    if kinds.size:
        before = jnp.where((kinds == AFRESH)[..., None], 0, before)
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
