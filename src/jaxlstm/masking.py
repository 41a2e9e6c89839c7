"""Which steps of a sequence happen, and which begin it again: one meaning for all.

`lengths`, `mask` and `resets` become one record, `StepMask`, which every engine reads
and nobody else interprets:

    a step that does not happen   leaves the state untouched and emits zeros; neither
                                  its input nor its reset is looked at
    a reset at step t             puts the cell's initial state in place of the state
                                  before step t, in the order in which steps are run
    a length outside 0..T         is an error where it can be seen, and turns its
                                  row into NaN where it is traced
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr
from jax.typing import ArrayLike

from jaxlstm.cells.base import State
from jaxlstm.typing import ActiveSteps, Features, Rows, show


class StepMask(NamedTuple):
    """What happens when; None where there is nothing to say.

    active          [T, *b]  True where the step happens
    resets          [T, *b]  True where the sequence begins again before the step
    invalid_length [*b]     True for a row whose traced length lies outside 0..T
    """

    active: ActiveSteps | None = None
    resets: ActiveSteps | None = None
    invalid_length: Rows | None = None


def features(name: str, xs: ArrayLike, *, spatial_axes: int = 0) -> Features:
    """xs as an array `[T, *b, D]` of floating point numbers.

    NumPy's float64 becomes float32 where JAX's x64 mode is off; the first time in a
    process, a warning says so.

    Arguments:
        name: what the caller calls it, for the message.
        xs: anything that is an array of numbers, in any memory layout.
        spatial_axes: how many axes stand between the batch and the features.

    Errors: `ValueError` that names the rank or the dtype that came.
    """
    array = as_array(name, xs)
    if getattr(xs, "dtype", None) == np.float64 != array.dtype:
        _warn_of_narrowing(name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {array.dtype}; floating point features are needed. "
            f"Convert them, for example {name}.astype(jnp.float32)."
        )
    if array.ndim < 2 + spatial_axes:
        space = f"{spatial_axes} spatial axes, " if spatial_axes else ""
        wanted = "[T, *b, *space, D]" if spatial_axes else "[T, *b, D]"
        raise ValueError(
            f"{name} has shape {show(array.shape)}; {wanted} is needed: time first, "
            f"{space}features last, any number of batch axes between."
        )
    return array


@functools.cache
def _warn_of_narrowing(name: str) -> None:
    warnings.warn(
        f"{name} has dtype float64 and JAX's x64 mode is off, so it is computed in "
        "float32. Convert it to say so, or set jax_enable_x64. This is said once.",
        stacklevel=5,  # whoever called `unroll`
    )


def as_array(name: str, value: ArrayLike | None) -> Array:
    """A JAX array, or a `ValueError` that says why value is none.

    Python lists, and NumPy arrays of any stride and byte order, are copied over; what
    is on a device stays there. A record is refused, not stacked.
    """
    if isinstance(value, Array):
        check_alive(name, value)
        return value
    if value is None:
        raise ValueError(f"{name} is None; an array of numbers is needed.")
    if isinstance(value, Mapping) or hasattr(value, "_fields"):
        first = jax.tree_util.tree_leaves_with_path(value)[:1]
        such = "".join(f", such as {name}{keystr(path)}" for path, _ in first)
        raise ValueError(
            f"{name} is {described(value)}; one array of it is needed{such}."
        )
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name} is a masked array, and its mask would be lost. Pass {name}.data, "
            "and say with mask=, [T, *b], which steps happen."
        )
    try:
        host = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from None
    if not (jnp.issubdtype(host.dtype, jnp.number) or host.dtype == bool):
        rows = "; rows of unequal length must be padded, and lengths= say how long"
        raise ValueError(
            f"{name} has dtype {host.dtype}, which is not a number"
            f"{rows if host.dtype == object else ''}."
        )
    return jnp.asarray(host.astype(host.dtype.newbyteorder("=")))


def described(value: Any) -> str:
    """What came, for a message: `a Gates(i, f, g, o)`, `an array [7, 3]`."""
    if hasattr(value, "shape"):
        return f"an array {show(value.shape)}"
    names = map(repr, value) if isinstance(value, Mapping) else ()
    fields = ", ".join(getattr(value, "_fields", names))
    return f"a {type(value).__name__}({fields})" if fields else f"{value!r:.60}"


def check_alive(name: str, array: Array) -> None:
    """Errors: `ValueError` for an array whose memory was given away."""
    if not isinstance(array, Tracer) and array.is_deleted():
        raise ValueError(
            f"{name} is an array that was deleted, as donating it to a jitted function "
            "does; go on with what that function returned."
        )


@contextlib.contextmanager
def error_prefix(name: str) -> Iterator[None]:
    """Puts the name of the function that was called before a `ValueError`'s sentence.

    What is raised within a step of the caller's own is the cause of what comes out.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError or str(error).startswith(f"{name}: "):
            raise
        raise ValueError(f"{name}: {error}") from error


def steps(
    frame: tuple[int, ...],
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    of: str = "xs",
) -> StepMask:
    """The record of the steps of a batch, `frame` being their shape `[T, *b]`.

    Arguments:
        lengths: integers `[*b]`; row b has lengths[b] steps, the rest is padding.
        mask: booleans `[T, *b]`; False where the step does not happen.
        resets: booleans `[T, *b]`; True where the sequence begins again before it.
        of: what the caller calls that of which they are the steps, for the message.

    Errors: `ValueError` for lengths together with a mask, a wrong shape or dtype,
    and a length outside 0..T that is not traced.

    >>> steps((3, 2), lengths=[3, 1]).active.T.tolist()
    [[True, True, True], [True, False, False]]
    """
    if lengths is not None and mask is not None:
        raise ValueError(
            "lengths and mask were both given, and might contradict each other; "
            "pass one of them."
        )
    time, *batch_shape = frame
    resets = None if resets is None else _booleans("resets", resets, frame)
    if mask is not None:
        return StepMask(active=_booleans("mask", mask, frame), resets=resets)
    if lengths is None:
        return StepMask(resets=resets)
    counts = _counts(lengths, tuple(batch_shape), of)
    traced = isinstance(lengths, Tracer)
    if not traced:
        host = _checked_counts(lengths, time, of)
        if host.size and (host == time).all():  # the very program without lengths
            return StepMask(resets=resets)
    clock = jnp.arange(time, dtype=counts.dtype).reshape(
        time, *(1 for _ in batch_shape)
    )
    return StepMask(
        active=clock < counts[None],
        resets=resets,
        invalid_length=(counts < 0) | (counts > time) if traced else None,
    )


def steps_of(
    name: str,
    values: Features,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    resets: ArrayLike | None,
) -> StepMask:
    """The steps of values `[T, *b, *space, H]`, of which the rest has only `*b`."""
    given = [("lengths", lengths), ("mask", mask), ("resets", resets)]
    axes = [
        as_array(kind, flags).ndim + (kind == "lengths")
        for kind, flags in given
        if flags is not None
    ]
    frame = values.shape[: min(max(axes, default=1), values.ndim - 1)]
    return steps(frame, lengths=lengths, mask=mask, resets=resets, of=name)


def resets_from_segments(
    segments: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    before: ArrayLike | None = None,
    reverse: bool = False,
) -> ActiveSteps:
    """The resets of sequences packed one after the other: True where one begins.

    Packing puts many short sequences into one row instead of padding each; a reset at
    the first step of each keeps them apart.

    Arguments:
        segments: integers `[T, *b]`, which sequence a step belongs to; only whether
            neighbours differ matters.
        mask: booleans `[T, *b]`, the mask that `unroll` gets as well, if it gets one:
            a sequence begins at the first of its steps that happens. If some value
            marks padding, it is `segments != value`.
        before: `[*b]`, the segment of the step before the first one, where the state
            is carried on from an earlier window; None begins anew.
        reverse: for `unroll(..., reverse=True)`, where a sequence begins at its last
            step, and `before` belongs to the step after the last one. A
            `bidirectional` layer turns the resets of its forward layer by itself.

    Errors: `ValueError` for segments that are no integers or have no time axis.

    >>> import jaxlstm as jl
    >>> resets = jl.resets_from_segments([1, 1, 2, 2, 2, 3])
    >>> resets.astype(int).tolist()
    [1, 0, 1, 0, 0, 1]
    """
    segments = as_array("segments", segments)
    if not jnp.issubdtype(segments.dtype, jnp.integer) or segments.ndim == 0:
        raise ValueError(
            f"segments has shape {show(segments.shape)} and dtype {segments.dtype}; "
            "whole numbers [T, *b] are needed."
        )
    active = jnp.ones(segments.shape, bool)
    if mask is not None:
        active = _booleans("mask", mask, segments.shape)
    begins = jnp.ones(segments.shape, bool)
    if before is not None:
        before, batch_shape = as_array("before", before), segments.shape[1:]
        if before.shape != batch_shape:
            raise ValueError(
                f"before has shape {show(before.shape)}, segments has batch shape "
                f"{show(batch_shape)}; one segment per sequence is needed."
            )
        begins = segments != jnp.broadcast_to(before, segments.shape)
    return _borders(segments, active, begins, reverse=bool(reverse))


@functools.partial(jax.jit, static_argnames="reverse")
def _borders(
    segments: jax.Array, active: ActiveSteps, begins: ActiveSteps, *, reverse: bool
) -> ActiveSteps:
    """Where a step that happens is of another segment than the last one that did.

    `begins` says so for the first step that happens. In the order of the run.
    """
    if reverse:
        backwards = (leaf[::-1] for leaf in (segments, active, begins))
        return _borders(*backwards, reverse=False)[::-1]
    clock = jnp.arange(len(segments)).reshape(-1, *(1,) * (segments.ndim - 1))
    seen = jnp.where(active, jnp.broadcast_to(clock, segments.shape), -1)
    last = jnp.roll(jax.lax.cummax(seen), 1, axis=0)
    last = jnp.where(jnp.broadcast_to(clock == 0, last.shape), -1, last)
    previous = jnp.take_along_axis(segments, jnp.maximum(last, 0), axis=0)
    return active & jnp.where(last < 0, begins, segments != previous)


@jax.jit
def turned(steps: StepMask) -> ActiveSteps | None:
    """The resets of the run from the last step to the first.

    A reset marks a border between the step before it, of those that happen, and its
    own. Coming from the other side, that border is crossed before the earlier step.
    """
    if steps.resets is None:
        return None
    if steps.active is None:
        return jnp.concatenate([steps.resets[1:], jnp.zeros_like(steps.resets[:1])])

    # carried from the end: whether there is a border before the next step that happens
    def walk(border: Rows, step: tuple[ActiveSteps, ActiveSteps]) -> tuple[Rows, Rows]:
        active, resets = step
        return jnp.where(active, resets, border), border

    none = jnp.zeros_like(steps.resets.any(0))  # of no steps, too
    both = (steps.active, steps.resets)
    return jax.lax.scan(walk, none, both, reverse=True)[1]


def _booleans(name: str, value: ArrayLike, frame: tuple[int, ...]) -> ActiveSteps:
    array = as_array(name, value)
    if array.dtype != jnp.bool_:
        raise ValueError(
            f"{name} has dtype {array.dtype}; booleans are needed, for example "
            f"{name}.astype(bool)."
        )
    if array.shape != frame:
        raise ValueError(
            f"{name} has shape {show(array.shape)}; one boolean for each of the "
            f"steps {show(frame)} is needed."
        )
    return array


def _counts(lengths: ArrayLike, batch_shape: tuple[int, ...], of: str) -> Array:
    counts = as_array("lengths", lengths)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise ValueError(
            f"lengths has dtype {counts.dtype}; whole numbers of steps are needed."
        )
    if counts.shape != batch_shape:
        raise ValueError(
            f"lengths has shape {show(counts.shape)}, {of} has batch shape "
            f"{show(batch_shape)}; one length per sequence is needed."
        )
    return counts.astype(jnp.int64 if counts.dtype.itemsize == 8 else jnp.int32)


def _checked_counts(lengths: ArrayLike, time: int, of: str) -> np.ndarray:
    counts = np.asarray(lengths)
    for row in np.argwhere((counts < 0) | (counts > time))[:1].tolist():
        raise ValueError(
            f"lengths{row or ''} is {counts[tuple(row)]}; {of} has {time} steps, so a "
            f"length from 0 to {time} is needed."
        )
    return counts


def select(chosen: ActiveSteps | Rows, yes: State, no: State) -> State:
    """`yes` where chosen and `no` elsewhere, for every leaf of two equal pytrees.

    A select and no product, so that what is not chosen may be NaN. A leaf of `no` may
    be a scalar.

    Errors: `ValueError` where a leaf does not begin with the axes of `chosen`.
    """

    def one(yes: Any, no: Any) -> Any:
        if yes.shape[: chosen.ndim] != chosen.shape:
            raise ValueError(
                f"a result of shape {show(yes.shape)} has no row for each of the "
                f"steps {show(chosen.shape)}, so padding cannot be told apart in it; "
                "with lengths, mask or resets, emit must keep the batch axes first."
            )
        tail = (1,) * (yes.ndim - chosen.ndim)
        return jnp.where(chosen.reshape(*chosen.shape, *tail), yes, no)

    return jax.tree.map(one, yes, no)


def zero_inactive(values: State, steps: StepMask) -> State:
    """Zeros in place of values `[T, *b, ...]` at the steps that do not happen."""
    if steps.active is None:
        return values
    zeros = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), values)
    return select(steps.active, values, zeros)


def mask_outputs(values: State, steps: StepMask) -> State:
    """What stands in values `[T, *b, ...]` when all is said: zeros at the steps that
    do not happen, and NaN in the rows whose length cannot be.
    """
    values = zero_inactive(values, steps)
    if steps.invalid_length is None or steps.active is None:
        return values
    return nan_rows(values, jnp.broadcast_to(steps.invalid_length, steps.active.shape))


def nan_rows(values: State, lost: Rows) -> State:
    """NaN in every floating point leaf `[*b, ...]` of the rows that are lost."""

    def nan(leaf: Any) -> Any:
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.full((), jnp.nan, leaf.dtype) if inexact else leaf

    return select(~lost, values, jax.tree.map(nan, values))
