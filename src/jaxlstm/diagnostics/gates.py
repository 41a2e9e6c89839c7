"""Statistics of gates over time: saturation, mean fractions and timescales.

Gates are `trace.gates` of `emit=jl.emit.trace`: a record or a dict of arrays
`[T, *b, H]`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import HiddenState, LSTMState, Reported
from jaxlstm.cells.emit import Trace
from jaxlstm.diagnostics._common import (
    as_features,
    as_number,
    forget_gate,
    get_gate,
    mean_of_leaves,
    mean_over_steps,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Hidden, show

# Fields of a gate record that hold candidates: they lie in -1..1, not in 0..1.
CANDIDATES = ("g", "n")
STATES = (Trace, LSTMState, HiddenState)


class Saturation(NamedTuple):
    """Fraction of steps at which a gate is saturated, `[H]` per gate.

    Attributes:
        low: fraction below the lower threshold: the gate is closed.
        high: fraction above the upper threshold: the gate is open.
    """

    low: Reported
    high: Reported


class Fractions(NamedTuple):
    """Means of the input, forget and output gate, `[H]` each.

    Attributes:
        write: mean of i, the fraction of the candidate written to the cell state.
        keep: mean of f, the fraction of the cell state kept for the next step.
        read: mean of o, the fraction of the cell state read into h.
    """

    write: Hidden
    keep: Hidden
    read: Hidden


def saturation(
    gates: Reported,
    *,
    low: float = 0.1,
    high: float = 0.9,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
) -> Saturation:
    """Compute the fraction of steps at which each gate is nearly closed or open:

        low  = #{t: gate_t < low} / #{t}       high = #{t: gate_t > high} / #{t}

    A saturated gate acts as a switch and passes almost no gradient. A candidate, g or
    n, lies in -1..1; it is rescaled to (1 + g) / 2 first.

    Args:
        gates: the gates of a trace, any pytree of arrays `[T, *b, H]`.
        low: lower threshold, in 0..1.
        high: upper threshold, in 0..1.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.

    Returns:
        Two records with the structure of gates and leaves `[H]`, in float32 or wider;
        NaN if no step is executed.

    Raises:
        ValueError: not 0 <= low < high <= 1, gates have no unit axis or different
            steps, or gates contains a state.

    Example:
        >>> import jax.numpy as jnp
        >>> gates = {"f": jnp.array([[0.95], [0.99], [0.5], [0.05]])}
        >>> low, high = saturation(gates)
        >>> float(low["f"][0]), float(high["f"][0])
        (0.25, 0.5)

    Reference:
        Karpathy, Johnson and Fei-Fei, "Visualizing and understanding recurrent
        networks", 2016, https://arxiv.org/abs/1506.02078
    """
    with masking.error_prefix("saturation"):
        low, high = as_number("low", low), as_number("high", high)
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"low, high: got {low!r} and {high!r}, expected 0 <= low < high <= 1."
            )
        return _saturation(*_all_gates(gates, lengths, mask), low, high)


def fractions(
    gates: Reported,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
) -> Fractions:
    """Compute the mean fractions that are written, kept and read:

        write, keep, read = mean of i, f, o

    For a GRU, f is z. A missing i is taken as 1 - f, and a missing o as 1: a GRU
    writes what it does not keep and outputs its whole state.

    Args:
        gates: the gates of a trace, with f or z.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.

    Returns:
        Arrays `[H]` in float32 or wider; NaN if no step is executed.

    Raises:
        ValueError: gates have neither f nor z, or different steps.

    Example:
        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> gates = jl.Gates(*jnp.array([0.25, 0.5, 0.0, 1.0])[:, None, None])
        >>> write, keep, read = fractions(gates)
        >>> write.item(), keep.item(), read.item()
        (0.25, 0.5, 1.0)
    """
    with masking.error_prefix("fractions"):
        f, steps = as_features("gates", forget_gate(gates), lengths, mask)
        parts = {
            "gates.i": get_gate(gates, "i", 1 - f),
            "gates.f": f,
            "gates.o": get_gate(gates, "o", jnp.ones_like(f)),
        }
        parts = {name: as_features(name, v)[0] for name, v in parts.items()}
        _check_same_steps(parts)
        return mean_of_leaves(Fractions(*parts.values()), steps)


def timescales(
    gates: Reported,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
) -> Hidden:
    """Compute the memory timescale of each unit from its forget gate:

        τ = -1 / mean log f

    After τ steps with the forget gate at its geometric mean, 1/e of the cell state is
    left. τ is inf if f is always 1 and 0 if f is 0 at any step. Gates outside 0..1
    give NaN (negative f) or τ < 0 (the cell state grows). For a GRU, f is z.

    Only gates are read: state changes of wrappers after the step, such as `zoneout`
    and `clip_cell`, are not included.

    Args:
        gates: the gates of a trace, with f or z.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.

    Returns:
        `[H]`, in steps, float32 or wider; NaN if no step is executed.

    Raises:
        ValueError: gates have neither f nor z.

    Example:
        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> f = jnp.full((7, 1), jnp.exp(-1 / 20))
        >>> round(timescales(jl.Gates(f, f, f, f)).item(), 3)
        20.0

    Reference:
        Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018,
        https://arxiv.org/abs/1804.11188

        Mahto et al., "Multi-timescale representation learning in LSTM language
        models", 2021, https://arxiv.org/abs/2009.12727
    """
    with masking.error_prefix("timescales"):
        return _timescales(*as_features("gates", forget_gate(gates), lengths, mask))


@jax.jit
def _saturation(
    gates: Reported, steps: StepMask, low: float, high: float
) -> Saturation:
    def fraction(beyond: Array, gate: Features) -> Hidden:
        beyond = beyond.astype(gate.dtype)
        return mean_over_steps(jnp.where(jnp.isnan(gate), gate, beyond), steps)

    gates = jax.tree_util.tree_map_with_path(_rescale_candidate, gates)
    return Saturation(
        jax.tree.map(lambda gate: fraction(gate < low, gate), gates),
        jax.tree.map(lambda gate: fraction(gate > high, gate), gates),
    )


def _rescale_candidate(path: Any, values: Features) -> Features:
    name = getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
    return (1 + values) / 2 if name in CANDIDATES else values


@jax.jit
def _timescales(f: Features, steps: StepMask) -> Hidden:
    if steps.active is not None:  # log 0 at padding would make the gradient NaN
        f = masking.select(steps.active, f, jnp.ones((), f.dtype))
    rate = -mean_over_steps(jnp.log(f), steps)
    return 1 / jnp.where(rate == 0, 0.0, rate)  # 1 / -0.0 would be -inf


def _all_gates(
    gates: Reported, lengths: ArrayLike | None, mask: ArrayLike | StepMask | None
) -> tuple[Reported, StepMask]:
    """Return every gate as an array, and the `StepMask` of their steps."""
    for node in jax.tree.leaves(gates, is_leaf=lambda node: isinstance(node, STATES)):
        if isinstance(node, STATES):
            raise ValueError(
                f"gates: got {masking.described(node)}, expected gates only; pass "
                "trace.gates."
            )
    paths, tree = jax.tree.flatten_with_path(gates)
    if not paths:
        raise ValueError(
            "gates: got no array, expected the gates of a trace; pass trace.gates."
        )
    names = [_gate_name(path) for path, _ in paths]
    leaves = [
        as_features(name, leaf)[0] for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    _check_same_steps(dict(zip(names, leaves, strict=True)))
    return tree.unflatten(leaves), as_features(names[0], leaves[0], lengths, mask)[1]


def _gate_name(path: Any) -> str:
    """Return `gates.f` for the leaf f of a record or a dict, `gates` for an array."""
    within = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"gates.{within}" if within else "gates"


def _check_same_steps(gates: Mapping[str, Features]) -> None:
    """Raise a `ValueError` if a gate has other steps or rows than the first one."""
    (first, values), *others = gates.items()
    for name, other in others:
        if other.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                f"{name}: got shape {show(other.shape)}, expected the steps and rows "
                f"of {first}, {show(values.shape)}."
            )
