"""Saving and restoring checkpoints.

    checkpoints/000500/manifest.json        content of the checkpoint and its hashes
                       arrays.safetensors   one tensor per leaf, named by its path

A checkpoint is saved into a hidden directory, read back and compared, flushed to the
disk, and renamed once. When it is restored, the following are checked in this order:
the manifest's own hash; the tree, shapes and dtypes; the file sizes; the hash of each
array; and the file hashes. Nothing is unpickled, and no array is allocated before the
sizes are checked.

Example:
    >>> import tempfile, numpy as np
    >>> root = Path(tempfile.mkdtemp())
    >>> tree = {"w": np.arange(3.0)}
    >>> save(root, 500, tree, {"epoch": 2}).name
    '000500'
    >>> restore(root, 500, tree)
    ({'w': array([0., 1., 2.])}, {'epoch': 2})
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlstm.interop.trees import named_leaves
from jaxlstm.lab._util.files import reason, remedy, reserve
from jaxlstm.lab.checkpoints import arrays, legacy
from jaxlstm.lab.checkpoints import manifest as manifests
from jaxlstm.lab.checkpoints.manifest import (
    CheckpointError,
    DamagedCheckpoint,
    File,
    Leaf,
    Manifest,
)
from jaxlstm.lab.checkpoints.retention import clean, directory_of, staged, steps
from jaxlstm.lab.checkpoints.trees import (
    PyTree,
    Spec,
    differences,
    hash_array,
    place,
    renamed_paths,
    spec,
    stored_spec,
    to_numpy,
)

_OVERHEAD = 1 << 10  # bytes per leaf in the header and the manifest
_META = 1 << 16


class Snapshot(NamedTuple):
    """The content of a checkpoint, on the host.

    Attributes:
        arrays: the leaves by path, copied.
        specs: shape and dtype of each leaf.
        meta: values that JSON represents without loss.
    """

    arrays: dict[str, np.ndarray]
    specs: dict[str, Spec]
    meta: dict[str, Any]

    def below(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of the subtree `name`, by their paths in it."""
        start = f"{name}/"
        return {
            path.removeprefix(start): values
            for path, values in self.arrays.items()
            if path.startswith(start)
        }


def snapshot(tree: PyTree, meta: Mapping[str, Any]) -> Snapshot:
    """Copy a tree to the host, so that its buffers may be donated.

    Args:
        tree: any pytree of arrays (NumPy, JAX, typed keys).
        meta: values that JSON represents without loss.

    Raises:
        TypeError: a leaf is not an array, or `meta` is not JSON.
    """
    leaves = named_leaves(tree)
    specs = {path: spec(path, leaf) for path, leaf in leaves.items()}
    # On a CPU, to_numpy returns a view of JAX's buffer.
    arrays = {path: to_numpy(leaf).copy() for path, leaf in leaves.items()}
    return Snapshot(arrays, specs, _as_json(meta))


def save(root: Path, step: int, tree: PyTree, meta: Mapping[str, Any]) -> Path:
    """Save `tree` and `meta` as the checkpoint of `step`, replacing an existing one.

    Args:
        root: the directory of all checkpoints of a run; created if it is missing.
        step: non-negative step number, which names the directory.
        tree: as for `snapshot`.
        meta: as for `snapshot`.

    Returns:
        The directory of the checkpoint.

    Raises:
        CheckpointError: it could not be written. Earlier checkpoints are unchanged.
        TypeError: a leaf is not an array, or `meta` is not JSON.
        ValueError: `step` is negative.
    """
    return write(root, step, snapshot(tree, meta))


def write(root: Path, step: int, content: Snapshot) -> Path:
    """Write the checkpoint of `step`; see `save`."""
    if step < 0:
        raise ValueError(f"step: got {step}, expected 0 or more")
    leaves = tuple(
        Leaf(path=path, shape=shape, dtype=dtype, sha256=hash_array(values))
        for (path, values), (shape, dtype) in zip(
            content.arrays.items(), content.specs.values(), strict=True
        )
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with suppress(CheckpointError):  # what cannot be deleted does not fail a save
            clean(root)
        with staged(root, step) as stage:
            reserve(stage, _disk_size(content.arrays))
            arrays.write(stage, content.arrays)
            manifest = _manifest(stage, step, leaves, content.meta)
            manifests.write(stage, manifest)
            _read_back(stage, manifest, content)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {step:06d}: could not be saved in {root} ({reason(error)})"
            f"{remedy(error)}; earlier checkpoints are unchanged"
        ) from error
    return directory_of(root, step)


def restore(
    root: Path,
    step: int,
    like: PyTree,
    *,
    rename: Callable[[str], str] | None = None,
) -> tuple[PyTree, dict[str, Any]]:
    """Restore the checkpoint of `step` with the structure and placement of `like`.

    Args:
        root: the directory of all checkpoints of a run.
        step: the step of the checkpoint.
        like: arrays or `jax.ShapeDtypeStruct`s. NumPy leaves are returned as NumPy
            arrays, the others on the devices and with the sharding of `like`.
        rename: maps the path of a stored leaf to its path in `like`, for example
            "params/0/table" to "params/embed/table".

    Returns:
        The tree and its meta.

    Raises:
        CheckpointError: it is missing, needs a newer jaxlstm, or differs from `like`;
            the message has one line per difference.
        BadInput: it holds 64-bit values for a device and JAX is not in 64-bit mode,
            or `rename` maps two leaves to the same path.
        DamagedCheckpoint: its content has changed; the message names the leaf.
    """
    directory = _existing(root, step)
    expected = named_leaves(like)
    try:
        manifest = manifests.read(directory)
        paths = renamed_paths((leaf.path for leaf in manifest.leaves), rename)
        _require_equal_trees(manifest, paths, expected)
        manifests.check_sizes(directory, manifest)
        specs = {old: stored_spec(expected[new]) for old, new in paths.items()}
        found = _read_arrays(directory, manifest, specs)
        manifests.check_hashes(directory, manifest)
    except OSError as error:
        raise DamagedCheckpoint(
            f"checkpoint {directory.name}: cannot be read ({reason(error)})"
        ) from error
    values = {paths[path]: array for path, array in found.items()}
    placed = [place(path, values[path], leaf) for path, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed), dict(manifest.meta)


def read_meta(root: Path, step: int) -> dict[str, Any]:
    """Return the meta of one checkpoint without reading its arrays.

    Raises:
        CheckpointError: as for `restore`.
    """
    return dict(manifests.read(_existing(root, step)).meta)


def latest(
    root: Path,
    like: PyTree,
    report: Callable[[str], object],
    *,
    rename: Callable[[str], str] | None = None,
) -> tuple[int, PyTree, dict[str, Any]] | None:
    """Restore the newest intact checkpoint, or return None if there are none.

    Args:
        root: the directory of all checkpoints of a run.
        like: as for `restore`.
        report: receives a message about each damaged checkpoint that is skipped.
        rename: as for `restore`.

    Returns:
        Step, tree and meta of the checkpoint.

    Raises:
        CheckpointError: every checkpoint is damaged, or the newest intact one differs
            from `like` or needs a newer jaxlstm. Older ones are not tried then,
            because they would fail for the same reason.
    """
    damaged = []
    for step in reversed(steps(root)):
        try:
            return step, *restore(root, step, like, rename=rename)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            report(f"{error}; trying the previous checkpoint")
    if damaged:
        raise DamagedCheckpoint(
            f"{root}: every checkpoint is damaged, so the run cannot be resumed:\n"
            + "\n".join(damaged)
        )
    return None


def require_room(root: Path, tree: PyTree, *, copies: int) -> None:
    """Check before the first step that `copies` checkpoints fit on the disk.

    Raises:
        CheckpointError: the directory is read-only or the disk too full; the message
            says how much space is needed.
    """
    leaves = {path: to_numpy(leaf) for path, leaf in named_leaves(tree).items()}
    needed = copies * _disk_size(leaves)
    try:
        root.mkdir(parents=True, exist_ok=True)
        reserve(root, needed)
    except OSError as error:
        raise CheckpointError(
            f"{root}: no room for {copies} checkpoints, which need {needed / 1e6:.1f} "
            f"MB ({reason(error)})"
            + (remedy(error) or "; free some space, or choose another --run")
        ) from error


def _disk_size(leaves: Mapping[str, np.ndarray]) -> int:
    """Return an upper estimate of the bytes that the leaves take on the disk."""
    return sum(values.nbytes + _OVERHEAD for values in leaves.values()) + _META


def _as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"meta: cannot be written as JSON: {error}") from error
    return json.loads(text)


def _manifest(
    stage: Path, step: int, leaves: tuple[Leaf, ...], meta: dict[str, Any]
) -> Manifest:
    files = {
        name: File(size=size, sha256=manifests.hash_file(stage / name))
        for name, size in manifests.list_files(stage).items()
    }
    return Manifest(
        format_version=manifests.FORMAT_VERSION,
        needs=manifests.NEEDS,
        step=step,
        leaves=leaves,
        files=files,
        meta=meta,
    )


def _read_back(stage: Path, written: Manifest, content: Snapshot) -> None:
    """Read a checkpoint before it gets its name, and compare it with what was saved.

    Raises:
        CheckpointError: it differs, for example because a value of `meta` cannot be
            represented or the disk returns other bytes.
    """
    specs = {
        path: Spec(values.shape, values.dtype.name)
        for path, values in content.arrays.items()
    }
    label = f"checkpoint {written.step:06d}"
    try:
        if manifests.load(stage, label) != written:
            raise DamagedCheckpoint(f"{label}: {manifests.NAME} is damaged")
        _read_arrays(stage, written, specs)
    except DamagedCheckpoint as error:
        raise CheckpointError(
            f"{label}: could not be saved in {stage.parent}: it was read back and "
            f"differs from what was written ({error}); earlier checkpoints are "
            "unchanged"
        ) from error


def _read_arrays(
    directory: Path, manifest: Manifest, specs: Mapping[str, Spec]
) -> dict[str, np.ndarray]:
    """Read all arrays and verify their hashes.

    Args:
        directory: the directory of the checkpoint.
        manifest: its manifest.
        specs: shape and dtype of each array, by its stored path.

    Returns:
        The arrays by stored path.
    """
    label = f"checkpoint {manifest.step:06d}"
    stored = legacy if (directory / legacy.NAME).is_dir() else arrays
    try:
        found = stored.read(directory, specs)
    except ValueError as error:
        raise DamagedCheckpoint(f"{label} is damaged: {error}") from error
    for leaf in manifest.leaves:
        if hash_array(found[leaf.path]) != leaf.sha256:
            raise DamagedCheckpoint(
                f"{label}: {leaf.path} is damaged: its values have changed since it "
                "was saved"
            )
    return found


def _require_equal_trees(
    manifest: Manifest, paths: Mapping[str, str], expected: Mapping[str, Any]
) -> None:
    """Raise with every difference between the stored tree and the expected one."""
    stored = {
        paths[leaf.path]: Spec(leaf.shape, leaf.dtype) for leaf in manifest.leaves
    }
    expected_specs = {path: spec(path, leaf) for path, leaf in expected.items()}
    lines = [
        f"checkpoint {manifest.step:06d}: {difference} in this config"
        for difference in differences(stored, expected_specs)
    ]
    if lines:
        raise CheckpointError("\n".join(lines))


def _existing(root: Path, step: int) -> Path:
    """Return the directory of the checkpoint of `step`."""
    stored = steps(root)
    if step not in stored:
        expected = ", ".join(map(str, stored)) or "none, as it has no checkpoints"
        raise CheckpointError(
            f"{root}: got step {step}, expected the step of a checkpoint: {expected}"
        )
    return directory_of(root, step)
