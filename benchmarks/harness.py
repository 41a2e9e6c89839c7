"""Measure all cases, one process per case, and each memory peak in a further process.

If a process dies, only its case is lost, and the result states the reason.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, peers
from benchmarks.cases import Case

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "PYTHONWARNINGS": "ignore"}

# Ratios between the cases of these groups are reported, so they share a process.
SHARED_GROUPS = ("growth", "compile")
TIMEOUT = 3600.0  # of one process, in seconds


def environment() -> dict[str, str]:
    """Return the environment of the measuring processes; set variables are kept."""
    return SETTINGS | dict(os.environ)


def use_cores(count: int | None) -> int:
    """Restrict this process and its children to the first `count` cores.

    Raises:
        ValueError: fewer cores are available.
    """
    if not hasattr(os, "sched_setaffinity"):
        if count is not None:
            raise ValueError(
                "--cores works on Linux only; leave it out to use all cores"
            )
        return os.cpu_count() or 1
    available = sorted(os.sched_getaffinity(0))
    count = len(available) if count is None else count
    if not 1 <= count <= len(available):
        raise ValueError(f"--cores: got {count}, expected 1 to {len(available)}")
    os.sched_setaffinity(0, available[:count])
    return count


def run(
    cases: Sequence[Case],
    names: Sequence[str],
    *,
    seconds: float,
    cores: int,
    peaks: bool,
    log: Callable[[str], object],
    save: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Return the result of all cases as plain JSON, with reasons for what did not run.

    Args:
        peaks: also measure peak memory, each in its own process.
        log: called with a line about each case before it is measured.
        save: called with the result so far after each case.
    """
    absent = {n: why for n, why in peers.absent().items() if n in names}
    present = [name for name in names if name not in absent]
    for name, why in absent.items():
        log(f"{name}: {why}")
    result: dict[str, Any] = {
        "machine": machine.describe(cores, environment()),
        "seconds": seconds,
        "contenders": list(names),
        "absent": absent,
        "cases": {case.name: case_to_json(case) for case in cases},
        "chosen": {},
        "rows": [],
        "refusals": [],
    }
    for group in group_by_process(cases):
        log(", ".join(case.name for case in group))
        selected = {name for case in group for name in case.contenders or present}
        measured = [name for name in present if name in selected]
        response = measure_in_process(group, measured, seconds=seconds)
        _add(result, response)
        for case, name, what in _peaks(group, measured, response) if peaks else ():
            _add(result, measure_in_process([case], [name], peak=what))
        save(result)
    return result


def group_by_process(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the lists of cases that share a process."""
    shared: dict[str, list[Case]] = {}
    for case in cases:
        key = case.group if case.group in SHARED_GROUPS else case.name
        shared.setdefault(key, []).append(case)
    return list(shared.values())


def to_json(result: Mapping[str, Any]) -> str:
    """Return the result as JSON with one line per figure, for readable diffs.

    >>> print(to_json({"seconds": 4.0, "rows": [{"case": "a"}, {"case": "b"}]}), end="")
    {
    "seconds": 4.0,
    "rows": [
     {"case": "a"},
     {"case": "b"}
    ]
    }
    """
    parts = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n ".join(json.dumps(row) for row in value)
            text = f"[\n {rows}\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def case_to_json(case: Case) -> dict[str, Any]:
    """Return the fields of a case and its FLOPs."""
    return case._asdict() | {"flops_forward": case.flops_forward}


def _add(result: dict[str, Any], response: dict[str, Any]) -> None:
    result["chosen"] |= response.get("chosen", {})
    result["rows"].extend(response["rows"])
    result["refusals"].extend(response["refusals"])


def _peaks(
    group: Sequence[Case], names: Sequence[str], response: dict[str, Any]
) -> list[tuple[Case, str, str]]:
    """Return the (case, contender, what) whose peak is measured: all training steps."""
    rows = response["rows"]
    ran = {(r["case"], r["contender"]) for r in rows if r["what"] == "training"}
    pairs = ((case, name) for case in group for name in names)
    return [(c, name, "training") for c, name in pairs if (c.name, name) in ran]


def measure_in_process(
    group: Sequence[Case],
    names: Sequence[str],
    *,
    seconds: float = 0.0,
    peak: str | None = None,
) -> dict[str, Any]:
    """Measure cases in a process of their own and return its response.

    Args:
        seconds: time per contender and case.
        peak: the only measure whose peak memory is returned; None for times.
    """
    content: dict[str, Any] = {"cases": [case._asdict() for case in group]}
    content["contenders"] = list(names)
    with tempfile.TemporaryDirectory() as folder:
        request, response = Path(folder, "request.json"), Path(folder, "response.json")
        request.write_text(json.dumps(content | {"seconds": seconds, "peak": peak}))
        module = [sys.executable, "-m", "benchmarks.worker"]
        failure = run_command([*module, str(request), str(response)])
        if failure is None:
            return json.loads(response.read_text())
    what = f"peak {peak}" if peak else "everything"
    missing = {"what": what, "reason": f"failed: {failure}"}
    refusals = [
        {"case": case.name, "contender": name} | missing
        for case in group
        for name in names
    ]
    return {"rows": [], "refusals": refusals}


def run_command(command: Sequence[str]) -> str | None:
    """Run a command; return None, or a description of the failure."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"the process did not end within {TIMEOUT:.0f} s"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"the process ended with code {done.returncode}: {last}"
