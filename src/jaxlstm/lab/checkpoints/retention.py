"""Which checkpoints there are, which one is best, and which may go.

    checkpoints/000400/  000500/  best -> 000400

A checkpoint is a directory named by its step. It gets that name by one rename when
everything in it is on the disk, and loses it by one rename before anything in it is
deleted; names that begin with a dot are work in progress.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxlstm.lab._util.files import reason, sync, sync_tree
from jaxlstm.lab.checkpoints.manifest import CheckpointError, check_sizes, read

_STEP = re.compile(r"\d{6,}", re.ASCII)
_BEST = "best"


def directory_of(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies.

    >>> directory_of(Path("checkpoints"), 500).as_posix()
    'checkpoints/000500'
    """
    return root / f"{step:06d}"


def steps(root: Path) -> list[int]:
    """The steps of all finished checkpoints, ascending; links are not followed."""
    return sorted(int(path.name) for path in _entries(root) if _is_checkpoint(path))


def best(root: Path) -> int | None:
    """The step that `mark_best` named last, if its checkpoint is there.

    Raises:
        CheckpointError: the link was made to lead somewhere else.
    """
    link = root / _BEST
    if not link.is_symlink():
        return None
    target = str(link.readlink())
    if not _STEP.fullmatch(target):
        raise CheckpointError(
            f"{link} leads to {target!r}, not to a checkpoint beside it; delete it"
        )
    return int(target) if _is_checkpoint(root / target) else None


def mark_best(root: Path, step: int) -> None:
    """Make `best` point to the checkpoint of `step`, in one rename.

    Raises:
        CheckpointError: there is no such checkpoint, or the disk refuses.
    """
    target = directory_of(root, step)
    if not _is_checkpoint(target):
        raise CheckpointError(f"{root} has no checkpoint {target.name} to call best")
    beside = _hidden(root, _BEST, "tmp")
    with _said(f"{root / _BEST} cannot be set"):
        beside.symlink_to(target.name)
        beside.replace(root / _BEST)
        sync(root)


def forget_best(root: Path) -> None:
    """Let `best` name nothing any more; the checkpoints stay."""
    (root / _BEST).unlink(missing_ok=True)


def prune(root: Path, keep: int, *, protect: Collection[int] = ()) -> list[int]:
    """Delete what is older than the newest `keep` sound checkpoints.

    The best one and those in `protect` stay. One whose manifest or file sizes are
    wrong does not count as sound, so that damage never pushes out the last good one.

    Returns:
        The steps that were deleted.

    Raises:
        CheckpointError: the disk refuses; nothing that should stay was touched.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; keep at least 1 checkpoint")
    with _said(f"{root} cannot be pruned"):
        sound = [s for s in steps(root) if _looks_sound(directory_of(root, s))]
        kept = {*protect, best(root)}
        oldest = min(sound[-keep:], default=0)
        gone = [s for s in steps(root) if s < oldest and s not in kept]
        for step in gone:
            _delete(directory_of(root, step))
    return gone


def clean(root: Path) -> None:
    """Clear away what dead writers left; a live writer's work is not touched.

    A checkpoint that was being replaced when its writer died gets its name back, so
    call this before `latest` when a run goes on.

    Raises:
        CheckpointError: the disk refuses.
    """
    with _said(f"{root} cannot be cleaned"):
        for path in _entries(root):
            if path.name.startswith(".") and path.suffix == ".old":
                original = root / path.name[1:].split(".")[0]
                _delete(path) if original.exists() else path.rename(original)
            elif path.name.startswith(".") and path.suffix == ".tmp":
                _clear(path)


@contextmanager
def staged(root: Path, step: int) -> Iterator[Path]:
    """A hidden directory that becomes the checkpoint of `step` if the block succeeds.

    Until the last rename nothing is visible. If the block raises, nothing remains.
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
def _said(what: str) -> Iterator[None]:
    """Turn what the system refuses into a sentence that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what} ({reason(error)})") from error


def _publish(stage: Path, target: Path) -> None:
    """Give `stage` its name; a checkpoint that has it already steps aside first."""
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


def _looks_sound(directory: Path) -> bool:
    try:
        check_sizes(directory, read(directory))
    except (CheckpointError, OSError):
        return False
    return True


def _hidden(root: Path, name: str, suffix: str) -> Path:
    return root / f".{name}.{uuid.uuid4().hex[:12]}.{suffix}"


def _delete(path: Path) -> None:
    """Hide, then remove, so that a crash leaves no half checkpoint in sight."""
    hidden = _hidden(path.parent, path.name.strip(".").split(".")[0], "tmp")
    path.rename(hidden)
    _clear(hidden)


def _clear(path: Path) -> None:
    """Remove a hidden directory or link unless a live writer holds it."""
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
