"""Which steps of a sequence happen, and which begin it again: one meaning for all.

`lengths`, `mask` and `resets` become one record, `Steps`, which every engine reads
and nobody else interprets:

    a step that does not happen   leaves the state untouched and emits zeros; neither
                                  its input nor its reset is looked at
    a reset at step t             puts the cell's initial state in place of the state
                                  before step t, in the order in which steps are run
    a length outside 0..T         is an error where it can be seen, and turns its
                                  row into NaN where it is traced
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxlstm.cells.base import State
from jaxlstm.shapes import Any, Features, Happens, Rows, show


class Steps(NamedTuple):
    """What happens when; None where there is nothing to say.

    happens   [T, *b]  True where the step happens
    resets    [T, *b]  True where the sequence begins again before the step
    lost      [*b]     True for a row whose traced length lies outside 0..T
    """

    happens: Happens | None = None
    resets: Happens | None = None
    lost: Rows | None = None


def features(name: str, xs: ArrayLike) -> Features:
    """xs as an array `[T, *b, D]` of floating point numbers.

    Arguments:
        name: what the caller calls it, for the message.
        xs: anything that is an array of numbers, in any memory layout.

    Errors: `ValueError` that names the rank or the dtype that came.
    """
    if isinstance(xs, np.ma.MaskedArray) and np.ma.is_masked(xs):
        raise ValueError(
            f"{name} is a masked array; its mask would be lost. Pass xs.data and "
            "mask=~xs.mask of shape [T, *b]."
        )
    array = as_array(name, xs)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {array.dtype}; floating point features are needed. "
            f"Convert them, for example {name}.astype(jnp.float32)."
        )
    if array.ndim < 2:
        raise ValueError(
            f"{name} has shape {show(array.shape)}; [T, *b, D] is needed: time "
            "first, features last, any number of batch axes between."
        )
    return array


def as_array(name: str, value: ArrayLike) -> Any:
    """A JAX array, or a `ValueError` that says why value is none.

    Python lists, and NumPy arrays of any stride and byte order, are copied over; what
    is on a device stays there.
    """
    if isinstance(value, jax.Array):
        return value
    try:
        host = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from None
    if not (jnp.issubdtype(host.dtype, jnp.number) or host.dtype == bool):
        raise ValueError(
            f"{name} has dtype {host.dtype}, which is not a number; rows of unequal "
            "length must be padded and their lengths passed as lengths=."
        )
    return jnp.asarray(host.astype(host.dtype.newbyteorder("=")))


def steps(
    frame: tuple[int, ...],
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> Steps:
    """The record of the steps of a batch, `frame` being their shape `[T, *b]`.

    Arguments:
        lengths: integers `[*b]`; row b has lengths[b] steps, the rest is padding.
        mask: booleans `[T, *b]`; False where the step does not happen.
        resets: booleans `[T, *b]`; True where the sequence begins again before it.

    Errors: `ValueError` for lengths together with a mask, a wrong shape or dtype,
    and a length outside 0..T that is not traced.

    >>> steps((3, 2), lengths=[3, 1]).happens.T.tolist()
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
        return Steps(happens=_booleans("mask", mask, frame), resets=resets)
    if lengths is None:
        return Steps(resets=resets)
    counts = _counts(lengths, tuple(batch_shape))
    traced = isinstance(lengths, Tracer)
    if not traced:
        host = _checked_counts(lengths, time)
        if host.size and (host == time).all():  # the very program without lengths
            return Steps(resets=resets)
    clock = jnp.arange(time, dtype=counts.dtype).reshape(
        time, *(1 for _ in batch_shape)
    )
    return Steps(
        happens=clock < counts[None],
        resets=resets,
        lost=(counts < 0) | (counts > time) if traced else None,
    )


def _booleans(name: str, value: ArrayLike, frame: tuple[int, ...]) -> Happens:
    array = as_array(name, value)
    if array.dtype != jnp.bool_:
        raise ValueError(
            f"{name} has dtype {array.dtype}; booleans are needed, for example "
            f"{name}.astype(bool)."
        )
    if array.shape != frame:
        raise ValueError(
            f"{name} has shape {show(array.shape)}; xs has {show(frame)} before its "
            "features, and one boolean per step is needed."
        )
    return array


def _counts(lengths: ArrayLike, batch_shape: tuple[int, ...]) -> Any:
    counts = as_array("lengths", lengths)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise ValueError(
            f"lengths has dtype {counts.dtype}; whole numbers of steps are needed."
        )
    if counts.shape != batch_shape:
        raise ValueError(
            f"lengths has shape {show(counts.shape)}, xs has batch shape "
            f"{show(batch_shape)}; one length per sequence is needed."
        )
    return counts.astype(jnp.int64 if counts.dtype.itemsize == 8 else jnp.int32)


def _checked_counts(lengths: ArrayLike, time: int) -> np.ndarray:
    counts = np.asarray(lengths)
    for row in np.argwhere((counts < 0) | (counts > time))[:1].tolist():
        raise ValueError(
            f"lengths{row or ''} is {counts[tuple(row)]}; xs has {time} steps, so a "
            f"length from 0 to {time} is needed."
        )
    return counts


def select(chosen: Rows, yes: State, no: State) -> State:
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


def silence(values: State, steps: Steps) -> State:
    """Zeros in place of values `[T, *b, ...]` at the steps that do not happen."""
    if steps.happens is None:
        return values
    zeros = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), values)
    return select(steps.happens, values, zeros)


def settle(values: State, steps: Steps) -> State:
    """What stands in values `[T, *b, ...]` when all is said: zeros at the steps that
    do not happen, and NaN in the rows whose length cannot be.
    """
    values = silence(values, steps)
    if steps.lost is None or steps.happens is None:
        return values
    return poison(values, jnp.broadcast_to(steps.lost, steps.happens.shape))


def poison(values: State, lost: Rows) -> State:
    """NaN in every floating point leaf `[*b, ...]` of the rows that are lost."""

    def nan(leaf: Any) -> Any:
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.full((), jnp.nan, leaf.dtype) if inexact else leaf

    return select(~lost, values, jax.tree.map(nan, values))
