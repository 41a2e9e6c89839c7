"""Token files: mapped, not loaded; every id looked at; whole documents held out."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.schema import TokenData
from jaxlstm.lab.data import read, tokens


def written(path: Path, ids, dtype: str = "uint16") -> str:
    np.asarray(ids, np.dtype(dtype).newbyteorder("<")).tofile(path)
    return str(path)


def refusal(**fields) -> str:
    """The sentence that a config gets."""
    with pytest.raises(BadInput) as caught:
        read(TokenData(**{"vocabulary_size": 100} | fields))
    sentence = str(caught.value)
    assert sentence.isprintable()
    return sentence


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
def test_the_last_part_is_held_out(dtype, tmp_path):
    path = written(tmp_path / "a.bin", np.arange(100), dtype)
    corpus = read(TokenData(path=path, dtype=dtype, vocabulary_size=100))
    assert corpus.train.tolist() == list(range(90))
    assert corpus.validation.tolist() == list(range(90, 100))
    assert isinstance(corpus.train, np.memmap)
    assert corpus.vocabulary.size == 100
    assert corpus.description == {
        "source": "tokens",
        "paths": [path],
        "sha256": [hashlib.sha256(Path(path).read_bytes()).hexdigest()],
        "unit": "token",
        "train": {"tokens": 90},
        "validation": {"tokens": 10},
    }


@pytest.mark.parametrize(
    ("starts", "cut"), [([0, 50, 93, 97], 93), ([0, 90], 90), ([0, 40, 60], 60)]
)
@pytest.mark.parametrize("chunk", [2, 14, 1 << 22])
def test_no_document_lies_on_both_sides(starts, cut, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    ids = np.ones(100, int)
    ids[starts] = 7
    path = written(tmp_path / "a.bin", ids)
    corpus = read(TokenData(path=path, vocabulary_size=8, document_token=7))
    assert (len(corpus.train), len(corpus.validation)) == (cut, 100 - cut)
    assert corpus.document_token == 7


def test_a_validation_file_of_its_own(tmp_path):
    train = written(tmp_path / "train.bin", np.arange(50))
    held_out = written(tmp_path / "validation.bin", np.arange(9))
    corpus = read(TokenData(path=train, validation_path=held_out, vocabulary_size=50))
    assert (len(corpus.train), len(corpus.validation)) == (50, 9)


@pytest.mark.parametrize("chunk", [4, 1 << 22])
@pytest.mark.parametrize(
    ("dtype", "wrong"), [("uint16", 100), ("int32", -1), ("uint32", 2**32 - 1)]
)
def test_an_id_outside_the_vocabulary_is_named(
    dtype, wrong, chunk, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    ids = np.arange(60, dtype=np.int64)
    ids[[41, 50]] = wrong
    sentence = refusal(path=written(tmp_path / "a.bin", ids, dtype), dtype=dtype)
    assert f"the id {wrong} at position 41" in sentence
    assert "data.vocabulary_size 100" in sentence


def test_a_file_of_another_dtype_is_noticed(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert "data.dtype uint16" in refusal(path=str(tmp_path / "a.bin"))


def test_a_document_token_that_never_comes_is_refused(tmp_path):
    path = written(tmp_path / "a.bin", np.arange(60))
    assert "data.document_token 99" in refusal(path=path, document_token=99)


def test_one_single_document_cannot_be_split(tmp_path):
    path = written(tmp_path / "a.bin", [7, 1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 3])
    assert "training part" in refusal(path=path, document_token=7)


def test_a_validation_file_that_is_the_training_file_is_refused(tmp_path):
    path = written(tmp_path / "a.bin", np.arange(60))
    assert "training text itself" in refusal(path=path, validation_path=path)


@given(content=st.binary(max_size=60), data=st.data())
def test_any_bytes_are_a_corpus_or_a_sentence(content, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "garbage.bin"
    path.write_bytes(content)
    size = data.draw(st.sampled_from([2, 256, 60_000, 2**31 - 1]))
    config = TokenData(
        path=str(path),
        dtype=data.draw(st.sampled_from(["uint8", "uint16", "uint32", "int32"])),
        vocabulary_size=size,
        document_token=data.draw(st.none() | st.integers(0, size - 1)),
        validation_fraction=data.draw(st.floats(0.1, 0.9)),
    )
    try:
        corpus = read(config)
    except BadInput as refused:
        sentence = str(refused)
        assert sentence.isprintable()
    else:
        assert min(map(len, corpus[:2])) >= 2
        assert min(map(np.min, corpus[:2])) >= 0
        assert max(map(np.max, corpus[:2])) < size


MEASURED = """
import resource, sys
from jaxlstm.lab.data import Streams, read, validation_windows
from jaxlstm.lab.config.schema import TokenData

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
corpus = read(TokenData(path=sys.argv[1], vocabulary_size=50_257))
streams = Streams(corpus.train, batch_size=32, window=128)
for step in range(20):
    streams.batch(step)
next(validation_windows(corpus.validation, streams=32, window=128))
print(len(corpus.train), peak() - before)
"""


def test_two_hundred_megabytes_take_little_memory(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    command = [sys.executable, "-c", MEASURED, str(path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    count, kibibytes = map(int, result.stdout.split())
    assert count == 90_000_000
    assert kibibytes < 48 * 1024


# -- files, whatever is in them ------------------------------------------------------


def test_a_missing_file_and_its_near_namesake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.bin", [1])
    assert 'no "data/trian.bin"; did you mean "data/train.bin"?' in refusal(
        path="data/trian.bin"
    )
    assert 'no "dat"; did you mean "data"?' in refusal(path="dat/train.bin")
    assert f'current directory, "{Path.cwd()}".' in refusal(path="something/else.bin")
    assert refusal(path="/something/else.bin").endswith('there is no "/something".')


def test_a_directory_and_an_empty_file(tmp_path):
    assert "is a directory" in refusal(path=str(tmp_path))
    (tmp_path / "a.bin").touch()
    assert "is empty" in refusal(path=str(tmp_path / "a.bin"))


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=refusal, kwargs={"path": str(tmp_path / "pipe")})
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "a pipe or a device" in refusal(path="/dev/zero")


@pytest.mark.parametrize(
    "path",
    ["a\0b", "x" * 300, "~nobody-at-all/a", "new\nline", "\udc80.bin", "\x1b[2J"],
)
def test_a_strange_path_is_a_sentence(path):
    assert refusal(path=path).startswith("data.path: ")


def test_links_to_nothing_and_in_a_ring(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert "there is no" in refusal(path=str(tmp_path / "dangling"))
    assert "cannot be read" in refusal(path=str(tmp_path / "ring"))
    assert "cannot be read" in refusal(
        path=str(Path(written(tmp_path / "a", [1])) / "b")
    )


@pytest.mark.parametrize("method", ["open", "stat"])
def test_a_file_that_may_not_be_read(method, tmp_path, monkeypatch):
    path = written(tmp_path / "a.bin", np.arange(9))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, method, denied)
    assert "cannot be read: Permission denied" in refusal(path=path)


def test_a_disk_that_fails_while_reading(tmp_path, monkeypatch):
    path = written(tmp_path / "a.bin", np.arange(9))

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tokens, "_scan", fails)
    assert "cannot be read: Input/output error" in refusal(path=path)


def test_a_path_may_begin_at_home_and_hold_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "ä b\n.bin", np.arange(60))
    read(TokenData(path="~/ä b\n.bin", vocabulary_size=60))
