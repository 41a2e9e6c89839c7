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

TOGETHER = ("growth", "compile")
LIMIT = 3600.0  # seconds for one process


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
    say: Callable[[str], object],
    save: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Return the result of all cases as plain JSON, with reasons for what did not run.

    Args:
        peaks: also measure peak memory, each in its own process.
        say: receives a line about each case before it is measured.
        save: receives the result so far, after each case.
    """
    absent = {n: why for n, why in peers.absent().items() if n in names}
    present = [name for name in names if name not in absent]
    for name, why in absent.items():
        say(f"{name}: {why}")
    result: dict[str, Any] = {
        "machine": machine.describe(cores, environment()),
        "seconds": seconds,
        "contenders": list(names),
        "absent": absent,
        "cases": {case.name: _described(case) for case in cases},
        "chosen": {},
        "rows": [],
        "refusals": [],
    }
    for together in in_processes(cases):
        say(", ".join(case.name for case in together))
        only = {name for case in together for name in case.contenders or present}
        measured = [name for name in present if name in only]
        answer = order(together, measured, seconds=seconds)
        _gather(result, answer)
        for case, name, what in _peaks(together, measured, answer) if peaks else ():
            _gather(result, order([case], [name], peak=what))
        save(result)
    return result


def in_processes(cases: Sequence[Case]) -> list[list[Case]]:
    """Return lists of cases that share a process.

    Cases of a group share one if their ratio is reported, as for growth.
    """
    shared: dict[str, list[Case]] = {}
    for case in cases:
        key = case.group if case.group in TOGETHER else case.name
        shared.setdefault(key, []).append(case)
    return list(shared.values())


def written(result: Mapping[str, Any]) -> str:
    """Return the result as JSON with one line per figure, for readable diffs.

    >>> print(written({"seconds": 4.0, "rows": [{"case": "a"}, {"case": "b"}]}), end="")
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


def _described(case: Case) -> dict[str, Any]:
    return case._asdict() | {"flops_forward": case.flops_forward}


def _gather(result: dict[str, Any], answer: dict[str, Any]) -> None:
    result["chosen"] |= answer.get("chosen", {})
    result["rows"].extend(answer["rows"])
    result["refusals"].extend(answer["refusals"])


def _peaks(
    together: Sequence[Case], names: Sequence[str], answer: dict[str, Any]
) -> list[tuple[Case, str, str]]:
    """Return the (case, contender, what) whose peak is measured: all training steps."""
    rows = answer["rows"]
    ran = {(r["case"], r["contender"]) for r in rows if r["what"] == "training"}
    pairs = ((case, name) for case in together for name in names)
    return [(c, name, "training") for c, name in pairs if (c.name, name) in ran]


def order(
    together: Sequence[Case],
    names: Sequence[str],
    *,
    seconds: float = 0.0,
    peak: str | None = None,
) -> dict[str, Any]:
    """Run an order in its own process and return its answer."""
    content: dict[str, Any] = {"cases": [case._asdict() for case in together]}
    content["contenders"] = list(names)
    with tempfile.TemporaryDirectory() as place:
        request, answer = Path(place, "order.json"), Path(place, "answer.json")
        request.write_text(json.dumps(content | {"seconds": seconds, "peak": peak}))
        words = [sys.executable, "-m", "benchmarks.worker", str(request), str(answer)]
        failure = _process(words)
        if failure is None:
            return json.loads(answer.read_text())
    what = f"peak {peak}" if peak else "everything"
    lost = {"what": what, "reason": f"failed: {failure}"}
    refusals = [
        {"case": case.name, "contender": name} | lost
        for case in together
        for name in names
    ]
    return {"rows": [], "refusals": refusals}


def _process(words: Sequence[str]) -> str | None:
    """Run a command; return None, or a description of the failure."""
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return f"the process did not end within {LIMIT:.0f} s"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"the process ended with code {done.returncode}: {last}"
