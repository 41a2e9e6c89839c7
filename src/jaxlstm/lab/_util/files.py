"""Writing so that a reader meets the old file or the new one, never half of it.

The order is always the same: write beside the target, force the bytes to the disk,
rename once, force the directory to the disk. A process that dies in between leaves a
hidden file behind and the old one in its place.
"""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step that a crash cannot split.

    Raises:
        OSError: the disk is full, failing or read-only; `path` is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force one file, or the names in one directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(directory: Path, size: int) -> None:
    """Take `size` bytes of the disk below `directory` and give them back at once.

    Raises:
        OSError: the disk, the quota or the file size limit does not allow as much.
    """
    with tempfile.TemporaryFile(dir=directory) as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        elif shutil.disk_usage(directory).free < size:  # macOS has only the estimate
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_tree(top: Path) -> None:
    """Force every file and directory below `top`, and `top` itself, to the disk."""
    for folder, _, names in os.walk(top):
        for name in ["", *names]:
            sync(Path(folder, name))


def reason(error: BaseException) -> str:
    """What went wrong, in the system's words and without its decoration.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
