"""Listing checkpoints, marking the best one, and deleting old ones.

    checkpoints/000400/  000500/  best -> 000400

A checkpoint is a directory named by its step. It gets this name by one rename after
all its files are on the disk, and loses it by one rename before any file is deleted.
Names that start with a dot are unfinished or being deleted.

Orbax's `CheckpointManager` is not used because it deletes files below the visible name,
counts a damaged checkpoint as one that is kept, can rank NaN above a finite metric,
and cannot replace the checkpoint of a step.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxlstm.lab._util.files import reason, remedy, sync, sync_tree
from jaxlstm.lab.checkpoints.manifest import CheckpointError, check_sizes, read

_STEP = re.compile(r"\d{6,}", re.ASCII)
_BEST = "best"


def directory_of(root: Path, step: int) -> Path:
    """Return the directory of the checkpoint of `step`.

    Example:
        >>> directory_of(Path("checkpoints"), 500).as_posix()
        'checkpoints/000500'
    """
    return root / f"{step:06d}"


def steps(root: Path) -> list[int]:
    """Return the steps of all complete checkpoints, ascending, ignoring links."""
    return sorted(int(path.name) for path in _entries(root) if _is_checkpoint(path))


def best(root: Path) -> int | None:
    """Return the step last passed to `mark_best`, or None if it has no checkpoint.

    Raises:
        CheckpointError: the link points to something other than a checkpoint.
    """
    link = root / _BEST
    if not link.is_symlink():
        return None
    target = str(link.readlink())
    if not _STEP.fullmatch(target):
        raise CheckpointError(
            f"{link}: points to {target!r}, expected a checkpoint in the same "
            "directory; delete it"
        )
    return int(target) if _is_checkpoint(root / target) else None


def mark_best(root: Path, step: int) -> None:
    """Make the link `best` point to the checkpoint of `step`, by one rename.

    Raises:
        CheckpointError: there is no such checkpoint, or the link cannot be written.
    """
    target = directory_of(root, step)
    if not _is_checkpoint(target):
        raise CheckpointError(
            f"{root}: has no checkpoint {target.name} to mark as best"
        )
    temporary = _hidden(root, _BEST, "tmp")
    with _translate_os_errors(f"{root / _BEST}: cannot be written"):
        temporary.symlink_to(target.name)
        temporary.replace(root / _BEST)
        sync(root)


def forget_best(root: Path) -> None:
    """Remove the link `best`; the checkpoints stay.

    Raises:
        CheckpointError: the link cannot be removed.
    """
    with _translate_os_errors(f"{root / _BEST}: cannot be deleted"):
        (root / _BEST).unlink(missing_ok=True)


def prune(root: Path, keep: int, *, protect: Collection[int] = ()) -> list[int]:
    """Delete all checkpoints older than the newest `keep` intact ones.

    The best checkpoint and those in `protect` stay. A checkpoint whose manifest or
    file sizes are wrong does not count as intact, so that damaged checkpoints never
    displace the last usable one.

    Returns:
        The steps whose checkpoints were deleted.

    Raises:
        CheckpointError: a file cannot be deleted; the checkpoints to keep are intact.
    """
    if keep < 1:
        raise ValueError(f"keep: got {keep}, expected at least 1")
    with _translate_os_errors(f"{root}: old checkpoints cannot be deleted"):
        intact = [s for s in steps(root) if _looks_intact(directory_of(root, s))]
        kept = {*protect, best(root)}
        oldest = min(intact[-keep:], default=0)
        deleted = [s for s in steps(root) if s < oldest and s not in kept]
        for step in deleted:
            _delete(directory_of(root, step))
    return deleted


def clean(root: Path) -> None:
    """Remove the unfinished files of dead writers, but not those of live ones.

    A checkpoint whose replacement was interrupted gets its name back, so call this
    before `latest` when a run is resumed.

    Raises:
        CheckpointError: a file cannot be renamed or deleted.
    """
    with _translate_os_errors(f"{root}: unfinished files cannot be deleted"):
        for path in _entries(root):
            if path.name.startswith(".") and path.suffix == ".old":
                original = root / path.name[1:].split(".")[0]
                _delete(path) if original.exists() else path.rename(original)
            elif path.name.startswith(".") and path.suffix == ".tmp":
                _clear(path)


@contextmanager
def staged(root: Path, step: int) -> Iterator[Path]:
    """Yield a hidden directory that becomes the checkpoint of `step`.

    The directory becomes visible by one rename when the block ends. If the block
    raises, the directory is deleted.
    """
    stage = _hidden(root, f"{step:06d}", "tmp")
    stage.mkdir()
    claim = os.open(stage, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield stage
        sync_tree(stage)
        _publish(stage, directory_of(root, step))
        sync(root)
    finally:
        os.close(claim)
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _translate_os_errors(summary: str) -> Iterator[None]:
    """Raise `CheckpointError` with `summary`, reason and remedy for any `OSError`."""
    try:
        yield
    except OSError as error:
        message = f"{summary} ({reason(error)}){remedy(error)}"
        raise CheckpointError(message) from error


def _publish(stage: Path, target: Path) -> None:
    """Rename `stage` to `target`, moving an existing `target` out of the way first."""
    if not os.path.lexists(target):
        stage.rename(target)
        return
    aside = _hidden(target.parent, target.name, "old")
    target.rename(aside)
    try:
        stage.rename(target)
    except OSError:
        aside.rename(target)
        raise
    _delete(aside)


def _entries(root: Path) -> list[Path]:
    return list(root.iterdir()) if root.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    return bool(_STEP.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _looks_intact(directory: Path) -> bool:
    try:
        check_sizes(directory, read(directory))
    except (CheckpointError, OSError):
        return False
    return True


def _hidden(root: Path, name: str, suffix: str) -> Path:
    return root / f".{name}.{uuid.uuid4().hex[:12]}.{suffix}"


def _delete(path: Path) -> None:
    """Hide a directory by one rename, then remove it: a crash leaves no partial one."""
    hidden = _hidden(path.parent, path.name.strip(".").split(".")[0], "tmp")
    path.rename(hidden)
    _clear(hidden)


def _clear(path: Path) -> None:
    """Remove a hidden directory or link unless a live writer has locked it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    claim = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    except BlockingIOError:
        return
    finally:
        os.close(claim)
