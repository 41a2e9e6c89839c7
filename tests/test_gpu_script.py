"""`benchmarks/gpu.py` runs without a GPU and reports what is missing."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlstm import unrolling
from jaxlstm.engines import cudnn

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
OURS = ("scan float32", "adjoint float32")


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module, with the contenders that need only JAX."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(unrolling.ENGINES, "cudnn", cudnn.run)
    names = ("jax.experimental.rnn float32", "cudnn float32", "scan float32")
    contenders = {name: module.CONTENDERS[name] for name in names}
    monkeypatch.setattr(module, "CONTENDERS", contenders)
    return module


@pytest.fixture
def path(tmp_path):
    """An empty record."""
    path = tmp_path / "record.json"
    path.write_text('{"sections": {}}')
    return path


def run_section(gpu, name: str, path: Path, **options):
    gpu.work(name, path, smoke=True, **{"minutes": 1, **options})
    return json.loads(path.read_text())


@pytest.mark.thorough
def test_parity(gpu, path, monkeypatch):
    """Engines that cannot run are refused with a message; the others are correct."""
    monkeypatch.setattr(gpu, "TOLERANCES", {"highest": 1e-4})
    monkeypatch.setattr(gpu, "SMOKE_PARITY_CASES", gpu.SMOKE_PARITY_CASES[:1])
    record = run_section(gpu, "parity", path)
    section = record["sections"]["parity"]
    assert section["status"] == "finished"
    assert len(section["rows"]) == 2 * len(gpu.SMOKE_PARITY_CASES)
    for row in section["rows"]:
        if row["engine"] == "cudnn":
            assert row["refused"].startswith("cudnn: no GPU")
        else:
            assert row["right"], row
    assert record["machine"]["device"] == "cpu"
    shown = gpu.table(record)
    assert "right  ys " in shown
    assert "kernels: not written yet" in shown


@pytest.mark.thorough
def test_baselines(gpu, path, monkeypatch):
    """Rows hold figures, refusals and failures of the contenders."""

    def broken(point):
        raise ValueError("this one is broken")

    monkeypatch.setitem(gpu.CONTENDERS, "broken float32", broken)
    record = run_section(gpu, "baselines", path)
    [row] = record["sections"]["baselines"]["rows"]
    found = row["contenders"]
    assert "no GPU" in found["cudnn float32"]["refused"]
    assert "no GPU" in found["jax.experimental.rnn float32"]["refused"]
    assert found["broken float32"]["failed"] == "ValueError: this one is broken"
    assert "in broken" in found["broken float32"]["where"]
    ours = found["scan float32"]
    assert set(ours) == {"first_s", "forward_us", "training_us"}
    assert all(figure > 0 for figure in ours.values())
    assert "ValueError: this one is broken" in gpu.table(record)


def test_known_results_are_not_measured_again(gpu, path, monkeypatch):
    """A section at its time limit keeps its rows."""
    measured = []

    def measure_point(point, *, rounds):
        measured.append(point)
        return {}

    monkeypatch.setattr(gpu, "measure_point", measure_point)
    points = [gpu.Point(1, 1, 1), gpu.Point(2, 2, 2)]
    monkeypatch.setattr(gpu, "SMOKE_GRID", points)
    first = run_section(gpu, "baselines", path, minutes=0)["sections"]["baselines"]
    assert (len(first["rows"]), first["status"]) == (
        1,
        "stopped after the limit of 0 minutes",
    )
    second = run_section(gpu, "baselines", path)["sections"]["baselines"]
    assert (len(second["rows"]), second["status"]) == (2, "finished")
    assert measured == points


def test_a_crash_of_a_section_is_recorded(gpu, path, tmp_path, monkeypatch):
    deadly = tmp_path / "python"
    deadly.write_text("#!/bin/sh\necho it is all over >&2\nexit 134\n")
    deadly.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(deadly))
    gpu.run_in_process("parity", path, smoke=True, minutes=1)
    section = json.loads(path.read_text())["sections"]["parity"]
    assert (section["status"], section["failure"]) == ("failed", "it is all over\n")


def test_junit_reports_are_counted(gpu):
    report = """<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">
        <testcase name="good"/>
        <testcase name="bad"><failure/></testcase>
        <testcase name="worse"><error/></testcase>
    </testsuite></testsuites>"""
    assert gpu.counts(report) == {
        "tests_run": 3,
        "failures": 1,
        "errors": 1,
        "skipped": 0,
        "names": ["bad", "worse"],
    }


def test_errors_of_wrong_results_are_large(gpu):
    right = {"ys": [1.0, 2.0], "state": [1.0]}
    for wrong in (1.1, math.nan, math.inf):
        assert not gpu.errors({"ys": [1.0, wrong], "state": [1.0]}, right, 1e-3)[
            "right"
        ]
    assert gpu.errors(right, right, 0.0) == {"ys": 0.0, "state": 0.0, "right": True}


def test_every_target_exists(gpu):
    for target in (*gpu.CONTRACT, *gpu.SMOKE_CONTRACT):
        assert (SCRIPT.parents[1] / target.split("::")[0]).exists(), target
    assert len(gpu.GRID) == len(set(gpu.GRID)) == 7 * 4 * 2


@pytest.mark.thorough
def test_the_whole_script(tmp_path):
    """The command runs with every installed contender."""
    command = [sys.executable, SCRIPT, "--smoke", "--results", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "smoke.json").read_text())
    sections = record["sections"]
    assert [found["status"] for found in sections.values()] == ["finished"] * 3
    assert [row["exit"] for row in sections["contract"]["rows"]] == [0]
    [row] = sections["baselines"]["rows"]
    for name in OURS:
        assert row["contenders"][name]["training_us"] > 0
    assert "refused" in row["contenders"]["cudnn float32"]
    assert "probes: not written yet" in ran.stdout
    assert {"date", "jax", "device", "cores"} <= set(record["machine"])
