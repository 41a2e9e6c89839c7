"""Units of a layer that are constant, and units that duplicate each other."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.diagnostics._common import (
    as_features,
    as_number,
    broadcast_steps,
    mean_over_steps,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, is_explicit, on_mesh_of


class Duplicates(NamedTuple):
    """Correlations of units, and the pairs above the threshold.

    Attributes:
        correlation: `[H, H]`, in -1..1; 0 with a unit that is constant.
        pairs: booleans `[H, H]`; True at [j, k], j < k, for a pair of duplicates.
    """

    correlation: Array
    pairs: Array


def dead_units(
    hs: ArrayLike,
    *,
    band: float = 0.01,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
) -> Array:
    """Find the units that stay within a narrow band, whatever the input:

        max_t h_t - min_t h_t <= band        over the executed steps of all rows

    Args:
        hs: `[T, *b, H]`: h, c, or a gate of a trace.
        band: width of the band, at least 0.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.

    Returns:
        Booleans `[H]`; True if no step is executed, False if h is NaN.

    Raises:
        ValueError: band is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> dead_units(jnp.array([[0.5, 0.0], [0.501, 0.9]])).tolist()
        [True, False]
    """
    with masking.error_prefix("dead_units"):
        band = as_number("band", band)
        if not band >= 0:
            raise ValueError(f"band: got {band!r}, expected a width >= 0.")
        return _dead_units(*as_features("hs", hs, lengths, mask), band)


def duplicate_units(
    hs: ArrayLike,
    *,
    threshold: float = 0.99,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
) -> Duplicates:
    """Find the units that are copies of each other up to scale, sign and offset:

        |r_jk| > threshold

    r is the Pearson correlation over the executed steps of all rows.

    Args:
        hs: `[T, *b, H]`: h, c, or a gate of a trace.
        threshold: smallest absolute correlation of duplicates, in 0..1.
        lengths: the lengths that were passed to `unroll`.
        mask: the mask that was passed to `unroll`.

    Raises:
        ValueError: not 0 <= threshold < 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> h = jax.random.normal(jax.random.key(0), (50, 2))
        >>> hs = jnp.stack([h[:, 0], h[:, 1], 3 - 2 * h[:, 0]], 1)
        >>> duplicates = duplicate_units(hs)
        >>> jnp.argwhere(duplicates.pairs).tolist()
        [[0, 2]]
        >>> round(duplicates.correlation[0, 2].item(), 3)
        -1.0
    """
    with masking.error_prefix("duplicate_units"):
        threshold = as_number("threshold", threshold)
        if not 0 <= threshold < 1:
            raise ValueError(
                f"threshold: got {threshold}, expected 0 <= threshold < 1."
            )
        return _duplicate_units(*as_features("hs", hs, lengths, mask), threshold)


@jax.jit
def _dead_units(hs: Features, steps: StepMask, band: float) -> Array:
    hs = masking.mask_outputs(hs, steps)
    counts = broadcast_steps(steps, hs)[0] | jnp.isnan(hs)
    axes = tuple(range(hs.ndim - 1))
    top = hs.max(axes, where=counts, initial=-jnp.inf)
    bottom = hs.min(axes, where=counts, initial=jnp.inf)
    return top - bottom <= band


@jax.jit
def _duplicate_units(hs: Features, steps: StepMask, threshold: float) -> Duplicates:
    mean = mean_over_steps(masking.zero_inactive(hs, steps), steps)
    centred = masking.mask_outputs(hs - jnp.broadcast_to(mean, hs.shape), steps)
    axes = tuple(range(hs.ndim - 1))
    # Dividing by the maximum keeps the squares from underflowing.
    top = lax.stop_gradient(jnp.abs(centred).max(axes, initial=0.0))
    centred = centred / jnp.broadcast_to(jnp.where(top == 0, 1.0, top), hs.shape)
    squares = (centred**2).sum(axes)
    rounding = 8 * jnp.finfo(hs.dtype).eps * math.prod(hs.shape[:-1]) ** 0.5
    constant = top * jnp.sqrt(squares) <= rounding * jnp.abs(mean)
    size = jnp.sqrt(jnp.where(constant, 1.0, squares))
    scale = jnp.where(constant, 0.0, 1 / size)
    normalized = centred * jnp.broadcast_to(scale, hs.shape)
    replicated = on_mesh_of(hs) if is_explicit(jax.typeof(hs).sharding) else None
    products = jnp.tensordot(
        normalized, normalized, (axes, axes), out_sharding=replicated
    )
    correlation = jnp.clip(products, -1, 1)
    return Duplicates(correlation, jnp.triu(jnp.abs(correlation) > threshold, k=1))
