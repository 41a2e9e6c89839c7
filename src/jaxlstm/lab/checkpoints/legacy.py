"""Reads the arrays of checkpoints of format 1: Zarr v2 arrays of one chunk each.

arrays/0003.params.w/.zarray   shape, dtype and order as JSON
                     0.0       the values in C order, uncompressed
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxlstm.lab.checkpoints.trees import Spec

NAME = "arrays"


def read(directory: Path, specs: Mapping[str, Spec]) -> dict[str, np.ndarray]:
    """Read arrays of the expected shapes and dtypes, in the order of the tree.

    No memory is allocated before a header agrees with its spec: a forged one could
    otherwise allocate any amount, or name a filter that runs code.

    Raises:
        ValueError: a header describes another array, or values are incomplete.
        OSError: a file cannot be read.
    """
    return {
        path: _read(directory / NAME / _folder(index, path), path, spec)
        if math.prod(spec.shape)
        else np.zeros(spec.shape, jnp.dtype(spec.dtype))
        for index, (path, spec) in enumerate(specs.items())
    }


def _read(folder: Path, path: str, spec: Spec) -> np.ndarray:
    dtype = jnp.dtype(spec.dtype)
    expected = {
        "shape": list(spec.shape),
        "chunks": list(spec.shape),
        "dtype": dtype.name if dtype.kind == "V" else dtype.str,
        "order": "C",
        "compressor": None,
        "filters": None,
        "zarr_format": 2,
    }
    try:
        header = json.loads((folder / ".zarray").read_bytes())
        found = {name: header[name] for name in expected}
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    data = (folder / (".".join("0" * len(spec.shape)) or "0")).read_bytes()
    if found != expected or len(data) != math.prod(spec.shape) * dtype.itemsize:
        raise ValueError(f"{path}: its files do not hold an uncompressed {spec}")
    return np.frombuffer(bytearray(data), dtype).reshape(spec.shape)


def _folder(index: int, path: str) -> str:
    """Return the directory name of leaf number `index`.

    Example:
        >>> _folder(7, "params/rnn/w_h")
        '0007.params.rnn.w_h'
    """
    kept = re.sub(r"[^0-9A-Za-z_-]", ".", path)[:100]
    return f"{index:04d}.{kept}".rstrip(".")
