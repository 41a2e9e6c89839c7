"""What the gates of a trace say: how open they are, for how long, and what is kept.

Gates are those of `emit=jl.emit.trace`, a record or a dict of arrays `[T, *b, H]`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import HiddenState, LSTMState, Reported
from jaxlstm.cells.emit import Trace
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Hidden, accumulator_dtype, show
from jaxlstm.validation import check_flag

# Candidates are no gates: they lie between -1 and 1, and are squashed by tanh.
CANDIDATES = ("g", "n")
STATES = (Trace, LSTMState, HiddenState)


class Saturation(NamedTuple):
    """The share of steps at which a gate is saturated, `[H]` for each gate.

    low    the gate is below the lower threshold: it shuts
    high   the gate is above the higher one: it lets everything pass
    """

    low: Reported
    high: Reported


class Fractions(NamedTuple):
    """What part passes on average, `[H]` each.

    write   of the candidate, into the cell state: the mean of i
    keep    of the cell state, into the next step: the mean of f
    read    of the cell state, into h: the mean of o
    """

    write: Hidden
    keep: Hidden
    read: Hidden


class ClosedIntervals(NamedTuple):
    """When a gate is closed, and for how many steps in a row.

    closed_for   whole numbers `[T, *b, H]`: the steps in a row, up to and with this
                 one, at which the gate is closed; 0 where it is open
    number       whole numbers `[*b, H]`: how many such intervals there are
    longest      whole numbers `[*b, H]`: the steps of the longest
    mean         `[*b, H]`: their mean length; 0 where there is none
    """

    closed_for: Array
    number: Array
    longest: Array
    mean: Array


def saturation(
    gates: Reported,
    *,
    low: float = 0.1,
    high: float = 0.9,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Saturation:
    """How often each gate of each unit is nearly shut or nearly open:

        low  = #{t: gate_t < low} / #{t}       high = #{t: gate_t > high} / #{t}

    A saturated gate is a switch, and hardly any gradient passes through it. For a
    candidate, g or n, which lies in -1..1, gate is (1 + g) / 2.

    Arguments:
        gates: the gates of a trace, any record of `[T, *b, H]`.
        low, high: the thresholds, between 0 and 1.
        lengths, mask: those that `unroll` was given.

    Returns: two records like gates, of `[H]`; NaN where no step happens.

    Errors: `ValueError` unless 0 <= low < high <= 1, for no unit axis, and for a state.

    Reference: Karpathy, Johnson and Fei-Fei, "Visualizing and understanding recurrent
    networks", 2016, https://arxiv.org/abs/1506.02078

    >>> import jax.numpy as jnp
    >>> gates = {"f": jnp.array([[0.95], [0.99], [0.5], [0.05]])}
    >>> low, high = saturation(gates)
    >>> float(low["f"][0]), float(high["f"][0])
    (0.25, 0.5)
    """
    with masking.error_prefix("saturation"):
        low, high = number("low", low), number("high", high)
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"low is {low!r} and high is {high!r}; 0 <= low < high <= 1 is needed."
            )
        return _saturation(*_each(gates, lengths, mask), low, high)


def fractions(
    gates: Reported,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Fractions:
    """What part of the candidate is written, and of the cell state kept and read:

        write, keep, read = mean of i, f, o

    Of a GRU, f is z. Without an i, what is not kept is written, 1 - f; without an o,
    as of a GRU, all that is held is shown, 1.

    Arguments:
        gates: the gates of a trace, with f or z.
        lengths, mask: those that `unroll` was given.

    Returns: `[H]` each; NaN where no step happens.

    Errors: `ValueError` for gates with neither.

    >>> import jax.numpy as jnp, jaxlstm as jl
    >>> gates = jl.Gates(*jnp.array([0.25, 0.5, 0.0, 1.0])[:, None, None])
    >>> write, keep, read = fractions(gates)
    >>> write.item(), keep.item(), read.item()
    (0.25, 0.5, 1.0)
    """
    with masking.error_prefix("fractions"):
        kept, steps = stacked("gates", kept_by(gates), lengths, mask)
        parts = {
            "gates.i": gate_of(gates, "i", 1 - kept),
            "gates.f": kept,
            "gates.o": gate_of(gates, "o", jnp.ones_like(kept)),
        }
        parts = {name: stacked(name, v)[0] for name, v in parts.items()}
        _check_alike(parts)
        return _average(Fractions(*parts.values()), steps)


def timescales(
    gates: Reported,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Hidden:
    """For how many steps each unit remembers:

        τ = -1 / mean log f

    After τ steps with the forget gate at its geometric mean, a 1/e of the cell state
    is left. inf for a gate that is always 1, 0 for one that is ever 0; NaN for one that
    is ever negative, and below 0 for one that makes the cell state grow. Of a GRU, f is
    z. Of the cell within: what a wrapper keeps or cuts off after the step, as zoneout
    and clip_cell do, is not in the gates.

    Arguments:
        gates: the gates of a trace, with f or z.
        lengths, mask: those that `unroll` was given.

    Returns: `[H]`, in steps; NaN where no step happens.

    Errors: `ValueError` for gates with neither.

    References: Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018,
    https://arxiv.org/abs/1804.11188; Mahto et al., "Multi-timescale representation
    learning in LSTM language models", 2021, https://arxiv.org/abs/2009.12727

    >>> import jax.numpy as jnp, jaxlstm as jl
    >>> f = jnp.full((7, 1), jnp.exp(-1 / 20))
    >>> round(timescales(jl.Gates(f, f, f, f)).item(), 3)
    20.0
    """
    with masking.error_prefix("timescales"):
        return _timescales(*stacked("gates", kept_by(gates), lengths, mask))


def closed_intervals(
    gate: ArrayLike,
    *,
    threshold: float = 0.1,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
) -> ClosedIntervals:
    """For how many steps in a row a gate stays closed, below the threshold.

    While its input gate is closed a unit is protected from its inputs, and while its
    output gate is closed the others are protected from it. A step that does not
    happen neither ends an interval nor adds to it; a reset ends one. NaN is open.

    Arguments:
        gate: one gate of a trace, such as `trace.gates.i`.
        threshold: what the gate is below when it is closed, between 0 and 1.
        lengths, mask, resets, reverse: those that `unroll` was given.

    Errors: `ValueError` for another threshold, and for a gate without a unit axis.

    Reference: Hochreiter and Schmidhuber, "Long short-term memory", 1997,
    https://doi.org/10.1162/neco.1997.9.8.1735

    >>> import jax.numpy as jnp
    >>> found = closed_intervals(jnp.array([[0.0], [0.9], [0.05], [0.01], [0.0]]))
    >>> found.closed_for[:, 0].tolist(), found.number.item(), found.mean.item()
    ([1, 0, 1, 2, 3], 2, 2.0)
    """
    with masking.error_prefix("closed_intervals"):
        threshold = number("threshold", threshold)
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; 0 < threshold <= 1 is needed.")
        check_flag("reverse", reverse)
        values, steps = stacked("gate", gate, lengths, mask, resets)
        return _closed_intervals(values, steps, threshold, reverse=bool(reverse))


def forget_products(
    gates: Reported,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
) -> Hidden:
    """What the carousel leaves at the end of what a unit held after each step:

        p_t = ∏ f_s  over t < s <= T        in reverse, over s < t

    the derivative of c_T by c_t with the gates held fast. 1 after the last step, 0
    before a reset, and 0 at a step that does not happen; such a step is no factor. Of
    a GRU, f is z. Of the cell within: what a wrapper keeps or cuts off after the step,
    as zoneout and clip_cell do, is not in the gates.

    Arguments:
        gates: the gates of a trace, with f or z.
        lengths, mask, resets, reverse: those that `unroll` was given. The backward part
            of a bidirectional layer is given others: see `backward_resets`.

    Returns: `[T, *b, H]`.

    Errors: `ValueError` for gates with neither.

    Reference: Gers, Schmidhuber and Cummins, "Learning to forget", 2000,
    https://doi.org/10.1162/089976600300015015

    >>> import jax.numpy as jnp, jaxlstm as jl
    >>> f = jnp.full((4, 1), 0.5)
    >>> forget_products(jl.Gates(f, f, f, f))[:, 0].tolist()
    [0.125, 0.25, 0.5, 1.0]
    """
    with masking.error_prefix("forget_products"):
        check_flag("reverse", reverse)
        kept = stacked("gates", kept_by(gates), lengths, mask, resets)
        return _forget_products(*kept, reverse=bool(reverse))


def backward_resets(
    resets: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Array:
    """The resets that a bidirectional layer gives to its backward part.

    A reset is a border between a step and the one before it, of those that happen. Who
    comes from the end crosses it before that earlier step.

    Arguments:
        resets, lengths, mask: those that the layer was given.

    Returns: booleans `[T, *b]`, for `forget_products` and `closed_intervals` with
    `reverse=True`.

    Errors: `ValueError` as `unroll`.

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
            raise ValueError("resets is one value; booleans [T, *b] are needed.")
        steps = masking.steps(
            frame, lengths=lengths, mask=mask, resets=resets, of="resets"
        )
        turned = masking.turned(steps)
        assert turned is not None
        return turned


# -- the statistics of arrays, compiled --------------------------------------------


@jax.jit
def _saturation(
    gates: Reported, steps: StepMask, low: float, high: float
) -> Saturation:
    def share(beyond: Array, gate: Features) -> Hidden:
        beyond = beyond.astype(gate.dtype)
        return average(jnp.where(jnp.isnan(gate), gate, beyond), steps)

    gates = jax.tree_util.tree_map_with_path(_as_gate, gates)
    return Saturation(
        jax.tree.map(lambda gate: share(gate < low, gate), gates),
        jax.tree.map(lambda gate: share(gate > high, gate), gates),
    )


def _as_gate(path: Any, values: Features) -> Features:
    name = getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
    return (1 + values) / 2 if name in CANDIDATES else values


@jax.jit
def _average(values: Any, steps: StepMask) -> Any:
    return jax.tree.map(lambda leaf: average(leaf, steps), values)


@jax.jit
def _timescales(f: Features, steps: StepMask) -> Hidden:
    if steps.active is not None:  # for the gradient: that of log 0 is no number
        f = masking.select(steps.active, f, jnp.ones((), f.dtype))
    rate = -average(jnp.log(f), steps)
    return 1 / jnp.where(rate == 0, 0.0, rate)  # 1 / -0 is -inf


@functools.partial(jax.jit, static_argnames="reverse")
def _closed_intervals(
    gate: Features, steps: StepMask, threshold: float, *, reverse: bool
) -> ClosedIntervals:
    active, begins = everywhere(steps, gate)
    closed = (gate < threshold) & active

    def walk(run: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        closed, active, begins = step
        longer = jnp.where(closed, jnp.where(begins, 0, run) + 1, 0)
        return jnp.where(active, longer, run), longer

    none = jnp.zeros_like(closed.any(0), jnp.int32)  # split over devices as the gate is
    _, closed_for = lax.scan(walk, none, (closed, active, begins), reverse=reverse)
    number = (closed_for == 1).sum(0)
    total, many = (n.astype(gate.dtype) for n in (closed.sum(0), number))
    mean = total / jnp.maximum(many, 1)
    if steps.invalid_length is not None:
        mean = masking.nan_rows(mean, steps.invalid_length)
    return ClosedIntervals(closed_for, number, closed_for.max(0, initial=0), mean)


@functools.partial(jax.jit, static_argnames="reverse")
def _forget_products(f: Features, steps: StepMask, *, reverse: bool) -> Hidden:
    active, begins = everywhere(steps, f)
    factors = jnp.where(active, jnp.where(begins, 0.0, f), 1.0)
    one = jnp.ones_like(factors[:1])
    later = jnp.concatenate([one, factors[:-1]] if reverse else [factors[1:], one])
    return masking.mask_outputs(lax.cumprod(later, axis=0, reverse=not reverse), steps)


# -- what the statistics share ---------------------------------------------------


def stacked(
    name: str,
    values: ArrayLike,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> tuple[Features, StepMask]:
    """Values `[T, *b, H]` as an array, and which of their steps happen.

    16 bits become 32, in which sums over time are kept.
    """
    values = masking.features(name, values)
    values = values.astype(accumulator_dtype(values.dtype))
    return values, masking.steps_of(name, values, lengths, mask, resets)


def _each(
    gates: Reported, lengths: ArrayLike | None, mask: ArrayLike | None
) -> tuple[Reported, StepMask]:
    """Every gate as an array, and which of their steps happen."""
    for node in jax.tree.leaves(gates, is_leaf=lambda node: isinstance(node, STATES)):
        if isinstance(node, STATES):
            raise ValueError(
                f"gates holds {masking.described(node)}; take trace.gates alone."
            )
    paths, tree = jax.tree.flatten_with_path(gates)
    if not paths:
        raise ValueError("gates holds no array; the gates of a trace are needed.")
    names = [_named(path) for path, _ in paths]
    leaves = [
        stacked(name, leaf)[0] for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    _check_alike(dict(zip(names, leaves, strict=True)))
    return tree.unflatten(leaves), stacked(names[0], leaves[0], lengths, mask)[1]


def _named(path: Any) -> str:
    """`gates.f` for the leaf f of a record or a dict, `gates` for an array alone."""
    within = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"gates.{within}" if within else "gates"


def _check_alike(gates: Mapping[str, Features]) -> None:
    """Errors: `ValueError` for gates of other steps or rows than the first one's."""
    (first, values), *others = gates.items()
    for name, other in others:
        if other.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                f"{first} is {show(values.shape)} and {name} {show(other.shape)}; all "
                "gates need the same steps and rows."
            )


def everywhere(steps: StepMask, values: Features) -> tuple[Array, Array]:
    """Where steps happen, and where they begin anew: booleans shaped as values."""

    def spread(flags: Array | None, absent: bool) -> Array:
        if flags is None:
            return jnp.full_like(values, absent, dtype=bool)
        tail = tuple(range(flags.ndim, values.ndim))
        return jnp.zeros_like(values, bool) | jnp.expand_dims(flags, tail)

    return spread(steps.active, True), spread(steps.resets, False)


def average(values: Features, steps: StepMask) -> Hidden:
    """The mean over all steps that happen, of all rows, `[H]`."""
    active, _ = everywhere(steps, values)
    axes = tuple(range(values.ndim - 1))
    total = masking.mask_outputs(values, steps).sum(axes)
    return total / active.sum(axes).astype(values.dtype)


def kept_by(gates: Reported) -> Hidden:
    """The gate that says what is kept: f, or z of a GRU."""
    for name in "fz":
        if (gate := gate_of(gates, name, None)) is not None:
            return gate
    raise ValueError(
        f"gates is {masking.described(gates)}, without a forget gate f or z; "
        "take trace.gates of a cell that has one, with emit=jl.emit.trace."
    )


def gate_of(gates: Reported, name: str, otherwise: Any) -> Any:
    """The gate of this name in a record or a dict, otherwise what is given."""
    if isinstance(gates, Mapping):
        return gates.get(name, otherwise)
    return getattr(gates, name, otherwise)


def number(name: str, value: float) -> float:
    """Errors: `ValueError` for what is no Python number, such as what is traced."""
    plain = isinstance(value, int | float | np.integer | np.floating)
    if not plain or isinstance(value, bool):
        raise ValueError(
            f"{name} is {masking.described(value)}; a plain Python number is needed."
        )
    return float(value)
