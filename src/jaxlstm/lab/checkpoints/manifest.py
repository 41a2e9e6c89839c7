"""What a checkpoint says about itself, and whether that is true.

`manifest.json` lists every leaf (path, shape, dtype, hash) and every file (size, hash),
carries the run's `meta`, and ends in a hash of itself. The rule for that last hash
never changes, so that a format from the future can be told from damage:

    manifest = render(body),   body["sha256"] = sha256(render(body without "sha256"))

Nothing here follows a name found in a manifest: files are found by walking the
directory, then looked up.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxlstm.lab._util.errors import LabError

FORMAT_VERSION = 1
NEEDS = "0.1.0"
"""The oldest jaxlstm that can read FORMAT_VERSION."""

NAME = "manifest.json"
_LARGEST = 1 << 26
_BLOCK = 1 << 20


class CheckpointError(LabError):
    """A checkpoint could not be written, or does not fit."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what its writer wrote."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Leaf(_Record):
    """One leaf of the saved tree. The dtype of a typed key names its generator."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class File(_Record):
    """One file of the checkpoint."""

    size: int
    sha256: str


class Manifest(_Record):
    """A whole checkpoint, without its arrays."""

    format_version: int
    needs: str
    step: int
    leaves: tuple[Leaf, ...]
    files: dict[str, File]
    meta: dict[str, Any]


def write(directory: Path, manifest: Manifest) -> None:
    """Write `manifest` into `directory`, with the hash of itself."""
    body = manifest.model_dump(mode="json")
    text = _render(body | {"sha256": _hash_of(body)})
    (directory / NAME).write_text(text, encoding="utf-8")


def read(directory: Path) -> Manifest:
    """Read the manifest of one checkpoint and check it against its own hash.

    Raises:
        DamagedCheckpoint: it is missing, cut short, or not what was written.
        CheckpointError: it is sound and was written by a newer jaxlstm.
    """
    label = f"checkpoint {directory.name}"
    body = _read_body(directory / NAME, label)
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{label} needs jaxlstm >= {body.get('needs')}: it is in format {version}, "
            f"and this version reads up to format {FORMAT_VERSION}"
        )
    try:
        manifest = Manifest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedCheckpoint(
            f"{label}: {NAME} is malformed at {place}: {first['msg']}"
        ) from error
    if f"{manifest.step:06d}" != directory.name:
        raise DamagedCheckpoint(
            f"{label} holds step {manifest.step}; give the directory its name back, "
            f"{manifest.step:06d}"
        )
    return manifest


def list_files(directory: Path) -> dict[str, int]:
    """The sizes of all files below `directory` but the manifest, by relative name.

    Raises:
        DamagedCheckpoint: something in there is neither a file nor a directory. A
            symbolic link could lead anywhere, so none is followed.
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
                    f"checkpoint {directory.name}: {relative} is a link or a device, "
                    "and a checkpoint holds only files; it is not read"
                )
    sizes.pop(NAME, None)
    return sizes


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Compare the names and sizes of all files with the manifest, reading none.

    Raises:
        DamagedCheckpoint: a file is missing, cut short, grown or not listed.
    """
    found = list_files(directory)
    for name in sorted(manifest.files.keys() | found.keys()):
        came = f"{found[name]} bytes" if name in found else "missing"
        listed = manifest.files.get(name)
        wanted = f"{listed.size} bytes" if listed else "not part of it"
        if came != wanted:
            raise DamagedCheckpoint(
                f"checkpoint {directory.name}: {blame(manifest, name)} is damaged: "
                f"{name} is {came} and the manifest says {wanted}"
            )


def check_hashes(directory: Path, manifest: Manifest) -> None:
    """Compare every byte of every file with the manifest; sizes were checked.

    Raises:
        DamagedCheckpoint: one bit or more differs; the message names the leaf.
    """
    for name, listed in manifest.files.items():
        if hash_file(directory / name) != listed.sha256:
            raise DamagedCheckpoint(
                f"checkpoint {directory.name}: {blame(manifest, name)} is damaged: "
                f"{name} is not what was written"
            )


def storage_name(index: int, path: str) -> str:
    """The directory of leaf number `index`: safe on any disk, readable by a person.

    >>> storage_name(7, "params/0/w_h")
    '0007.params.0.w_h'
    """
    kept = re.sub(r"[^0-9A-Za-z_-]", ".", path)[:100]
    return f"{index:04d}.{kept}".rstrip(".")


def blame(manifest: Manifest, name: str) -> str:
    """The leaf that lives in file `name`, or the file itself if none does."""
    parts = name.split("/")
    for index, leaf in enumerate(manifest.leaves):
        if len(parts) > 1 and parts[1] == storage_name(index, leaf.path):
            return leaf.path or "the array"
    return name


def hash_file(path: Path) -> str:
    """The sha256 of a file, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_body(path: Path, label: str) -> dict[str, Any]:
    """The manifest as JSON, once its own hash holds."""
    text = _read_text(path, label)
    try:
        body = json.loads(text)
        claimed = body.pop("sha256")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        body, claimed = {}, None
    if claimed != _hash_of(body) or text != _render(body | {"sha256": claimed}):
        raise DamagedCheckpoint(f"{label}: {NAME} is not what was written")
    return body


def _read_text(path: Path, label: str) -> str:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise DamagedCheckpoint(
                f"{label}: {NAME} is not a file of at most {_LARGEST >> 20} MiB"
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{label} is incomplete: it has no {NAME}") from None
    except UnicodeDecodeError:
        raise DamagedCheckpoint(f"{label}: {NAME} is not what was written") from None


def _render(body: Mapping[str, Any]) -> str:
    return json.dumps(body, indent=1, sort_keys=True) + "\n"


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(body).encode()).hexdigest()
