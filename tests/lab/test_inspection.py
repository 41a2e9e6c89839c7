"""`jaxlstm inspect`: the page and its files, for every cell and text, and errors."""

import dataclasses
import errno
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlstm as jl
from jaxlstm.lab import cli, tasks
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput, Diverged
from jaxlstm.lab.analysis import inspection, text
from jaxlstm.lab.data import read
from jaxlstm.lab.runs.trained import Trained
from jaxlstm.lab.tasks import language_modelling as task

PICTURES = True  # those of the task are drawn in full

CELLS = {
    "lstm": {},
    "classic_lstm": {},
    "peephole_lstm": {},
    "coupled_lstm": {},
    "projected_lstm": {"projection_size": 5},
    "layer_norm_lstm": {},
    "simple_rnn": {},
    "gru": {},
}


@pytest.fixture
def model(book, tmp_path, monkeypatch):
    """Return a function that makes an untrained model, which `inspect` then loads."""

    def make(data=None, **changes):
        whole = tiny.config(book)
        whole["model"] |= {"hidden_size": 6} | changes
        whole["data"] |= {"validation_fraction": 0.6} | (data or {})
        if whole["data"]["source"] == "tokens":
            whole["sample"]["length"] = 0
        config = configs.load(whole)
        corpus = read(config.data)
        layer = task.build(config.model, corpus.vocabulary.size)
        params, _ = layer.init(jax.random.key(0))
        made = Trained(
            tmp_path,
            config,
            tasks.get(config.task),
            corpus.vocabulary,
            layer,
            params,
            0,
            corpus.description,
        )
        monkeypatch.setattr(inspection, "load", lambda run, **options: made)
        return made

    return make


@pytest.fixture
def no_drawing(monkeypatch):
    """Write empty pictures; other tests draw them."""

    def save(picture, path):
        path.write_bytes(b"")

    monkeypatch.setattr(inspection.reports, "save", save)


def check_page(found: jl.lab.Inspection) -> str:
    """Return the page; check that its pictures are the files beside it."""
    page = found.page.read_text()
    named = re.findall(r"\]\(([^)]+\.png)\)", page)
    assert sorted(named) == sorted(
        path.name for path in found.page.parent.glob("*.png")
    )
    assert "nan" not in page
    return page


@pytest.mark.thorough
def test_a_trained_run(book, tmp_path, capsys):
    run = tmp_path / "run"
    config = tiny.config(book, steps=10, validate_every=10)
    jl.lab.train(config, run=run, sink=tiny.RecordingSink())
    assert cli.main(["inspect", str(run), "--text", "the cell keeps what "]) == 0
    assert f"{run}/inspect/findings.md, with 4 pictures" in capsys.readouterr().out
    assert json.loads((run / "inspect" / "findings.json").read_text())["step"] == 10


def test_a_planted_unit_is_found_in_a_given_text(model, tmp_path, monkeypatch):
    """Unit 0 writes 1 at a `k` and -1 at a blank, and keeps it otherwise."""
    made = model()
    embedding, (cell,) = made.params["embed"], made.params["rnn"]
    table = np.zeros(embedding.table.shape, np.float32)
    vocabulary = made.vocabulary
    for symbol, feature in ("k", 0), (" ", 1):
        table[vocabulary.encode(symbol)[0], feature] = 1.0
    w_x, w_h, b = (np.array(leaf) for leaf in cell)
    w_x[..., 0], w_h[..., 0], b[:, 0] = 0.0, 0.0, 0.0
    w_x[0, :, 0], w_x[1, :, 0] = [20, -20, 20, 0], [20, -20, -20, 0]
    b[:, 0] = [-10, 10, 0, 5]
    cell = cell._replace(w_x=w_x, w_h=w_h, b=b)
    embedding = embedding._replace(table=table)
    params = made.params | {"embed": embedding, "rnn": (cell,)}
    made = dataclasses.replace(made, params=jax.tree.map(jnp.asarray, params))
    monkeypatch.setattr(inspection, "load", lambda run, **options: made)
    given = tiny.text(seed=3, words=2000).strip()
    found = inspection.inspect("run", text=given, out=tmp_path / "out")
    assert found.search is not None
    planted = [f for f in found.search.findings if f.unit.unit == 0]
    assert [f.feature.phrase for f in planted] == ["after `k` and before a blank"]
    page = check_page(found)
    assert "**Unit 0** is higher after `k` and before a blank: c is" in page
    assert "Its input gate opens on `k`: i is 1.00 there" in page
    assert "On a blank, its forget gate falls: f is 0.00 there and 1.00 before" in page
    assert "symbols of --text" in page
    assert page.index("## Words") < page.index("## Units that follow the text")


@pytest.mark.parametrize(
    "name", [pytest.param("gru", marks=pytest.mark.thorough), "simple_rnn"]
)
def test_cells_without_a_cell_state(model, name):
    model(cell={"name": name})
    found = inspection.inspect("run")
    page = check_page(found)
    assert "recurrent layer (" + name in page
    assert ("update gates" in page) == (name == "gru")
    assert "forget" not in page


@pytest.mark.thorough
@pytest.mark.parametrize("name", CELLS)
def test_every_cell(model, name):
    around = {"learned_initial_state": True, "variational_dropout_x": 0.1}
    residual = name != "projected_lstm"
    cell = {"name": name, **CELLS[name]}
    model(cell=cell, layers=2, residual=residual, dtype="bfloat16", **around)
    found = inspection.inspect("run")
    assert "## Layer 2" in check_page(found)
    assert len(found.layers) == 2


@pytest.mark.usefixtures("no_drawing")
def test_a_model_of_token_ids(model, tmp_path):
    path = tmp_path / "ids.bin"
    np.random.default_rng(0).integers(0, 30, 40000).astype(np.uint16).tofile(path)
    source = {"source": "tokens", "path": str(path), "vocabulary_size": 30}
    model(data=source)
    found = inspection.inspect("run")
    check_page(found)
    assert found.search is not None
    assert found.search.findings == []
    assert "No unit was found" in found.page.read_text()


@pytest.mark.usefixtures("no_drawing")
def test_a_model_of_bytes_and_a_text_too_short_to_search(model, book):
    made = model(data={"unit": "byte"})
    book.unlink()
    warnings = []
    given = "naïve (text)\nof mine"
    found = inspection.inspect("run", text=given, report=warnings.append)
    page = check_page(found)
    assert found.search is None
    assert "3,000 symbols are needed" in page
    assert "only --text is shown, and nothing is searched" in warnings[0]
    assert made.vocabulary.kind == "byte"


@pytest.mark.usefixtures("no_drawing")
def test_the_verb_replaces_the_files_of_an_earlier_inspection(model, tmp_path, capsys):
    model(layers=2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "finding-99.png").write_bytes(b"old")
    (out / "mine.png").write_bytes(b"kept")
    words = ["--text", "the cell keeps what it has", "--out", str(out)]
    assert cli.main(["inspect", "run", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "The input gates of layer 2 are closed (below 0.1) at" in printed.out
    assert re.search(
        r"stays above\s+1 %\s+of\s+its\s+maximum\s+for\s+\d+ ", printed.out
    )
    pictures = len(list(out.glob("*.png"))) - 1
    assert f"{out}/findings.md, with {pictures} pictures beside it" in printed.out
    assert "![" not in printed.out
    assert "Definitions" not in printed.out
    assert (out / "mine.png").read_bytes() == b"kept"
    assert not (out / "finding-99.png").exists()
    data = json.loads((out / "findings.json").read_text())
    assert [layer["units"] for layer in data["layers"]] == [6, 6]


def test_symbols_of_the_held_out_part_are_read_as_unknown(model, book, tmp_path):
    book.write_text(tiny.text() + "¡¡")
    made, messages = model(), []
    found = text.from_file(made, book, report=messages.append)
    assert found.tokens[-3:].tolist()[-2:] == [0, 0]
    assert "`¡` (in 3 of" in messages[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "UNKNOWN SYMBOLS"}, "14 of 15 symbols are not in the model's voc"),
        ({"text": "the"}, "--text: got 3 symbols, expected at least 16"),
        ({"text": "the cell", "input": "a.txt"}, "got both --input and --text"),
        ({"input": "nowhere.txt"}, "nowhere.txt"),
        ({"input": "latin.txt"}, "latin.txt.* is not utf-8"),
    ],
)
def test_invalid_texts_are_errors(model, tmp_path, monkeypatch, options, message):
    model()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait, caf\xe9 noir")
    with pytest.raises(BadInput, match=message):
        inspection.inspect("run", **options)


def test_parameters_that_are_not_finite_are_named(model, tmp_path):
    params = model().params
    params["unembed"] = params["unembed"]._replace(b=jnp.full(3, jnp.nan))
    message = "got the parameter unembed/b with .* of step 0 cannot be used"
    with pytest.raises(Diverged, match=message):
        inspection.inspect("run")
    assert not (tmp_path / "inspect").exists()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_training_file_itself_is_read_as_in_training(model, book, end):
    """Its separators are document tokens, and no symbol is unknown."""
    lines = tiny.text().replace(" the ", "\n")
    book.write_bytes(lines.replace("\n", end).encode())
    made = model({"document_separator": end})
    found = text.from_file(made, book, report=pytest.fail)
    corpus = made.corpus()
    assert found.tokens.tolist().count(1) == lines.count("\n") > 9
    assert set(found.tokens.tolist()) <= set(corpus.train.tolist())


def test_the_last_line_end_of_a_file_is_removed_if_unknown(model, book, tmp_path):
    book.write_text(tiny.text().strip())
    made, file = model(), tmp_path / "mine.txt"
    file.write_text("the cell keeps what its gates let in\n")
    found = text.from_file(made, file)
    assert "".join(found.symbols) == "the cell keeps what its gates let in"
    file.write_text("the cell keeps\nwhat its gates let in\n")
    with pytest.warns(UserWarning, match="a line end .in 1 of 36 places. not in"):
        text.from_file(made, file)


def test_line_ends_of_other_systems_are_converted(model, book):
    book.write_text(tiny.text().replace(" the ", "\nthe "))
    given = "the cell keeps\r\nwhat its gates let in"
    found = text.from_string(model(), given, "--text")
    assert "".join(found.symbols) == "the cell keeps\nwhat its gates let in"


def test_moved_data_is_given_to_the_run_that_is_loaded(monkeypatch, capsys):
    given = []

    def load(run, *, overrides, report):
        given.extend([run, *overrides])
        raise BadInput("enough")

    monkeypatch.setattr(inspection, "load", load)
    assert cli.main(["inspect", "run", "data.path=new.txt"]) == 2
    assert given == ["run", "data.path=new.txt"]
    assert capsys.readouterr().err == "jaxlstm: enough\n"


def test_the_error_for_missing_data_names_input_and_text(model, book):
    model()
    book.unlink()
    with pytest.raises(BadInput, match=r"book\.txt.*--input or --text"):
        inspection.inspect("run")


def test_the_error_for_changed_data_names_input_and_text(model, book):
    model()
    book.write_text(tiny.text(seed=1))
    with pytest.raises(BadInput, match=r"as in the checkpoint.*--input or --text"):
        inspection.inspect("run")


def test_an_output_directory_that_cannot_be_written_is_an_error(model):
    model()
    place = "/proc/no/place" if os.getuid() == 0 else "/no/place"
    with pytest.raises(BadInput, match=f"{place}: cannot be written.*--out"):
        inspection.inspect("run", out=place)


@pytest.mark.parametrize("fails", ["picture", "page"])
def test_a_failed_write_keeps_an_earlier_page_and_its_pictures(
    model, tmp_path, monkeypatch, fails
):
    """The disk is full at the first picture, or after the last picture."""
    model()
    (tmp_path / "findings.md").write_text("of an earlier run")
    (tmp_path / "finding-1.png").write_bytes(b"of an earlier run")
    before = sorted(path.name for path in tmp_path.iterdir())

    def save(picture, path):
        raise jl.lab.LabError(f"{path}: cannot be written")

    def write(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    if fails == "picture":
        monkeypatch.setattr(inspection.reports, "save", save)
    else:
        monkeypatch.setattr(inspection, "write_atomic", write)
    with pytest.raises(jl.lab.LabError, match=r"cannot be written"):
        inspection.inspect("run", text="the cell keeps what it has", out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    for name in "findings.md", "finding-1.png":
        assert (tmp_path / name).read_bytes() == b"of an earlier run"


def test_a_directory_in_the_place_of_the_page_is_an_error(model, tmp_path):
    model()
    (tmp_path / "findings.md").mkdir()
    with pytest.raises(BadInput, match=r"findings\.md: is a directory.*--out"):
        inspection.inspect("run", out=tmp_path)


def test_an_invalid_argument_keeps_an_earlier_page(model, tmp_path):
    model()
    for name in "findings.md", "findings.json":
        (tmp_path / name).write_text("of an earlier run")
    with pytest.raises(BadInput, match="nowhere"):
        inspection.inspect("run", input="nowhere.txt", out=tmp_path)
    assert {path.read_text() for path in tmp_path.glob("findings.*")} == {
        "of an earlier run"
    }


def test_a_directory_without_a_run_is_an_error(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
