"""Intervals of closed gates, and products of forget gates over time.

Both depend on the order of the steps, so they take resets and the direction of the
run, unlike the means in `diagnostics.gates`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import Reported
from jaxlstm.diagnostics._common import (
    as_features,
    as_number,
    broadcast_steps,
    forget_gate,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import ActiveSteps, Features, Hidden
from jaxlstm.validation import check_flag


class ClosedIntervals(NamedTuple):
    """Intervals of consecutive steps at which a gate is closed.

    Attributes:
        closed_for: integers `[T, *b, H]`: the number of consecutive steps, up to and
            including this one, at which the gate has been closed; 0 where it is open.
        number: integers `[*b, H]`: the number of intervals.
        longest: integers `[*b, H]`: the length of the longest interval, in steps.
        mean: `[*b, H]`: the mean length of an interval, in steps; 0 without intervals.
    """

    closed_for: Array
    number: Array
    longest: Array
    mean: Array


def closed_intervals(
    gate: ArrayLike,
    *,
    threshold: float = 0.1,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
) -> ClosedIntervals:
    """Find the intervals of consecutive steps at which a gate is closed:

        gate_t < threshold

    A closed input gate protects the unit from its inputs; a closed output gate
    protects other units from it. A masked or padded step neither ends an interval nor
    counts in it; a reset ends it. NaN counts as open.

    Args:
        gate: one gate of a trace, such as `trace.gates.i`, `[T, *b, H]`.
        threshold: upper limit of a closed gate, in 0..1.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.
        resets: the resets that were passed to `unroll`; for the backward part of a
            bidirectional layer, the result of `backward_resets`.
        reverse: whether the run was reversed.

    Raises:
        ValueError: not 0 < threshold <= 1, or gate has no unit axis.

    Example:
        >>> import jax.numpy as jnp
        >>> gate = jnp.array([[0.0], [0.9], [0.05], [0.01], [0.0]])
        >>> intervals = closed_intervals(gate)
        >>> intervals.closed_for[:, 0].tolist()
        [1, 0, 1, 2, 3]
        >>> intervals.number.item(), intervals.mean.item()
        (2, 2.0)

    Reference:
        Hochreiter and Schmidhuber, "Long short-term memory", 1997,
        https://doi.org/10.1162/neco.1997.9.8.1735
    """
    with masking.error_prefix("closed_intervals"):
        threshold = as_number("threshold", threshold)
        if not 0 < threshold <= 1:
            raise ValueError(
                f"threshold: got {threshold}, expected 0 < threshold <= 1."
            )
        check_flag("reverse", reverse)
        values, steps = as_features("gate", gate, lengths, mask, resets)
        return _closed_intervals(values, steps, threshold, reverse=bool(reverse))


def forget_products(
    gates: Reported,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
) -> Hidden:
    """Compute the product of the forget gates after each step:

        p_t = ∏ f_s  over t < s <= T        in reverse, over s < t

    This is the derivative of c_T with respect to c_t if the gates are held constant.
    It is 1 after the last step and 0 before a reset. A masked or padded step
    contributes no factor, and its own p_t is 0. For a GRU, f is z.

    Only gates are read: state changes of wrappers after the step, such as `zoneout`
    and `clip_cell`, are not included.

    Args:
        gates: the gates of a trace, with f or z.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.
        resets: the resets that were passed to `unroll`; for the backward part of a
            bidirectional layer, the result of `backward_resets`.
        reverse: whether the run was reversed.

    Returns:
        `[T, *b, H]`, in float32 or wider.

    Raises:
        ValueError: gates have neither f nor z.

    Example:
        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> f = jnp.full((4, 1), 0.5)
        >>> forget_products(jl.Gates(f, f, f, f))[:, 0].tolist()
        [0.125, 0.25, 0.5, 1.0]

    Reference:
        Gers, Schmidhuber and Cummins, "Learning to forget", 2000,
        https://doi.org/10.1162/089976600300015015
    """
    with masking.error_prefix("forget_products"):
        check_flag("reverse", reverse)
        f, steps = as_features("gates", forget_gate(gates), lengths, mask, resets)
        return _forget_products(f, steps, reverse=bool(reverse))


def backward_resets(
    resets: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
) -> ActiveSteps:
    """Return the resets that a bidirectional layer passes to its backward part.

    A reset at step t separates t from the previous executed step s. In the reversed
    run, the same separation is a reset at s.

    Args:
        resets: booleans `[T, *b]`, the resets that were passed to the layer.
        lengths: the lengths that were passed to the layer.
        mask: the mask that was passed to the layer.

    Returns:
        Booleans `[T, *b]`, for `forget_products` and `closed_intervals` with
        `reverse=True`.

    Raises:
        ValueError: resets are not booleans `[T, *b]`, or the lengths or the mask do
            not fit them.

    Example:
        >>> import jax.numpy as jnp
        >>> resets = jnp.array([False, False, True])
        >>> backward_resets(resets).tolist()
        [False, True, False]
        >>> backward_resets(resets, mask=jnp.array([True, False, True])).tolist()
        [True, True, False]
    """
    with masking.error_prefix("backward_resets"):
        frame = jnp.shape(resets)
        if not frame:
            raise ValueError("resets: got one value, expected booleans [T, *b].")
        steps = masking.steps(
            frame, lengths=lengths, mask=mask, resets=resets, of="resets"
        )
        reversed_resets = masking.reverse_resets(steps)
        assert reversed_resets is not None
        return reversed_resets


@functools.partial(jax.jit, static_argnames="reverse")
def _closed_intervals(
    gate: Features, steps: StepMask, threshold: float, *, reverse: bool
) -> ClosedIntervals:
    active, resets = broadcast_steps(steps, gate)
    closed = (gate < threshold) & active

    def count(run: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        closed, active, reset = step
        longer = jnp.where(closed, jnp.where(reset, 0, run) + 1, 0)
        return jnp.where(active, longer, run), longer

    zeros = jnp.zeros_like(closed.any(0), jnp.int32)  # has the sharding of the gate
    _, closed_for = lax.scan(count, zeros, (closed, active, resets), reverse=reverse)
    number = (closed_for == 1).sum(0)
    closed_steps, intervals = (n.astype(gate.dtype) for n in (closed.sum(0), number))
    mean = closed_steps / jnp.maximum(intervals, 1)
    if steps.invalid_length is not None:
        mean = masking.nan_rows(mean, steps.invalid_length)
    return ClosedIntervals(closed_for, number, closed_for.max(0, initial=0), mean)


@functools.partial(jax.jit, static_argnames="reverse")
def _forget_products(f: Features, steps: StepMask, *, reverse: bool) -> Hidden:
    active, resets = broadcast_steps(steps, f)
    factors = jnp.where(active, jnp.where(resets, 0.0, f), 1.0)
    one = jnp.ones_like(factors[:1])
    later = jnp.concatenate([one, factors[:-1]] if reverse else [factors[1:], one])
    return masking.mask_outputs(lax.cumprod(later, axis=0, reverse=not reverse), steps)
