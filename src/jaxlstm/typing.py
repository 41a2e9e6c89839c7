"""Axis letters, array type aliases, and the table of dtypes.

    T      time, always axis 0 of a sequence
    *b     any number of batch axes (possibly none) between time and features
    D      input features
    H      hidden units
    4      the gates, in the order of `Gates`: input, forget, candidate, output

An array of a single step has no T. The gate axis is explicit, just before H, so that
the four gates of a unit stay on one device when H is sharded over a mesh.

The dtype of xs determines every other one, for every cell, wrapper and layer:

    xs        params  products  sums, gates  carried h  carried c  outputs
    float64   any     float64   float64      float64    float64    float64
    float32   any     float32   float32      float32    float32    float32
    bfloat16  any     bfloat16  float32      bfloat16   float32    bfloat16
    float16   any     float16   float32      float16    float32    float16

    params     any floating dtype, cast to the dtype of the products; parameters that
               are added to a sum or scale it (b, peepholes, layer norm) are cast to
               the dtype of the sums
    outputs    h as emitted by `unroll` and passed to the next layer; c and the gates
               are emitted in their own dtype; the output of `embed` has its `dtype`
    states     passed by the caller, including Python floats, are cast to the dtypes
               of the carry
    gradients  have the dtype of the primal

Outputs never have promoted or weak dtypes. float64 needs JAX's x64 mode.
"""

import contextlib
import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
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

# Pytrees of arrays whose structure is defined by the cell.
Params = Any
State = Any
Projection = Any
Reported = Any
PerStep = Any

Record = TypeVar("Record", bound=tuple)


def exportable(record: type[Record]) -> type[Record]:
    """Decorate a NamedTuple of arrays: `jax.export` can write it as an argument.

    Its `repr` has shapes and dtypes in place of numbers.

    Example:
        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> jl.LSTMState(h=jnp.zeros((2, 5)), c=0.0)
        LSTMState(h=float32[2, 5], c=0.0)
    """
    setattr(record, "__repr__", _short_repr)  # noqa: B010
    # Suppressed after `importlib.reload`, when the name is that of the first class.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(
            record, serialized_name=f"jaxlstm.{record.__name__}"
        )
    return record


def _short_repr(record: Any) -> str:
    def text(value: Any) -> str:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return f"{value.dtype}{show(value.shape)}"
        return repr(value)

    pairs = zip(record._fields, record, strict=True)
    fields = ", ".join(f"{name}={text(value)}" for name, value in pairs)
    return f"{type(record).__name__}({fields})"


def show(shape: tuple[int | str, ...]) -> str:
    """Format a shape for error messages: `[32, 4, 128]`."""
    return f"[{', '.join(map(str, shape))}]"


def accumulator_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Return the dtype of sums over time: `dtype`, or float32 for 16-bit dtypes.

    A 16-bit cell state cannot accumulate: in bfloat16, 256 + 1 is 256.
    """
    dtype = jnp.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def is_symbolic(shape: Sequence[Any]) -> bool:
    """Return whether a size is a symbol of `jax.export`, known only when called."""
    return any(not isinstance(size, int | np.integer) for size in shape)


def is_explicit(sharding: jax.sharding.Sharding | None) -> bool:
    """Return whether a sharding is over a mesh with explicit axes."""
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and AxisType.Explicit in mesh.axis_types


def on_mesh_of(x: jax.Array, *spec: Any) -> NamedSharding:
    """Return the sharding over the explicit mesh of x, with these names of its axes.

    A `PartitionSpec` alone needs a mesh from `jax.set_mesh`; the type of an array has
    its own.
    """
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec))


def replicate_like(x: jax.Array, tree: Any) -> Any:
    """Return the arrays of a tree, those on no mesh replicated over the one of x."""
    if not is_explicit(jax.typeof(x).sharding):
        return tree

    def replicate(leaf: Any) -> Any:
        if is_key(leaf) or is_explicit(jax.typeof(leaf).sharding):
            return leaf
        if isinstance(x, Tracer):
            return jax.sharding.reshard(leaf, on_mesh_of(x, *(None,) * jnp.ndim(leaf)))
        # Outside of `jit`, `reshard` moves no array of one device to several.
        mesh = x.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(replicate, tree)


def reshard_like(x: jax.Array, values: jax.Array) -> jax.Array:
    """Return the values with the explicit sharding of x, which has the same shape."""
    sharding = jax.typeof(x).sharding
    return jax.sharding.reshard(values, sharding) if is_explicit(sharding) else values


def as_key_or_none(caller: str, key: Key | None) -> Key | None:
    """Return None for None, and `as_key` otherwise."""
    return None if key is None else as_key(caller, key)


_OTHER_NAMES = {
    "carry": "state", "h_0": "state", "hx": "state", "initial_carry": "state",
    "initial_state": "state", "prev_state": "state",
    "seq_lengths": "lengths", "sequence_length": "lengths", "seq_len": "lengths",
    "masks": "mask", "rng": "key", "rngs": "key", "reset": "resets",
}  # fmt: skip
"""Names of options in Flax, Haiku, Keras and torch."""

_NO_OPTIONS = {
    "return_carry": "the state is always returned, before the outputs",
    "return_state": "the state is always returned, before the outputs",
    "return_sequences": "the outputs of all steps are always returned",
    "time_major": "time is the first axis; for [B, T, D] pass jnp.swapaxes(xs, 0, 1)",
    "batch_first": "time is the first axis; for [B, T, D] pass jnp.swapaxes(xs, 0, 1)",
    "train": "noise is drawn if a key is passed",
    "training": "noise is drawn if a key is passed",
    "deterministic": "noise is drawn if a key is passed",
}


def check_options(caller: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise a `TypeError` for the first option that is not known, with the remedy."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return
    near = difflib.get_close_matches(unknown, known, n=1)
    meant = _OTHER_NAMES.get(unknown)
    if unknown in _NO_OPTIONS:
        remedy = f"leave it out: {_NO_OPTIONS[unknown]}."
    elif meant == "state" or meant in known:
        remedy = f"did you mean {meant}?"
    elif near:
        remedy = f"did you mean {near[0]}?"
    else:
        remedy = f"use {', '.join(known)}."
    raise TypeError(f"{caller}: got an unknown option {unknown!r}; {remedy}")


_DRAW = {"Rngs": "rngs.dropout()", "RngStream": "stream()"}
"""Sources of keys in nnx, and how to draw from them."""


def as_key(caller: str, key: Any) -> Key:
    """Return one typed random key; `jax.random.PRNGKey(0)` becomes `key(0)`.

    Args:
        caller: name of the calling function, for the message.
        key: a typed or a legacy key.

    Raises:
        TypeError: key is anything else, such as a seed or an array of keys.
    """
    if is_deleted(key):
        raise TypeError(
            f"{caller}: key: got a deleted array; if it was donated to a jitted "
            "function, use a key that the function returned."
        )
    for kind in type(key).__mro__:
        if kind.__module__ == "flax.nnx.rnglib" and kind.__name__ in _DRAW:
            raise TypeError(
                f"{caller}: key: got {kind.__name__} of flax.nnx, expected one key; "
                f"pass for example {_DRAW[kind.__name__]}, which draws one."
            )
    dtype = getattr(key, "dtype", None)
    if dtype == np.uint32:  # a legacy key is an array of uint32
        with contextlib.suppress(TypeError, ValueError):
            key = jax.random.wrap_key_data(jnp.asarray(key))
    if is_key(key) and key.shape == ():
        return key
    got = f"an array of {show(key.shape)} keys" if is_key(key) else f"{key!r:.60}"
    raise TypeError(
        f"{caller}: key: got {got}, expected one key; pass for example "
        "jax.random.key(0)."
    )


def is_deleted(value: Any) -> bool:
    """Return whether the value is an array whose memory was freed or donated."""
    if isinstance(value, Tracer) or not isinstance(value, jax.Array):
        return False
    return value.is_deleted()


def is_key(value: Any) -> bool:
    """Return whether the value is an array of typed random keys."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
