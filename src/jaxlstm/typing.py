"""The notation of the library: one letter for each axis, one name for each array.

    T      time, always axis 0 of a sequence
    *b     any number of batch axes, none included, between time and features
    D      input features
    H      hidden units
    4      the gates, in the order of `Gates`: input, forget, candidate, output

An array that stands at one instant has no T. The gate axis is explicit, just before
H, so that the four gates of a unit stay on one device when H is split over a mesh.

The dtype of xs decides every other, for every cell, wrapper and layer:

    xs        params  products  sums, gates  carried h  carried c  outputs
    float64   any     float64   float64      float64    float64    float64
    float32   any     float32   float32      float32    float32    float32
    bfloat16  any     bfloat16  float32      bfloat16   float32    bfloat16
    float16   any     float16   float32      float16    float32    float16

    params    of any floating dtype, read in that of the products; what is added to a
              sum or scales it (b, peepholes, layer norm) is read in that of the sums
    outputs   what `unroll` emits of h and what a layer gives to the next; c and the
              gates are emitted as they are; `embed` begins with its `dtype`
    states    that the caller gives, Python floats too, become what is carried
    gradients have the dtype of what they belong to

Nothing is promoted and no dtype is weak on the way out. float64 needs JAX's x64 mode.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Key = PRNGKeyArray

Input = Float[Array, "*b D"]
Hidden = Float[Array, "*b H"]
Projected = Float[Array, "*b 4 H"]

InputMatrix = Float[Array, "D 4 H"]
RecurrentMatrix = Float[Array, "H 4 H"]
Bias = Float[Array, "4 H"]

Features = Float[Array, "T *b D"]
ActiveSteps = Bool[Array, "T *b"]
Rows = Bool[Array, "*b"]


def show(shape: tuple[int | str, ...]) -> str:
    """The shape as error messages print it: `[32, 4, 128]`."""
    return f"[{', '.join(map(str, shape))}]"


def accumulator_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Where sums over time are kept: `dtype`, and float32 for 16-bit compute.

    In bfloat16, 256 + 1 is 256: a cell state kept in 16 bits stops counting there.
    """
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def is_explicit(sharding: jax.sharding.Sharding | None) -> bool:
    """Whether the type of an array says over which axes of a mesh it is split."""
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and AxisType.Explicit in mesh.axis_types


def reshard_like(x: jax.Array, values: jax.Array) -> jax.Array:
    """The values `[*b, D]`, split over an explicit mesh as x `[*b, D]` is."""
    kind = jax.typeof(x).sharding
    return jax.sharding.reshard(values, kind) if is_explicit(kind) else values


def as_key_or_none(door: str, key: Key | None) -> Key | None:
    """As `as_key`, or None."""
    return None if key is None else as_key(door, key)


def as_key(door: str, key: Any) -> Key:
    """One key. `jax.random.PRNGKey(0)` is the same key as `key(0)`.

    Errors: `TypeError` for anything else, a seed among them; it begins with the name
    of the door.
    """
    dtype = getattr(key, "dtype", None)
    if dtype == np.uint32:  # a key as JAX wrote it before it had a type of its own
        with contextlib.suppress(TypeError, ValueError):
            key = jax.random.wrap_key_data(jnp.asarray(key))
    if is_key(key) and key.shape == ():
        return key
    came = f"an array of {show(key.shape)} keys" if is_key(key) else f"{key!r:.60}"
    raise TypeError(
        f"{door}: key is {came}; one key is needed, such as jax.random.key(0)."
    )


def is_key(value: Any) -> bool:
    """Whether it is an array of JAX's typed random keys."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
