"""Files of runs: atomic writing, space on the disk, and words for errors."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from jaxlstm.interop.writing import sync as sync
from jaxlstm.interop.writing import write_atomic as write_atomic


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
