"""Atomic and durable writing of files.

A file is written to a temporary file in the same directory, synced, renamed, and the
directory is synced. A crash in between leaves a hidden temporary file and the old file.
"""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the contents of `path` atomically.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync one file, or the entries of one directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(directory: Path, size: int) -> None:
    """Check that `size` bytes can be written in `directory` by allocating them.

    Raises:
        OSError: the disk, the quota or the file size limit does not allow it.
    """
    with tempfile.TemporaryFile(dir=directory) as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        elif shutil.disk_usage(directory).free < size:  # macOS has no posix_fallocate
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_tree(top: Path) -> None:
    """Sync `top` and every file and directory below it to the disk."""
    for folder, _, names in os.walk(top):
        for name in ["", *names]:
            sync(Path(folder, name))


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, without error number and path.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "a.txt"))
        'No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def remedy(error: OSError) -> str:
    """Return the end of a message if permissions of a run caused an error, or "".

    Example:
        >>> remedy(PermissionError(errno.EACCES, "Permission denied"))
        '; make it writable, or choose another --run'
        >>> remedy(OSError(errno.ENOSPC, "No space left on device"))
        ''
    """
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return "; make it writable, or choose another --run" if denied else ""
