"""Tests of token files: memory mapping, checks of the ids, splits and errors."""

import gzip
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
from jaxlstm.lab.data import Streams, read, tokens, validation_windows


def write_tokens(path: Path, ids, dtype: str = "uint16") -> str:
    np.asarray(ids, np.dtype(dtype).newbyteorder("<")).tofile(path)
    return str(path)


def error_message(**fields) -> str:
    """Return the message of the error."""
    with pytest.raises(BadInput) as caught:
        read(TokenData(**{"vocabulary_size": 100} | fields))
    message = str(caught.value)
    assert message.isprintable()
    return message


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32"])
def test_last_part_is_held_out(dtype, tmp_path):
    path = write_tokens(tmp_path / "a.bin", np.arange(100), dtype)
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


def test_a_file_that_is_cut_short_while_it_is_read_is_a_sentence(tmp_path):
    """Reading a page beyond the end of a file would end the process with SIGBUS."""
    path = write_tokens(tmp_path / "a.bin", np.arange(50_000) % 100)
    corpus = read(TokenData(path=path, vocabulary_size=100))
    streams = Streams(corpus.train, batch_size=4, window=8)
    assert type(streams.batch(0).inputs) is np.ndarray
    os.truncate(path, 5000)
    windows = validation_windows(corpus.validation, streams=2, window=8)
    for act in (
        lambda: streams.batch(1),
        lambda: next(windows),
        lambda: corpus.train[9],
    ):
        with pytest.raises(
            BadInput, match="got 5,000 bytes, expected at least 100,000"
        ):
            act()


@pytest.mark.parametrize(
    ("starts", "cut"), [([0, 50, 93, 97], 93), ([0, 90], 90), ([0, 40, 60], 60)]
)
@pytest.mark.parametrize("chunk", [2, 14, 1 << 22])
def test_no_document_is_in_both_parts(starts, cut, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    ids = np.ones(100, int)
    ids[starts] = 7
    path = write_tokens(tmp_path / "a.bin", ids)
    corpus = read(TokenData(path=path, vocabulary_size=8, document_token=7))
    assert (len(corpus.train), len(corpus.validation)) == (cut, 100 - cut)
    assert corpus.document_token == 7


def test_separate_validation_file(tmp_path):
    train = write_tokens(tmp_path / "train.bin", np.arange(50))
    held_out = write_tokens(tmp_path / "validation.bin", np.arange(9))
    corpus = read(TokenData(path=train, validation_path=held_out, vocabulary_size=50))
    assert (len(corpus.train), len(corpus.validation)) == (50, 9)


@pytest.mark.parametrize("chunk", [4, 1 << 22])
@pytest.mark.parametrize(
    ("dtype", "wrong"), [("uint16", 100), ("int32", -1), ("uint32", 2**32 - 1)]
)
def test_id_outside_the_vocabulary_is_refused(
    dtype, wrong, chunk, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    ids = np.arange(60, dtype=np.int64)
    ids[[41, 50]] = wrong
    message = error_message(
        path=write_tokens(tmp_path / "a.bin", ids, dtype), dtype=dtype
    )
    assert f"the id {wrong} at position 41" in message
    assert "data.vocabulary_size 100" in message


def test_size_that_does_not_fit_the_dtype_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert "data.dtype uint16" in error_message(path=str(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    ("save", "found"),
    [
        (lambda file: np.savez(file, np.arange(100, dtype="u2")), "a ZIP archive"),
        (lambda file: file.write(gzip.compress(b"a" * 100)), "gzip"),
    ],
)
def test_a_file_with_a_header_is_refused(save, found, tmp_path):
    path = tmp_path / "ids.bin"
    with path.open("wb") as file:
        save(file)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * (len(content) % 2))
    message = error_message(path=str(path), vocabulary_size=65_535)
    assert found in message
    assert "data.path" in message


def test_missing_document_token_is_refused(tmp_path):
    path = write_tokens(tmp_path / "a.bin", np.arange(60))
    message = error_message(path=path, document_token=99)
    assert 'a.bin": got no id 99, expected' in message
    assert "correct data.document_token" in message


def test_single_document_is_refused(tmp_path):
    path = write_tokens(tmp_path / "a.bin", [7, 1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 3])
    assert "0 training tokens" in error_message(path=path, document_token=7)


def test_identical_training_and_validation_files_are_refused(tmp_path):
    path = write_tokens(tmp_path / "a.bin", np.arange(60))
    assert "got the same content as the training text, expected" in error_message(
        path=path, validation_path=path
    )


@given(content=st.binary(max_size=60), data=st.data())
def test_random_bytes_give_a_corpus_or_bad_input(content, data, tmp_path_factory):
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
        message = str(refused)
        assert message.isprintable()
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


def test_large_file_takes_little_memory(tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    command = [sys.executable, "-c", MEASURED, str(path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    count, kibibytes = map(int, result.stdout.split())
    assert count == 90_000_000
    assert kibibytes < 48 * 1024


# -- unreadable files ----------------------------------------------------------------


def test_missing_file_suggests_a_similar_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_tokens(tmp_path / "data" / "train.bin", [1])
    assert (
        '"data/trian.bin" does not exist; did you mean "data/train.bin"?'
        in error_message(path="data/trian.bin")
    )
    assert '"dat" does not exist; did you mean "data"?' in error_message(
        path="dat/train.bin"
    )
    assert f'current directory, "{Path.cwd()}".' in error_message(
        path="something/else.bin"
    )
    assert error_message(path="/something/else.bin").endswith(
        '"/something" does not exist.'
    )


def test_directory_and_empty_file_are_refused(tmp_path):
    assert ": got a directory, expected a file." in error_message(path=str(tmp_path))
    (tmp_path / "a.bin").touch()
    assert ": got an empty file, expected data." in error_message(
        path=str(tmp_path / "a.bin")
    )


def test_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(
        target=error_message, kwargs={"path": str(tmp_path / "pipe")}
    )
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert ": got a pipe or a device, expected a regular file." in error_message(
        path="/dev/zero"
    )


@pytest.mark.parametrize(
    "path",
    ["a\0b", "x" * 300, "~nobody-at-all/a", "new\nline", "\udc80.bin", "\x1b[2J"],
)
def test_invalid_paths_are_refused(path):
    assert error_message(path=path).startswith("data.path: ")


def test_broken_links_are_refused(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert "does not exist" in error_message(path=str(tmp_path / "dangling"))
    assert "cannot be read" in error_message(path=str(tmp_path / "ring"))
    assert "cannot be read" in error_message(
        path=str(Path(write_tokens(tmp_path / "a", [1])) / "b")
    )


@pytest.mark.parametrize("method", ["open", "stat"])
def test_permission_error_is_reported(method, tmp_path, monkeypatch):
    path = write_tokens(tmp_path / "a.bin", np.arange(9))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, method, denied)
    assert "cannot be read (Permission denied)." in error_message(path=path)


def test_read_error_is_reported(tmp_path, monkeypatch):
    path = write_tokens(tmp_path / "a.bin", np.arange(9))

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tokens, "_scan", fails)
    assert "cannot be read (Input/output error)." in error_message(path=path)


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tokens(tmp_path / "ä b\n.bin", np.arange(60))
    read(TokenData(path="~/ä b\n.bin", vocabulary_size=60))
