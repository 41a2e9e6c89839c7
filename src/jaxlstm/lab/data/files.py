"""Open data files, with a clear error message for each kind of failure."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Protocol

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import shown


def quoted(name: object) -> str:
    """Quote `name` and escape its unprintable characters.

    Example:
        >>> print(quoted("two\\nlines"))
        "two\\nlines"
    """
    return f'"{shown(str(name))}"'


@contextmanager
def open_data(path: str | Path, *, key: str) -> Iterator[BufferedReader]:
    """Open a regular, non-empty file for reading.

    Pipes and devices are refused before they are opened, because reading one may not
    end.

    Args:
        path: path from the config, relative to the current directory; `~` is expanded.
        key: key of the path in the config, such as `data.path`, for error messages.

    Raises:
        BadInput: the file cannot be opened, or an `OSError` occurs while it is read.
    """
    name = f"{key}: {quoted(path)}"
    try:
        with _regular(path, name).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise BadInput(f"{key}: {_missing(path)}") from None
    except OSError as error:
        reason = error.strerror or "unknown error"
        raise BadInput(f"{name}: cannot be read ({reason}).") from None


def size_of(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


class _Hashed(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def sha256(self) -> str: ...


def require_other_files(hashes: Iterable[str], validation: Iterable[_Hashed]) -> None:
    """Raise `BadInput` if a validation file has the content of a training file."""
    known = set(hashes)
    for file in validation:
        if file.sha256 in known:
            raise BadInput(
                f"data.validation_path: {quoted(file.path)}: got the same content as "
                "the training text, expected another text; use another file, or "
                "remove the key to hold out data.validation_fraction."
            )


def _regular(path: str | Path, name: str) -> Path:
    try:
        place = Path(path).expanduser()
        status = place.stat()
    except (ValueError, RuntimeError) as error:  # a null byte, an unknown user
        raise BadInput(
            f"{name}: got an invalid path ({error}), expected a file."
        ) from None
    if stat.S_ISDIR(status.st_mode):
        raise BadInput(f"{name}: got a directory, expected a file.")
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{name}: got a pipe or a device, expected a regular file.")
    if status.st_size == 0:
        raise BadInput(f"{name}: got an empty file, expected data.")
    return place


def _missing(path: str | Path) -> str:
    """Name the missing part of `path` and a file with a similar name, if any."""
    place = Path(path).expanduser()
    chain = (place, *place.parents)
    missing = next((part for part in chain if part.parent.is_dir()), place)
    near = get_close_matches(missing.name, _sibling_names(missing), n=1)
    if near:
        hint = f"; did you mean {quoted(missing.with_name(near[0]))}?"
    elif place.is_absolute():
        hint = "."
    else:
        hint = f"; paths are relative to the current directory, {quoted(Path.cwd())}."
    return f"{quoted(missing)} does not exist{hint}"


def _sibling_names(place: Path) -> list[str]:
    try:
        names = [other.name for other in place.parent.iterdir()]
    except OSError:
        return []
    return [name for name in names if name != place.name]
