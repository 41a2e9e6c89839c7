"""Checks, masks and means over time that several diagnostics use."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import Reported
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Hidden, accumulator_dtype


def as_features(
    name: str,
    values: ArrayLike,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> tuple[Features, StepMask]:
    """Return values `[T, *b, H]` as an array, and the `StepMask` of their steps.

    16-bit values are cast to float32, in which sums over time are kept.
    """
    values = masking.features(name, values)
    values = values.astype(accumulator_dtype(values.dtype))
    return values, masking.steps_of(name, values, lengths, mask, resets)


def broadcast_steps(steps: StepMask, values: Features) -> tuple[Array, Array]:
    """Return `active` and `resets` of the steps, broadcast to the shape of values."""

    def broadcast(flags: Array | None, default: bool) -> Array:
        if flags is None:
            return jnp.full_like(values, default, dtype=bool)
        tail = tuple(range(flags.ndim, values.ndim))
        return jnp.zeros_like(values, bool) | jnp.expand_dims(flags, tail)

    return broadcast(steps.active, True), broadcast(steps.resets, False)


def mean_over_steps(values: Features, steps: StepMask) -> Hidden:
    """Return the mean `[H]` over the executed steps of all rows."""
    active, _ = broadcast_steps(steps, values)
    axes = tuple(range(values.ndim - 1))
    total = masking.mask_outputs(values, steps).sum(axes)
    return total / active.sum(axes).astype(values.dtype)


@jax.jit
def mean_of_leaves(values: Any, steps: StepMask) -> Any:
    """Return `mean_over_steps` of every leaf."""
    return jax.tree.map(lambda leaf: mean_over_steps(leaf, steps), values)


def forget_gate(gates: Reported) -> Hidden:
    """Return the gate that scales the previous state: f, or z of a GRU.

    Raises:
        ValueError: the record has neither.
    """
    for name in "fz":
        if (gate := get_gate(gates, name, None)) is not None:
            return gate
    raise ValueError(
        f"gates: got {masking.described(gates)}, expected a forget gate f or z; pass "
        "trace.gates of a cell that has one, with emit=jl.emit.trace."
    )


def get_gate(gates: Reported, name: str, default: Any) -> Any:
    """Return the gate of this name from a record or a dict."""
    if isinstance(gates, Mapping):
        return gates.get(name, default)
    return getattr(gates, name, default)


def as_number(name: str, value: float) -> float:
    """Return value as a float.

    Raises:
        ValueError: it is not a Python or NumPy number, for example a traced array.
    """
    plain = isinstance(value, int | float | np.integer | np.floating)
    if not plain or isinstance(value, bool):
        raise ValueError(
            f"{name}: got {masking.described(value)}, expected a plain Python number."
        )
    return float(value)
