"""Reader of files of token ids, raw little-endian ones or `.npy`, memory-mapped.

One pass in chunks computes the hash, checks the ids and counts the documents. After
that only the pages that a batch needs are loaded.
"""

import hashlib
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data import tokenizer as tokenizers
from jaxlstm.lab.data import tokenizer_files
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.files import open_data, quoted, require_other_files, size_of
from jaxlstm.lab.data.vocabulary import Vocabulary, of_tokenizer, opaque

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


def read_tokens(data: "TokenData", *, vocabulary: Vocabulary | None = None) -> Corpus:
    """Read a file of token ids, or one for each part.

    Without `data.validation_path`, the last `data.validation_fraction` is held out. If
    there is a `data.document_token`, the cut is moved to the next beginning of a
    document, so that no document is in both parts.

    Args:
        data: the section of the config.
        vocabulary: the vocabulary of a run, whose tokenizer is used again.

    Raises:
        BadInput: a file cannot be read, its size does not fit the dtype, an id is not
            below the size of the vocabulary, or the document token does not occur.
    """
    bound = _bound(data, vocabulary)
    files = [_read(data.path, data, bound, key="data.path")]
    if data.validation_path is None:
        tokens = files[0].tokens
        cut = _cut(tokens, data.validation_fraction, data.document_token)
        train, validation = tokens[:cut], tokens[cut:]
    else:
        key = "data.validation_path"
        files.append(_read(data.validation_path, data, bound, key=key))
        train, validation = (file.tokens for file in files)
        require_other_files([files[0].sha256], files[1:])
    description = {
        "source": "tokens",
        "paths": [file.path for file in files],
        "sha256": [file.sha256 for file in files],
        "unit": "token",
        "train": {"tokens": len(train)},
        "validation": {"tokens": len(validation)},
    }
    return Corpus(train, validation, bound.vocabulary, data.document_token, description)


class _Bound(NamedTuple):
    """The vocabulary of a file, the bound of its ids, and what says so."""

    vocabulary: Vocabulary
    ids: int
    source: str


def _bound(data: "TokenData", known: Vocabulary | None) -> _Bound:
    """Return the vocabulary, and the bound that the ids of a file must not reach.

    Raises:
        BadInput: the tokenizer cannot be read, or has more ids than the config says.
    """
    size = data.vocabulary_size
    if data.tokenizer is None:
        assert size is not None  # the config demands one of them
        return _Bound(opaque(size), size, f"data.vocabulary_size {size}")
    if known is not None and known.kind == "tokenizer":
        tokenizer = known.tokenizer
    else:
        tokenizer = tokenizer_files.read(data.tokenizer, key="data.tokenizer")
    ids = tokenizers.facts(tokenizer).size
    if size is not None and ids > size:
        raise BadInput(
            f"data.tokenizer: {quoted(data.tokenizer)}: got {ids:,} ids, expected at "
            f"most data.vocabulary_size, {size:,}; use the tokenizer that made the "
            "ids, or remove data.vocabulary_size."
        )
    vocabulary = of_tokenizer(tokenizer, size=size or ids)
    if data.document_token is not None:
        if data.document_token >= vocabulary.size:
            raise BadInput(
                f"data.document_token: got {data.document_token}, expected an id "
                f"below the size of the tokenizer ({vocabulary.size})."
            )
        vocabulary = vocabulary._replace(document_token=data.document_token)
        ids = max(ids, data.document_token + 1)
    return _Bound(vocabulary, ids, f"the {ids} ids of data.tokenizer")


def _read(path: str | Path, data: "TokenData", bound: _Bound, *, key: str) -> TokenFile:
    dtype = np.dtype(data.dtype).newbyteorder("<")
    name = f"{key}: {quoted(path)}"
    with open_data(path, key=key) as file:
        _require_ids(file, name)
        if file.peek(len(_NPY)).startswith(_NPY):
            dtype, count = _header(file, name)
        else:
            count = _count(file, dtype, name)
        begin = file.tell()
        sha256, documents = _scan(file, dtype, bound, data.document_token, name)
        tokens = TokenMap(file, dtype, mode="r", offset=begin, shape=(count,))
    if data.document_token is not None and not documents:
        raise BadInput(
            f"{name}: got no id {data.document_token}, expected it at the beginning "
            "of every document; correct data.document_token, or remove the key if the "
            "text has no documents."
        )
    return TokenFile(str(path), tokens, sha256)


def _count(file: BufferedReader, dtype: np.dtype, name: str) -> int:
    """Return the number of ids in a raw file."""
    count, rest = divmod(size_of(file), dtype.itemsize)
    if rest:
        raise BadInput(
            f"{name}: got {size_of(file):,} bytes, expected a multiple of "
            f"{dtype.itemsize}; correct data.dtype {dtype.name}."
        )
    return count


def _header(file: BufferedReader, name: str) -> tuple[np.dtype, int]:
    """Read the header of a `.npy` file; return the dtype and the number of ids."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise BadInput(
            f"{name}: cannot be read as a NumPy file ({error}); write it again with "
            "np.save."
        ) from None
    if len(shape) != 1 or dtype.kind not in "iu":
        raise BadInput(
            f"{name}: got an array of shape {shape} and dtype {dtype}, expected token "
            "ids [N] of an integer dtype."
        )
    expected = file.tell() + shape[0] * dtype.itemsize
    if size_of(file) != expected or not shape[0]:
        raise BadInput(
            f"{name}: got {size_of(file):,} bytes, expected {expected:,} for its "
            f"{shape[0]:,} ids; the file is damaged or empty, write it again."
        )
    return dtype, shape[0]


_NPY = b"\x93NUMPY"  # the first bytes of a .npy file
# First bytes of files that contain more than ids, and what such a file is.
_CONTAINERS = {
    b"PK\x03\x04": "a ZIP archive, such as .npz or .pt; write the ids alone",
    b"PAR1": "a Parquet file; write the ids alone",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; write the ids alone",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd; decompress it",
    b"\x1f\x8b\x08\x00": "a file compressed by gzip; decompress it",
    b"\x1f\x8b\x08\x08": "a file compressed by gzip; decompress it",
}


def _require_ids(file: BufferedReader, name: str) -> None:
    """Raise `BadInput` if the file has a header, which would be read as ids."""
    start = file.peek(8)
    for magic, found in _CONTAINERS.items():
        if start.startswith(magic):
            raise BadInput(f"{name}: expected raw token ids or .npy, got {found}.")


def _scan(
    file: BufferedReader,
    dtype: np.dtype,
    bound: _Bound,
    document_token: int | None,
    name: str,
) -> tuple[str, int]:
    """Check every id; return the SHA-256 of the file and the number of documents."""
    offset, documents, begin = 0, 0, file.tell()
    file.seek(0)
    digest = hashlib.sha256(file.read(begin))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        ids = np.frombuffer(chunk, dtype)
        _check_ids(ids, offset, bound, name)
        offset += len(ids)
        if document_token is not None:
            documents += int(np.count_nonzero(ids == document_token))
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


def _check_ids(ids: NDArray[np.integer], offset: int, bound: _Bound, name: str) -> None:
    if ids.min() >= 0 and ids.max() < bound.ids:
        return
    at = int(np.flatnonzero((ids < 0) | (ids >= bound.ids))[0])
    raise BadInput(
        f"{name}: got the id {ids[at]} at position {offset + at:,}, expected 0 to "
        f"{bound.ids - 1} ({bound.source}); correct it or data.dtype."
    )
