"""The manifest of a checkpoint: reading, writing and verifying it.

`manifest.json` lists every leaf (path, shape, dtype, hash) and every file (size, hash),
holds the run's `meta`, and ends with a hash of itself. The rule for that hash never
changes, so that an older version can distinguish a newer format from damage:

    manifest = render(body),   body["sha256"] = sha256(render(body without "sha256"))

File names in a manifest are never used as paths: files are found by walking the
directory and then looked up in the manifest, so a forged name cannot escape it.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab._util.files import reason, write_file

FORMAT_VERSION = 2
NEEDS = "0.1.0"
"""The oldest jaxlstm version that reads FORMAT_VERSION."""

NAME = "manifest.json"
_LARGEST = 1 << 26
_BLOCK = 1 << 20


class CheckpointError(LabError):
    """A checkpoint cannot be written, or differs from the expected tree."""


class DamagedCheckpoint(CheckpointError):
    """The content of a checkpoint differs from what was written."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Leaf(_Record):
    """One leaf of the saved tree. The dtype of a typed key names its PRNG."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class File(_Record):
    """One file of the checkpoint."""

    size: int
    sha256: str


class Manifest(_Record):
    """Everything in a checkpoint except the arrays."""

    format_version: int
    needs: str
    step: int
    leaves: tuple[Leaf, ...]
    files: dict[str, File]
    meta: dict[str, Any]


def write(directory: Path, manifest: Manifest) -> None:
    """Write `manifest` into `directory` together with its hash."""
    body = manifest.model_dump(mode="json")
    text = render(body | {"sha256": digest(body)})
    write_file(directory / NAME, text.encode())


def read(directory: Path) -> Manifest:
    """Read the manifest of one checkpoint and verify its hash.

    Raises:
        DamagedCheckpoint: it is missing, truncated or changed, or its step is not that
            of the directory's name.
        CheckpointError: it is intact and was written by a newer jaxlstm.
    """
    manifest = load(directory, f"checkpoint {directory.name}")
    if f"{manifest.step:06d}" != directory.name:
        raise DamagedCheckpoint(
            f"checkpoint {directory.name}: got the checkpoint of step {manifest.step}, "
            "expected that of the directory's name; rename the directory to "
            f"{manifest.step:06d}"
        )
    return manifest


def load(directory: Path, label: str) -> Manifest:
    """Read the manifest in a directory of any name, and verify its hash.

    Args:
        directory: the directory of the manifest.
        label: the subject of error messages.

    Raises:
        CheckpointError: as for `read`.
    """
    body = _read_body(directory / NAME, label)
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{label}: got format {version}, expected at most {FORMAT_VERSION}; it "
            f"needs jaxlstm >= {body.get('needs')}"
        )
    # JSON escapes of unpaired surrogates, as in paths that are not UTF-8, are refused
    # by pydantic's parser, so `meta` is not passed through it.
    meta = body.pop("meta", None)
    try:
        manifest = Manifest.model_validate_json(json.dumps(body | {"meta": {}}))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedCheckpoint(
            f"{label}: {NAME} is invalid at {place}: {first['msg']}"
        ) from error
    if not isinstance(meta, dict):
        raise DamagedCheckpoint(f"{label}: {NAME} is invalid at meta: not a mapping")
    return manifest.model_copy(update={"meta": meta})


def list_files(directory: Path) -> dict[str, int]:
    """Return the sizes of all files below `directory`, by relative name.

    The manifest is left out.

    Raises:
        DamagedCheckpoint: an entry is neither a file nor a directory. Symbolic links
            are refused because they can point outside the checkpoint.
    """
    sizes = {}
    for folder, subfolders, names in os.walk(directory):
        for name in subfolders + names:
            path = Path(folder, name)
            status = path.lstat()
            relative = path.relative_to(directory).as_posix()
            if stat.S_ISREG(status.st_mode):
                sizes[relative] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise DamagedCheckpoint(
                    f"checkpoint {directory.name}: {relative}: got a link or a device, "
                    "expected a file or a directory; it was not read"
                )
    sizes.pop(NAME, None)
    return sizes


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Compare the names and sizes of all files with the manifest.

    Raises:
        DamagedCheckpoint: a file is missing, not listed, or of another size.
    """
    found = list_files(directory)
    for name in sorted(manifest.files.keys() | found.keys()):
        got = f"{found[name]} bytes" if name in found else "missing"
        listed = manifest.files.get(name)
        expected = f"{listed.size} bytes" if listed else "no such file"
        if got != expected:
            raise DamagedCheckpoint(
                f"checkpoint {directory.name} is damaged: {name}: got {got}, "
                f"expected {expected}"
            )


def check_hashes(directory: Path, manifest: Manifest) -> None:
    """Compare the hash of every file with the manifest; call after `check_sizes`.

    Raises:
        DamagedCheckpoint: at least one bit differs.
    """
    for name, listed in manifest.files.items():
        if hash_file(directory / name) != listed.sha256:
            raise DamagedCheckpoint(
                f"checkpoint {directory.name} is damaged: the content of {name} has "
                "changed since it was written"
            )


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_body(path: Path, label: str) -> dict[str, Any]:
    """Return the manifest as JSON after verifying its hash."""
    text = _read_text(path, label)
    try:
        body = json.loads(text)
        claimed = body.pop("sha256")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        body, claimed = {}, None
    if claimed != digest(body) or text != render(body | {"sha256": claimed}):
        raise DamagedCheckpoint(f"{label}: {NAME} has changed since it was written")
    return body


def _read_text(path: Path, label: str) -> str:
    try:
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        if not regular or status.st_size > _LARGEST:
            got = f"{status.st_size:,} bytes" if regular else "no regular file"
            raise DamagedCheckpoint(
                f"{label}: {NAME}: got {got}, expected a file of at most "
                f"{_LARGEST >> 20} MiB"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DamagedCheckpoint(
            f"{label}: got no {NAME}, expected a complete checkpoint"
        ) from None
    except UnicodeDecodeError:
        raise DamagedCheckpoint(
            f"{label}: {NAME} has changed since it was written"
        ) from None
    except OSError as error:
        raise DamagedCheckpoint(
            f"{label}: {NAME} cannot be read ({reason(error)})"
        ) from error


def render(body: Mapping[str, Any]) -> str:
    """Return the text of a manifest."""
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def digest(body: Mapping[str, Any]) -> str:
    """Return the hash of a manifest without its entry "sha256"."""
    return hashlib.sha256(render(body).encode()).hexdigest()
