"""Products of features with a matrix that has an explicit gate axis.

The one place that knows how such a product is taken: through a 2-D view, with sums
in float32 or wider, and with the units of the matrix split over a mesh or not.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxlstm.shapes import accumulator_dtype, is_explicit, show


def product(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """`x [*b, K]` times `w [K, *out]`: `[*b, *out]`, the sums in `dtype`.

    Operands are taken in the dtype of x. The same x gives the same bits, however many
    others it is multiplied with in a loop: a sum of one term, which a compiler fuses
    into whatever follows and rounds with it, is written as one of two.

    Where the units of w are split over an explicit mesh, every device needs all of x,
    and gathering it is the one collective of a step.
    """
    w = w.astype(x.dtype)
    if len(w) == 1:
        x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
        w = jnp.concatenate([w, jnp.zeros_like(w)])
    if is_explicit(jax.typeof(w).sharding):
        rows = jax.typeof(x).sharding.spec[: x.ndim - 1]
        x = jax.sharding.reshard(x, P(*rows, None))
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(x, w, contracted, preferred_element_type=dtype)
    flat = jnp.matmul(x, w.reshape(len(w), -1), preferred_element_type=dtype)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


def affine(x: Array, w: Array, b: Array) -> Array:
    """`x W + b`, with w `[D, *out]` and b `[*out]`: what inputs add to a step.

    Errors: `ValueError` where x has other features than w was made for, or is not of
    floating point numbers.
    """
    if x.shape[-1] != len(w):
        raise ValueError(
            f"xs has {x.shape[-1]} features, but these params were made for {len(w)} "
            f"(w_x is {show(w.shape)})."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"xs has dtype {x.dtype}; floating point features are needed.")
    dtype = accumulator_dtype(x.dtype)
    z = product(x, w, dtype)
    return z + jnp.broadcast_to(b.astype(dtype), z.shape)
