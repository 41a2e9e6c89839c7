"""What the units of a layer do, compared with one another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxlstm import sequences
from jaxlstm.diagnostics.gates import average, everywhere, stacked
from jaxlstm.sequences import Steps
from jaxlstm.shapes import Features


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
    with sequences.speaking("dead_units"):
        if not band >= 0:
            raise ValueError(f"band is {band!r}; a width from 0 is needed.")
        return _dead_units(*stacked("hs", hs, lengths, mask), float(band))


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
    with sequences.speaking("duplicate_units"):
        if not 0 <= threshold < 1:
            raise ValueError(
                f"threshold is {threshold!r}; 0 <= threshold < 1 is needed."
            )
        return _duplicate_units(*stacked("hs", hs, lengths, mask), float(threshold))


@jax.jit
def _dead_units(hs: Features, steps: Steps, band: float) -> Array:
    hs = sequences.settle(hs, steps)
    counts = everywhere(steps, hs)[0] | jnp.isnan(hs)
    axes = tuple(range(hs.ndim - 1))
    top = hs.max(axes, where=counts, initial=-jnp.inf)
    bottom = hs.min(axes, where=counts, initial=jnp.inf)
    return top - bottom <= band


@jax.jit
def _duplicate_units(hs: Features, steps: Steps, threshold: float) -> Duplicates:
    mean = average(sequences.silence(hs, steps), steps)
    away = sequences.settle(hs - jnp.broadcast_to(mean, hs.shape), steps)
    rows = away.reshape(-1, hs.shape[-1])
    size = jnp.linalg.norm(rows, axis=0)
    rounding = 8 * jnp.finfo(hs.dtype).eps * len(rows) ** 0.5
    rows = rows / jnp.where(size <= rounding * jnp.abs(mean), jnp.inf, size)[None]
    correlation = rows.T @ rows
    return Duplicates(correlation, jnp.triu(jnp.abs(correlation) > threshold, k=1))
