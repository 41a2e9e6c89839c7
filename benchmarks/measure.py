"""Measure cases with all contenders in alternation, in this process.

A row has the median, the quartiles and the number of runs for one case, contender and
measure. The measures are:

    forward, training, step     seconds of one run
    compile WHAT                seconds to trace and compile
    trace WHAT                  seconds to trace, for the libraries on JAX
    temp WHAT, total WHAT       bytes by XLA's analysis: temporary arrays, and their sum
                                with arguments and results
    peak WHAT                   growth of the process's peak memory, in bytes
"""

import gc
import itertools
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jaxlstm as jl
from benchmarks import cases, peers
from benchmarks.cases import Case, Inputs, What
from benchmarks.peers.base import Contender, Prepared, Program
from jaxlstm.lab._util.timing import Spread, measure_alternately

UNSUPPORTED = {
    "forward": "has single steps only",
    "training": "computes no gradients",
    "step": "has no single step",
}


class Row(NamedTuple):
    """One figure with its spread, for a case, a contender and a measure."""

    case: str
    contender: str
    what: str
    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, case: Case, contender: str, what: str, spread: Spread) -> "Row":
        """Return the row of a spread, rounded to six significant digits."""
        median, low, high = (float(f"{figure:.6g}") for figure in spread[:3])
        return cls(case.name, contender, what, median, low, high, spread.runs)


class Refusal(NamedTuple):
    """The reason why a contender was not measured."""

    case: str
    contender: str
    what: str
    reason: str


class Outcome(NamedTuple):
    """The rows of some cases, and the reasons for missing rows."""

    rows: list[Row]
    refusals: list[Refusal]

    def record_failure(self, entry: "Entry", what: str, error: Exception) -> None:
        """Record the error of a contender at a case."""
        reason = _failure(error)
        self.refusals.append(Refusal(entry.case.name, entry.contender, what, reason))


class Entry(NamedTuple):
    """A contender at a case."""

    case: Case
    contender: str


def measure(
    group: Sequence[Case],
    contenders: Iterable[Contender],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Measure these cases with all contenders in alternation.

    Args:
        seconds: time per contender and case.
    """
    outcome, inputs = Outcome([], []), {case: cases.draw(case) for case in group}
    entries = list(itertools.product(group, list(contenders)))
    whats: list[What] = [what for case in group for what in case.measures]
    for what in dict.fromkeys(whats):
        prepared: dict[Entry, Prepared] = {}
        for case, one in entries:
            if what not in case.measures:
                continue
            found = prepare(one, case, inputs[case], what)
            if isinstance(found, Prepared):
                prepared[Entry(case, one.name)] = found
            else:
                outcome.refusals.append(found)
        programs = _compile(what, prepared, outcome, clock)
        _run(what, programs, outcome, seconds, clock)
    return outcome


def prepare(
    contender: Contender, case: Case, inputs: Inputs, what: What
) -> Prepared | Refusal:
    """Return the contender with its inputs, or the reason why it is not measured."""

    def refused(reason: str) -> Refusal:
        return Refusal(case.name, contender.name, what, reason)

    if case.contenders and contender.name not in case.contenders:
        return refused(f"measured for {', '.join(case.contenders)} only")
    if reason := contender.supports(case):
        return refused(reason)
    make = {
        "forward": contender.forward,
        "training": contender.training_step,
        "step": contender.step,
    }[what]
    if make is None:
        return refused(f"{contender.name} {UNSUPPORTED[what]}")
    try:
        return make(case, inputs)
    except Exception as error:
        return refused(_failure(error))


def _failure(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first}"


def _compile(
    what: What,
    prepared: dict[Entry, Prepared],
    outcome: Outcome,
    clock: Callable[[], float],
) -> dict[Entry, Program]:
    """Compile each program `case.compiles` times, in alternation."""
    programs: dict[Entry, Program] = {}
    times: dict[Entry, list[float]] = {entry: [] for entry in prepared}
    traces: dict[Entry, list[float]] = {entry: [] for entry in prepared}
    rng = random.Random(0)
    for n in range(max((entry.case.compiles for entry in prepared), default=0)):
        for entry in rng.sample(list(times), len(times)):
            if n >= entry.case.compiles:
                continue
            jax.clear_caches()  # tracing is part of the compile time
            start = clock()
            try:
                programs[entry] = prepared[entry].compile()
            except Exception as error:
                del times[entry]
                programs.pop(entry, None)
                outcome.record_failure(entry, what, error)
                continue
            times[entry].append(clock() - start)
            if (seconds := programs[entry].trace_seconds) is not None:
                traces[entry].append(seconds)
    for entry, program in programs.items():
        found = {"temp": program.temp_bytes, "total": program.total_bytes}
        figures = {
            k: Spread.of([size]) for k, size in found.items() if size is not None
        }
        if prepared[entry].compiled:
            figures["compile"] = Spread.of(times[entry])
        if traces[entry]:
            figures["trace"] = Spread.of(traces[entry])
        outcome.rows.extend(
            Row.of(*entry, f"{kind} {what}", figure) for kind, figure in figures.items()
        )
    return programs


def _run(
    what: What,
    programs: dict[Entry, Program],
    outcome: Outcome,
    seconds: float,
    clock: Callable[[], float],
) -> None:
    """Run the programs in alternation; those that fail are recorded."""
    running: dict[Entry, Callable[[], Any]] = {}
    for entry, program in programs.items():
        if not entry.case.runs:
            continue
        try:
            program.run()
            running[entry] = program.run
        except Exception as error:
            outcome.record_failure(entry, what, error)
    spreads = measure_alternately(running, seconds=seconds * len(running), clock=clock)
    outcome.rows.extend(
        Row.of(*entry, what, spread) for entry, spread in spreads.items()
    )


def chosen_engine(case: Case) -> str | None:
    """Return the engine that `unroll` chooses at a size of the grid."""
    from benchmarks.peers import ours

    if case.group != "grid":
        return None
    model = ours.model(case, cases.draw(case), None)
    return jl.explain(ours.CELLS[case.cell](), model.params, model.xs).engine


# -- peak memory --------------------------------------------------------------

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(case: Case, name: str, what: What) -> Row | Refusal:
    """Measure how much the peak memory of this process grows in a program's first run.

    Weights, inputs and the compiled program are allocated before. Each contender needs
    its own process, because it would reuse memory that another one freed.
    """
    found = prepare(peers.find(name), case, cases.draw(case), what)
    if isinstance(found, Refusal):
        return found
    try:
        program = found.compile()
        gc.collect()
        CLEAR.write_text("5")  # reset the high-water mark to the current memory
        before = _status_bytes("VmRSS")
        result = program.run()
        grown = _status_bytes("VmHWM") - before
    except OSError as error:
        reason = f"not available on this system ({error.strerror})"
        return Refusal(case.name, name, f"peak {what}", reason)
    except Exception as error:
        return Refusal(case.name, name, f"peak {what}", _failure(error))
    del result
    return Row.of(case, name, f"peak {what}", Spread.of([max(0, grown)]))


def _status_bytes(field: str) -> int:
    """Return a size of this process in bytes; the system reports it in kB."""
    lines = STATUS.read_text().splitlines()
    words = next(line.split() for line in lines if line.startswith(field))
    return 1024 * int(words[1])


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -- entry point of the processes that `harness` starts ------------------------------


def run_request(request: dict[str, Any]) -> dict[str, Any]:
    """Measure the cases, or the one peak, that the harness asks for."""
    group = [_case(fields) for fields in request["cases"]]
    names: list[str] = request["contenders"]
    jax.config.update("jax_enable_compilation_cache", False)
    if "jaxlstm split" in names and cores() > 1:
        jax.config.update("jax_num_cpu_devices", cores())
    if request["peak"] is not None:
        found = peak(group[0], names[0], request["peak"])
        kind = "rows" if isinstance(found, Row) else "refusals"
        return {"rows": [], "refusals": []} | {kind: [found._asdict()]}
    contenders, refusals = _import_contenders(group[0], names)
    outcome = measure(group, contenders, seconds=request["seconds"])
    return {
        "rows": [row._asdict() for row in outcome.rows],
        "refusals": [r._asdict() for r in (*refusals, *outcome.refusals)],
        "chosen": {case.name: chosen_engine(case) for case in group},
    }


def _case(fields: dict[str, Any]) -> Case:
    """Return the case of a JSON object, whose lists become tuples."""
    values: dict[str, Any] = dict(fields)
    for key in ("measures", "contenders"):
        values[key] = tuple(fields[key])
    return Case(**values)


def _import_contenders(
    case: Case, names: Iterable[str]
) -> tuple[list[Contender], list[Refusal]]:
    """Return the contenders, and the reasons of those that cannot be imported."""
    contenders, refusals = [], []
    for name in names:
        try:
            contenders.append(peers.find(name))
        except Exception as error:
            refusals.append(Refusal(case.name, name, "everything", _failure(error)))
    return contenders, refusals
