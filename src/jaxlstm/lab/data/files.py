"""Opening a file that a person named, with a sentence for each way it can fail."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import shown


def quoted(name: object) -> str:
    """`name` between double quotes, on one line, with nothing unprintable in it.

    Example:
      >>> print(quoted("two\\nlines"))
      "two\\nlines"
    """
    return f'"{shown(str(name))}"'


@contextmanager
def open_data(path: str | Path, *, key: str) -> Iterator[BinaryIO]:
    """A regular, non-empty file, open for reading.

    A pipe or a device is refused before it is opened, since reading might not end.

    Args:
      path: as written in the config; relative to the current directory, `~` is home.
      key: where in the config it stands, such as `data.path`, for the message.

    Raises:
      BadInput: what came instead, and what to do; also for a fault while reading.
    """
    name = f"{key}: {quoted(path)}"
    try:
        with _regular(path, name).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise BadInput(f"{key}: {_missing(path)}") from None
    except OSError as error:
        reason = error.strerror or "an unknown fault"
        raise BadInput(f"{name} cannot be read: {reason}.") from None


def size_of(file: BinaryIO) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def _regular(path: str | Path, name: str) -> Path:
    try:
        place = Path(path).expanduser()
        status = place.stat()
    except (ValueError, RuntimeError) as error:  # a null byte, nobody's home
        raise BadInput(f"{name} cannot be a path: {error}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise BadInput(f"{name} is a directory; name one file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{name} is a pipe or a device; name a regular file.")
    if status.st_size == 0:
        raise BadInput(f"{name} is empty; there is nothing to learn.")
    return place


def _missing(path: str | Path) -> str:
    """Which part of `path` is missing, and what lies there under a similar name."""
    place = Path(path).expanduser()
    chain = (place, *place.parents)
    lost = next((part for part in chain if part.parent.is_dir()), place)
    near = get_close_matches(lost.name, _names_beside(lost), n=1)
    if near:
        hint = f"; did you mean {quoted(lost.with_name(near[0]))}?"
    elif place.is_absolute():
        hint = "."
    else:
        hint = f"; paths are relative to the current directory, {quoted(Path.cwd())}."
    return f"there is no {quoted(lost)}{hint}"


def _names_beside(place: Path) -> list[str]:
    try:
        names = [other.name for other in place.parent.iterdir()]
    except OSError:
        return []
    return [name for name in names if name != place.name]
