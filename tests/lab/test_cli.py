"""The command line as a newcomer meets it: one sentence, a place, a remedy, a code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from ruamel.yaml import YAML

import jaxlstm as jl
from jaxlstm.lab import cli, runs
from jaxlstm.lab import config as configs
from jaxlstm.lab.config import starters


@pytest.fixture
def written(book, tmp_path, monkeypatch):
    """A config file of a tiny run, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(tiny.config(book), file)
    return path


def mistake(capsys, *words: object) -> tuple[int, str]:
    """The exit code and the one sentence of a command that cannot be carried out."""
    code = cli.main([str(word) for word in words])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    return code, err


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_typo_in_a_key(written, capsys):
    changed(written, "hidden_size:", "hiden_size:")
    code, said = mistake(capsys, "train", written)
    assert code == 2
    assert re.search(r"tiny.yaml:\d+: model.hiden_size: unknown key", said)
    assert 'did you mean "hidden_size"?' in said


def test_a_wrong_type(written, capsys):
    code, said = mistake(capsys, "train", written, "training.steps=many")
    assert code == 2
    assert 'override "training.steps=many"' in said
    assert "a whole number" in said


def test_a_missing_config(written, capsys):
    code, said = mistake(capsys, "train", "tyny.yaml")
    assert code == 2
    assert "tyny.yaml" in said
    assert "tiny.yaml" in said.replace("tyny.yaml", "")


def test_a_missing_text(written, book, capsys):
    book.rename(book.with_name("boook.txt"))
    code, said = mistake(capsys, "train", written)
    assert code == 2
    assert "book.txt" in said
    assert "boook.txt" in said


def test_an_empty_text(written, book, capsys):
    book.write_text("")
    code, said = mistake(capsys, "train", written)
    assert code == 2
    assert "book.txt" in said
    assert "empty" in said


def test_a_text_that_is_not_utf8(written, book, capsys):
    book.write_bytes(book.read_bytes() + b"caf\xe9 au lait")
    code, said = mistake(capsys, "train", written)
    assert code == 2
    assert "utf-8" in said
    assert "data.encoding" in said


def test_a_text_shorter_than_a_window(written, capsys):
    code, said = mistake(capsys, "train", written, "training.window=5000")
    assert code == 2
    assert "training.window" in said
    assert "lower" in said


def test_a_directory_that_cannot_be_written(written, capsys):
    place = "/proc/no/run" if os.getuid() == 0 else "/no/run"
    code, said = mistake(capsys, "train", written, "--run", place)
    assert code == 2
    assert place in said
    assert "--run" in said


def test_a_directory_that_holds_a_run(written, capsys):
    runs.create(Path("there"), name="tiny", config=written.read_text(), total_steps=9)
    code, said = mistake(capsys, "train", written, "--run", "there")
    assert code == 2
    assert "already holds a run (step 0 of 9)" in said
    assert "jaxlstm resume there" in said


def test_an_unknown_optimizer(written, capsys):
    changed(written, "adamw", "adamm")
    code, said = mistake(capsys, "train", written)
    assert code == 2
    assert re.search(r"tiny.yaml:\d+: optimizer\[1\].*adamm", said)
    assert "did you mean" in said


def test_a_gpu_on_a_machine_without(written, capsys):
    code, said = mistake(capsys, "train", written, "device=gpu")
    assert code == 2
    assert "JAX sees only cpu, and no gpu: jaxlib has" in said
    assert 'pip install "jaxlstm[cuda13]"' in said


@pytest.mark.parametrize("verb", ["resume", "evaluate", "sample", "plot"])
def test_a_run_that_is_not_there(verb, written, capsys):
    code, said = mistake(capsys, verb, "runs/nothing")
    assert code == 2
    assert "runs/nothing does not exist" in said


def test_a_failure_nobody_foresaw_is_a_sentence_too(written, capsys, monkeypatch):
    def fail(*words, **options):
        raise RuntimeError("the moon is in the way\nand more")

    monkeypatch.setattr("jaxlstm.lab.api.train", fail)
    code, said = mistake(capsys, "train", written)
    assert code == 1
    assert "the moon is in the way" in said
    assert "--debug" in said
    with pytest.raises(RuntimeError):
        cli.main(["train", str(written), "--debug"])


def test_divergence_has_an_exit_code_of_its_own(written, capsys):
    code, said = mistake(
        capsys, "train", written, "optimizer=[{sgd: {learning_rate: 1e38}}]"
    )
    assert code == 3
    assert "is not finite" in said


def test_train_evaluate_sample_plot_and_resume(written, tmp_path, capsys):
    run = tmp_path / "a run"
    words = ["train", "--run", str(run), str(written), "training.steps=20"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "best validation" in out
    assert "bits/char" in out

    assert cli.main(["evaluate", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["split"] == "validation"
    assert scores["loss"] == jl.lab.load(run).evaluate()["loss"]

    assert cli.main(["sample", str(run), "--prompt", "gates", "--length", "9"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("gates")
    assert said.err == ""
    assert cli.main(["sample", str(run), "--prompt", "gatesßß", "--length", "9"]) == 0
    assert "the prompt has 'ß', which this model read as unknown" in (
        capsys.readouterr().err
    )

    assert cli.main(["plot", str(run)]) == 0
    assert "loss.png" in capsys.readouterr().out
    assert cli.main(["plot", str(run), str(run), "--out", "both.png"]) == 0
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")

    assert cli.main(["resume", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert cli.main(["resume", str(run), "training.steps=25"]) == 0
    assert "step 25/25" in capsys.readouterr().out


def test_resume_auto_needs_a_directory(written, capsys):
    code, said = mistake(capsys, "train", written, "--resume", "auto")
    assert code == 2
    assert "--run DIR" in said


def test_overrides_alone_change_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said = mistake(capsys, "train", "model.hidden=1")
    assert code == 2
    assert 'did you mean "model.hidden_size"' in said or "hidden_size" in said


def test_check_counts_and_estimates(written, capsys):
    assert cli.main(["check", str(written)]) == 0
    out = capsys.readouterr().out
    assert "sound" in out
    rows = dict(re.split(r"\s{2,}", line) for line in out.splitlines()[1:])
    trained = tiny.config(Path("x"))["model"]
    hidden, embedded = trained["hidden_size"], trained["embedding_size"]
    vocabulary = int(rows["vocabulary"])
    assert int(rows["parameters"].replace(",", "")) == (
        vocabulary * embedded
        + 4 * hidden * (embedded + hidden + 1)
        + vocabulary * (hidden + 1)
    )
    assert "XLA" in rows["memory"]


def test_new_gives_a_config_that_is_sound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "language-modelling", "--out", "my.yaml"]) == 0
    assert configs.load("my.yaml").name == "my"
    assert "wrote my.yaml" in capsys.readouterr().out
    assert cli.main(["new", "language_modelling"]) == 0
    assert capsys.readouterr().out == starters.starter("language_modelling")
    code, said = mistake(capsys, "new", "language_modelling", "--out", "my.yaml")
    assert code == 2
    assert "my.yaml is there already" in said
    code, said = mistake(capsys, "new", "language_modeling")
    assert code == 2
    assert 'did you mean "language_modelling"? There is' in said
    _, said = mistake(capsys, "new", "vision")
    assert 'no task is called "vision". There is language_modelling.' in said


def test_schema_prints_what_is_committed(capsys):
    assert cli.main(["schema"]) == 0
    committed = Path(__file__).parents[2] / "configs" / "schema.json"
    assert capsys.readouterr().out == committed.read_text()


def test_doctor_says_what_jax_sees(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "none; JAX sees only cpu, and no gpu: jaxlib has" in out
    assert re.search(r"^optax +\d", out, re.MULTILINE)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"example: jaxlstm {verb}" in out


def test_an_option_nobody_knows(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--fast"])
    assert left.value.code == 2
    assert "--fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["check", "--no-data"],
        ["schema"],
        ["new", "language_modelling"],
    ],
)
def test_what_needs_no_jax_does_not_import_it(words):
    code = (
        "import sys\n"
        "from jaxlstm.lab.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'jaxlib', 'numpy', 'optax', 'orbax', 'matplotlib'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_who_leaves_early_is_no_failure():
    done = subprocess.run(
        f"{sys.executable} -m jaxlstm schema | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_a_platform_that_is_not_there(verb, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxlstm", verb],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if verb == "train" else 0), done.stderr
    assert "unset JAX_PLATFORMS" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_or_full_standard_output():
    command = f"{sys.executable} -m jaxlstm schema"
    closed = subprocess.run(
        f"{command} >&-", shell=True, capture_output=True, check=False
    )
    assert b"Traceback" not in closed.stderr
    full = subprocess.run(
        f"{command} > /dev/full",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 1
    assert "standard output cannot be used (No space left on device)" in full.stderr
