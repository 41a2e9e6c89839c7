"""Products of features with a matrix that has an explicit gate axis.

The one place that knows how such a product is taken: through a 2-D view, with sums
in float32 or wider, and with the units of the matrix split over a mesh or not.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxlstm.typing import accumulator_dtype, is_explicit, show


def product(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """`x [*b, K]` times `w [K, *out]`: `[*b, *out]`, the sums in `dtype`.

    Operands are taken in the dtype of x. The same x gives the same bits, however many
    others it is multiplied with in a loop: a sum of one term, which a compiler fuses
    into whatever follows and rounds with it, is written as one of two.

    Where the units of w are split over a mesh, every device needs all of x, and
    gathering it is the one collective of a step. A 2-D view would mix the split axis
    with that of the gates, so that every device would compute every gate; it is taken
    where the units cannot be split, because one device multiplies it faster.
    """
    w = w.astype(x.dtype)
    if len(w) == 1:
        x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
        w = jnp.concatenate([w, jnp.zeros_like(w)])
    if is_explicit(jax.typeof(w).sharding):
        rows = jax.typeof(x).sharding.spec[: x.ndim - 1]
        units = jax.typeof(w).sharding.spec[1:]
        x = jax.sharding.reshard(x, P(*rows, None))
        w = jax.sharding.reshard(w, P(None, *units))
    if may_be_split(w):
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(x, w, contracted, preferred_element_type=dtype)
    flat_w = w.reshape(len(w), math.prod(w.shape[1:]))  # -1 fails where w is empty
    flat = jnp.matmul(x, flat_w, preferred_element_type=dtype)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


def may_be_split(w: Array) -> bool:
    """Whether an axis of w is split over a mesh, as far as its type tells.

    An explicit axis says what it splits. An automatic one does not, and may split any.
    """
    kind = jax.typeof(w).sharding
    automatic = (
        size > 1 and axis is AxisType.Auto
        for size, axis in zip(kind.mesh.axis_sizes, kind.mesh.axis_types, strict=True)
    )
    return any(kind.spec) or any(automatic)


def affine(x: Array, w: Array, b: Array) -> Array:
    """`x W + b`, with w `[D, *out]` and b `[*out]`: what inputs add to a step.

    Errors: as in `linear`.
    """
    z = linear(x, w)
    return z + spread(b, z)


def linear(x: Array, w: Array) -> Array:
    """`x W`, with w `[D, *out]`, in float32 or wider.

    Errors: `ValueError` where x has other features than w was made for, or is not of
    floating point numbers.
    """
    check_features(x, w, len(w))
    return product(x, w, accumulator_dtype(x.dtype))


def check_features(x: Array, w: Array, size: int) -> None:
    """Errors: `ValueError` where x has not `size` floating point features."""
    if not hasattr(x, "shape"):
        raise ValueError(
            f"x is a {type(x).__name__}; an array of {size} features is needed, such "
            "as jnp.array(x)."
        )
    if x.shape[-1] != size:
        raise ValueError(
            f"xs has {x.shape[-1]} features, but these params were made for {size} "
            f"(w_x is {show(w.shape)})."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"xs has dtype {x.dtype}; floating point features are needed.")


def check_projected(z: Array, w: Array) -> None:
    """Errors: `ValueError` where z is not what a step adds `h W` to, w `[R, *out]`."""
    out = w.shape[1:]
    if z.shape[z.ndim - len(out) :] != out:
        raise ValueError(
            f"z has the shape {show(z.shape)}; what cell.project(params, x) makes of "
            f"the input is needed, {show(('*b', *out))}."
        )


def spread(b: Array, z: Array) -> Array:
    """b `[*out]`, in the shape `[*b, *out]` and the dtype of z.

    On an explicit mesh its rows are split as those of z: each device then has the
    rows that it needs, and in the gradient of b sums its own before any travel.
    """
    rows, placed = z.ndim - b.ndim, None
    if is_explicit(jax.typeof(z).sharding):
        placed = P(*jax.typeof(z).sharding.spec[:rows], *jax.typeof(b).sharding.spec)
    return jnp.broadcast_to(b.astype(z.dtype), z.shape, out_sharding=placed)


def recurrent(h: Array, w: Array, z: Array) -> tuple[Array, ...]:
    """`z + h W`, gate by gate, each `[*b, H]`, for w `[R, n, H]` and z `[*b, n, H]`.

    Errors: `ValueError` for z of another shape, such as the input itself.
    """
    check_projected(z, w)
    return by_gate(z + product(h, w, z.dtype))


def by_gate(z: Array) -> tuple[Array, ...]:
    """The n gates of z `[*b, n, H]`, each `[*b, H]`."""
    return tuple(z[..., k, :] for k in range(z.shape[-2]))


def fold(x: Array, count: int) -> Array:
    """x, its first `count` axes as one, split over an explicit mesh as they are."""
    shape, placed = (math.prod(x.shape[:count]), *x.shape[count:]), None
    if is_explicit(jax.typeof(x).sharding):
        spec = jax.typeof(x).sharding.spec
        split = (axis if isinstance(axis, tuple) else (axis,) for axis in spec[:count])
        names = tuple(name for axes in split for name in axes if name is not None)
        placed = P(names or None, *spec[count:])
    return lax.reshape(x, shape, out_sharding=placed)


def unfold(z: Array, like: Array, count: int) -> Array:
    """z, its first axis as the first `count` axes of `like`; `fold` undone."""
    shape, placed = (*like.shape[:count], *z.shape[1:]), None
    if is_explicit(jax.typeof(z).sharding):
        rows = jax.typeof(like).sharding.spec[:count]
        placed = P(*rows, *jax.typeof(z).sharding.spec[1:])
    return lax.reshape(z, shape, out_sharding=placed)
