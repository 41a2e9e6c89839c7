"""Each verb of the command line works; each user error is one sentence and a code."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import tiny
from ruamel.yaml import YAML

import fast_compilation
import jaxlstm as jl
from jaxlstm.lab import cli, doctor, runs
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.wording import join_names
from jaxlstm.lab.config import starters
from jaxlstm.lab.config.sections import with_absolute_paths
from jaxlstm.lab.reports import report
from jaxlstm.lab.runs import trained


@pytest.fixture
def written(book, tmp_path, monkeypatch):
    """Write the config file of a tiny run to the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(tiny.config(book), file)
    return path


def failure(capsys, *words: object) -> tuple[int, str]:
    """Run a command that fails; return its exit code and its one-line message."""
    code = cli.main([str(word) for word in words])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    return code, err


def replace_in(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_misspelled_key_is_named_with_its_line_and_a_suggestion(written, capsys):
    replace_in(written, "hidden_size:", "hiden_size:")
    code, message = failure(capsys, "train", written)
    assert code == 2
    assert re.search(r"tiny.yaml:\d+: model.hiden_size: unknown key", message)
    assert 'did you mean "hidden_size"?' in message


def test_an_override_of_the_wrong_type_is_quoted(written, capsys):
    code, message = failure(capsys, "train", written, "training.steps=many")
    assert code == 2
    assert 'override "training.steps=many"' in message
    assert "a whole number" in message


def test_a_missing_config_file_suggests_a_similar_name(written, capsys):
    code, message = failure(capsys, "train", "tyny.yaml")
    assert code == 2
    assert "tyny.yaml" in message
    assert "tiny.yaml" in message.replace("tyny.yaml", "")


def test_a_missing_text_file_suggests_a_similar_name(written, book, capsys):
    book.rename(book.with_name("boook.txt"))
    code, message = failure(capsys, "train", written)
    assert code == 2
    assert "book.txt" in message
    assert "boook.txt" in message


def test_an_empty_text_file_is_refused(written, book, capsys):
    book.write_text("")
    code, message = failure(capsys, "train", written)
    assert code == 2
    assert "book.txt" in message
    assert "empty" in message


def test_a_text_that_is_not_utf8_names_the_encoding_key(written, book, capsys):
    book.write_bytes(book.read_bytes() + b"caf\xe9 au lait")
    code, message = failure(capsys, "train", written)
    assert code == 2
    assert "utf-8" in message
    assert "data.encoding" in message


def test_a_text_shorter_than_a_window_is_refused(written, capsys):
    code, message = failure(capsys, "train", written, "training.window=5000")
    assert code == 2
    assert "training.window" in message
    assert "lower" in message


def test_a_run_directory_that_cannot_be_written_is_refused(written, capsys):
    place = "/proc/no/run" if os.getuid() == 0 else "/no/run"
    code, message = failure(capsys, "train", written, "--run", place)
    assert code == 2
    assert place in message
    assert "--run" in message


def test_train_refuses_a_directory_that_holds_a_run(written, capsys):
    runs.create(Path("there"), name="tiny", config=written.read_text(), total_steps=9)
    code, message = failure(capsys, "train", written, "--run", "there")
    assert code == 2
    assert "got the directory of a run (step 0 of 9), expected an empty" in message
    assert "jaxlstm resume there" in message


def test_an_unknown_optimizer_is_named_with_a_suggestion(written, capsys):
    replace_in(written, "adamw", "adamm")
    code, message = failure(capsys, "train", written)
    assert code == 2
    assert re.search(r"tiny.yaml:\d+: optimizer\[1\].*adamm", message)
    assert "did you mean" in message


def test_a_missing_gpu_names_the_package_to_install(written, capsys):
    code, message = failure(capsys, "train", written, "device=gpu")
    assert code == 2
    assert "device: got gpu, but JAX sees only cpu: jaxlib has" in message
    assert 'pip install "jaxlstm[cuda13]"' in message


@pytest.mark.parametrize("verb", ["resume", "evaluate", "sample", "plot"])
def test_a_missing_run_is_refused(verb, written, capsys):
    code, message = failure(capsys, verb, "runs/nothing")
    assert code == 2
    assert "runs/nothing: does not exist" in message


def test_an_unexpected_exception_is_one_line_unless_debugging(
    written, capsys, monkeypatch
):
    def fail(*words, **options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("jaxlstm.lab.api.train", fail)
    code, message = failure(capsys, "train", written)
    assert code == 1
    assert "first line" in message
    assert "--debug" in message
    with pytest.raises(RuntimeError):
        cli.main(["train", str(written), "--debug"])


def test_divergence_exits_with_code_3(written, capsys):
    code, message = failure(
        capsys, "train", written, "optimizer=[{sgd: {learning_rate: 1e38}}]"
    )
    assert code == 3
    assert "is not finite" in message


def test_train_evaluate_sample_plot_and_resume(written, tmp_path, capsys, monkeypatch):
    """Only `plot` draws; test_experiments.py has the plots of a training run."""
    run = tmp_path / "a run"
    words = ["train", "--run", str(run), str(written), "training.steps=20"]
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_plots", lambda *args, **options: [])
        assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "best validation" in out
    assert "bits/char" in out

    assert cli.main(["evaluate", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["split"] == "validation"
    assert scores["loss"] == jl.lab.load(run).evaluate()["loss"]

    assert cli.main(["sample", str(run), "--prompt", "gates", "--length", "9"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("gates")
    assert captured.err == ""
    assert cli.main(["sample", str(run), "--prompt", "gatesßß", "--length", "9"]) == 0
    assert '--prompt: "ß" not in the model\'s vocabulary' in capsys.readouterr().err

    with monkeypatch.context() as patch:
        patch.setattr(runs, "finished", lambda run: None)
        assert cli.main(["sample", str(run), "--length", "1"]) == 0
    assert "is not finished (step 20 of 20)" in capsys.readouterr().err

    moved = tmp_path / "moved.txt"
    (tmp_path / "book.txt").rename(moved)
    assert cli.main(["evaluate", str(run)]) == 2
    assert "book.txt" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), f"data.path={moved}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == scores
    words = [f"data.path={moved}", "--prompt", "gates", "--length", "9"]
    assert cli.main(["sample", str(run), *words]) == 0
    assert capsys.readouterr() == captured
    assert cli.main(["sample", str(run), *words, "--count", "2"]) == 0
    assert capsys.readouterr().out.count("--- seed ") == 2
    with pytest.raises(SystemExit):
        cli.main(["sample", str(run), "gates "])
    assert "write --prompt 'gates '" in capsys.readouterr().err
    moved.rename(tmp_path / "book.txt")

    assert cli.main(["plot", str(run)]) == 0
    assert "loss.png" in capsys.readouterr().out
    assert cli.main(["plot", str(run), str(run), "--out", "both.png"]) == 0
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(report, "write_plots", lambda *args, **options: [])
    assert cli.main(["resume", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert cli.main(["resume", str(run), "training.steps=25"]) == 0
    assert "step 25/25" in capsys.readouterr().out


def test_scores_that_are_not_finite_are_null_and_exit_with_3(capsys, monkeypatch):
    class Broken:
        step = 9
        evaluate = staticmethod(lambda: {"loss": float("nan"), "accuracy": 0.5})

    monkeypatch.setattr(trained, "load", lambda *args, **options: Broken())
    assert cli.main(["evaluate", "a", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["loss"] is None
    assert "got a loss that is not finite" in captured.err


@pytest.mark.parametrize("verb", ["predict", "backtest"])
def test_parameters_that_are_not_finite_predict_nothing(verb, capsys, monkeypatch):
    task = SimpleNamespace(name="t", predict=pytest.fail, backtest=pytest.fail)
    params = {"head": {"w": jnp.array([1.0, jnp.nan])}}
    made = trained.Trained(Path("run"), None, task, None, None, params, 7, {})
    monkeypatch.setattr(trained, "load", lambda run: made)
    code, message = failure(capsys, verb, "run")
    assert code == 3
    assert "run: got the parameter head/w with a number that is not fin" in message


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_version_and_the_exit_codes_are_printed(option, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([option])
    assert caught.value.code == 0
    expected = {"--version": f"jaxlstm {jl.__version__}\n", "--help": "  130  interr"}
    assert expected[option] in capsys.readouterr().out


def test_a_home_directory_is_expanded_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = configs.load(tiny.config(Path("~/book.txt")))
    assert with_absolute_paths(config).data.path == str(tmp_path / "book.txt")
    made = runs.create(tmp_path / "r", name="r", config="seed: 0", total_steps=1)
    assert runs.open(Path("~/r")) == made
    assert runs.is_run(Path("~/r"))


def test_resume_auto_requires_a_run_directory(written, capsys):
    code, message = failure(capsys, "train", written, "--resume", "auto")
    assert code == 2
    assert "--run DIR" in message


def test_overrides_without_a_config_apply_to_the_quickstart(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code, message = failure(capsys, "train", "model.hidden=1")
    assert code == 2
    assert 'did you mean "model.hidden_size"' in message or "hidden_size" in message


def test_check_counts_parameters_and_estimates_memory(written, capsys):
    assert cli.main(["check", str(written)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{written}: valid\n")
    rows = dict(re.split(r"\s{2,}", line) for line in out.splitlines()[1:])
    model = tiny.config(Path("x"))["model"]
    hidden, embedded = model["hidden_size"], model["embedding_size"]
    vocabulary = int(rows["vocabulary"])
    assert int(rows["parameters"].replace(",", "")) == (
        vocabulary * embedded
        + 4 * hidden * (embedded + hidden + 1)
        + vocabulary * (hidden + 1)
    )
    assert re.fullmatch(r"\d+(\.\d+)? kB for .*XLA.*", rows["memory"])


def test_new_writes_a_valid_config_and_never_overwrites(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "language-modelling", "--out", "my.yaml"]) == 0
    assert configs.load("my.yaml").name == "my"
    assert "wrote my.yaml" in capsys.readouterr().out
    assert cli.main(["new", "language_modelling"]) == 0
    assert capsys.readouterr().out == starters.starter("language_modelling")
    code, message = failure(capsys, "new", "language_modelling", "--out", "my.yaml")
    assert code == 2
    assert "my.yaml: already exists" in message
    code, message = failure(capsys, "new", "language_modeling")
    assert code == 2
    assert 'did you mean "language_modelling"?' in message
    _, message = failure(capsys, "new", "vision")
    assert f'task: got "vision", expected {join_names(starters.TASKS)}' in message


def test_schema_prints_the_committed_file(capsys):
    assert cli.main(["schema"]) == 0
    committed = Path(__file__).parents[2] / "configs" / "schema.json"
    assert capsys.readouterr().out == committed.read_text()


def test_doctor_lists_versions_and_explains_a_missing_gpu(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "none: JAX sees only cpu: jaxlib has" in out
    assert re.search(r"^optax +\d", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "jaxlstm[plot]"'),
        ({"url": "file:///a b", "dir_info": {}}, 'pip install "/a b[plot]"'),
        (
            {"url": "file:///src", "dir_info": {"editable": True}},
            'pip install -e "/src[plot]"',
        ),
        ({"url": "file:///a.whl", "archive_info": {}}, 'pip install "jaxlstm[plot]"'),
    ],
)
def test_doctor_installs_from_where_the_package_is_from(origin, command, monkeypatch):
    class Distribution:
        def read_text(self, name):
            return json.dumps(origin) if origin else None

    monkeypatch.setattr(
        doctor.importlib.metadata, "distribution", lambda name: Distribution()
    )
    assert doctor.install_command("plot") == command


IN_TERMINAL = """
import sys
from jaxlstm.lab import cli
if sys.argv[1] == "train":
    from jaxlstm.lab.reports import report
    report.write_plots = lambda *args, **options: []  # drawing takes seconds
sys.exit(cli.main(sys.argv[1:]))
"""


def in_terminal(words: list[str], **environment: str) -> str:
    """Return the output of a command in a pseudo terminal."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, *words],
        stdout=follower,
        stderr=follower,
        env=fast_compilation.environment() | {"TERM": "xterm-256color"} | environment,
    )
    os.close(follower)
    parts = []
    with contextlib.suppress(OSError):  # Linux reports the end as an error
        while part := os.read(leader, 4096):
            parts.append(part)
    process.wait()
    os.close(leader)
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.combinations
def test_screens_without_colour_and_of_60_columns(written, capsys):
    """No escape sequence, and no line longer than the screen but of a single word."""
    words = ["train", "tiny.yaml", "training.steps=5", "--run", "r" * 40]
    out = in_terminal(words, NO_COLOR="1", COLUMNS="60")
    assert "step 5/5" in out
    assert "\x1b" not in out
    out = in_terminal(["check", "tiny.yaml"], COLUMNS="60")
    assert cli.main(["check", "tiny.yaml"]) == 0
    plain = capsys.readouterr().out
    assert len(out.split()) == len(plain.split())
    broken = [line for line in out.splitlines() if len(line) > 60]
    assert all(len(line.split()) == 1 for line in broken)
    assert len(out.splitlines()) > len(plain.splitlines())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_every_verb_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"example: jaxlstm {verb}" in out


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--fast"])
    assert caught.value.code == 2
    assert "--fast" in capsys.readouterr().err


MEANT = {
    "my.yaml seed=1": "write: jaxlstm train my.yaml seed=1",
    "seed=1": "write: jaxlstm train seed=1",
    "eval runs/a": "write: jaxlstm evaluate runs/a",
    "trian": 'did you mean "train"?',
    "train --hidden-size 64": "write model.hidden_size=64;",
    "check --steps=9": "write training.steps=9;",
    "train --lr 1e-3": "write learning_rate=1e-3;",
}


@pytest.mark.parametrize("words", MEANT)
def test_a_wrong_command_is_answered_with_the_one_that_was_meant(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words.split())
    assert caught.value.code == 2
    assert MEANT[words] in capsys.readouterr().err


def test_a_config_given_as_a_run_and_a_run_given_as_a_config(written, capsys):
    code, message = failure(capsys, "resume", "tiny.yaml")
    assert code == 2
    assert message.endswith("train it with: jaxlstm train tiny.yaml\n")
    Path("run").mkdir()
    written.rename("run/config.yaml")
    code, message = failure(capsys, "train", "run")
    assert message.endswith("continue it with: jaxlstm resume run\n")


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
def test_help_and_config_verbs_do_not_import_jax(words):
    code = (
        "import sys\n"
        "from jaxlstm.lab.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'jaxlib', 'numpy', 'optax', 'orbax', 'matplotlib'}\n"
        "heavy |= {'pydantic'} if '--help' in sys.argv else set()\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_not_an_error():
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
def test_an_unavailable_platform_names_the_variable(verb, tmp_path):
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


def test_a_closed_or_full_standard_output_is_one_line():
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
    assert "standard output: cannot be used (No space left on device)" in full.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"r\udcff \xfcb"), ("utf-8", r"r\udcff üb")]
)
def test_characters_outside_the_encoding_are_escaped(encoding, shown, monkeypatch):
    """A sample on a terminal of ASCII, and a name of a run that is not UTF-8."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, "strict"))
    verb = cli.VERBS["schema"]._replace(run=lambda _: print("r\udcff üb"))
    monkeypatch.setitem(cli.VERBS, "schema", verb)
    assert cli.main(["schema"]) == 0
    assert raw.getvalue().decode().strip() == shown


def test_an_empty_override_is_named(written, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", str(written), "--tensorboard", ""])
    assert exit_.value.code == 2
    assert "got '', expected KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "check"])
def test_float64_needs_x64(verb, written, capsys):
    code, message = failure(capsys, verb, written, "model.dtype=float64")
    assert code == 2
    assert "JAX_ENABLE_X64=1" in message


def test_a_disabled_jit_is_named(written, capsys):
    with jax.disable_jit():
        code, message = failure(capsys, "train", written)
    assert code == 2
    assert "JAX_DISABLE_JIT" in message
