"""Tokens that somebody else made: a flat file of little-endian ids, never loaded whole.

One pass in chunks reads the hash, the largest id and the document boundaries. After
that the file is mapped, and only the pages that a window touches come to memory.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.files import open_data, quoted, size_of
from jaxlstm.lab.data.vocabulary import opaque

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import TokenData

_CHUNK = 1 << 22  # bytes


class TokenFile(NamedTuple):
    """A mapped file whose ids are all sound."""

    path: str
    tokens: NDArray[np.integer]
    sha256: str


def read_tokens(data: "TokenData") -> Corpus:
    """A `.bin` file of ids as nanoGPT and others write them, or one for each part.

    Without `data.validation_path` the last `data.validation_fraction` is held out,
    and if `data.document_token` says where documents begin, from the next document
    on, so that no document lies on both sides.

    Raises:
      BadInput: if a file cannot be read, its size does not fit the dtype, an id is
        not below `data.vocabulary_size`, or no document token is found.
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
        count, rest = divmod(size_of(file), dtype.itemsize)
        if rest:
            raise BadInput(
                f"{name} ends {rest} bytes after its last whole id, at "
                f"{dtype.itemsize} bytes each; is data.dtype {data.dtype} right?"
            )
        sha256, documents = _scan(file, dtype, data, name)
        tokens = np.memmap(file, dtype, mode="r", shape=(count,))
    if data.document_token is not None and not documents:
        raise BadInput(
            f"{name} never holds data.document_token {data.document_token}; correct "
            "it, or leave it out if the text is one stream."
        )
    return TokenFile(str(path), tokens, sha256)


def _scan(
    file: BinaryIO, dtype: np.dtype, data: "TokenData", name: str
) -> tuple[str, int]:
    """The hash of a file and its document tokens, once every id has been looked at."""
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
    """Where the held-out part begins: at the next document, or else the last one."""
    wanted = int(len(tokens) * (1 - fraction))
    if token is None:
        return wanted
    after = _find(tokens[wanted:], token)
    if after is not None:
        return wanted + after
    before = _find(tokens[:wanted][::-1], token)
    return wanted - 1 - (before or 0)


def _find(tokens: NDArray[np.integer], token: int) -> int | None:
    """The first position of `token`, looked for a stretch at a time."""
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
        f"{name} holds the id {ids[at]} at position {offset + at:,}, but "
        f"data.vocabulary_size {vocabulary_size} allows 0 to {vocabulary_size - 1}; "
        "correct it, or data.dtype."
    )
