"""Parameters as a safetensors file, which other programs can read.

The tensors are named by the paths of the leaves. The file holds a hash of its content,
because the safetensors format does not detect a flipped bit.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, remedy, write_atomic

if TYPE_CHECKING:
    import numpy as np


def export_weights(path: Path, params: Any, **metadata: Any) -> None:
    """Write the leaves of `params` to a safetensors file.

    Args:
        path: the file.
        params: the parameters.
        metadata: JSON values for the header of the file, such as `config` and `spec`;
            the header has the hash of the tensors as `sha256`.

    Raises:
        LabError: the file cannot be written.
        TypeError: a leaf is not an array.
    """
    from safetensors.numpy import save

    from jaxlstm.interop.trees import hash_arrays, named_leaves
    from jaxlstm.lab.checkpoints.trees import spec, to_numpy

    leaves = named_leaves(params)
    for name, leaf in leaves.items():
        spec(name, leaf)
    arrays = {name: to_numpy(leaf) for name, leaf in leaves.items()}
    try:
        header = {name: json.dumps(value) for name, value in metadata.items()}
        header["sha256"] = hash_arrays(arrays)
        write_atomic(path, _sorted_header(save(arrays, metadata=header)))
    except OSError as error:
        message = f"{path}: cannot be written ({reason(error)}){remedy(error)}"
        raise LabError(message) from error


def load_weights(
    path: Path, like: Any, *, rename: Callable[[str], str] | None = None
) -> Any:
    """Read parameters written by `export_weights`, or by another program.

    The hash is checked if the file has one; files of other programs have none.

    Args:
        path: the safetensors file.
        like: parameters of the expected shapes, dtypes, devices and shardings.
        rename: maps the name of a stored tensor to the path of the leaf in `like`.

    Returns:
        A tree with the structure of `like`.

    Raises:
        BadInput: the file is missing or damaged, differs from `like` (the message has
            one line per difference), or `rename` maps two tensors to the same path.
    """
    import jax

    from jaxlstm.interop.trees import named_leaves
    from jaxlstm.lab.checkpoints.trees import (
        differences,
        place,
        renamed_paths,
        spec,
    )

    tensors = _read(path)
    paths = renamed_paths(tensors, rename)
    arrays = {paths[name]: tensor for name, tensor in tensors.items()}
    leaves = named_leaves(like)
    stored = {name: spec(name, array) for name, array in arrays.items()}
    expected = {name: spec(name, leaf) for name, leaf in leaves.items()}
    lines = [f"{path}: {line} in this model" for line in differences(stored, expected)]
    if lines:
        raise BadInput("\n".join(lines))
    placed = [place(name, arrays[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _sorted_header(data: bytes) -> bytes:
    """Return a safetensors file with sorted keys, as safetensors orders them randomly.

    Two equal runs then have equal files.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":"))
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _read(path: Path) -> "dict[str, np.ndarray]":
    from safetensors import SafetensorError, safe_open

    from jaxlstm.interop.trees import hash_arrays

    try:
        with safe_open(path, framework="numpy") as file:
            claimed = (file.metadata() or {}).get("sha256")
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"{path}: cannot be read as safetensors ({reason(error)})"
        ) from error
    if claimed not in (None, hash_arrays(arrays)):
        raise BadInput(f"{path}: damaged, its content has changed since it was written")
    return arrays
