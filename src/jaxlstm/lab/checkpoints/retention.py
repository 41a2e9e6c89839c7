"""Listing checkpoints, finding the best one, and deleting old ones.

    checkpoints/000400/  000500/  best -> 000400

A checkpoint is a directory named by its step. It gets this name by one rename after
all its files are on the disk, and loses it by one rename before any file is deleted.
Names that start with a dot are unfinished or being deleted.

The step of the best checkpoint is recorded in the meta of every checkpoint. The link
`best` shows it to people and is never read as a fact: copies of a directory lose links,
and some file systems have none.

Orbax's `CheckpointManager` is not used because it deletes files below the visible name,
counts a damaged checkpoint as one that is kept, can rank NaN above a finite metric,
and cannot replace the checkpoint of a step.
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxlstm.lab._util.files import sync, sync_directories, translate_os_errors
from jaxlstm.lab.checkpoints.manifest import NAME, CheckpointError, check_sizes, read

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


def best(root: Path, report: Callable[[str], object] | None = None) -> int | None:
    """Return the best step according to the newest readable checkpoint.

    None if there is none, or if its checkpoint does not exist.

    Args:
        root: the directory of all checkpoints of a run.
        report: receives a message about each checkpoint that cannot be read.
    """
    for step in reversed(steps(root)):
        try:
            meta = read(directory_of(root, step)).meta
        except (CheckpointError, OSError) as error:
            if report is not None:
                report(str(error))
            continue
        found = best_in(meta)
        known = found is not None and _is_checkpoint(directory_of(root, found))
        return found if known else None
    return None


def best_in(meta: Mapping[str, Any]) -> int | None:
    """Return the step of the best checkpoint that a checkpoint's meta records.

    Checkpoints of earlier versions record it in `ledger` only.
    """
    ledger = meta.get("ledger")
    written = meta.get("best", ledger.get("best_step") if ledger else None)
    return written if isinstance(written, int) else None


def linked_best(root: Path) -> str | None:
    """Return the target of the link `best`, or None if there is no such link."""
    try:
        return str((root / _BEST).readlink())
    except OSError:
        return None


def link_best(root: Path, step: int | None) -> None:
    """Make the link `best` point to the checkpoint of `step`; None removes it.

    A directory `best`, which a copy of the run has in place of the link, is removed if
    it is a copy of a checkpoint.

    Raises:
        CheckpointError: the link cannot be written, for example on a file system
            without links. Nothing depends on it.
    """
    link = root / _BEST
    with translate_os_errors(f"{link}: cannot be written", CheckpointError):
        if link.is_dir() and not link.is_symlink() and (link / NAME).is_file():
            _delete(link)
        if step is None:
            link.unlink(missing_ok=True)
            return
        temporary = _hidden(root, _BEST, "tmp")
        temporary.symlink_to(directory_of(root, step).name)
        try:
            temporary.replace(link)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync(root)


def prune(root: Path, keep: int, *, protect: Collection[int] = ()) -> list[int]:
    """Delete all checkpoints older than the newest `keep` intact ones.

    The best checkpoint and those in `protect` stay. A checkpoint whose manifest or
    file sizes are wrong does not count as intact, so that damaged checkpoints never
    displace the last usable one.

    Returns:
        The steps whose checkpoints were deleted.

    Raises:
        CheckpointError: some cannot be deleted; the others are, and the checkpoints to
            keep are intact.
    """
    if keep < 1:
        raise ValueError(f"keep: got {keep}, expected at least 1")
    with translate_os_errors(
        f"{root}: old checkpoints cannot be deleted", CheckpointError
    ):
        intact = [s for s in steps(root) if _looks_intact(directory_of(root, s))]
        kept = {*protect, best(root)}
        oldest = min(intact[-keep:], default=0)
        deleted = [s for s in steps(root) if s < oldest and s not in kept]
        _for_each(_delete, [directory_of(root, step) for step in deleted])
    return deleted


def clean(root: Path) -> None:
    """Remove the unfinished files of dead writers, but not those of live ones.

    A checkpoint whose replacement was interrupted gets its name back, so call this
    before `latest` when a run is resumed.

    Raises:
        CheckpointError: a file cannot be renamed or deleted.
    """
    with translate_os_errors(
        f"{root}: unfinished files cannot be deleted", CheckpointError
    ):
        _for_each(_clean, [p for p in _entries(root) if p.name.startswith(".")])


@contextmanager
def staged(root: Path, step: int) -> Iterator[Path]:
    """Yield a hidden directory that becomes the checkpoint of `step`.

    The directory becomes visible by one rename when the block ends. If the block
    raises, the directory is deleted.
    """
    stage = _hidden(root, f"{step:06d}", "tmp")
    stage.mkdir()
    try:
        with _claimed(stage):
            yield stage
            sync_directories(stage)
            target = directory_of(root, step)
            is_new = not os.path.lexists(target)
            _publish(stage, target)
            try:
                sync(root)
            except OSError:
                # The save has failed, so it must leave no checkpoint.
                if is_new:
                    target.rename(stage)
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _claimed(stage: Path) -> Iterator[None]:
    """Lock a directory, so that `clean` does not remove it; without locks, do not."""
    claim = os.open(stage, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(claim)


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
    with suppress(OSError):  # `clean` tries again
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


def _for_each(act: Callable[[Path], None], paths: Iterable[Path]) -> None:
    """Call `act` with every path; raise the first `OSError` after the last call."""
    failed = []
    for path in paths:
        try:
            act(path)
        except OSError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _clean(path: Path) -> None:
    """Remove one unfinished entry, or give it back its name."""
    original = path.with_name(path.name[1:].split(".")[0])
    if path.suffix == ".old" and not original.exists():
        path.rename(original)
    elif path.suffix == ".old":
        _delete(path)
    elif path.suffix == ".tmp":
        _clear(path)


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
