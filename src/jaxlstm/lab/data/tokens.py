"""Reader of files of little-endian token ids, which are memory-mapped.

One pass in chunks computes the hash, checks the ids and counts the documents. After
that only the pages that a batch needs are loaded.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.files import open_data, quoted, size_of
from jaxlstm.lab.data.vocabulary import opaque

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import TokenData

_CHUNK = 1 << 22  # bytes


class TokenMap(np.memmap):
    """A memory-mapped array that is not read after its file was cut short.

    Reading a page beyond the end of a file would end the process with SIGBUS.
    """

    def __getitem__(self, index: Any) -> Any:
        """Return a view of the map, or a copy of some of its elements.

        Raises:
            BadInput: the file has become shorter.
        """
        mapped = getattr(self, "_mmap", None)
        if mapped is not None and mapped.size() < len(mapped):
            raise BadInput(
                f"data: {quoted(self.filename)}: got {mapped.size():,} bytes, expected "
                f"at least {len(mapped):,}; the file was cut short while it was used. "
                "Restore it, and resume the run."
            )
        found = super().__getitem__(index)
        return found if getattr(found, "_mmap", None) else np.asarray(found)[()]


class TokenFile(NamedTuple):
    """A memory-mapped file whose ids have been checked."""

    path: str
    tokens: NDArray[np.integer]
    sha256: str


def read_tokens(data: "TokenData") -> Corpus:
    """Read a binary file of token ids, or one for each part.

    Without `data.validation_path`, the last `data.validation_fraction` is held out. If
    there is a `data.document_token`, the cut is moved to the next beginning of a
    document, so that no document is in both parts.

    Raises:
        BadInput: a file cannot be read, its size does not fit the dtype, an id is not
            below `data.vocabulary_size`, or the document token does not occur.
    """
    files = [_read(data.path, data, key="data.path")]
    if data.validation_path is None:
        tokens = files[0].tokens
        cut = _cut(tokens, data.validation_fraction, data.document_token)
        train, validation = tokens[:cut], tokens[cut:]
    else:
        files.append(_read(data.validation_path, data, key="data.validation_path"))
        train, validation = (file.tokens for file in files)
    description = {
        "source": "tokens",
        "paths": [file.path for file in files],
        "sha256": [file.sha256 for file in files],
        "unit": "token",
        "train": {"tokens": len(train)},
        "validation": {"tokens": len(validation)},
    }
    vocabulary = opaque(data.vocabulary_size)
    return Corpus(train, validation, vocabulary, data.document_token, description)


def _read(path: str | Path, data: "TokenData", *, key: str) -> TokenFile:
    dtype = np.dtype(data.dtype).newbyteorder("<")
    name = f"{key}: {quoted(path)}"
    with open_data(path, key=key) as file:
        _require_raw(file, name)
        count, rest = divmod(size_of(file), dtype.itemsize)
        if rest:
            raise BadInput(
                f"{name}: got {size_of(file):,} bytes, expected a multiple of "
                f"{dtype.itemsize}; correct data.dtype {data.dtype}."
            )
        sha256, documents = _scan(file, dtype, data, name)
        tokens = TokenMap(file, dtype, mode="r", shape=(count,))
    if data.document_token is not None and not documents:
        raise BadInput(
            f"{name}: got no id {data.document_token}, expected it at the beginning "
            "of every document; correct data.document_token, or remove the key if the "
            "text has no documents."
        )
    return TokenFile(str(path), tokens, sha256)


# First bytes of files that contain more than ids, and what such a file is.
_CONTAINERS = {
    b"\x93NUMPY": "a NumPy file; write the ids alone with array.tofile(path)",
    b"PK\x03\x04": "a ZIP archive, such as .npz or .pt; write the ids alone",
    b"PAR1": "a Parquet file; write the ids alone",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; write the ids alone",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd; decompress it",
    b"\x1f\x8b\x08\x00": "a file compressed by gzip; decompress it",
    b"\x1f\x8b\x08\x08": "a file compressed by gzip; decompress it",
}


def _require_raw(file: BinaryIO, name: str) -> None:
    """Raise `BadInput` if the file has a header, which would be read as ids."""
    start = file.read(8)
    file.seek(0)
    for magic, found in _CONTAINERS.items():
        if start.startswith(magic):
            raise BadInput(f"{name}: expected raw token ids, got {found}.")


def _scan(
    file: BinaryIO, dtype: np.dtype, data: "TokenData", name: str
) -> tuple[str, int]:
    """Check every id; return the SHA-256 and the number of document tokens."""
    digest, offset, documents = hashlib.sha256(), 0, 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        ids = np.frombuffer(chunk, dtype)
        _check_ids(ids, offset, data.vocabulary_size, name)
        offset += len(ids)
        if data.document_token is not None:
            documents += int(np.count_nonzero(ids == data.document_token))
    return digest.hexdigest(), documents


def _cut(tokens: NDArray[np.integer], fraction: float, token: int | None) -> int:
    """Return where validation begins: the next document, or else the last one."""
    cut = int(len(tokens) * (1 - fraction))
    if token is None:
        return cut
    after = _find(tokens[cut:], token)
    if after is not None:
        return cut + after
    before = _find(tokens[:cut][::-1], token)
    return cut - 1 - (before or 0)


def _find(tokens: NDArray[np.integer], token: int) -> int | None:
    """Return the first position of `token`, searched in chunks."""
    for begin in range(0, len(tokens), _CHUNK):
        found = np.flatnonzero(tokens[begin : begin + _CHUNK] == token)
        if found.size:
            return begin + int(found[0])
    return None


def _check_ids(
    ids: NDArray[np.integer], offset: int, vocabulary_size: int, name: str
) -> None:
    if ids.min() >= 0 and ids.max() < vocabulary_size:
        return
    at = int(np.flatnonzero((ids < 0) | (ids >= vocabulary_size))[0])
    raise BadInput(
        f"{name}: got the id {ids[at]} at position {offset + at:,}, expected 0 to "
        f"{vocabulary_size - 1} (data.vocabulary_size {vocabulary_size}); correct the "
        "size or data.dtype."
    )
