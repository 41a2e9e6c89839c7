"""Some cases: all contenders in alternation, in this process, and what came of it.

A row is (case, contender, what): the median, the quartiles and the number of runs.

    forward, training, step     seconds of one run
    compile WHAT                seconds from the function to its program
    temp WHAT, total WHAT       bytes by XLA's own analysis: what lies between
                                arguments and results, and all of it together
    peak WHAT                   bytes by which the process grew, at its highest
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
from jaxlstm.lab._util.timing import Spread, alternate

LACKS = {"training": "computes no gradients", "step": "takes no single steps"}


class Row(NamedTuple):
    """One figure with its spread: of which case, of whom, of what."""

    case: str
    contender: str
    what: str
    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, case: Case, contender: str, what: str, spread: Spread) -> "Row":
        """The row of a spread, to six digits."""
        median, low, high = (float(f"{figure:.6g}") for figure in spread[:3])
        return cls(case.name, contender, what, median, low, high, spread.runs)


class Refusal(NamedTuple):
    """Who does not take part in what, and why."""

    case: str
    contender: str
    what: str
    reason: str


class Outcome(NamedTuple):
    """All that came of it."""

    rows: list[Row]
    refusals: list[Refusal]

    def failed(self, entry: "Entry", what: str, error: Exception) -> None:
        """Note that an entry takes part no further."""
        reason = _failure(error)
        self.refusals.append(Refusal(entry.case.name, entry.contender, what, reason))


class Entry(NamedTuple):
    """A contender at a case."""

    case: Case
    contender: str


def measure(
    together: Sequence[Case],
    contenders: Iterable[Contender],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Every measure of these cases, all in alternation.

    Arguments:
        seconds: for each contender at each case.
    """
    outcome, inputs = Outcome([], []), {case: cases.draw(case) for case in together}
    entered = list(itertools.product(together, list(contenders)))
    whats: list[What] = [what for case in together for what in case.measures]
    for what in dict.fromkeys(whats):
        prepared: dict[Entry, Prepared] = {}
        for case, one in entered:
            if what not in case.measures:
                continue
            found = prepare(one, case, inputs[case], what)
            if isinstance(found, Prepared):
                prepared[Entry(case, one.name)] = found
            else:
                outcome.refusals.append(found)
        programs = _compiled(what, prepared, outcome, clock)
        _run(what, programs, outcome, seconds, clock)
    return outcome


def prepare(
    contender: Contender, case: Case, inputs: Inputs, what: What
) -> Prepared | Refusal:
    """The contender with the inputs in place, or why it does not take part."""

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
        return refused(f"{contender.name} {LACKS[what]}")
    try:
        return make(case, inputs)
    except Exception as error:
        return refused(_failure(error))


def _failure(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first}"


def _compiled(
    what: What,
    prepared: dict[Entry, Prepared],
    outcome: Outcome,
    clock: Callable[[], float],
) -> dict[Entry, Program]:
    """The programs, each compiled as often as its case asks, in alternation."""
    programs: dict[Entry, Program] = {}
    times: dict[Entry, list[float]] = {entry: [] for entry in prepared}
    drawn = random.Random(0)
    for n in range(max((entry.case.compiles for entry in prepared), default=0)):
        for entry in drawn.sample(list(times), len(times)):
            if n >= entry.case.compiles:
                continue
            jax.clear_caches()  # else what was traced before is found again
            began = clock()
            try:
                programs[entry] = prepared[entry].compile()
            except Exception as error:
                del times[entry]
                programs.pop(entry, None)
                outcome.failed(entry, what, error)
                continue
            times[entry].append(clock() - began)
    for entry, program in programs.items():
        found = {"temp": program.temp_bytes, "total": program.total_bytes}
        figures = {
            k: Spread.of([size]) for k, size in found.items() if size is not None
        }
        if prepared[entry].compiled:
            figures["compile"] = Spread.of(times[entry])
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
    """Those that run at all, in alternation."""
    running: dict[Entry, Callable[[], Any]] = {}
    for entry, program in programs.items():
        if not entry.case.runs:
            continue
        try:
            program.run()
            running[entry] = program.run
        except Exception as error:
            outcome.failed(entry, what, error)
    spreads = alternate(running, seconds=seconds * len(running), clock=clock)
    outcome.rows.extend(
        Row.of(*entry, what, spread) for entry, spread in spreads.items()
    )


def chosen_engine(case: Case) -> str | None:
    """The engine that `unroll` takes by itself at a point of the grid."""
    from benchmarks.peers import ours

    if case.group != "grid":
        return None
    model = ours.model(case, cases.draw(case), None)
    return jl.explain(ours.CELLS[case.cell](), model.params, model.xs).engine


# -- the peak of memory -------------------------------------------------------

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(case: Case, name: str, what: What) -> Row | Refusal:
    """By how much this process grows, at its highest, in its first run of a program.

    Weights, inputs and the program itself are there before. Each contender needs a
    process of its own for this: memory that another one gave back is there already.
    """
    found = prepare(peers.find(name), case, cases.draw(case), what)
    if isinstance(found, Refusal):
        return found
    try:
        program = found.compile()
        gc.collect()
        CLEAR.write_text("5")  # the high-water mark goes back to what is held now
        before = _held("VmRSS")
        result = program.run()
        grown = _held("VmHWM") - before
    except OSError as error:
        reason = f"this system does not tell ({error.strerror})"
        return Refusal(case.name, name, f"peak {what}", reason)
    except Exception as error:
        return Refusal(case.name, name, f"peak {what}", _failure(error))
    del result
    return Row.of(case, name, f"peak {what}", Spread.of([max(0, grown)]))


def _held(field: str) -> int:
    """Bytes, of a field of this process's status that the kernel tells in kB."""
    lines = STATUS.read_text().splitlines()
    words = next(line.split() for line in lines if line.startswith(field))
    return 1024 * int(words[1])


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -- a process of its own: what `harness` starts ------------------------------


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Some cases or a peak, as the harness orders it in JSON, and the answer to it."""
    together = [_case(fields) for fields in order["cases"]]
    names: list[str] = order["contenders"]
    jax.config.update("jax_enable_compilation_cache", False)
    if "jaxlstm split" in names and cores() > 1:
        jax.config.update("jax_num_cpu_devices", cores())
    if order["peak"] is not None:
        found = peak(together[0], names[0], order["peak"])
        kind = "rows" if isinstance(found, Row) else "refusals"
        return {"rows": [], "refusals": []} | {kind: [found._asdict()]}
    entered, failed = _found(together[0], names)
    outcome = measure(together, entered, seconds=order["seconds"])
    return {
        "rows": [row._asdict() for row in outcome.rows],
        "refusals": [r._asdict() for r in (*failed, *outcome.refusals)],
        "chosen": {case.name: chosen_engine(case) for case in together},
    }


def _case(fields: dict[str, Any]) -> Case:
    """The case that JSON made lists of."""
    again: dict[str, Any] = dict(fields)
    for key in ("measures", "contenders"):
        again[key] = tuple(fields[key])
    return Case(**again)


def _found(case: Case, names: Iterable[str]) -> tuple[list[Contender], list[Refusal]]:
    """The contenders, and those whose library cannot be imported."""
    found, failed = [], []
    for name in names:
        try:
            found.append(peers.find(name))
        except Exception as error:
            failed.append(Refusal(case.name, name, "everything", _failure(error)))
    return found, failed
