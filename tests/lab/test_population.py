"""A population trains members that equal their runs alone, and fail on their own."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import sum_task
import tiny
from matplotlib.figure import Figure

from jaxlstm.lab import api, config, tasks
from jaxlstm.lab._util.errors import BadInput, Diverged
from jaxlstm.lab.config import loading, schema
from jaxlstm.lab.config import population as sections
from jaxlstm.lab.reports import report
from jaxlstm.lab.runs.trained import load

OPTIMISED = True  # members are compared with runs alone
RATE = "optimizer.0.adam.learning_rate"


@pytest.fixture(autouse=True, scope="module")
def registered_task():
    """Register the task until the end of the module."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(schema, "CONFIGS", dict(schema.CONFIGS))
        monkeypatch.setattr(loading, "CONFIGS", schema.CONFIGS)
        monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
        sum_task.register()
        yield


def trained(path, given, **population):
    """Train a population, or one run without any; return its directory."""
    section = {"population": population} if population else {}
    api.train({**given, **section}, run=path, sink=tiny.RecordingSink())
    return path


def sums(**training):
    return sum_task.config(steps=20, checkpoint_every=20, **training)


def alone(given, seed, **chain):
    return given | {"seed": seed} | ({"optimizer": [{"adam": chain}]} if chain else {})


def assert_equal(run, other, *, bits=False):
    """Compare step, parameters and metrics of two runs."""
    found, expected = load(run), load(other)
    assert found.step == expected.step
    for leaf, like in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(leaf, like, rtol=0, atol=0 if bits else 1e-5)
    rows, likes = found.metrics(), expected.metrics()
    assert [row.keys() for row in rows] == [row.keys() for row in likes]
    for row, like in zip(rows, likes, strict=True):
        assert row.pop("split") == like.pop("split")
        assert row == pytest.approx(like, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def grid(tmp_path_factory, registered_task, rasterised):
    """A population of two seeds by two learning rates, with its own pictures only."""
    path = tmp_path_factory.mktemp("grid") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Figure, "savefig", rasterised)
        monkeypatch.setattr(report, "write_plots", lambda *args, **options: [])
        return trained(path, sums(), seeds=2, grid={RATE: [0.05, 0.01]})


@pytest.mark.parametrize(("member", "seed", "rate"), [("01", 1, 0.05), ("02", 0, 0.01)])
def test_member_equals_its_run_alone(grid, tmp_path, member, seed, rate):
    given = alone(sums(), seed, learning_rate=rate)
    solo = trained(tmp_path / "solo", given)
    assert_equal(grid / "members" / member, solo)


def test_members_are_ranked_and_the_best_is_loaded(grid):
    with pytest.warns(UserWarning, match="is a population"):
        best = load(grid)
    scores = {}
    for path in sorted((grid / "members").iterdir()):
        rows = [row for row in load(path).metrics() if row["split"] == "validation"]
        scores[path.name] = max(row["share_close"] for row in rows)
    assert best.run.name == max(scores, key=lambda name: scores[name])
    header, first, *_ = (grid / "members.csv").read_text().splitlines()
    assert header == f"member,seed,{RATE},share_close,best_step,status"
    assert first.startswith(f"{best.run.name},")
    assert (grid / "plots" / "members_train_loss.png").stat().st_size > 10_000


def test_the_best_member_is_that_of_the_checkpoint_not_of_an_edited_table(
    grid, tmp_path
):
    run = Path(shutil.copytree(grid, tmp_path / "run"))
    best = load(grid, report=lambda text: None).run.name
    header, first, second, *others = (run / "members.csv").read_text().splitlines()
    rows = [header, second, first, *others]
    (run / "members.csv").write_text("\n".join(rows) + "\n")
    assert load(run, report=lambda text: None).run.name == best
    other = next(path for path in (run / "members").iterdir() if path.name != best)
    shutil.rmtree(run / "members" / best)
    other.rename(run / "members" / best)
    with pytest.raises(BadInput, match=f"members/{best}: got the run of another mem"):
        load(run, report=lambda text: None)


def test_files_of_a_killed_process_are_removed_from_members(grid, tmp_path):
    run = Path(shutil.copytree(grid, tmp_path / "run"))
    left = run / "members" / "01" / ".state.json.1.tmp"
    stage = run / "members" / "02" / "checkpoints" / ".000020.1.tmp"
    left.write_text("{")
    stage.mkdir()
    api.resume(run, sink=tiny.RecordingSink())
    assert not left.exists()
    assert not stage.exists()


def test_metrics_have_a_line_for_each_member(grid):
    text = (grid / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [row["member"] for row in lines if row["split"] == "train"] == [0, 1, 2, 3]


@pytest.mark.combinations
def test_diverged_member_leaves_the_bits_of_others(grid, tmp_path):
    rates = [0.05, 0.01, 1e38]
    sink = tiny.RecordingSink()
    run = tmp_path / "run"
    given = sums() | {"population": {"seeds": 2, "grid": {RATE: rates}}}
    api.train(given, run=run, sink=sink)
    for member in ("00", "01", "02", "03"):
        assert_equal(run / "members" / member, grid / "members" / member, bits=True)
    text = (run / "members.csv").read_text()
    assert text.count("diverged at step") == 2
    assert any("member 05 diverged" in message for message in sink.messages)


def test_resumed_population_has_the_same_bits(grid, tmp_path):
    given = sums() | {"population": {"seeds": 2, "grid": {RATE: [0.05, 0.01]}}}
    path = tmp_path / "run"
    calls = iter(range(100))

    class Stop(tiny.RecordingSink):
        def log(self, record):
            if next(calls) == 0:
                raise KeyboardInterrupt  # as if the process had died here

    short = given | {"training": given["training"] | {"checkpoint_every": 10}}
    with pytest.raises(KeyboardInterrupt):
        api.train(short, run=path, sink=Stop())
    api.resume(path, sink=tiny.RecordingSink())
    assert (path / "metrics.jsonl").read_bytes() == (
        grid / "metrics.jsonl"
    ).read_bytes()
    for member in ("00", "03"):
        assert_equal(path / "members" / member, grid / "members" / member, bits=True)


@pytest.mark.thorough
def test_member_stops_early_on_its_own(tmp_path):
    training = {
        "steps": 60,
        "checkpoint_every": 60,
        "early_stopping": {"patience": 1},
    }
    given = sum_task.config(**training)
    run = trained(tmp_path / "run", given, seeds=3)
    steps = {
        path.name: max(row["step"] for row in load(path).metrics())
        for path in (run / "members").iterdir()
    }
    assert len(set(steps.values())) > 1, steps
    early = min(steps, key=lambda name: steps[name])
    solo = trained(tmp_path / "solo", alone(given, int(early)))
    assert_equal(run / "members" / early, solo)


@pytest.mark.thorough
def test_language_models_equal_their_runs_alone(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny.text())
    given = tiny.config(text, checkpoint_every=40)
    run = trained(tmp_path / "run", given, seeds=2)
    solo = trained(tmp_path / "solo", given | {"seed": 1})
    assert_equal(run / "members" / "01", solo)
    assert len(load(run / "members" / "01").sample("the ", length=9)) == 9
    best = [
        min(
            row["bits_per_character"]
            for row in load(path).metrics()
            if row["split"] == "validation"
        )
        for path in (run / "members").iterdir()
    ]
    report_text = (run / "report.md").read_text()
    assert f"best validation | bits per character {np.mean(best):.4g} ±" in report_text


@pytest.mark.thorough
def test_all_members_diverged(tmp_path):
    given = sums() | {"population": {"grid": {RATE: [1e38]}}}
    with pytest.raises(Diverged, match="every member"):
        api.train(given, run=tmp_path / "run", sink=tiny.RecordingSink())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"grid": {"model.units": [4, 8]}}, "jaxlstm sweep"),
        ({"grid": {"training.batch_size": [4, 8]}}, "jaxlstm sweep"),
        ({"grid": {"optimizer.0.adam.b1": [0.8]}}, "expected a key of optimizer"),
        ({"grid": {RATE: [0.1, 0.1]}}, "a value twice"),
        ({"seeds": [1, 1]}, "a seed twice"),
    ],
)
def test_refuses(tmp_path, section, message):
    with pytest.raises(BadInput, match=message):
        api.train(sums() | {"population": section}, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_members_of_a_grid_are_every_combination():
    section = sections.Population(seeds=(3, 5), grid={"optimizer.0.a": (1.0, 2.0)})
    found = sections.members(section, 0)
    assert [(one.name, one.seed, *one.values.values()) for one in found] == [
        ("00", 3, 1.0),
        ("01", 5, 1.0),
        ("02", 3, 2.0),
        ("03", 5, 2.0),
    ]
    assert config.load().population is None
