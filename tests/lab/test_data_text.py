"""Tests of the text readers: contents and disjointness of the parts, and errors."""

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.schema import PythonData, TextData
from jaxlstm.lab.data import read, text
from jaxlstm.lab.data.documents import split_documents


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(chr(97 + n % 20) for n in range(1000)), "utf-8")
    return path


def library(folder: Path, monkeypatch, **files: str | bytes) -> None:
    """Replace the standard library with these files."""
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (folder / f"{name}.py").write_bytes(content)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))


# -- the split --------------------------------------------------------------------


@given(st.lists(st.text("ab", max_size=3)), st.floats(0.01, 0.99))
def test_split_partitions_the_documents(documents, fraction):
    train, validation = split_documents(documents, fraction)
    assert sorted([*train, *validation]) == sorted(documents)
    assert not set(train) & set(validation)


@given(st.integers(1, 300), st.floats(0.01, 0.99))
def test_held_out_documents_are_evenly_spaced(count, fraction):
    documents = [str(n) for n in range(count)]
    held_out = split_documents(documents, fraction).validation
    expected = max(fraction * count, min(count - 1, 1) / 2)  # at least one of several
    assert abs(len(held_out) - expected) <= 0.5 + 1e-9
    gaps = np.diff([int(document) for document in held_out])
    assert all(abs(gap - 1 / fraction) < 1 + 1e-6 for gap in gaps)


def test_a_tenth_holds_out_the_fifth_of_every_ten():
    held_out = split_documents([str(n) for n in range(40)], 0.1).validation
    assert held_out == ["4", "14", "24", "34"]


def test_held_out_documents_have_all_lengths():
    documents = ["x" * n + f"{n:03}" for n in reversed(range(200))]
    train, validation = split_documents(documents, 0.1)
    assert [*map(len, validation)] == [*range(197, 6, -10)]
    assert abs(sum(map(len, validation)) / sum(map(len, documents)) - 0.1) < 0.005
    assert train == [document for document in documents if document not in validation]


# -- the standard library ---------------------------------------------------------


def test_standard_library_is_a_corpus_of_documents():
    corpus = read(PythonData())
    again = read(PythonData())
    assert all(map(np.array_equal, corpus[:2], again[:2]))
    assert corpus.description == again.description
    train, validation = corpus.description["train"], corpus.description["validation"]
    assert train["tokens"] > 2_000_000
    share = validation["characters"] / (train["characters"] + validation["characters"])
    assert 0.05 < share < 0.2
    for part, tokens in (("train", corpus.train), ("validation", corpus.validation)):
        starts = int((tokens == corpus.document_token).sum())
        assert tokens[0] == corpus.document_token
        assert starts == corpus.description[part]["documents"]


def test_no_file_of_the_standard_library_is_in_both_parts():
    corpus = read(PythonData(unit="byte"))
    parts = []
    for tokens in (corpus.train, corpus.validation):
        cuts = np.flatnonzero(tokens == corpus.document_token)[1:]
        files = np.split(tokens, cuts)
        parts.append({hashlib.sha256(file.tobytes()).digest() for file in files})
    assert not parts[0] & parts[1]
    assert all(parts)


def test_encoding_declarations_are_respected(tmp_path, monkeypatch):
    library(
        tmp_path,
        monkeypatch,
        a="x = 'é'\n",
        b="# coding: latin-1\n# é\r\n".encode("latin-1"),
        c=b"\xef\xbb\xbf# bom\n",
        d="",
        e="print()\n",
    )
    corpus = read(PythonData(unit="byte", validation_fraction=0.25))
    decode = corpus.vocabulary.decode
    assert decode(corpus.validation) == "x = 'é'\n"
    assert decode(corpus.train) == "# coding: latin-1\n# é\n# bom\nprint()\n"


def test_hash_depends_on_the_contents(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, a="one = 1\n", b="two = 2\n")
    first = read(PythonData(validation_fraction=0.5)).description["sha256"]
    library(tmp_path, monkeypatch, b="two = 3\n")
    assert read(PythonData(validation_fraction=0.5)).description["sha256"] != first


def test_python_without_source_files_is_refused(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch)
    with pytest.raises(BadInput, match=r"got no source files in .*, expected those"):
        read(PythonData())


@pytest.mark.parametrize(
    "content", [b"\xff\n", b"# coding: nonsense\n", b"# coding: hex\n0"]
)
def test_undecodable_source_file_is_refused(content, tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, good="x = 1\n", strange=content)
    with pytest.raises(BadInput, match=r'strange\.py": cannot be decoded'):
        read(PythonData())


# -- a text file ------------------------------------------------------------------


def test_text_without_documents_is_cut_once(book):
    corpus = read(TextData(path=str(book)))
    whole = book.read_text("utf-8")
    decode = corpus.vocabulary.decode
    assert decode(corpus.train) == whole[:900]
    assert decode(corpus.validation) == whole[900:]
    assert corpus.document_token is None
    assert corpus.description == {
        "source": "text",
        "paths": [str(book)],
        "sha256": [hashlib.sha256(whole.encode()).hexdigest()],
        "unit": "character",
        "train": {"tokens": 900, "characters": 900, "documents": 1},
        "validation": {"tokens": 100, "characters": 100, "documents": 1},
    }


def test_split_sizes_of_tiny_shakespeare(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be " * 185_899, "utf-8")
    corpus = read(TextData(path=str(path)))
    assert (len(corpus.train), len(corpus.validation)) == (1_003_854, 111_540)


def test_vocabulary_is_that_of_the_training_part(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ab" * 9 + "cd", "utf-8")
    corpus = read(TextData(path=str(path)))
    assert corpus.vocabulary.symbols == "ab"
    assert corpus.validation.tolist() == [0, 0]


@pytest.mark.parametrize("unit", ["character", "byte"])
def test_documents_are_whole_and_begin_with_a_token(unit, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ä;bc;cc;;dbä;ee;cb;gg;ä;", "utf-8", newline="")
    corpus = read(
        TextData(
            path=str(path), unit=unit, document_separator=";", validation_fraction=0.25
        )
    )
    documents = {}
    for name in ("train", "validation"):
        tokens = getattr(corpus, name)
        starts = np.flatnonzero(tokens == corpus.document_token)
        cut = np.split(tokens, starts)
        assert cut[0].size == 0
        documents[name] = [corpus.vocabulary.decode(part) for part in cut[1:]]
    assert documents == {
        "train": ["ä", "bc", "cc", "dbä", "ee", "gg", "ä"],
        "validation": ["cb"],
    }


def test_separate_validation_file(book, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("tacky", "utf-8")
    corpus = read(TextData(path=str(book), validation_path=str(other)))
    assert len(corpus.train) == 1000
    assert corpus.vocabulary.decode(corpus.validation) == "tack\ufffd"
    assert len(set(corpus.description["sha256"])) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1", "utf-8-sig"])
def test_encodings_and_line_ends(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\nb\rc\n\n".encode(encoding))
    corpus = read(
        TextData(
            path=str(path), encoding=encoding, validation_fraction=0.3, unit="byte"
        )
    )
    ids = np.concatenate(corpus[:2])
    assert corpus.vocabulary.decode(ids) == "é\nb\nc\n\n"


def test_separators_of_windows_split_as_those_of_unix(tmp_path):
    content = "ab\r\nba\r\n" * 20
    path, unix = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(content.encode())
    unix.write_bytes(content.replace("\r\n", "\n").encode())
    expected = read(TextData(path=str(unix), document_separator="\n"))
    for separator in "\r\n", "\n":
        found = read(TextData(path=str(path), document_separator=separator))
        assert found.train.tolist() == expected.train.tolist()
        assert found.vocabulary == expected.vocabulary
    assert expected.vocabulary.symbols == "ab"


def test_byte_order_mark_is_removed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"ab" * 20)
    assert read(TextData(path=str(path))).vocabulary.symbols == "ab"


# -- folders and patterns ---------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a folder of texts, with files that are left out."""
    top = tmp_path / "texts"
    (top / "b").mkdir(parents=True)
    (top / ".git").mkdir()
    for name, content in {
        "b/1.txt": "bcd" * 9,
        "a.txt": "abc" * 30,
        "c.md": "cde" * 20,
        "empty.txt": "",
        ".hidden": "x",
        ".git/config": "y",
    }.items():
        (top / name).write_text(content)
    return top


def test_files_of_a_folder_are_documents(folder):
    corpus = read(TextData(path=str(folder)))
    names = [Path(path).relative_to(folder) for path in corpus.description["paths"]]
    assert [*map(str, names)] == ["a.txt", "b/1.txt", "c.md"]
    contents = [(folder / name).read_bytes() for name in names]
    expected = [hashlib.sha256(content).hexdigest() for content in contents]
    assert corpus.description["sha256"] == expected
    assert corpus.document_token == corpus.vocabulary.document_token == 1
    assert corpus.vocabulary.decode(corpus.validation) == "bcd" * 9
    assert int((corpus.train == 1).sum()) == 2
    hidden, empty, held_out = corpus.description["notes"]
    assert held_out == f"held out for validation: {folder / 'b' / '1.txt'}"
    assert "2 hidden" in hidden
    assert "empty.txt" in empty


def test_patterns_and_lists_of_files(folder):
    of_pattern = read(TextData(path=f"{folder}/**/*.txt"))
    both = [str(folder / "a.txt"), str(folder / "b")]
    of_list = read(TextData(path=both))
    assert of_pattern.description["paths"] == of_list.description["paths"]
    separate = read(TextData(path=both, validation_path=f"{folder}/*.md"))
    shown = separate.vocabulary.decode(separate.validation)
    assert shown == "cd\ufffd" * 20
    alone = read(TextData(path=f"{folder}/*.md"))
    assert alone.document_token is None


def test_separators_split_files_further(folder):
    data = TextData(path=str(folder), document_separator="ab")
    corpus = read(data)
    parts = corpus.description
    assert parts["train"]["documents"] + parts["validation"]["documents"] == 32


def test_a_moved_folder_has_the_same_hashes(folder):
    before = read(TextData(path=str(folder))).description["sha256"]
    moved = folder.rename(folder.with_name("zzz"))
    assert read(TextData(path=str(moved))).description["sha256"] == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("none", "got no text file, expected at least one"),
        ("only_hidden", "left out 1 hidden"),
        ("*.rst", "matches no file"),
        ("none*", "matches only folders"),
        ("pictures", 'p.png", which is binary (null bytes), expected text'),
        ("pictures/*", 'p.png", which is binary'),
        (["texts", "texts/a.txt"], "twice, expected each file once"),
        ("~nobody-of-this-name/a.txt", "invalid path"),
    ],
)
def test_folders_and_patterns_without_text_are_refused(
    path, expected, folder, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    for name in "none", "only_hidden", "pictures":
        Path(name).mkdir()
    Path("only_hidden/.a").write_text("text")
    Path("pictures/a.txt").write_text("text" * 99)
    Path("pictures/p.png").write_bytes(b"\x89PNG\0\0")
    message = error_message(path=path)
    assert message.startswith("data.path: ")
    assert expected in message


def test_a_binary_file_that_is_named_itself_is_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\0" * 20)
    assert read(TextData(path=str(path))).vocabulary.symbols == "\0ab"


# -- errors -----------------------------------------------------------------------


def error_message(**fields) -> str:
    """Return the message of the error."""
    with pytest.raises(BadInput) as caught:
        read(TextData(**fields))
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_invalid_bytes_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xe9def")
    message = error_message(path=str(path))
    assert "got the byte 0xe9 at position 3, expected utf-8" in message
    assert "data.encoding" in message
    assert "data.validation_path" in error_message(
        path=str(path), encoding="latin-1", validation_path=str(path)
    )


def test_identical_training_and_validation_texts_are_refused(book, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(book.read_bytes())
    assert "got the same content as the training text, expected" in error_message(
        path=str(book), validation_path=str(copy)
    )


def test_missing_separator_is_refused(book):
    message = error_message(path=str(book), document_separator="\n\n")
    assert r'got "\n\n", expected text that occurs in "' in message


def test_a_typed_backslash_n_is_explained(book):
    message = error_message(path=str(book), document_separator="\\n")
    assert message.endswith("such as '\"\\n\"'.")


def test_halves_of_surrogate_pairs_are_refused(tmp_path):
    """They would train, but neither a file nor a terminal can hold the text."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\\ud800def" * 20)
    message = error_message(path=str(path), encoding="unicode_escape")
    assert "got the surrogate U+D800 at position 3, expected characters" in message


@pytest.mark.parametrize("content", ["ab", "abcdefghij", "a;"])
def test_part_without_a_target_is_refused(content, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(content, "utf-8")
    separator = ";" if ";" in content else None
    message = error_message(path=str(path), document_separator=separator)
    assert "expected at least 2" in message
    assert "data.validation_fraction" in message


def test_too_large_text_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(text.LARGEST_TEXT + 1)
    assert "source: tokens" in error_message(path=str(path))


@given(content=st.binary(max_size=60), data=st.data())
def test_random_bytes_give_a_corpus_or_bad_input(content, data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "garbage.txt"
    path.write_bytes(content)
    config = TextData(
        path=str(path),
        encoding=data.draw(st.sampled_from(["utf-8", "utf-16", "utf-7", "euc_jp"])),
        unit=data.draw(st.sampled_from(["character", "byte"])),
        document_separator=data.draw(st.sampled_from([None, "\n", "\0"])),
        validation_fraction=data.draw(st.floats(0.1, 0.9)),
    )
    try:
        corpus = read(config)
    except BadInput as refused:
        message = str(refused)
        assert message.isprintable()
    else:
        assert min(map(len, corpus[:2])) >= 2
        assert max(map(np.max, corpus[:2])) < corpus.vocabulary.size


def test_data_does_not_import_jax():
    program = "import sys, jaxlstm.lab.data; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
