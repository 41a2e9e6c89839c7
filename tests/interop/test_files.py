"""Files of unknown origin: each fault is one sentence, and nothing is executed."""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from jaxlstm.interop import files

HUGE = 10**11  # bytes or elements that no test machine can allocate


class Evil:
    """An object whose pickle creates a file when it is loaded."""

    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["EVIL"]) / "executed"),)


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A pickle that would create a folder; the test fails if it exists afterwards."""
    monkeypatch.setenv("EVIL", str(tmp_path))
    yield Evil()
    assert not (tmp_path / "executed").exists()


def refuses(path, message):
    """Assert that reading gives one sentence that begins with the path."""
    with pytest.raises(ValueError, match=message) as caught:
        files.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith(".")
    assert "\n" not in text


# --- any format -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", files.READERS)
def test_an_empty_file_or_a_directory(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"")
    refuses(path, "got an empty file, expected weights")
    path.unlink()
    path.mkdir()
    refuses(path, "got a directory or a device, expected a file")


def test_an_unknown_suffix_or_a_missing_file(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"w": 1}))
    refuses(path, r"got a file named \.pkl, expected one of \.safetensors, \.npz")
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        files.read(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("suffix", "library", "message"),
    [
        (".h5", "h5py", r'needs h5py: pip install "jaxlstm\[keras\]"'),
        (".pt", "torch", r'needs torch >= 2\.6 .*: pip install "jaxlstm\[torch\]"'),
    ],
)
def test_a_missing_library_is_named(suffix, library, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    path = npz_file(tmp_path / f"w{suffix}", {"archive/data.pkl": b"x"})
    with pytest.raises(ImportError, match=message):
        files.read(path)


# --- safetensors ----------------------------------------------------------------------


def safetensors_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length))
    with path.open("ab") as file:
        file.write(text + data)
    return path


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = {"a.b": np.arange(3.0), "c": np.ones((2, 2), ml_dtypes.bfloat16)}
    path.write_bytes(save(arrays))
    got = files.read(path)
    assert got["a.b"].tolist() == [0, 1, 2]
    assert got["c"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),  # overlapping
        ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),  # the same bytes twice
        ({"a": entry(0, 8)}, bytes(4)),  # truncated
        ({"a": entry(0, 8)}, bytes(80)),  # bytes that no tensor has
        ({"a": entry(0, HUGE, (HUGE // 4,))}, bytes(8)),  # 100 GB claimed
        ({"a": entry(0, 8, (2**63, 2**63))}, bytes(8)),  # a size that overflows
        ({"a": entry(0, 8, (3,))}, bytes(8)),  # another shape than size
        ({"a": entry(0, 8, (-2,))}, bytes(8)),
        ({"a": entry(8, 0)}, bytes(8)),
        ({"a": entry(0, 8, dtype="OBJECT")}, bytes(8)),
        (b"[" * 100_000, b""),  # nesting
        (b"no json", b""),
        ([], b""),
    ],
)
def test_hostile_safetensors(header, data, tmp_path):
    path = safetensors_file(tmp_path / "w.safetensors", header, data)
    refuses(path, "got no valid safetensors file")


@pytest.mark.parametrize("length", [HUGE, 2**63, 1000])
def test_safetensors_with_a_header_that_is_longer_than_the_file(length, tmp_path):
    path = safetensors_file(tmp_path / "w.safetensors", {}, bytes(64), length)
    refuses(path, "got no valid safetensors file")


# --- npz ------------------------------------------------------------------------------


def npy(shape, data=b"", dtype="<f4") -> bytes:
    """An array file that claims a shape."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def npz_file(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_npz_are_read(tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, a=np.arange(3.0), b=np.ones((2, 2), np.float16))
    got = files.read(path)
    assert got["a"].tolist() == [0, 1, 2]
    assert got["b"].dtype == np.float16


def test_npz_with_objects_is_not_unpickled(tmp_path, evil):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([evil], object))
    refuses(path, r"a\.npy holds Python objects, which only a pickle can store")
    bad = npz_file(tmp_path / "v.npz", {"a.npy": pickle.dumps(evil)})
    refuses(bad, r"a\.npy is not an array of NumPy")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            npy((HUGE,)),
            r"a\.npy claims \[100000000000\] of float32 \(400,000,000,000 by",
        ),
        (
            npy((2,), bytes(4)),
            r"a\.npy claims \[2\] of float32 \(8 bytes\) and holds 4",
        ),
        (npy((2,), bytes(12)), "and holds 12 bytes"),
        (npy((-2,), bytes(8)), "and holds 8 bytes"),
        (npy((0, 2**70)), r"a\.npy: "),
        (b"", "is not an array of NumPy"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "is not an array of NumPy"),
        (b"\x93NUMPY\x07\x00" + bytes(100), "is not an array of NumPy"),
    ],
)
def test_hostile_npz(member, message, tmp_path):
    refuses(npz_file(tmp_path / "w.npz", {"a.npy": member}), message)


def test_a_zip_bomb(tmp_path):
    zeros = npy((50 * 2**20,), bytes(200 * 2**20))
    path = npz_file(tmp_path / "w.npz", {"a.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**19
    refuses(path, r"claims to hold 209,715,\d+, expected at most 100 times its size")


def test_a_damaged_npz(tmp_path):
    path = npz_file(tmp_path / "w.npz", {"a.npy": npy((1000,), bytes(4000))})
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    refuses(path, "got no valid npz file")
    flipped = bytearray(whole)
    flipped[2000] ^= 1
    path.write_bytes(flipped)
    refuses(path, "got no valid npz file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("a.npy", npy((1,), bytes(4)))
    refuses(path, "got two arrays of one name")


# --- HDF5 -----------------------------------------------------------------------------


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def test_h5_are_read(h5py, tmp_path):
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/lstm/cell/vars/0"] = np.arange(3.0)
        file["vars"] = np.float32(2)
    got = files.read(path)
    assert got["layers/lstm/cell/vars/0"].tolist() == [0, 1, 2]
    assert got["vars"] == 2


def test_the_archive_of_a_keras_model(h5py, tmp_path):
    """Its weights are read; what describes the model may name code and is not."""
    weights = tmp_path / "model.weights.h5"
    with h5py.File(weights, "w") as file:
        file["layers/lstm/cell/vars/0"] = np.arange(3.0)

    def written(**members):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    content = weights.read_bytes()
    path = written(**{"config.json": "{", "model.weights.h5": content})
    assert files.read(path)["layers/lstm/cell/vars/0"].tolist() == [0, 1, 2]
    refuses(written(**{"config.json": "{}"}), "without model.weights.h5")
    refuses(written(**{"model.weights.h5": content[:300]}), "no valid HDF5 file")
    path.write_bytes(b"PK" + bytes(50))
    refuses(path, "no valid .keras file")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2 * files.FREE_EXPANSION))
    refuses(path, "claims to hold")


def test_h5_that_reads_other_files(h5py, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(80))
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros(10)
    path = tmp_path / "w.h5"

    def written(write):
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            write(file)
        return path

    def external(file):
        file.create_dataset("a", (10,), "f8", external=[(str(secret), 0, 80)])

    def virtual(file):
        layout = h5py.VirtualLayout((10,), "f8")
        layout[:] = h5py.VirtualSource(str(other), "x", (10,))
        file.create_virtual_dataset("a", layout)

    def link(file):
        file["g/a"] = h5py.ExternalLink(str(other), "x")

    def soft(file):
        file["a"] = h5py.SoftLink("/a")

    refuses(written(external), "a is stored in another file, expected the data itself")
    refuses(written(virtual), "a is stored in another file, expected the data itself")
    refuses(written(link), "g/a is a link to another object or file")
    refuses(written(soft), "a is a link to another object or file")


def test_hostile_h5(h5py, tmp_path):
    path = tmp_path / "w.h5"

    def written(write):
        with h5py.File(path, "w") as file:
            write(file)
        return path

    def claimed(file):
        file.create_dataset("a", (HUGE,), "f4", chunks=(1024,))

    def contiguous(file):
        file.create_dataset("a", (HUGE,), "f4")

    def bomb(file):
        file.create_dataset("a", data=np.zeros(10**6), compression="gzip")

    def loop(file):
        file.create_group("g")["again"] = file["/"]

    def strings(file):
        file["a"] = ["text"]

    def shared(file):
        file["a"] = np.zeros(1000)
        for n in range(9):
            file[f"g{n}"] = file["a"]

    refuses(
        written(claimed), r"a claims \[100000000000\] of float32 .* and holds 0 byt"
    )
    refuses(written(contiguous), r"a claims \[100000000000\] of float32")
    refuses(written(bomb), "a is compressed, expected plain data")
    refuses(written(loop), "g/again is linked twice, expected a tree")
    refuses(written(strings), "a has dtype object, expected an array of numbers")
    refuses(written(shared), "got arrays of 80,000 bytes, expected at most the")


def test_a_damaged_h5(h5py, tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.arange(1000.0)
    path.write_bytes(path.read_bytes()[:3000])
    refuses(path, "got no valid HDF5 file")
    path.write_bytes(b"no HDF5 at all")
    refuses(path, "got no valid HDF5 file")


# --- torch ----------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_pt_are_read(torch, tmp_path):
    path = tmp_path / "w.pt"
    half = torch.tensor([1.5, -0.0], dtype=torch.bfloat16)
    torch.save({"model": {"w": torch.arange(3.0), "h": half}, "epochs": [1]}, path)
    got = files.read(path)
    assert got["model.w"].tolist() == [0, 1, 2]
    assert (
        got["model.h"].tobytes() == np.array([1.5, -0.0], ml_dtypes.bfloat16).tobytes()
    )
    assert set(got) == {"model.w", "model.h"}


def test_a_pickle_is_not_loaded(tmp_path, evil):
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps(evil))
    refuses(path, "got a file that is not a zip archive, such as a plain pickle")


def test_objects_in_a_pt_are_not_loaded(torch, tmp_path, evil):
    path = tmp_path / "w.pt"
    torch.save({"w": evil}, path)
    refuses(path, "got Python objects, expected tensors only; in a program that has")
    torch.save(torch.nn.Linear(2, 2), path)
    refuses(path, r"write torch\.save\(model\.state_dict\(\), path\)")


def test_tensors_that_claim_more_than_they_hold(torch, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(1).expand(HUGE)}, path)
    refuses(path, r"w claims \[100000000000\] \(400,000,000,000 bytes\) and holds 4 by")
    torch.save({"w": torch.zeros(2, device="meta")}, path)
    refuses(path, "w has no data")
    torch.save({"w": torch.zeros(2, 2).to_sparse()}, path)
    refuses(path, "w is not a dense tensor")


def test_nested_without_end(torch, tmp_path):
    path, endless = tmp_path / "w.pt", []
    endless.append(endless)
    torch.save(endless, path)
    refuses(path, "got more than 50 nested dicts and lists")
    wide = [1.0]
    for _ in range(20):
        wide = [wide] * 10  # 10^20 paths to one number
    torch.save(wide, path)
    refuses(path, "or 1,000,000 values, expected the weights of a model")


def test_a_damaged_or_compressed_pt(torch, tmp_path):
    path, bomb = tmp_path / "w.pt", tmp_path / "bomb.pt"
    torch.save({"w": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    refuses(npz_file(bomb, members, zipfile.ZIP_DEFLATED), "got a compressed archive")
    short = {n: d[:8] if n.endswith("data/0") else d for n, d in members.items()}
    refuses(npz_file(bomb, short), "got no valid file of torch.save")
    path.write_bytes(path.read_bytes()[:2000])
    refuses(path, "got a file that is not a zip archive")
