"""The weighted mean of a batch, from sums that shards can add."""

import jax.numpy as jnp
from jax import Array


def divide(weighted_sum: Array, weight: Array) -> Array:
    """Return the weighted mean in the dtype of the sum; 0 if the weight is 0."""
    wide = max(weighted_sum.dtype, weight.dtype, key=lambda dtype: dtype.itemsize)
    weight = jnp.where(weight == 0, 1, weight).astype(wide)
    return (weighted_sum.astype(wide) / weight).astype(weighted_sum.dtype)
