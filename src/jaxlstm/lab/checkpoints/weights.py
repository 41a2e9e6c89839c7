"""Trained parameters as one safetensors file that other programs can read.

The names of the tensors are the paths of the leaves. The file carries a hash of its
content, because the format itself loads a flipped bit without a word.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import reason, write_atomic

if TYPE_CHECKING:
    import numpy as np


def export_weights(path: Path, params: Any) -> None:
    """Write the leaves of `params` to a safetensors file.

    Raises:
        LabError: the disk refuses.
        TypeError: a leaf is no array.
    """
    from safetensors.numpy import save

    from jaxlstm.lab.checkpoints.trees import named_leaves, spec, to_numpy

    leaves = named_leaves(params)
    for name, leaf in leaves.items():
        spec(name, leaf)
    arrays = {name: to_numpy(leaf) for name, leaf in leaves.items()}
    try:
        write_atomic(path, save(arrays, metadata={"sha256": _hash(arrays)}))
    except OSError as error:
        raise LabError(f"{path} cannot be written ({reason(error)})") from error


def load_weights(path: Path, like: Any) -> Any:
    """Read what `export_weights` wrote into the tree and the places of `like`.

    A file without our hash, from another program, is read without that check.

    Raises:
        BadInput: it is missing, damaged or does not fit; one line for each difference.
    """
    import jax

    from jaxlstm.lab.checkpoints.trees import differences, named_leaves, place, spec

    arrays = _read(path)
    leaves = named_leaves(like)
    there = {name: spec(name, array) for name, array in arrays.items()}
    here = {name: spec(name, leaf) for name, leaf in leaves.items()}
    lines = [f"{path}: {line} in this model" for line in differences(there, here)]
    if lines:
        raise BadInput("\n".join(lines))
    placed = [place(name, arrays[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _read(path: Path) -> "dict[str, np.ndarray]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            claimed = (file.metadata() or {}).get("sha256")
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read as weights ({reason(error)})") from error
    if claimed not in (None, _hash(arrays)):
        raise BadInput(f"{path} is damaged: its weights are not what was written")
    return arrays


def _hash(arrays: "Mapping[str, np.ndarray]") -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
