"""Arrays from files of unknown origin: `.safetensors`, `.npz`, `.h5`, `.keras`, `.pt`.

    nothing is executed      pickles are refused; `.pt` is read with weights_only=True
    nothing outside is read  links and external or virtual data of HDF5 are refused
    sizes first              no array is allocated before its size is known to be in
                             the file; archives may not expand without bound

A fault is a `ValueError` of one sentence that begins with the path. A file that cannot
be opened is an `OSError`.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

Arrays = dict[str, np.ndarray]

# A compressed archive may expand to this many times its size, and to this many bytes
# in any case. Weights compress to a half at best; deflate allows a factor of 1000.
MAX_EXPANSION = 100
FREE_EXPANSION = 64 * 2**20

KERAS_WEIGHTS = "model.weights.h5"

MAX_DEPTH = 50
MAX_NODES = 1_000_000

NEEDS_H5PY = 'reading .h5 and .keras files needs h5py: pip install "jaxlstm[keras]"'
NEEDS_TORCH = (
    "reading .pt files needs torch >= 2.6 (before, weights_only=True did not prevent "
    'the execution of code): pip install "jaxlstm[torch]"'
)


def is_path(source: Any) -> bool:
    """Return whether a source is the path of a file."""
    return isinstance(source, str | os.PathLike)


def read(path: str | os.PathLike[str]) -> Arrays:
    """Return the arrays of a file by name.

    Names of groups in `.h5` files and of nested dicts in `.pt` files are joined with
    "/" and ".".

    Args:
        path: a file named `.safetensors`, `.npz`, `.h5`, `.hdf5`, `.keras`, `.pt`,
            `.pth`, `.ckpt` or `.bin`.

    Raises:
        ValueError: the file is damaged, unsafe, or of another format.
        OSError: it cannot be opened.
        ImportError: its format needs a library that is not installed.

    Example:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "weights.npz"
        >>> np.savez(path, w=np.ones((2, 3)))
        >>> read(path)["w"].shape
        (2, 3)
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: got a directory or a device, expected a file.")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(
            f"{path}: got a file named {suffix or 'without a suffix'}, expected one of "
            f"{', '.join(READERS)}."
        )
    with path.open("rb") as file:  # an OSError that names the path
        start = file.read(8)
    if not start:
        raise ValueError(f"{path}: got an empty file, expected weights.")
    return READERS[suffix](path)


# -- safetensors -----------------------------------------------------------------------


def _read_safetensors(path: Path) -> Arrays:
    """Read a safetensors file.

    The library reads the header first and refuses one that is longer than 100 MB or
    whose tensors overlap, leave holes or end behind the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: got no valid safetensors file ({_one_line(error)})."
        ) from None


# -- npz -------------------------------------------------------------------------------


def _read_npz(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_expansion(path, archive)
            return {
                info.filename.removesuffix(".npy"): _read_member(path, archive, info)
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: got no valid npz file ({_one_line(error)})."
        ) from None
    except RuntimeError as error:  # zipfile raises it for an encrypted member
        raise ValueError(f"{path}: {_one_line(error)}.") from None


def _check_expansion(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise a `ValueError` if the members are larger than any weights would be."""
    size = path.stat().st_size
    members = archive.infolist()
    total = sum(info.file_size for info in members)
    packed = sum(info.compress_size for info in members)
    if packed > size or total > max(FREE_EXPANSION, MAX_EXPANSION * size):
        raise ValueError(
            f"{path}: got a file of {size:,} bytes that claims to hold {total:,}, "
            f"expected at most {MAX_EXPANSION} times its size."
        )
    if len({info.filename for info in members}) < len(members):
        raise ValueError(f"{path}: got two arrays of one name, expected unique names.")


def _read_member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> np.ndarray:
    """Return one array, after its header has been compared with the member's size."""
    with archive.open(info) as member:
        try:
            shape, dtype = _npy_header(member)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise ValueError(
                f"{path}: {info.filename} is not an array of NumPy, expected .npy "
                "files in the archive."
            ) from None
        if dtype.hasobject:
            raise ValueError(
                f"{path}: {info.filename} holds Python objects, which only a pickle "
                "can store; expected numbers."
            )
        held = info.file_size - member.tell()
        if (needed := math.prod(shape) * dtype.itemsize) != held:
            raise ValueError(
                f"{path}: {info.filename} claims {show(shape)} of {dtype} "
                f"({needed:,} bytes) and holds {held:,} bytes."
            )
    with archive.open(info) as member:
        try:
            return np.lib.format.read_array(member, allow_pickle=False)
        except (OverflowError, ValueError) as error:  # an axis longer than 2^63
            raise ValueError(f"{path}: {info.filename}: {_one_line(error)}.") from None


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = read[min(version, (2, 0))](member)
    return shape, dtype


# -- HDF5 ------------------------------------------------------------------------------


def _read_h5(path: Path, content: bytes | None = None) -> Arrays:
    """Read an HDF5 file, or the content of one that was a member of an archive."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(NEEDS_H5PY) from error

    size = path.stat().st_size if content is None else len(content)
    try:
        with h5py.File(path if content is None else io.BytesIO(content), "r") as file:
            datasets = dict(_datasets(path, file))
            total = sum(dataset.nbytes for dataset in datasets.values())
            if total > size:
                raise ValueError(
                    f"{path}: got arrays of {total:,} bytes, expected at most the "
                    f"{size:,} bytes of the file."
                )
            return {name: dataset[()] for name, dataset in datasets.items()}
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: got no valid HDF5 file ({_one_line(error)})."
        ) from None


def _read_keras(path: Path) -> Arrays:
    """Read the weights of a whole model, as `keras.Model.save` writes it.

    The description of the model in the archive is not read: it may name functions.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_expansion(path, archive)
            if KERAS_WEIGHTS not in archive.namelist():
                raise ValueError(
                    f"{path}: got an archive without {KERAS_WEIGHTS}, expected a model "
                    "as keras.Model.save writes it."
                )
            return _read_h5(path, archive.read(KERAS_WEIGHTS))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: got no valid .keras file ({_one_line(error)})."
        ) from None


def _datasets(path: Path, file: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numeric datasets of a file, by an iteration without recursion.

    A group that is a member of itself is found by the addresses of its objects.
    """
    import h5py
    from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

    pending, seen = [("", file)], set()
    while pending:
        name, group = pending.pop()
        address = h5o.get_info(group.id).addr
        if address in seen:
            raise ValueError(f"{path}: {name} is linked twice, expected a tree.")
        seen.add(address)
        for key in group:
            inner = f"{name}/{key}".removeprefix("/")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(
                    f"{path}: {inner} is a link to another object or file, expected "
                    "the data itself."
                )
            item = group[key]
            if isinstance(item, h5py.Group):
                pending.append((inner, item))
            elif isinstance(item, h5py.Dataset):
                _check_dataset(path, inner, item)
                yield inner, item


def _check_dataset(path: Path, name: str, dataset: Any) -> None:
    if dataset.external or dataset.is_virtual:
        raise ValueError(
            f"{path}: {name} is stored in another file, expected the data itself."
        )
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise ValueError(
            f"{path}: {name} has dtype {dataset.dtype}, expected an array of numbers."
        )
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(
            f"{path}: {name} is compressed, expected plain data as Keras writes it."
        )
    if dataset.id.get_storage_size() != dataset.nbytes:
        raise ValueError(
            f"{path}: {name} claims {show(dataset.shape)} of {dataset.dtype} "
            f"({dataset.nbytes:,} bytes) and holds "
            f"{dataset.id.get_storage_size():,} bytes."
        )


# -- torch -----------------------------------------------------------------------------


def _read_torch(path: Path) -> Arrays:
    """Read the tensors of a file of `torch.save`, in nested dicts and lists."""
    _check_torch_archive(path)
    torch = _torch()
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler and the reader raise many types
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ValueError(
                f"{path}: got Python objects, expected tensors only; in a program that "
                "has their classes, write torch.save(model.state_dict(), path)."
            ) from None
        raise ValueError(
            f"{path}: got no valid file of torch.save ({_one_line(error)})."
        ) from None
    with error_prefix(str(path)):
        return tensors_to_numpy(flatten(loaded, "."))


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(NEEDS_TORCH) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ImportError(f"got torch {torch.__version__}; {NEEDS_TORCH}")
    return torch


def _check_torch_archive(path: Path) -> None:
    """Raise a `ValueError` for a file that is not the plain zip of torch.save."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: got a file that is not a zip archive, such as a plain pickle, "
            "expected the archive that torch.save writes since torch 1.6."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(
            f"{path}: got no valid file of torch.save ({_one_line(error)})."
        ) from None
    total, size = sum(info.file_size for info in members), path.stat().st_size
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise ValueError(
            f"{path}: got a compressed archive, such as one of torch.jit.save, "
            "expected a plain one as torch.save writes it."
        )
    if total > size:
        raise ValueError(
            f"{path}: got a file of {size:,} bytes that claims to hold {total:,}."
        )


def tensors_to_numpy(tensors: Mapping[str, Any]) -> Arrays:
    """Return tensors as arrays; values that are neither are left out.

    Raises:
        ValueError: a tensor is not dense, or claims more elements than its storage has.
    """
    arrays = {}
    for name, value in tensors.items():
        if isinstance(value, np.ndarray | np.generic):
            arrays[name] = np.asarray(value)
        elif hasattr(value, "detach"):
            arrays[name] = _tensor_to_numpy(name, value)
        elif hasattr(value, "__array__"):
            arrays[name] = np.asarray(value)
    return arrays


def _tensor_to_numpy(name: str, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        raise ValueError(f"{name} is not a dense tensor, expected numbers.")
    if tensor.is_meta:
        raise ValueError(f"{name} has no data (device meta), expected numbers.")
    stored = tensor.untyped_storage().nbytes()
    if (needed := tensor.numel() * tensor.element_size()) > stored:
        raise ValueError(
            f"{name} claims {show(tuple(tensor.shape))} ({needed:,} bytes) and holds "
            f"{stored:,} bytes."
        )
    tensor = tensor.cpu().contiguous()
    if str(tensor.dtype) == "torch.bfloat16":  # NumPy has none of its own
        bits = tensor.reshape(-1).view(_torch().int16).numpy()
        return bits.view(ml_dtypes.bfloat16).reshape(tuple(tensor.shape))
    try:
        return tensor.numpy()
    except TypeError as error:
        raise ValueError(f"{name}: {_one_line(error)}.") from None


def flatten(tree: Any, separator: str) -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their path.

    Raises:
        ValueError: the tree is deeper or larger than any model; a list that contains
            itself has no end.

    Example:
        >>> flatten({"model": {"w": 1.0}, "epoch": [3, 4]}, ".")
        {'model.w': 1.0, 'epoch.0': 3, 'epoch.1': 4}
    """
    leaves: dict[str, Any] = {}
    pending, visited = [("", 0, tree)], 0
    while pending:
        name, depth, node = pending.pop()
        visited += 1
        if depth > MAX_DEPTH or visited > MAX_NODES:
            raise ValueError(
                f"got more than {MAX_DEPTH} nested dicts and lists or {MAX_NODES:,} "
                "values, expected the weights of a model."
            )
        if isinstance(node, Mapping):
            children = node.items()
        elif isinstance(node, list | tuple):
            children = enumerate(node)
        else:
            leaves[name] = node
            continue
        prefix = name + separator if name else ""
        inner = [(f"{prefix}{key}", depth + 1, child) for key, child in children]
        pending += reversed(inner)
    return leaves


def _one_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:200]


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".keras": _read_keras,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".ckpt": _read_torch,
    ".bin": _read_torch,
}
