"""Files of runs: atomic writing, space on the disk, and words for errors."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlstm.interop.writing import sync as sync
from jaxlstm.interop.writing import write_atomic as write_atomic
from jaxlstm.interop.writing import write_file as write_file
from jaxlstm.lab._util.errors import LabError


@contextmanager
def translate_os_errors(
    summary: str = "", kind: type[LabError] = LabError
) -> Iterator[None]:
    """Raise a `LabError` with reason and remedy in place of an `OSError`.

    Args:
        summary: the file and what failed; by default the file of the error.
        kind: the type of the error that is raised.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of standard output has gone
        raise
    except OSError as error:
        path = error.filename or "a file of the run"
        what = summary or f"{path}: cannot be read or written"
        raise kind(f"{what} ({reason(error)}){remedy(error)}") from error


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


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read, or is a directory, a pipe or a device, whose content
            may not end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def sync_directories(top: Path) -> None:
    """Sync the entries of `top` and of every directory below it to the disk."""
    for folder, _, _ in os.walk(top):
        sync(Path(folder))


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
