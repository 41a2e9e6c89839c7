"""Names of the leaves of a pytree, and a hash of named arrays."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

PyTree = Any


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of `tree` by path, in the order of the tree.

    Raises:
        ValueError: two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.

    Example:
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
            'tree: got two leaves with the same path; do not use "/" in dictionary keys'
        )
    return named


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 hash of the names, dtypes, shapes and bytes of arrays.

    Files of weights hold it, as the safetensors format does not detect a flipped bit.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
