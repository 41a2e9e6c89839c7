"""The lock of a run directory: one writing process at a time.

The lock is an `flock` on `.lock`. The operating system releases it when the process
ends, however it ends, so a killed process never leaves a run locked.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab._util.files import reason
from jaxlstm.lab.runs.paths import Run


@contextmanager
def lock(run: Run) -> Iterator[None]:
    """Hold the write lock of a run for the duration of the block.

    Raises:
        LabError: another process holds the lock, or the directory is read-only.
    """
    descriptor = _open_lock(run)
    try:
        _take_lock(run, descriptor)
        yield
    finally:
        os.close(descriptor)


def _open_lock(run: Run) -> int:
    try:
        return os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LabError(
            f"{run.path}: cannot be written ({reason(error)}), so it cannot be trained "
            "further; evaluate and sample work on a read-only run"
        ) from error


def _take_lock(run: Run, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        writer = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "?"
        raise LabError(
            f"{run.path}: process {writer} is writing to this run; wait until it ends, "
            "or choose another --run"
        ) from None
    except OSError as error:
        raise LabError(
            f"{run.path}: cannot be locked ({reason(error)}); this file system does "
            "not support locks, so choose a --run on a local disk"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
