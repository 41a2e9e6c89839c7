"""The arrays of a checkpoint: Zarr v2 arrays of one uncompressed chunk each.

    arrays/0003.params.w/.zarray   shape, dtype and order as JSON
                         0.0       the values in C order

Zarr, TensorStore and Orbax read them. They are written here, with plain file
operations, because a write of TensorStore that fails leaves other writes in progress,
logs their tracebacks, and cannot be followed operation by operation in tests.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxlstm.lab._util.files import write_file
from jaxlstm.lab.checkpoints.trees import Spec

_HEADER = ".zarray"


def write(directory: Path, values: np.ndarray) -> None:
    """Write an array into a new directory.

    Args:
        directory: the directory to create.
        values: C-contiguous, in native byte order, with at least one element.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir()
    header = _header(values.shape, values.dtype) | {
        "dimension_separator": ".",
        "fill_value": None,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    write_file(directory / _HEADER, text.encode())
    write_file(directory / _chunk(values.shape), _bytes(values))


def read(directory: Path, spec: Spec) -> np.ndarray:
    """Read an array of the expected shape and dtype.

    No memory is allocated before the header agrees with `spec`: a forged one could
    otherwise allocate any amount, or name a filter that runs code.

    Raises:
        ValueError: the header describes another array, or the values are incomplete.
        OSError: a file cannot be read.
    """
    expected = _header(spec.shape, jnp.dtype(spec.dtype))
    try:
        header = json.loads((directory / _HEADER).read_bytes())
        found = {name: header[name] for name in expected}
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if found != expected:
        raise ValueError(f"its header does not describe an uncompressed {spec}")
    values = np.empty(spec.shape, jnp.dtype(spec.dtype))
    with (directory / _chunk(spec.shape)).open("rb", buffering=0) as stream:
        view, done = _bytes(values), 0
        while done < len(view) and (count := stream.readinto(view[done:])):
            done += count
        if done < len(view) or stream.read(1):
            raise ValueError(f"its values are not those of a {spec}")
    return values


def _header(shape: tuple[int, ...], dtype: np.dtype) -> dict[str, object]:
    """Return the fields of `.zarray` that determine how the values are read."""
    return {
        "shape": list(shape),
        "chunks": list(shape),
        "dtype": dtype.name if dtype.kind == "V" else dtype.str,
        "order": "C",
        "compressor": None,
        "filters": None,
        "zarr_format": 2,
    }


def _chunk(shape: tuple[int, ...]) -> str:
    """Return the name of the only chunk."""
    return ".".join("0" * len(shape)) or "0"


def _bytes(values: np.ndarray) -> memoryview:
    """Return the bytes of a C-contiguous array, without a copy."""
    return values.reshape(-1).view(np.uint8).data
