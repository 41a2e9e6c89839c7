"""A sweep finds the best trial, goes on after kills, and shares its work."""

import csv
import os
import signal
import subprocess
import sys

import helpers
import pytest
import tiny
from ruamel.yaml import YAML

from jaxlstm.lab import api, config, runs
from jaxlstm.lab._util.errors import BadInput

pytest.importorskip("optuna")

RATE = "optimizer.0.adam.learning_rate"


def given(trials=3, *, space=None, **training):
    """Return the config of a sweep whose trials take less than a second."""
    return {
        "task": "memory",
        "name": "search",
        "data": {"length": 20, "test_sequences": 16},
        "model": {"engine": "scan"},
        "optimizer": [{"adam": {"learning_rate": 0.01}}],
        "training": {
            "steps": 4,
            "batch_size": 8,
            "steps_per_dispatch": 2,
            "log_every": 2,
            "validate_every": 2,
            "checkpoint_every": 2,
            **training,
        },
        "sweep": {
            "trials": trials,
            "space": space or {"model.hidden_size": [2, 3], RATE: [0.01, 0.1]},
        },
    }


def table(path):
    with (path / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.combinations
def test_best_config_trains(tmp_path):
    sink = tiny.RecordingSink()
    found = api.sweep(given(), out=tmp_path / "s", sink=sink)
    rows = table(tmp_path / "s")
    assert len(rows) == 3
    assert float(rows[0]["solved"]) == found.value
    again = config.load(tmp_path / "s" / "best.yaml")
    assert again == found.config
    assert again.sweep is None
    assert again.model.hidden_size == int(rows[0]["model.hidden_size"])
    assert runs.is_run(found.best)


@pytest.mark.thorough
def test_no_combination_is_tried_twice(tmp_path):
    sink = tiny.RecordingSink()
    space = {"model.hidden_size": [2, 3]}
    found = api.sweep(given(5, space=space), out=tmp_path / "s", sink=sink)
    assert sorted(t.values["model.hidden_size"] for t in found.trials) == [2, 3]
    assert any("every combination" in message for message in sink.messages)


@pytest.mark.thorough
def test_diverged_trial_is_named(tmp_path):
    space = {RATE: [1e38, 0.01]}
    sink = tiny.RecordingSink()
    found = api.sweep(given(2, space=space), out=tmp_path / "s", sink=sink)
    assert [trial.status.split(":")[0] for trial in found.trials] == [
        "finished",
        "diverged",
    ]
    assert "diverged: step" in (tmp_path / "s" / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep": None}, "without a section sweep"),
        ({"sweep": {"space": {"model.hiden_size": [1]}}}, "did you mean"),
        ({"sweep": {"space": {"model.hidden_size": [0]}}}, "hidden_size"),
        ({"sweep": {"space": {RATE: {"low": 1.0, "high": 0.1}}}}, "low < high"),
        ({"sweep": {"space": {RATE: {"low": 0, "high": 1, "log": True}}}}, "positive"),
        ({"sweep": {"space": {}}}, "space"),
    ],
)
def test_refuses(tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        api.sweep(given() | change, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_train_refuses_a_search_space(tmp_path):
    with pytest.raises(BadInput, match="jaxlstm sweep"):
        api.train(given(), run=tmp_path / "r")


def test_refuses_the_directory_of_another_sweep(tmp_path):
    sink = tiny.RecordingSink()
    api.sweep(given(1), out=tmp_path / "s", sink=sink)
    with pytest.raises(BadInput, match="another config"):
        api.sweep(given(1, steps=6), out=tmp_path / "s", sink=sink)


def start(path, file):
    words = [sys.executable, "-m", "jaxlstm", "sweep", str(file), "--out", str(path)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def written(tmp_path, value):
    file = tmp_path / "sweep.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(value, stream)
    return file


@pytest.mark.thorough
def test_sweep_killed_twice_goes_on(tmp_path):
    path = tmp_path / "s"
    space = {RATE: {"low": 1e-3, "high": 1e-1, "log": True}}
    file = written(tmp_path, given(4, space=space, steps=40))
    for kill in (1, 2):
        process = start(path, file)
        trial = path / "trials" / f"{kill:04d}"
        helpers.wait_until(lambda t=trial: helpers.newest_step(t) >= 10, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(path, file)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "trial 2: resumed, as its process ended" in out
    rows = table(path)
    assert sorted(int(row["trial"]) for row in rows) == [0, 1, 2, 3]
    assert len({row[RATE] for row in rows}) == 4
    # The sweep that was not killed draws the same trials with the same results.
    found = api.sweep(
        given(4, space=space, steps=40),
        out=tmp_path / "whole",
        sink=tiny.RecordingSink(),
    )
    assert table(tmp_path / "whole") == rows
    assert len(found.trials) == 4


@pytest.mark.thorough
def test_two_processes_share_a_sweep(tmp_path):
    path = tmp_path / "s"
    space = {"model.hidden_size": [2, 3, 4], RATE: [0.01, 0.03, 0.1]}
    file = written(tmp_path, given(8, space=space, steps=20))
    processes = [start(path, file), start(path, file)]
    outs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    rows = table(path)
    combinations = [(row["model.hidden_size"], row[RATE]) for row in rows]
    assert len(set(combinations)) == len(combinations) >= 8
    assert all(": solved " in out or "pruned" in out for out in outs), outs
