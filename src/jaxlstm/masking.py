"""Lengths, masks and resets, converted to one `StepMask` that every engine reads.

They behave the same everywhere:

    a masked or padded step    keeps the state and emits zeros; its input and its reset
                               are not read
    a reset at step t          replaces the state before step t, in the order of the
                               run, by the cell's initial state
    a length outside 0..T      is an error if it is concrete; if it is traced, its row
                               becomes NaN
"""

import contextlib
import functools
import sys
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

from jaxlstm.construction import readable
from jaxlstm.typing import (
    ActiveSteps,
    Features,
    Rows,
    State,
    exportable,
    is_deleted,
    is_symbolic,
    show,
)


@exportable
class StepMask(NamedTuple):
    """Mask of the steps that are executed, and of the resets before them.

    A `StepMask` can be passed as `mask=` to `unroll` and to layers, in place of
    lengths, mask and resets.

    Attributes:
        active: `[T, *b]`, True where the step is executed; None for everywhere.
        resets: `[T, *b]`, True where the state is reset before the step; None for
            nowhere.
        invalid_length: `[*b]`, True for a row whose traced length is outside 0..T;
            None for no row.
    """

    active: ActiveSteps | None = None
    resets: ActiveSteps | None = None
    invalid_length: Rows | None = None

    @classmethod
    def from_lengths(cls, lengths: ArrayLike, time: int) -> "StepMask":
        """Return the mask of right-padded rows: step t is executed if t < lengths.

        Args:
            lengths: integers `[*b]`; row b has lengths[b] steps.
            time: T, the number of steps including padding.

        Raises:
            ValueError: a concrete length is outside 0..T, or not an integer.

        Example:
            >>> import jaxlstm as jl
            >>> jl.StepMask.from_lengths([3, 1], time=3).active.T.tolist()
            [[True, True, True], [True, False, False]]
        """
        with error_prefix("StepMask.from_lengths"):
            batch_shape = as_array("lengths", lengths).shape
            return steps((time, *batch_shape), lengths=lengths)


def features(
    name: str, xs: ArrayLike, *, spatial_axes: int = 0, time_axis: bool = True
) -> Features:
    """Return xs as a floating point array `[T, *b, D]`.

    NumPy's float64 becomes float32 if JAX's x64 mode is off; the first time in a
    process this gives a warning.

    Args:
        name: name of the argument for the message.
        xs: an array of numbers, in any memory layout.
        spatial_axes: number of axes between the batch and the features.
        time_axis: whether xs must have a time axis; if not, it may be `[D]`.

    Raises:
        ValueError: xs has a wrong rank or dtype.
    """
    array = as_array(name, xs)
    if getattr(xs, "dtype", None) == np.float64 != array.dtype:
        _warn_of_narrowing(name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name}: got dtype {array.dtype}, expected floating point features; "
            f"convert them, for example {name}.astype(jnp.float32)."
        )
    if array.ndim == 0 or (time_axis and array.ndim < 2 + spatial_axes):
        space = f"then {spatial_axes} spatial axes, " if spatial_axes else ""
        expected = "[T, *b, *space, D]" if spatial_axes else "[T, *b, D]"
        raise ValueError(
            f"{name}: got shape {show(array.shape)}, expected {expected}: time first, "
            f"then any number of batch axes, {space}features last."
        )
    return array


@functools.cache
def _warn_of_narrowing(name: str) -> None:
    warnings.warn(
        f"{name}: got dtype float64 with JAX's x64 mode off, computing in float32; "
        "convert it to float32, or set jax_enable_x64. This warning is given once.",
        stacklevel=_caller_level(),
    )


def _caller_level() -> int:
    """Return the `stacklevel` of the first caller outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        frame, level = frame.f_back, level + 1
    return level


def _is_ours(module: Any) -> bool:
    return str(module).partition(".")[0] == __name__.partition(".")[0]


def as_array(name: str, value: ArrayLike | None) -> Array:
    """Return value as a JAX array.

    Lists and NumPy arrays of any stride and byte order are copied to the device; JAX
    arrays are returned unchanged.

    Raises:
        ValueError: value is not an array of numbers, such as None, a record or a
            masked array.
    """
    if isinstance(value, Array):
        check_alive(name, value)
        return value
    if value is None:
        raise ValueError(f"{name}: got None, expected an array of numbers.")
    if isinstance(value, Mapping) or hasattr(value, "_fields"):
        first = jax.tree_util.tree_leaves_with_path(value)[:1]
        hint = "".join(f"; pass for example {name}{keystr(path)}" for path, _ in first)
        raise ValueError(f"{name}: got {described(value)}, expected one array{hint}.")
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name}: got a masked array, expected a plain one; pass {name}.data, and "
            "the steps to execute as mask=, booleans [T, *b]."
        )
    try:
        host = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: got no array of numbers: {error}") from None
    check_dtype(name, host.dtype)
    return jnp.asarray(host.astype(host.dtype.newbyteorder("=")))


def check_dtype(name: str, dtype: np.dtype) -> None:
    """Raise a `ValueError` if JAX has no numbers of this dtype."""
    if dtype.itemsize > {"f": 8, "c": 16}.get(dtype.kind, dtype.itemsize):
        raise ValueError(
            f"{name}: got dtype {dtype}, which JAX does not have; convert it to "
            f"{'float64' if dtype.kind == 'f' else 'complex128'} or less."
        )
    if not (jnp.issubdtype(dtype, jnp.number) or dtype.kind == "b"):
        hint = "; pad rows of unequal length and pass lengths="
        raise ValueError(
            f"{name}: got dtype {dtype}, expected numbers"
            f"{hint if dtype.kind == 'O' else ''}."
        )


def check_leaves(name: str, tree: Any) -> None:
    """Raise a `ValueError` if an array of the tree is deleted or not of numbers.

    Leaves that are no arrays, such as options in the parameters of a layer of a user,
    are not checked.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, np.ndarray):
            check_dtype(name + keystr(path), leaf.dtype)
        elif is_deleted(leaf):
            check_alive(name + keystr(path), leaf)


def described(value: Any) -> str:
    """Describe a value in a message: `Gates(i, f, g, o)`, `an array [7, 3]`."""
    if hasattr(value, "shape"):
        return f"an array {show(value.shape)}"
    names = map(repr, value) if isinstance(value, Mapping) else ()
    fields = ", ".join(getattr(value, "_fields", names))
    return f"{type(value).__name__}({fields})" if fields else f"{value!r:.60}"


def check_alive(name: str, array: Array) -> None:
    """Raise a `ValueError` if the array was deleted, for example by donation."""
    if is_deleted(array):
        raise ValueError(
            f"{name}: got a deleted array; if it was donated to a jitted function, use "
            "the arrays that the function returned."
        )


@contextlib.contextmanager
def error_prefix(name: str) -> Iterator[None]:
    """Prefix the message of a `ValueError` with the name of the called function.

    The original error, which may come from a user's step, is kept as the cause.
    """
    try:
        yield
    except ValueError as error:
        named = not name or str(error).startswith(f"{name}: ")
        if type(error) is not ValueError or named:
            raise
        raise ValueError(f"{name}: {error}") from error


def steps(
    frame: tuple[int, ...],
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
    of: str = "xs",
) -> StepMask:
    """Return the `StepMask` of a batch.

    Args:
        frame: the shape `[T, *b]` of the steps.
        lengths: integers `[*b]`; row b has lengths[b] steps, the rest is padding.
        mask: booleans `[T, *b]`, False where the step is not executed; or a `StepMask`.
        resets: booleans `[T, *b]`, True where the state is reset before the step.
        of: name of the argument that has these steps, for the message.

    Raises:
        ValueError: lengths and mask are both given, a shape or dtype is wrong, or a
            concrete length is outside 0..T.
    """
    if lengths is not None and mask is not None:
        raise ValueError("lengths and mask: got both, expected one of them.")
    if not frame:
        if not all(value is None for value in (lengths, mask, resets)):
            raise ValueError(
                f"{of}: got a single step, expected a time axis with lengths, mask or "
                "resets."
            )
        return StepMask()
    if isinstance(mask, StepMask):
        return _checked(mask, resets, frame)
    time, *batch_shape = frame
    resets = None if resets is None else _booleans("resets", resets, frame)
    if mask is not None:
        return StepMask(active=_booleans("mask", mask, frame), resets=resets)
    if lengths is None:
        return StepMask(resets=resets)
    counts = _counts(lengths, tuple(batch_shape), of)
    traced = isinstance(lengths, Tracer) or is_symbolic([time])
    if not traced:
        host = _checked_counts(lengths, time, of)
        if host.size and (host == time).all():  # compile the program without lengths
            return StepMask(resets=resets)
    clock = jnp.arange(time, dtype=counts.dtype).reshape(
        time, *(1 for _ in batch_shape)
    )
    return StepMask(
        active=clock < counts[None],
        resets=resets,
        invalid_length=(counts < 0) | (counts > time) if traced else None,
    )


def _checked(
    mask: StepMask, resets: ArrayLike | None, frame: tuple[int, ...]
) -> StepMask:
    """Return the mask with its fields checked, and with `resets` if it has none."""
    if mask.resets is not None and resets is not None:
        raise ValueError("resets: got them twice, also in mask; pass them once.")
    resets = mask.resets if resets is None else resets
    active, invalid = mask.active, mask.invalid_length
    return StepMask(
        active=None if active is None else _booleans("mask.active", active, frame),
        resets=None if resets is None else _booleans("resets", resets, frame),
        invalid_length=(
            None
            if invalid is None
            else _booleans("mask.invalid_length", invalid, frame[1:])
        ),
    )


def steps_of(
    name: str,
    values: Features,
    lengths: ArrayLike | None,
    mask: ArrayLike | StepMask | None,
    resets: ArrayLike | None,
) -> StepMask:
    """Return the `StepMask` of values `[T, *b, *space, H]`, whose `*b` it determines.

    The flags have the shape `[T, *b]`; all further axes of the values are spatial.
    """
    active, own_resets = mask[:2] if isinstance(mask, StepMask) else (mask, None)
    given: list[tuple[str, ArrayLike | None]] = [
        ("lengths", lengths),
        ("mask", active),
        ("resets", own_resets if resets is None else resets),
    ]
    axes = [
        as_array(kind, array).ndim + (kind == "lengths")
        for kind, array in given
        if array is not None
    ]
    frame = values.shape[: min(max(axes, default=1), values.ndim - 1)]
    return steps(frame, lengths=lengths, mask=mask, resets=resets, of=name)


@readable
def resets_from_segments(
    segments: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    before: ArrayLike | None = None,
    reverse: bool = False,
) -> ActiveSteps:
    """Return the resets of packed sequences: True at the first step of each.

    Packing concatenates many short sequences in one row instead of padding each; a
    reset at the first step of each keeps them independent.

    Args:
        segments: integers `[T, *b]`, the sequence that a step belongs to. Only
            differences between neighbouring steps matter.
        mask: booleans `[T, *b]`, the mask that is passed to `unroll`, if any: a
            sequence starts at the first of its executed steps. If some value marks
            padding, pass `segments != value`.
        before: `[*b]`, the segment of the step before the first one, if the state is
            carried from an earlier window; None starts a new sequence.
        reverse: for `unroll(..., reverse=True)`, where a sequence starts at its last
            step, and `before` is the segment of the step after the last one. A
            `bidirectional` layer reverses the resets itself.

    Raises:
        ValueError: segments are not integers or have no time axis.

    Example:
        >>> import jaxlstm as jl
        >>> resets = jl.resets_from_segments([1, 1, 2, 2, 2, 3])
        >>> resets.astype(int).tolist()
        [1, 0, 1, 0, 0, 1]
    """
    segments = as_array("segments", segments)
    if not jnp.issubdtype(segments.dtype, jnp.integer) or segments.ndim == 0:
        raise ValueError(
            f"segments: got shape {show(segments.shape)} and dtype {segments.dtype}, "
            "expected integers [T, *b]."
        )
    active = jnp.ones(segments.shape, bool)
    if mask is not None:
        active = _booleans("mask", mask, segments.shape)
    first_starts = jnp.ones(segments.shape, bool)
    if before is not None:
        before, batch_shape = as_array("before", before), segments.shape[1:]
        if before.shape != batch_shape:
            raise ValueError(
                f"before: got shape {show(before.shape)}, expected "
                f"{show(batch_shape)}, one segment per row."
            )
        first_starts = segments != jnp.broadcast_to(before, segments.shape)
    return _starts(segments, active, first_starts, reverse=bool(reverse))


@functools.partial(jax.jit, static_argnames="reverse")
def _starts(
    segments: jax.Array,
    active: ActiveSteps,
    first_starts: ActiveSteps,
    *,
    reverse: bool,
) -> ActiveSteps:
    """True at executed steps whose segment differs from that of the previous one.

    `first_starts` is the result for the first executed step of a row.
    """
    if reverse:
        backwards = (leaf[::-1] for leaf in (segments, active, first_starts))
        return _starts(*backwards, reverse=False)[::-1]
    time, *rows = segments.shape
    clock = jnp.arange(time).reshape(time, *(1 for _ in rows))
    seen = jnp.where(active, jnp.broadcast_to(clock, segments.shape), -1)
    last = jnp.roll(jax.lax.cummax(seen), 1, axis=0)
    last = jnp.where(jnp.broadcast_to(clock == 0, last.shape), -1, last)
    previous = jnp.take_along_axis(segments, jnp.maximum(last, 0), axis=0)
    return active & jnp.where(last < 0, first_starts, segments != previous)


@jax.jit
def reverse_resets(steps: StepMask) -> ActiveSteps | None:
    """Return the equivalent resets of a run from the last step to the first.

    A reset at step t separates t from the previous executed step s. In the reversed
    run, the same separation is a reset at s.
    """
    if steps.resets is None:
        return None
    if steps.active is None:
        return jnp.concatenate([steps.resets[1:], jnp.zeros_like(steps.resets[:1])])

    # The carry is True if the next executed step, in forward order, has a reset.
    def body(pending: Rows, step: tuple[ActiveSteps, ActiveSteps]) -> tuple[Rows, Rows]:
        active, resets = step
        return jnp.where(active, resets, pending), pending

    none = jnp.zeros_like(steps.resets.any(0))  # also defined for T = 0
    return jax.lax.scan(body, none, (steps.active, steps.resets), reverse=True)[1]


def _booleans(name: str, value: ArrayLike, frame: tuple[int, ...]) -> ActiveSteps:
    array = as_array(name, value)
    if array.dtype != jnp.bool_:
        raise ValueError(
            f"{name}: got dtype {array.dtype}, expected booleans; convert it, for "
            f"example {name}.astype(bool)."
        )
    if array.shape != frame:
        raise ValueError(
            f"{name}: got shape {show(array.shape)}, expected {show(frame)}."
        )
    return array


def _counts(lengths: ArrayLike, batch_shape: tuple[int, ...], of: str) -> Array:
    counts = as_array("lengths", lengths)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise ValueError(f"lengths: got dtype {counts.dtype}, expected integers.")
    if counts.shape != batch_shape:
        raise ValueError(
            f"lengths: got shape {show(counts.shape)}, expected the batch shape "
            f"{show(batch_shape)} of {of}."
        )
    return counts.astype(jnp.int64 if counts.dtype.itemsize == 8 else jnp.int32)


def _checked_counts(lengths: ArrayLike, time: int, of: str) -> np.ndarray:
    counts = np.asarray(lengths)
    for row in np.argwhere((counts < 0) | (counts > time))[:1].tolist():
        raise ValueError(
            f"lengths{row or ''}: got {counts[tuple(row)]}, expected 0 to {time}, "
            f"the number of steps of {of}."
        )
    return counts


def select(chosen: ActiveSteps | Rows, yes: State, no: State) -> State:
    """Return `yes` where chosen and `no` elsewhere, for every leaf of two pytrees.

    This is `jnp.where`, not a product, so values that are not chosen may be NaN. A leaf
    of `no` may be a scalar.

    Raises:
        ValueError: a leaf does not begin with the axes of `chosen`.
    """

    def select_leaf(yes: Any, no: Any) -> Any:
        if yes.shape[: chosen.ndim] != chosen.shape:
            raise ValueError(
                f"emit: got a result of shape {show(yes.shape)}, expected "
                f"{show((*chosen.shape, '...'))}; with lengths, mask or resets, emit "
                "must keep the batch axes first."
            )
        tail = (1,) * (yes.ndim - chosen.ndim)
        return jnp.where(chosen.reshape(*chosen.shape, *tail), yes, no)

    return jax.tree.map(select_leaf, yes, no)


def zero_inactive(values: State, steps: StepMask) -> State:
    """Replace values `[T, *b, ...]` of masked and padded steps by zeros."""
    if steps.active is None:
        return values
    zeros = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), values)
    return select(steps.active, values, zeros)


def mask_outputs(values: State, steps: StepMask) -> State:
    """Set inactive steps of values `[T, *b, ...]` to zero, and invalid rows to NaN."""
    values = zero_inactive(values, steps)
    if steps.invalid_length is None or steps.active is None:
        return values
    return nan_rows(values, jnp.broadcast_to(steps.invalid_length, steps.active.shape))


def nan_rows(values: State, invalid: Rows) -> State:
    """Set the invalid rows of every floating point leaf `[*b, ...]` to NaN."""

    def nan(leaf: Any) -> Any:
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.full((), jnp.nan, leaf.dtype) if inexact else leaf

    return select(~invalid, values, jax.tree.map(nan, values))
