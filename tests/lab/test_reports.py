"""`report.md` and its pictures: contents, escaping, and errors."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from jaxlstm import plots
from jaxlstm.cells.base import Gates, HiddenState, LSTMState
from jaxlstm.cells.emit import Trace
from jaxlstm.cells.gru import GRUGates
from jaxlstm.cells.simple import RNNGates
from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab.reports.report import (
    summary,
    write_comparison,
    write_plots,
    write_report,
)
from jaxlstm.lab.tasks import Artifact, Metric
from jaxlstm.lab.tasks.base import Picture
from jaxlstm.lab.tasks.language_modelling import TASK, pictures

PICTURES = True  # their pixels are read
RECORDS = [
    {
        "step": step,
        "split": split,
        "loss": loss,
        "bits_per_character": loss / np.log(2),
        **({"gradient_norm": 0.4, "learning_rate": 1e-3} if split == "train" else {}),
    }
    for step, split, loss in (
        (50, "train", 2.0),
        (100, "train", 1.4),
        (100, "validation", 1.5),
        (150, "train", 1.3),
        (150, "validation", 1.6),
    )
]


SAMPLE = Artifact("Sample", "def f():\n    pass")


def trace_artifacts(symbols, trace):
    """Return the artifacts of a trace over symbols."""
    return [Artifact(pictures=pictures.pictures(symbols, trace))]


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "quickstart-20261101-101500"
    path.mkdir()
    (path / "config.yaml").write_text("name: quickstart\n")
    (path / "env.json").write_text('{"jax": "0.10.2"}\n')
    write_metrics(path, RECORDS)
    return path


@pytest.fixture
def artifacts():
    draw = np.random.default_rng(0).random
    f = np.full((5, 3), 0.5)
    f[:, 1] = (1, 1, 0, 1, 1)
    gates = Gates(draw((5, 3)), f, draw((5, 3)), draw((5, 3)))
    return trace_artifacts(
        "ab\nde", Trace(LSTMState(draw((5, 3)), draw((5, 3))), gates)
    )


def write_metrics(path, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (path / "metrics.jsonl").write_text(lines)


def test_the_report_contains_every_section(run, artifacts):
    facts = {"speed": "98,212 tokens/s | 41.7 ms per step"}
    path = write_report(
        run, scores=TASK.scores, facts=facts, artifacts=[SAMPLE, *artifacts]
    )
    text = path.read_text()
    for part in (
        "# quickstart-20261101-101500",
        "| best validation | 2.164 bits per character, loss 1.5000 (step 100) |",
        r"| speed | 98,212 tokens/s \| 41.7 ms per step |",
        "def f():\n    pass",
        "```yaml\nname: quickstart\n```",
        '```json\n{"jax": "0.10.2"}\n```',
        "Unit 1, whose forget gate and cell state vary most: gates",
    ):
        assert part in text


def test_every_picture_of_the_report_exists_and_is_not_blank(run, artifacts):
    text = write_report(run, artifacts=artifacts).read_text()
    names = sorted(path.name for path in (run / "plots").iterdir())
    assert names == [
        "forget_gate.png",
        "loss.png",
        "timescales.png",
        "training_health.png",
        "unit.png",
    ]
    for name in names:
        assert f"(plots/{name})" in text
        pixels = image.imread(run / "plots" / name)
        assert pixels.std() > 0.02
        assert min(pixels.shape[:2]) > 400


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (
            lambda f: Trace(HiddenState(f), GRUGates(f, f, f)),
            {"update_gate", "timescales"},
        ),
        (lambda f: Trace(HiddenState(f), RNNGates(f)), set()),
        (lambda f: Trace(LSTMState(f, f), Gates(f, 0 * f + 1, f, f)), {"unit"}),
        (
            lambda f: Trace(LSTMState(f[:, :2], f), Gates(f, f, f, f)),
            {"forget_gate", "timescales"},
        ),
    ],
    ids=["gru", "simple rnn", "classic", "projected"],
)
def test_pictures_of_other_cells(run, trace, expected):
    f = np.random.default_rng(0).random((5, 3))
    write_plots(run, trace_artifacts("abcde", trace(f)))
    names = {path.stem for path in (run / "plots").iterdir()}
    assert names == {"loss", "training_health"} | expected


def test_without_artifacts_the_training_is_drawn(run):
    write_plots(run)
    names = {path.name for path in (run / "plots").iterdir()}
    assert names == {"loss.png", "training_health.png"}


def test_writing_a_report_again_gives_the_same_bytes(run, artifacts):
    first = write_report(run, artifacts=artifacts).read_bytes()
    assert write_report(run, artifacts=artifacts).read_bytes() == first


def test_a_text_with_backticks_stays_inside_its_code_block(run):
    sample = Artifact("Sample", "```\n# not a heading\n````\x1b[2J")
    text = write_report(run, artifacts=[sample]).read_text()
    assert "`````text\n```\n# not a heading\n````\\x1b[2J\n`````" in text


def test_a_run_without_metrics_has_a_report_without_pictures(run):
    write_metrics(run, [])
    text = write_report(run).read_text()
    assert "| steps | 0 |" in text
    assert "plots/" not in text


def test_a_comparison_is_one_picture(run, tmp_path):
    target = write_comparison([run, run], tmp_path / "compared.png")
    assert image.imread(target).std() > 0.02


@pytest.mark.parametrize(
    ("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_the_suffix_of_a_picture_decides_its_type(run, tmp_path, suffix, start):
    target = write_comparison([run], tmp_path / f"compared.{suffix}")
    assert target.read_bytes().startswith(start)


def test_pictures_do_not_depend_on_the_settings_of_the_user(run, tmp_path):
    """A notebook's backend, LaTeX without LaTeX, and another format of files."""
    write_plots(run)
    expected = (run / "plots/loss.png").read_bytes()
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nsavefig.format: pdf\nfigure.facecolor: red\n"
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from jaxlstm.lab.reports.report import write_plots\n"
        "write_plots(Path(sys.argv[1]), report=sys.exit)"
    )
    settings = {"MPLBACKEND": "module://missing", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", code, run],
        check=True,
        env=os.environ | settings | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (run / "plots/loss.png").read_bytes() == expected


def test_a_picture_that_cannot_be_drawn_is_a_warning(run):
    def fail(ax):
        raise RuntimeError("no font")

    failing = Artifact(pictures=[Picture("bad.png", "Bad.", (4, 3), fail)])
    messages = []
    text = write_report(run, artifacts=[failing], report=messages.append).read_text()
    assert messages == [
        f"warning: {run}/plots/bad.png was not drawn (no font); draw it again with: "
        f"jaxlstm plot {run}"
    ]
    assert "plots/loss.png" in text
    assert "bad.png" not in text
    with pytest.raises(RuntimeError, match="no font"):
        write_plots(run, [failing])


def test_names_of_runs_are_no_markup(run, tmp_path):
    """`$a_1$` would be set as a formula, and a name with `_` be left out."""
    names = ["_hidden", "$a_1$", "cost $5 or $6", "100 % \\frac"]
    ax = Figure().add_subplot()
    plots.compare_runs(dict.fromkeys(names, RECORDS), ax=ax)
    texts = ax.get_legend().get_texts()
    assert [text.get_text().split(":")[0] for text in texts] == names
    assert not any(text.get_parse_math() for text in texts)
    directory = run.rename(tmp_path / "_$a$")
    assert write_comparison([directory], tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    "write", [write_plots, lambda run: write_comparison([run], run)]
)
def test_drawing_a_run_without_metrics_is_an_error(tmp_path, write):
    with pytest.raises(BadInput, match=r"metrics\.jsonl: got no metrics"):
        write(tmp_path)


def test_an_error_of_writing_names_the_file(run, tmp_path):
    (run / "plots").write_text("a file in the place of a directory")
    with pytest.raises(LabError, match=r"plots/loss\.png: cannot be written"):
        write_plots(run)
    with pytest.raises(LabError, match=r"c\.png: cannot be written"):
        write_comparison([run], tmp_path / "no" / "such" / "c.png")


def test_the_summary_ignores_a_loss_that_is_not_finite():
    records = [*RECORDS, {"step": 200, "split": "validation", "loss": None}]
    rows = summary(records)
    assert rows["steps"] == "200"
    assert rows["best validation"].endswith("loss 1.5000 (step 100)")
    assert rows["last validation"].endswith("loss 1.6000 (step 150)")


def test_the_summary_selects_the_best_validation_by_the_primary_metric():
    """The largest accuracy is best, although the loss is smallest elsewhere."""
    scores = ((10, 1.0, 0.25), (20, 2.0, 0.75), (30, 3.0, 0.5), (40, 0.5, None))
    records = [
        {"step": step, "split": "validation", "loss": loss, "top_1": accuracy}
        for step, loss, accuracy in scores
    ]
    rows = summary(records, primary=Metric("top_1", "max"))
    assert rows["best validation"] == "0.75 top 1, loss 2.0000 (step 20)"
    assert rows["last validation"] == "0.5 top 1, loss 3.0000 (step 30)"
    records[1]["loss"] = None
    rows = summary(records, primary=Metric("top_1", "max"))
    assert rows["best validation"] == "0.75 top 1 (step 20)"
    rows = summary(records, primary=Metric("top_1", "min"))
    assert rows["best validation"] == "0.25 top 1, loss 1.0000 (step 10)"


def test_the_summary_states_the_scores_of_the_task_before_the_loss():
    (record,) = [r for r in RECORDS if (r["step"], r["split"]) == (100, "validation")]
    record = record | {"perplexity": 4.4817}
    score = "2.164 bits per character, 4.482 perplexity, loss 1.5000 (step 100)"
    found = summary([record], scores=TASK.scores)["best validation"]
    assert found == score
    found = summary([record], scores=["perplexity"])["best validation"]
    assert found == "4.482 perplexity, loss 1.5000 (step 100)"
    assert summary([record])["best validation"] == "loss 1.5000 (step 100)"


def test_writing_a_report_leaves_no_open_figure(run, artifacts):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    write_report(run, artifacts=artifacts)
    assert pyplot.get_fignums() == before


def test_without_matplotlib_the_error_names_the_extra(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxlstm.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delattr("jaxlstm.plots", raising=False)
    with pytest.raises(LabError, match=r'pip install "jaxlstm\[plot\]"'):
        write_plots(run)


def test_without_matplotlib_the_report_has_no_pictures(run, artifacts, monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxlstm.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    messages = []
    text = write_report(run, artifacts=artifacts, report=messages.append).read_text()
    assert "## Configuration" in text
    assert "plots/" not in text
    (message,) = messages
    assert (
        'needs Matplotlib: pip install "jaxlstm[plot]"; then: jaxlstm plot' in message
    )
