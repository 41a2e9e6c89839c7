"""What the units of a layer do, compared with one another."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.diagnostics.gates import average, everywhere, number, stacked
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, is_explicit


class Duplicates(NamedTuple):
    """Which units say the same.

    correlation   `[H, H]`, between -1 and 1; 0 with a unit that never changes
    pairs         booleans `[H, H]`: True at [j, k], j < k, for a pair of duplicates
    """

    correlation: Array
    pairs: Array


def dead_units(
    hs: ArrayLike,
    *,
    band: float = 0.01,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Array:
    """Which units never leave a narrow band, whatever the input:

        max_t h_t - min_t h_t <= band        over all steps of all rows

    Arguments:
        hs: `[T, *b, H]`: h, or c, or any gate of a trace.
        band: its width, from 0.
        lengths, mask: those that `unroll` was given.

    Returns: booleans `[H]`; True where no step happens, False where h is NaN.

    Errors: `ValueError` for a negative band.

    >>> import jax.numpy as jnp
    >>> dead_units(jnp.array([[0.5, 0.0], [0.501, 0.9]])).tolist()
    [True, False]
    """
    with masking.error_prefix("dead_units"):
        band = number("band", band)
        if not band >= 0:
            raise ValueError(f"band is {band!r}; a width from 0 is needed.")
        return _dead_units(*stacked("hs", hs, lengths, mask), band)


def duplicate_units(
    hs: ArrayLike,
    *,
    threshold: float = 0.99,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Duplicates:
    """Which units are copies of one another, up to scale, sign and offset:

        |r_jk| > threshold        r the correlation over all steps of all rows

    Arguments:
        hs: `[T, *b, H]`: h, or c, or any gate of a trace.
        threshold: between 0 and 1.
        lengths, mask: those that `unroll` was given.

    Errors: `ValueError` for another threshold.

    >>> import jax, jax.numpy as jnp
    >>> h = jax.random.normal(jax.random.key(0), (50, 2))
    >>> found = duplicate_units(jnp.stack([h[:, 0], h[:, 1], 3 - 2 * h[:, 0]], 1))
    >>> jnp.argwhere(found.pairs).tolist(), round(found.correlation[0, 2].item(), 3)
    ([[0, 2]], -1.0)
    """
    with masking.error_prefix("duplicate_units"):
        threshold = number("threshold", threshold)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is {threshold}; 0 <= threshold < 1 is needed.")
        return _duplicate_units(*stacked("hs", hs, lengths, mask), threshold)


@jax.jit
def _dead_units(hs: Features, steps: StepMask, band: float) -> Array:
    hs = masking.mask_outputs(hs, steps)
    counts = everywhere(steps, hs)[0] | jnp.isnan(hs)
    axes = tuple(range(hs.ndim - 1))
    top = hs.max(axes, where=counts, initial=-jnp.inf)
    bottom = hs.min(axes, where=counts, initial=jnp.inf)
    return top - bottom <= band


@jax.jit
def _duplicate_units(hs: Features, steps: StepMask, threshold: float) -> Duplicates:
    mean = average(masking.zero_inactive(hs, steps), steps)
    away = masking.mask_outputs(hs - jnp.broadcast_to(mean, hs.shape), steps)
    axes = tuple(range(hs.ndim - 1))
    top = lax.stop_gradient(jnp.abs(away).max(axes, initial=0.0))  # lest squares vanish
    away = away / jnp.broadcast_to(jnp.where(top == 0, 1.0, top), hs.shape)
    squares = (away**2).sum(axes)
    rounding = 8 * jnp.finfo(hs.dtype).eps * math.prod(hs.shape[:-1]) ** 0.5
    constant = top * jnp.sqrt(squares) <= rounding * jnp.abs(mean)
    size = jnp.sqrt(jnp.where(constant, 1.0, squares))
    scale = jnp.where(constant, 0.0, 1 / size)
    shares = away * jnp.broadcast_to(scale, hs.shape)
    whole = P() if is_explicit(jax.typeof(hs).sharding) else None
    products = jnp.tensordot(shares, shares, (axes, axes), out_sharding=whole)
    correlation = jnp.clip(products, -1, 1)
    return Duplicates(correlation, jnp.triu(jnp.abs(correlation) > threshold, k=1))
