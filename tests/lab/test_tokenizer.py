"""Tests of words and subwords: lossless text, counted characters, files, and a run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import jaxlstm as jl
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.schema import PythonData, TextData, TokenData
from jaxlstm.lab.data import encoding, read, tokenizer, tokenizer_files, vocabulary
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.tasks.language_modelling import LanguageModelling, metrics

TEXTS = [tiny.text(), "naïve 漢字 🙂\n  x = (1)\n" * 9]
LINES = tokenizer.train(
    ["the cell\n. the\n\n", "the\n  cell .", "\n \n  .the", " the  cell \n"] * 9,
    unit="word",
    size=99,
)
SUBWORDS = tokenizer.train(TEXTS, unit="subword", size=300)
WORDS = tokenizer.train(TEXTS, unit="word", size=40)


def ids_of(json_text: str, text: str) -> list[int]:
    return next(tokenizer.encode(json_text, [text])).tolist()


@given(st.text())
def test_subwords_are_the_text_and_their_characters_are_counted(text):
    ids = ids_of(SUBWORDS, text)
    counts = tokenizer.characters(SUBWORDS)
    assert tokenizer.decode(SUBWORDS, ids) == text
    assert counts is not None
    assert counts[ids].sum() == len(text)


@given(st.text(st.sampled_from("the cell\n漢🙂")), st.integers(0, 5))
def test_pieces_joined_are_the_text(text, cut):
    before, after = ids_of(SUBWORDS, "the"), ids_of(SUBWORDS, text)
    pieces = tokenizer.Pieces(SUBWORDS, before)
    assert "".join(map(pieces.decode, after)) + pieces.end() == text
    some = after[: max(0, len(after) - cut)]
    shown = "".join(map(pieces.decode, some)) + pieces.end()
    assert shown.rstrip("\ufffd") in text


def test_rare_words_are_unknown():
    known = tokenizer.facts(WORDS)
    assert known.unknown in known.without_text
    assert not known.is_lossless
    assert tokenizer.characters(WORDS) is None
    assert tokenizer.unknown(WORDS, "the foo cell bar\nfoo") == ["foo", "bar"]
    assert tokenizer.decode(WORDS, ids_of(WORDS, "the cell")) == "the cell"


@given(st.lists(st.sampled_from(["the", "cell", " ", "\n", ".", "  "])))
def test_words_are_the_same_at_the_beginning_of_a_line(parts):
    ids = ids_of(LINES, "the cell\nthe cell\n  the")
    assert ids[0] == ids[3]
    text = "".join(parts)
    for known in "the cell\nthe cell\n  the", text:
        ids = ids_of(LINES, known)
        if tokenizer.facts(LINES).unknown not in ids:
            assert tokenizer.decode(LINES, ids) == known
    first, *after = ids_of(LINES, f"the {text}")
    if tokenizer.facts(LINES).unknown not in after:
        pieces = tokenizer.Pieces(LINES, [first])
        assert "".join(map(pieces.decode, after)) + pieces.end() == f" {text}"


def test_training_is_deterministic():
    for unit, size in ("subword", 300), ("word", 40):
        again = tokenizer.train(TEXTS, unit=unit, size=size)
        assert again == (SUBWORDS if unit == "subword" else WORDS)


def test_a_long_text_is_encoded_in_whole_lines(monkeypatch):
    text = tiny.text().replace(" ", "\n").strip()
    whole = ids_of(SUBWORDS, text)
    monkeypatch.setattr(tokenizer, "_CHUNK", 50)
    chunks = list(tokenizer._chunks(text))
    assert all(chunk.endswith("\n") for chunk in chunks[:-1])
    assert "".join(chunks) == text
    assert ids_of(SUBWORDS, text) == whole
    assert "".join(tokenizer._chunks("x" * 999)) == "x" * 999


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b"garbage", "got no valid JSON"),
        ("t.json", b"[" * 100_000, "got no valid JSON"),
        ("t.json", b'{"version": "1.0", "model": {}}', "cannot be read by the library"),
        ("t.json", b'{"a": 0, "b": 2}', "a mapping from tokens to the ids 0, 1, 2"),
        ("t.json", b'["a", "a"]', "a list of different tokens"),
        ("t.json", b"3", "a list of different tokens"),
        ("t.json", b"\0" * 9, "got no valid JSON"),
        ("t.txt", b"a b\nc\n", 'got the token "a b", expected words without blanks'),
        ("t.txt", b"\xff\xfe", "not UTF-8"),
        (
            "t.json",
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
            "got a tokenizer without tokens",
        ),
    ],
)
def test_other_files_are_no_tokenizers(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        tokenizer_files.read(tmp_path / name, key="data.tokenizer")
    assert f'data.tokenizer: "{tmp_path / name}": ' in str(caught.value)
    assert message in str(caught.value)


def test_a_huge_file_is_no_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "LARGEST_FILE", 99)
    (tmp_path / "t.json").write_text(SUBWORDS)
    with pytest.raises(BadInput, match="expected a tokenizer of at most 99"):
        tokenizer_files.read(tmp_path / "t.json", key="data.tokenizer")


def test_truncation_and_dropout_of_a_tokenizer_are_removed(tmp_path):
    data = json.loads(SUBWORDS)
    data["model"]["dropout"] = 0.5
    data["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "t.json").write_text(json.dumps(data))
    found = tokenizer_files.read(tmp_path / "t.json", key="data.tokenizer")
    assert ids_of(found, TEXTS[0]) == ids_of(SUBWORDS, TEXTS[0])


def test_lists_of_tokens(tmp_path):
    (tmp_path / "words.txt").write_text("the\ncell\n<unk>\n")
    words = tokenizer_files.read(tmp_path / "words.txt", key="k")
    assert ids_of(words, "cell the cat") == [1, 0, 2]
    assert tokenizer.decode(words, [1, 0]) == "cell the"
    (tmp_path / "characters.json").write_text(json.dumps(["a", "b", "\n"]))
    letters = tokenizer_files.read(tmp_path / "characters.json", key="k")
    assert tokenizer.decode(letters, ids_of(letters, "ab\na")) == "ab\na"
    with pytest.raises(BadInput, match="no token for unknown words"):
        ids_of(letters, "abc")


def test_a_missing_library_is_an_error_that_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tokenizer.load.cache_clear()
    path = tmp_path / "a.txt"
    path.write_text(TEXTS[0])
    with pytest.raises(BadInput, match=r'pip install "jaxlstm\[tokenizers\]"'):
        read(TextData(path=str(path), unit="word"))
    assert read(TextData(path=str(path))).vocabulary.kind == "character"


def test_a_vocabulary_is_read_from_json_without_the_library(monkeypatch):
    known = vocabulary.of_tokenizer(SUBWORDS)._replace(document_token=3)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert vocabulary.from_json(known.to_json()) == known


# -- corpora ----------------------------------------------------------------------


def test_documents_do_not_share_tokens(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(";".join(["the cell", "keeps", "what", "the gates", "let go"] * 4))
    data = TextData(path=str(path), unit="subword", document_separator=";")
    corpus = read(data)
    token = corpus.document_token
    assert token == corpus.vocabulary.size - 1 == corpus.vocabulary.document_token
    parts = np.split(corpus.train, np.flatnonzero(corpus.train == token)[1:])
    texts = [corpus.vocabulary.decode(part) for part in parts]
    assert set(texts) <= {"the cell", "keeps", "what", "the gates", "let go"}
    assert corpus.vocabulary.decode([token]) == ""
    ids = encoding.encode("the cell;ke", data, corpus.vocabulary)
    assert np.count_nonzero(ids == token) == 2
    show = encoding.Decoder(data, corpus.vocabulary, "")
    assert "".join(map(show, ids[1:].tolist())) + show.end() == "the cell;ke"


def test_the_tokenizer_of_a_run_is_used_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(TEXTS[0])
    data = TextData(path=str(path), unit="subword", vocabulary_size=280)
    again = read(data, vocabulary=vocabulary.of_tokenizer(SUBWORDS))
    assert again.vocabulary.tokenizer == SUBWORDS


def test_the_standard_library_in_words(monkeypatch):
    monkeypatch.setattr(tokenizer, "train", lambda *_, **__: WORDS)
    corpus = read(PythonData(unit="word"))
    assert corpus.vocabulary.size == tokenizer.facts(WORDS).size + 1
    assert corpus.description["validation"]["unknown"] > 0


def tokens_of(tmp_path: Path, **fields) -> TokenData:
    (tmp_path / "t.json").write_text(SUBWORDS)
    ids = np.array(ids_of(SUBWORDS, TEXTS[0]), "uint16")
    ids.tofile(tmp_path / "ids.bin")
    np.save(tmp_path / "ids.npy", ids.astype("int64"))
    np.save(tmp_path / "rates.npy", ids.astype("float32"))
    given = {"path": "ids.bin", "tokenizer": "t.json"} | fields
    paths = {k: str(tmp_path / v) for k, v in given.items() if k in ("path",)}
    if given["tokenizer"]:
        paths["tokenizer"] = str(tmp_path / given["tokenizer"])
    return TokenData(**given | paths)


def test_ids_with_their_tokenizer_have_text(tmp_path):
    raw, npy = (read(tokens_of(tmp_path, path=p)) for p in ("ids.bin", "ids.npy"))
    assert raw.vocabulary.size == tokenizer.facts(SUBWORDS).size
    assert (raw.train == npy.train).all()
    assert isinstance(npy.train, np.memmap)
    assert TEXTS[0].startswith(raw.vocabulary.decode(raw.train))
    larger = read(tokens_of(tmp_path, vocabulary_size=999)).vocabulary
    assert larger.size == 999
    assert larger.without_text[-1] == 998


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocabulary_size": 99}, "expected at most data.vocabulary_size, 99"),
        ({"document_token": 4000}, "data.document_token: got 4000"),
        ({"path": "rates.npy"}, "dtype float32, expected token ids"),
        ({"tokenizer": "few.json"}, "(the 2 ids of data.tokenizer)"),
    ],
)
def test_ids_of_another_tokenizer_are_refused(fields, message, tmp_path):
    (tmp_path / "few.json").write_text('["a", "b"]')
    with pytest.raises(BadInput) as caught:
        read(tokens_of(tmp_path, **fields))
    assert message in str(caught.value)


def test_a_damaged_npy_file_is_refused(tmp_path):
    data = tokens_of(tmp_path, path="ids.npy")
    content = Path(data.path).read_bytes()
    for damaged in content[:-8], content[:20]:
        Path(data.path).write_bytes(damaged)
        with pytest.raises(BadInput, match=r"ids\.npy"):
            read(data)


# -- scores and a run -------------------------------------------------------------


def test_scores_say_what_they_count():
    bits = 3 / np.log(2)
    subwords, words = map(vocabulary.of_tokenizer, (SUBWORDS, WORDS))
    assert metrics(subwords, 3.0).keys() == {"loss", "perplexity"}
    assert metrics(subwords, 3.0, characters=4.0)[
        "bits_per_character"
    ] == pytest.approx(bits / 4)
    assert metrics(words, 3.0)["perplexity"] == pytest.approx(np.exp(3))
    found = metrics(vocabulary.byte(), 3.0, characters=0.5)
    assert found["bits_per_byte"] == pytest.approx(bits)
    assert found["bits_per_character"] == pytest.approx(2 * bits)


def test_a_run_in_subwords(tmp_path, monkeypatch):
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(6):
        (texts / f"{n}.txt").write_text(tiny.text(n, words=300))
    monkeypatch.setattr(LanguageModelling, "artifacts", lambda *_: [])
    monkeypatch.setattr(reports, "write_report", lambda *_, **__: None)
    given = tiny.config(texts, steps=10, validate_every=10)
    given["data"] |= {"unit": "subword", "vocabulary_size": 300}
    run = tmp_path / "run"
    made = jl.lab.train(given, run=run, sink=tiny.RecordingSink())
    assert (run / "tokenizer.json").read_text() == made.vocabulary.tokenizer

    [record] = [each for each in made.metrics() if each["split"] == "validation"]
    corpus = made.corpus()
    tokens = len(corpus.validation) - 1
    size = corpus.description["validation"]["characters"]  # the first token has no loss
    expected = record["loss"] * tokens / np.log(2) / size
    assert record["bits_per_character"] == pytest.approx(expected, rel=1e-5)
    assert made.evaluate() == pytest.approx(
        {k: v for k, v in record.items() if k not in ("step", "split")}
    )

    pieces = made.stream().generate(0, "the cell", length=20)
    assert "".join(pieces) == made.sample("the cell", length=20)
    assert len(made.score("the cell")) == len(
        ids_of(made.vocabulary.tokenizer, "the cell")
    )

    with safe_open(run / "weights.safetensors", framework="numpy") as file:
        header = file.metadata()
    assert json.loads(header["spec"])["tokenizer"] == made.vocabulary.tokenizer
    assert json.loads(header["config"])["data"]["unit"] == "subword"

    moved, sink = texts.rename(tmp_path / "moved"), tiny.RecordingSink()
    (run / "tokenizer.json").write_text("{}")
    changes = [f"data.path={moved}", "training.steps=15"]
    again = jl.lab.resume(run, overrides=changes, sink=sink)
    assert again.vocabulary == made.vocabulary
    assert (run / "tokenizer.json").read_text() == made.vocabulary.tokenizer
    assert any("tokenizer.json: was edited" in text for text in sink.messages)


def test_a_word_in_other_words_is_counted_where_it_is_one():
    from types import SimpleNamespace

    from jaxlstm.lab.analysis import text as texts

    known = vocabulary.of_tokenizer(WORDS)
    config = SimpleNamespace(data=TextData(path="x", unit="word"))
    trained = SimpleNamespace(vocabulary=known, config=config)
    said = []
    texts.from_string(
        trained, "he cell keeps" + " the cell" * 9, "t", report=said.append
    )
    assert "in 1 of 21 places" in said[0]
