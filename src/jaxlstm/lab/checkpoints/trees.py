"""Trees of arrays by the names of their leaves."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.lab._util.errors import BadInput

PyTree = Any


class Spec(NamedTuple):
    """What a leaf is, without its values. A key's dtype names its generator."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by path, in the order of the tree.

    Raises:
        ValueError: two leaves have one path, as in `{"a/b": x, "a": {"b": y}}`.

    >>> named_leaves({"w": [1.0, 2.0]})
    {'w/0': 1.0, 'w/1': 2.0}
    """
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in pairs
    }
    if len(named) < len(pairs):
        raise ValueError(
            'two leaves of the tree have one path; keep "/" out of its dictionary keys'
        )
    return named


def spec(path: str, leaf: Any) -> Spec:
    """Shape and dtype of an array, a typed key or a `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: the leaf is no array of numbers; the message names `path`.
    """
    if not is_storable(leaf):
        raise TypeError(
            f"{path} is {type(leaf).__name__} {leaf!r:.40}, and only arrays of numbers "
            "can be stored; wrap it in numpy.asarray"
        )
    return Spec(tuple(leaf.shape), leaf.dtype.name)


def stored_spec(leaf: Any) -> Spec:
    """Shape and dtype of `to_numpy(leaf)`: keys are stored as their data."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return Spec(tuple(data.shape), data.dtype.name)


def differences(there: Mapping[str, Spec], here: Mapping[str, Spec]) -> list[str]:
    """Every leaf on which two trees disagree, in words.

    >>> differences({"w": Spec((2, 3), "float32")}, {"w": Spec((2, 4), "float32")})
    ['w is [2, 3] there and [2, 4]']
    """
    pairs = {
        path: _contrast(there.get(path), here.get(path)) for path in {**here, **there}
    }
    return [
        f"{path} is {came} there and {wanted}"
        for path, (came, wanted) in pairs.items()
        if came != wanted
    ]


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_storable(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype of numbers, truth values or keys."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return False
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def to_numpy(leaf: Any) -> np.ndarray:
    """The values of a leaf on the host, C-contiguous and in the machine's byte order.

    Keys become their key data. Values are copied from a device but never converted.
    """
    values = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def place(path: str, values: np.ndarray, like: Any) -> Any:
    """`values` where `like` lives: NumPy, a device, a sharding, or typed keys.

    The result owns its memory, so that it may be donated.

    Raises:
        BadInput: JAX would narrow the values; the message names `path`.
    """
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return values
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(values), impl=like.dtype)
    committed = getattr(like, "committed", like.sharding is not None)
    sharding = like.sharding if committed else None
    if jax.dtypes.canonicalize_dtype(values.dtype) != values.dtype:
        raise BadInput(
            f"{path} is {values.dtype}, which JAX would narrow; set JAX_ENABLE_X64=1"
        )
    return jax.device_put(values, sharding, may_alias=False)


def _contrast(there: Spec | None, here: Spec | None) -> tuple[str, str]:
    """Two specs in words: the shapes alone if only those differ, or the dtypes."""
    if there and here and there.dtype == here.dtype:
        return str(list(there.shape)), str(list(here.shape))
    if there and here and there.shape == here.shape:
        return there.dtype, here.dtype
    return str(there or "missing"), str(here or "missing")


def hash_array(values: np.ndarray) -> str:
    """The sha256 of the bytes of a C-contiguous array."""
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest()
