"""Pytrees of arrays: leaf paths, shapes and dtypes, hashes, and device placement."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.lab._util.errors import BadInput

PyTree = Any


class Spec(NamedTuple):
    """Shape and dtype of a leaf. The dtype of a typed key names its PRNG."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def renamed_paths(
    stored: Iterable[str], rename: Callable[[str], str] | None
) -> dict[str, str]:
    """Return the expected path of every stored path.

    Args:
        stored: paths of the leaves in a file.
        rename: maps a stored path to the expected one; None keeps every path.

    Raises:
        BadInput: two stored paths are mapped to the same path.

    Example:
        >>> renamed_paths(["0/table"], lambda path: path.replace("0/", "embed/"))
        {'0/table': 'embed/table'}
    """
    paths = {path: rename(path) if rename else path for path in stored}
    sources: dict[str, str] = {}
    for path, new in paths.items():
        if new in sources:
            raise BadInput(
                f"rename: got the same path {new!r} for {sources[new]!r} and {path!r}, "
                "expected a path of its own for each"
            )
        sources[new] = path
    return paths


def spec(path: str, leaf: Any) -> Spec:
    """Return shape and dtype of an array, a typed key or a `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: the leaf is not a numeric array; the message names `path`.
    """
    if not is_storable(leaf):
        raise TypeError(
            f"{path}: got {type(leaf).__name__} {leaf!r:.40}, expected an array of "
            "numbers; convert it with numpy.asarray"
        )
    return Spec(tuple(leaf.shape), leaf.dtype.name)


def stored_spec(leaf: Any) -> Spec:
    """Return shape and dtype of `to_numpy(leaf)`: keys are stored as key data."""
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return Spec(tuple(data.shape), data.dtype.name)


def differences(stored: Mapping[str, Spec], expected: Mapping[str, Spec]) -> list[str]:
    """Describe every leaf whose shape, dtype or presence differs between two trees.

    Example:
        >>> differences({"w": Spec((2, 3), "float32")}, {"w": Spec((2, 4), "float32")})
        ['w: got [2, 3], expected [2, 4]']
    """
    paths = {**expected, **stored}
    pairs = {path: _contrast(stored.get(path), expected.get(path)) for path in paths}
    return [
        f"{path}: got {left}, expected {right}"
        for path, (left, right) in pairs.items()
        if left != right
    ]


def is_key(leaf: Any) -> bool:
    """Return whether a leaf holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_storable(leaf: Any) -> bool:
    """Return whether a leaf has a shape, and a dtype of numbers, booleans or keys."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not hasattr(leaf, "shape"):
        return False
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def to_numpy(leaf: Any) -> np.ndarray:
    """Return a leaf as a C-contiguous NumPy array in native byte order.

    Keys become their key data. Values are copied from a device but never converted.
    """
    values = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def place(path: str, values: np.ndarray, like: Any) -> Any:
    """Return `values` in the form of `like`: NumPy, on its devices, or as typed keys.

    The result owns its memory, so that it can be donated.

    Raises:
        BadInput: JAX would convert the values to 32 bits; the message names `path`.
    """
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return values
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(values), impl=like.dtype)
    committed = getattr(like, "committed", like.sharding is not None)
    sharding = like.sharding if committed else None
    if jax.dtypes.canonicalize_dtype(values.dtype) != values.dtype:
        raise BadInput(
            f"{path}: got {values.dtype}, which JAX converts to 32 bits by default; "
            "set JAX_ENABLE_X64=1"
        )
    return jax.device_put(values, sharding, may_alias=False)


def _contrast(stored: Spec | None, expected: Spec | None) -> tuple[str, str]:
    """Describe two specs by their shapes or dtypes only, if the other is equal."""
    if stored and expected and stored.dtype == expected.dtype:
        return str(list(stored.shape)), str(list(expected.shape))
    if stored and expected and stored.shape == expected.shape:
        return stored.dtype, expected.dtype
    return str(stored or "no such leaf"), str(expected or "no such leaf")


def hash_array(values: np.ndarray) -> str:
    """Return the sha256 of the bytes of a C-contiguous array."""
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest()
