"""Products of features with a matrix that has an explicit gate axis.

All cells multiply through these functions, which choose a 2-D view, accumulate in
float32 or wider, and handle matrices whose units are sharded over a mesh.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType
from jax.typing import DTypeLike

from jaxlstm.typing import (
    accumulator_dtype,
    is_deleted,
    is_explicit,
    on_mesh_of,
    show,
)


def product(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """Return `x [*b, K]` times `w [K, *out]`, `[*b, *out]`, accumulated in `dtype`.

    Operands are cast to the dtype of x. For K = 1, XLA would fuse the product into the
    operations that follow and round differently from step to step; padding K to 2 with
    zeros prevents this, so that the same x always gives the same bits.

    If the units of w are sharded, every device gathers all of x, the only collective
    of a step. A 2-D view of w would mix the sharded axis with the gate axis, and every
    device would compute every gate; without sharding the view is used, because a
    single device multiplies it faster.
    """
    w = w.astype(x.dtype)
    if len(w) == 1:
        x = jnp.concatenate([x, jnp.zeros_like(x)], axis=-1)
        w = jnp.concatenate([w, jnp.zeros_like(w)])
    if is_explicit(jax.typeof(w).sharding):
        rows = jax.typeof(x).sharding.spec[: x.ndim - 1]
        units = jax.typeof(w).sharding.spec[1:]
        x = jax.sharding.reshard(x, on_mesh_of(w, *rows, None))
        w = jax.sharding.reshard(w, on_mesh_of(w, None, *units))
    if may_be_sharded(w):
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(x, w, contracted, preferred_element_type=dtype)
    flat_w = w.reshape(len(w), math.prod(w.shape[1:]))  # -1 fails where w is empty
    flat = jnp.matmul(x, flat_w, preferred_element_type=dtype)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


def may_be_sharded(w: Array) -> bool:
    """Return whether an axis of w may be sharded, according to its type.

    Explicit mesh axes appear in the type. Automatic ones do not, so any axis of w may
    be sharded over them.
    """
    kind = jax.typeof(w).sharding
    automatic = (
        size > 1 and axis is AxisType.Auto
        for size, axis in zip(kind.mesh.axis_sizes, kind.mesh.axis_types, strict=True)
    )
    return any(kind.spec) or any(automatic)


def affine(x: Array, w: Array, b: Array) -> Array:
    """Return `x W + b`, for w `[D, *out]` and b `[*out]`.

    Raises:
        ValueError: as `linear`.
    """
    z = linear(x, w)
    return z + broadcast_like(z, b)


def linear(x: Array, w: Array) -> Array:
    """Return `x W`, for w `[D, *out]`, in float32 or wider.

    Raises:
        ValueError: x does not have D floating point features.
    """
    check_features(x, w, len(w))
    return product(x, w, accumulator_dtype(x.dtype))


def check_features(x: Array, w: Array, size: int) -> None:
    """Raise a `ValueError` if x does not have `size` floating point features."""
    if not hasattr(x, "shape"):
        raise ValueError(
            f"x: got {type(x).__name__}, expected an array with {size} features; pass "
            "jnp.array(x)."
        )
    if x.shape[-1] != size:
        raise ValueError(
            f"xs: got {x.shape[-1]} features, expected {size} (w_x is {show(w.shape)})."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"xs: got dtype {x.dtype}, expected floating point features.")
    if x.dtype.itemsize > 8:  # np.longdouble, which is no dtype of JAX
        raise ValueError(f"xs: got dtype {x.dtype}, expected float64 or less.")
    if is_deleted(x):
        raise ValueError("xs: got a deleted array, expected one that was not donated.")


def check_projected(z: Array, w: Array) -> None:
    """Raise a `ValueError` if z is not `[*b, *out]`, for w `[R, *out]`."""
    out = w.shape[1:]
    if z.shape[z.ndim - len(out) :] != out:
        raise ValueError(
            f"z: got shape {show(z.shape)}, expected {show(('*b', *out))}; pass "
            "cell.project(params, x), not the input x."
        )


def broadcast_like(z: Array, b: Array) -> Array:
    """Broadcast b `[*out]` to the shape `[*b, *out]` and the dtype of z.

    On an explicit mesh its rows are sharded like those of z, so that in the gradient
    of b every device sums its own rows before they are communicated.
    """
    rows, sharding = z.ndim - b.ndim, None
    if is_explicit(jax.typeof(z).sharding):
        units = jax.typeof(b).sharding.spec
        sharding = on_mesh_of(z, *jax.typeof(z).sharding.spec[:rows], *units)
    return jnp.broadcast_to(b.astype(z.dtype), z.shape, out_sharding=sharding)


def recurrent(h: Array, w: Array, z: Array) -> tuple[Array, ...]:
    """Return `z + h W` per gate, each `[*b, H]`, for w `[R, n, H]`, z `[*b, n, H]`.

    Raises:
        ValueError: z has another shape.
    """
    check_projected(z, w)
    return by_gate(z + product(h, w, z.dtype))


def by_gate(z: Array) -> tuple[Array, ...]:
    """Return the n gates of z `[*b, n, H]`, each `[*b, H]`."""
    return tuple(z[..., k, :] for k in range(z.shape[-2]))


def merge_axes(x: Array, count: int) -> Array:
    """Merge the first `count` axes of x into one, with their explicit sharding."""
    shape, sharding = (math.prod(x.shape[:count]), *x.shape[count:]), None
    if is_explicit(jax.typeof(x).sharding):
        spec = jax.typeof(x).sharding.spec
        split = (axis if isinstance(axis, tuple) else (axis,) for axis in spec[:count])
        names = tuple(name for axes in split for name in axes if name is not None)
        sharding = on_mesh_of(x, names or None, *spec[count:])
    return lax.reshape(x, shape, out_sharding=sharding)


def split_axis(z: Array, like: Array, count: int) -> Array:
    """Undo `merge_axes`: split the first axis of z into `count` axes as of `like`."""
    shape, sharding = (*like.shape[:count], *z.shape[1:]), None
    if is_explicit(jax.typeof(z).sharding):
        rows = jax.typeof(like).sharding.spec[:count]
        sharding = on_mesh_of(z, *rows, *jax.typeof(z).sharding.spec[1:])
    return lax.reshape(z, shape, out_sharding=sharding)
