"""The arrays of a checkpoint: one safetensors file, with one tensor per leaf.

A tensor is named by the path of its leaf. A dtype that safetensors' NumPy interface
lacks, such as bfloat16, is stored as a vector of bytes; shape and dtype of every leaf
are in the manifest.
"""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxlstm.lab._util.files import reason, write_file
from jaxlstm.lab.checkpoints.trees import Spec

NAME = "arrays.safetensors"
_INTEGERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_NATIVE = {"bool", *_INTEGERS, "float16", "float32", "float64", "complex64"}


def write(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write C-contiguous arrays in native byte order, by path, and sync the file.

    Raises:
        OSError: the file cannot be written.
    """
    stored = {
        path: values if values.dtype.name in _NATIVE else _bytes(values)
        for path, values in arrays.items()
    }
    write_file(directory / NAME, save(stored))


def read(directory: Path, specs: Mapping[str, Spec]) -> dict[str, np.ndarray]:
    """Read arrays of the expected shapes and dtypes.

    No more memory is allocated than a few times the size of the file.

    Raises:
        ValueError: the file is not a safetensors file, or holds other arrays.
        OSError: the file cannot be read.
    """
    try:
        stored = load((directory / NAME).read_bytes())
    except (SafetensorError, LookupError, TypeError) as error:
        raise ValueError(f"{NAME}: {reason(error)}") from error
    if stored.keys() != specs.keys():
        raise ValueError(f"{NAME}: it holds other arrays than the manifest lists")
    return {path: _decode(path, stored[path], spec) for path, spec in specs.items()}


def _decode(path: str, stored: np.ndarray, spec: Spec) -> np.ndarray:
    """Return a stored tensor with its own shape and dtype."""
    dtype = jnp.dtype(spec.dtype)
    if dtype.name in _NATIVE:
        expected = Spec(spec.shape, dtype.name)
    else:
        expected = Spec((int(np.prod(spec.shape)) * dtype.itemsize,), "uint8")
    found = Spec(stored.shape, stored.dtype.name)
    if found != expected:
        raise ValueError(f"{path}: {NAME} holds {found}, expected {expected}")
    return stored.view(dtype).reshape(spec.shape)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Return the bytes of a C-contiguous array as a vector, without a copy."""
    return values.reshape(-1).view(np.uint8)
