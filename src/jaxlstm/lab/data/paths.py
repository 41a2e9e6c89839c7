"""The files that a config names: a path, a pattern, a folder, or a list of them."""

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import shortened
from jaxlstm.lab.data.files import open_data, quoted

_START = 1 << 13  # bytes that are searched for null bytes


class TextFiles(NamedTuple):
    """Files of a text, and the notes on those of a folder that were left out."""

    paths: list[str]
    notes: list[str]


def expand(
    paths: Any, *, key: str, folder: Callable[[str], list[str]] | None = None
) -> list[str]:
    """Return the files of a path, a pattern such as `data/*.csv`, or a list of them.

    Args:
        paths: the value of the key; the files of a pattern are sorted.
        key: the key of the config, for messages.
        folder: function that returns the files of a folder; None refuses folders.

    Raises:
        BadInput: a pattern matches no file, a folder is given where none is read, or a
            file occurs twice.
    """
    found: list[str] = []
    for path in _listed(paths):
        text = _expanded(path)
        if re.search(r"[*?[]", text) and not _exists(text):
            found += _matches(text, path, key)
        elif not _is_directory(text):
            found.append(text)
        elif folder is not None:
            found += folder(text)
        else:
            raise BadInput(
                f"{key}: {quoted(path)}: got a directory, expected a file; use a "
                f"pattern such as {quoted(Path(text) / '*.csv')}."
            )
    seen: set[str] = set()
    for path in found:
        if path in seen:
            raise BadInput(f"{key}: got {quoted(path)} twice, expected each file once.")
        seen.add(path)
    return found


def text_files(paths: Any, *, key: str, encoding: str) -> TextFiles:
    """Return the text files of a path, a pattern, a folder, or a list of them.

    All files in a folder and in the folders below it are texts. They are sorted by
    their path, so that the order does not depend on the file system; links to folders
    are not followed. Of the files that are not named themselves, hidden ones, whose
    name or folder begins with a dot, and empty ones are left out with a note, and a
    binary one, which has a null byte at its beginning, is refused.

    Raises:
        BadInput: as for `expand`; or no file has a text, a folder cannot be listed, or
            a file is binary.
    """
    hidden: list[str] = []

    def folder(path: str) -> list[str]:
        return sorted(_below(path, hidden, key), key=lambda file: Path(file).parts)

    named = {_expanded(path) for path in _listed(paths)}
    found = expand(paths, key=key, folder=folder)
    empty = [path for path in found if path not in named and _is_empty(path)]
    texts = [path for path in found if path not in set(empty)]
    notes = [
        f"left out {len(files)} {kind} ({shortened(sorted(files), most=4)})"
        for kind, files in (("hidden", hidden), ("empty", empty))
        if files
    ]
    if not texts:
        where = shortened([quoted(path) for path in _listed(paths)], most=3)
        raise BadInput(
            f"{key}: {where}: got no text file{''.join(f', {n}' for n in notes)}, "
            "expected at least one; name the files, or a pattern such as "
            f"{quoted(Path(_listed(paths)[0]) / '**' / '*.txt')}."
        )
    if b"\0" not in "a".encode(encoding):
        _refuse_binary([path for path in texts if path not in named], key)
    return TextFiles(texts, notes)


def _refuse_binary(paths: list[str], key: str) -> None:
    binary = [path for path in paths if _is_binary(path, key)]
    if binary:
        pattern = Path(binary[0]).parent / "*.txt"
        raise BadInput(
            f"{key}: got {shortened([quoted(path) for path in binary])}, which "
            f"{'are' if len(binary) > 1 else 'is'} binary (null bytes), expected text; "
            "move them away, or choose the texts with a pattern such as "
            f"{quoted(pattern)}."
        )


def _is_binary(path: str, key: str) -> bool:
    with open_data(path, key=key) as file:
        return b"\0" in file.read(_START)


def _listed(paths: Any) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def _matches(text: str, path: Any, key: str) -> list[str]:
    """Return the files that match a pattern, sorted."""
    found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207
    files = [match for match in found if not _is_directory(match)]
    if files:
        return files
    got = "matches only folders" if found else "matches no file"
    raise BadInput(
        f"{key}: {quoted(path)} {got}; patterns are relative to the current "
        f"directory, {quoted(Path.cwd())}."
    )


def _below(folder: str, hidden: list[str], key: str) -> Iterator[str]:
    """Yield the files below a folder, and collect what is hidden."""

    def fail(error: OSError) -> NoReturn:
        reason = error.strerror or "unknown error"
        raise BadInput(f"{key}: {quoted(error.filename)}: cannot be read ({reason}).")

    for place, folders, files in os.walk(folder, onerror=fail):
        for name in [name for name in folders if name.startswith(".")]:
            folders.remove(name)
            hidden.append(os.path.join(place, name))  # noqa: PTH118
        for name in files:
            path = os.path.join(place, name)  # noqa: PTH118
            if name.startswith("."):
                hidden.append(path)
            else:
                yield path


def _is_empty(path: str) -> bool:
    try:
        return Path(path).is_file() and not Path(path).stat().st_size
    except OSError:  # which opening it explains
        return False


def _is_directory(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):
        return False


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return True  # opening it explains the error


def _expanded(path: str | Path) -> str:
    try:
        return str(Path(path).expanduser()) if str(path).startswith("~") else str(path)
    except RuntimeError:  # an unknown user, which opening it explains
        return str(path)
