"""Atomic and durable writing of files.

A file is written to a temporary file in the same directory, synced, renamed, and the
directory is synced. A crash in between leaves a hidden temporary file and the old file.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def write_file(path: Path, data: bytes | memoryview, *, append: bool = False) -> None:
    """Write a file, or to its end, and sync it.

    The operations are those of `os` and unbuffered, so that tests can make each fail.

    Raises:
        OSError: the file cannot be written; a part may have been.
    """
    mode = os.O_APPEND if append else os.O_TRUNC
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the contents of `path` atomically.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_file(temporary, data)
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync one file, or the entries of one directory, to the disk.

    Some file systems, such as those of FUSE, cannot sync directories; their entries
    are then as durable as the file system makes them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or not stat.S_ISDIR(_mode(descriptor)):
            raise
    finally:
        os.close(descriptor)


def _mode(descriptor: int) -> int:
    return os.fstat(descriptor).st_mode
