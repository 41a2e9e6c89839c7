"""Checkpoints that are whole or invisible, and checked bit by bit when loaded.

    checkpoints/000500/manifest.json         what is in it, and the hash of everything
                       arrays/0003.params.w/ one directory a leaf, written by Orbax

A checkpoint is saved into a hidden directory, forced to the disk, and renamed once.
It is restored in this order: manifest against its own hash; tree, shapes and dtypes
against what the caller expects; sizes; hashes of files; and, after Orbax has read
them, hashes of arrays. Nothing is unpickled, no memory is taken before the sizes hold.

    >>> import tempfile, numpy as np
    >>> root = Path(tempfile.mkdtemp())
    >>> tree = {"w": np.arange(3.0)}
    >>> save(root, 500, tree, {"epoch": 2}).name
    '000500'
    >>> restore(root, 500, tree)
    ({'w': array([0., 1., 2.])}, {'epoch': 2})
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.lab._util.files import reason, reserve
from jaxlstm.lab.checkpoints import manifest as manifests
from jaxlstm.lab.checkpoints.manifest import CheckpointError as CheckpointError
from jaxlstm.lab.checkpoints.manifest import DamagedCheckpoint as DamagedCheckpoint
from jaxlstm.lab.checkpoints.manifest import File, Leaf, Manifest, storage_name
from jaxlstm.lab.checkpoints.retention import best as best
from jaxlstm.lab.checkpoints.retention import clean as clean
from jaxlstm.lab.checkpoints.retention import directory_of, staged
from jaxlstm.lab.checkpoints.retention import forget_best as forget_best
from jaxlstm.lab.checkpoints.retention import mark_best as mark_best
from jaxlstm.lab.checkpoints.retention import prune as prune
from jaxlstm.lab.checkpoints.retention import steps as steps
from jaxlstm.lab.checkpoints.trees import (
    PyTree,
    Spec,
    differences,
    hash_array,
    named_leaves,
    place,
    spec,
    stored_spec,
    to_numpy,
)

_ARRAYS = "arrays"
_OVERHEAD = 1 << 14


def save(root: Path, step: int, tree: PyTree, meta: Mapping[str, Any]) -> Path:
    """Write `tree` and `meta` as the checkpoint of `step`, replacing one that is there.

    Args:
        root: the directory of all checkpoints of a run; made if need be.
        step: non-negative; names the directory, six digits or more.
        tree: arrays (NumPy, JAX, typed keys) in any pytree.
        meta: anything JSON can say without loss.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: it could not be written. Those before it are as they were.
        TypeError: a leaf is no array, or `meta` is not JSON.
        ValueError: `step` is negative.
    """
    if step < 0:
        raise ValueError(f"step is {step}; checkpoints are numbered from 0")
    leaves = [_describe(path, leaf) for path, leaf in named_leaves(tree).items()]
    meta = _as_json(meta)
    try:
        root.mkdir(parents=True, exist_ok=True)
        clean(root)
        with staged(root, step) as stage:
            reserve(stage, _size(leaves))
            _write_arrays(stage / _ARRAYS, leaves)
            manifests.write(stage, _manifest(stage, step, leaves, meta))
    except OSError as error:
        raise _not_saved(root, step, error) from error
    return directory_of(root, step)


def restore(root: Path, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read the checkpoint of `step` into the tree, places and dtypes of `like`.

    Args:
        root: the directory of all checkpoints of a run.
        step: which one.
        like: arrays or `jax.ShapeDtypeStruct`s. NumPy leaves come back as NumPy, the
            others on the device or with the sharding that `like` has.

    Returns:
        The tree and its meta.

    Raises:
        CheckpointError: it is not there, needs a newer jaxlstm, or does not fit `like`;
            the message has one line for each difference.
        BadInput: it holds 64-bit values for a device, and JAX is not in 64-bit mode.
        DamagedCheckpoint: it is not what was saved; the message names the leaf.
    """
    directory = _existing(root, step)
    expected = named_leaves(like)
    try:
        manifest = manifests.read(directory)
        _compare(manifest, {path: spec(path, leaf) for path, leaf in expected.items()})
        manifests.check_sizes(directory, manifest)
        manifests.check_hashes(directory, manifest)
        arrays = _read_arrays(directory, manifest, expected)
    except OSError as error:
        raise DamagedCheckpoint(
            f"checkpoint {directory.name} cannot be read ({reason(error)})"
        ) from error
    placed = [place(path, arrays[path], leaf) for path, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed), dict(manifest.meta)


def read_meta(root: Path, step: int) -> dict[str, Any]:
    """The meta of one checkpoint, without its arrays.

    Raises:
        CheckpointError: as for `restore`.
    """
    return dict(manifests.read(_existing(root, step)).meta)


def latest(
    root: Path, like: PyTree, report: Callable[[str], object]
) -> tuple[int, PyTree, dict[str, Any]] | None:
    """The newest sound checkpoint as (step, tree, meta), or None if there is none.

    Args:
        root: the directory of all checkpoints of a run.
        like: as for `restore`.
        report: is told, in a sentence, about each damaged checkpoint passed over.

    Raises:
        CheckpointError: every checkpoint is damaged, or the newest sound one does not
            fit `like` or needs a newer jaxlstm. An older one would be no remedy.
    """
    damaged = []
    for step in reversed(steps(root)):
        try:
            return step, *restore(root, step, like)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            report(f"{error}; trying the one before it")
    if damaged:
        raise DamagedCheckpoint(
            f"every checkpoint in {root} is damaged, so nothing can be resumed:\n"
            + "\n".join(damaged)
        )
    return None


def require_room(root: Path, tree: PyTree, *, copies: int) -> None:
    """Find out before the first step that `copies` checkpoints will not fit the disk.

    Raises:
        CheckpointError: the directory is read-only, or how much would be needed.
    """
    leaves = [_describe(path, leaf) for path, leaf in named_leaves(tree).items()]
    needed = copies * _size(leaves)
    try:
        root.mkdir(parents=True, exist_ok=True)
        clean(root)
        reserve(root, needed)
    except OSError as error:
        raise CheckpointError(
            f"{root} has no room for {copies} checkpoints, {needed / 1e6:.1f} MB "
            f"({reason(error)}); make room, or choose "
            "another --run"
        ) from error


def _describe(path: str, leaf: Any) -> tuple[Leaf, np.ndarray]:
    shape, dtype = spec(path, leaf)
    values = to_numpy(leaf)
    digest = hash_array(values)
    return Leaf(path=path, shape=shape, dtype=dtype, sha256=digest), values


def _size(leaves: list[tuple[Leaf, np.ndarray]]) -> int:
    """What the leaves take on a disk, roughly and rather too much."""
    return sum(values.nbytes + _OVERHEAD for _, values in leaves) + _OVERHEAD


def _as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"meta cannot be written as JSON: {error}") from error
    return json.loads(text)


def _manifest(
    stage: Path, step: int, leaves: list[tuple[Leaf, np.ndarray]], meta: dict[str, Any]
) -> Manifest:
    files = {
        name: File(size=size, sha256=manifests.hash_file(stage / name))
        for name, size in manifests.list_files(stage).items()
    }
    return Manifest(
        format_version=manifests.FORMAT_VERSION,
        needs=manifests.NEEDS,
        step=step,
        leaves=tuple(leaf for leaf, _ in leaves),
        files=files,
        meta=meta,
    )


@contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax with one directory a leaf, so that a damaged file names its leaf.

    Its own commit protocol is not used: the rename in `staged` is the commit. Without
    compression a file is as large as its array, so sizes can be checked.
    """
    from orbax.checkpoint import PyTreeCheckpointHandler

    with closing(
        PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False, use_compression=False)
    ) as handler:
        yield handler


def _write_arrays(directory: Path, leaves: list[tuple[Leaf, np.ndarray]]) -> None:
    """Hand over all arrays that have elements; Orbax cannot store empty ones."""
    from orbax.checkpoint.args import PyTreeSave

    arrays = {
        storage_name(index, leaf.path): values
        for index, (leaf, values) in enumerate(leaves)
        if values.size
    }
    directory.mkdir()
    if not arrays:
        return
    with _orbax() as handler:
        try:
            handler.save(directory, args=PyTreeSave(arrays))
        except ValueError as error:  # TensorStore's tale, which ends in the system's
            words = reason(error).split(" [")[0].rsplit(": ", maxsplit=1)[-1]
            raise OSError(None, words) from error


def _read_arrays(
    directory: Path, manifest: Manifest, expected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """All arrays by leaf path, each with the bytes that the manifest promises."""
    empty, stored = {}, {}
    for index, leaf in enumerate(manifest.leaves):
        spec = stored_spec(expected[leaf.path])
        if math.prod(spec.shape) == 0:
            empty[leaf.path] = np.zeros(spec.shape, jnp.dtype(spec.dtype))
        else:
            stored[leaf.path] = storage_name(index, leaf.path)
            _check_header(directory / _ARRAYS / stored[leaf.path], leaf.path, spec)
    found = _load(directory / _ARRAYS, stored) if stored else {}
    arrays = empty | {path: found[name] for path, name in stored.items()}
    for leaf in manifest.leaves:
        if hash_array(arrays[leaf.path]) != leaf.sha256:
            raise DamagedCheckpoint(
                f"checkpoint {directory.name}: {leaf.path} is damaged: its values are "
                "not what was saved"
            )
    return arrays


def _load(directory: Path, stored: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays in `directory`, which must be exactly those of `stored`."""
    from orbax.checkpoint import RestoreArgs
    from orbax.checkpoint.args import PyTreeRestore

    as_numpy = {name: RestoreArgs(restore_type=np.ndarray) for name in stored.values()}
    args = PyTreeRestore(item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy)
    with _orbax() as handler:
        try:
            return handler.restore(directory, args=args)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(
                f"checkpoint {directory.parent.name}: Orbax cannot read its arrays "
                f"({reason(error)})"
            ) from error


def _check_header(directory: Path, path: str, spec: Spec) -> None:
    """Refuse an array that is not stored plainly: C order, one chunk, no filters.

    Its header could ask for more memory than the leaf is worth, or for code.
    """
    dtype = jnp.dtype(spec.dtype)
    size = {"shape": list(spec.shape), "chunks": list(spec.shape)}
    kind = {"dtype": dtype.name if dtype.kind == "V" else dtype.str, "order": "C"}
    wanted = size | kind | {"compressor": None, "filters": None, "zarr_format": 2}
    try:
        header = json.loads((directory / ".zarray").read_bytes())
        found = {name: header[name] for name in wanted}
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if found != wanted:
        raise DamagedCheckpoint(
            f"checkpoint {directory.parents[1].name}: {path} is damaged: its header is "
            f"not that of a plain {spec}"
        )


def _compare(manifest: Manifest, expected: Mapping[str, Spec]) -> None:
    """Name every difference between the tree in a checkpoint and the one expected."""
    there = {leaf.path: Spec(leaf.shape, leaf.dtype) for leaf in manifest.leaves}
    lines = [
        f"checkpoint {manifest.step:06d}: {difference} in this config"
        for difference in differences(there, expected)
    ]
    if lines:
        raise CheckpointError("\n".join(lines))


def _not_saved(root: Path, step: int, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {step:06d} could not be saved in {root} ({reason(error)}); those "
        "before it are as they were"
    )


def _existing(root: Path, step: int) -> Path:
    if step not in steps(root):
        have = ", ".join(map(str, steps(root))) or "none"
        raise CheckpointError(f"{root} has no checkpoint of step {step}; it has {have}")
    return directory_of(root, step)
