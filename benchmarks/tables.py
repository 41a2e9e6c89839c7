"""The figures of one result as Markdown tables.

A ratio is the other library's time over that of jaxlstm: above 1, jaxlstm is faster.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.peers import JAX_PEERS, LIMITS, MODES

OURS = "jaxlstm"
NATIVE = "jaxlstm native"
TIMES = ("forward", "training", "step")
KINDS = ("trace", "compile")
NOISY, STALLED = 0.15, 0.3  # half the interquartile range over the median


class Figure(NamedTuple):
    """One row of a result: the median, the quartiles, the number of runs."""

    median: float
    low: float
    high: float
    runs: int

    @property
    def scatter(self) -> float:
        """Half the interquartile range as a share of the median."""
        return (self.high - self.low) / 2 / self.median


class Result(NamedTuple):
    """A result, its figures by (case, what) and then by contender."""

    plain: Mapping[str, Any]
    figures: Mapping[tuple[str, str], Mapping[str, Figure]]

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Result":
        """Return the result of a JSON file that the harness wrote."""
        figures: dict[tuple[str, str], dict[str, Figure]] = {}
        for row in plain["rows"]:
            figure = Figure(*(row[field] for field in Figure._fields))
            at = figures.setdefault((row["case"], row["what"]), {})
            at[row["contender"]] = figure
        return cls(plain, figures)

    def cases(self, group: str) -> list[str]:
        """Return the names of the cases of a group, in order."""
        cases = self.plain["cases"]
        return [name for name, case in cases.items() if case["group"] == group]

    def at(self, case: str, what: str) -> Mapping[str, Figure]:
        """Return the figures of all contenders; empty if none was measured."""
        return self.figures.get((case, what), {})

    def contenders(self, cases: Iterable[str], what: str) -> list[str]:
        """Return the contenders with a figure in any of the cases, in order."""
        present = {name for case in cases for name in self.at(case, what)}
        return [name for name in self.plain["contenders"] if name in present]

    def flops(self, case: str, what: str) -> float:
        """Return the FLOPs of one run."""
        work = self.plain["cases"][case]["flops_forward"]
        return work * (3 if what == "training" else 1)


def ratio(at: Mapping[str, Figure], other: str, ours: str = OURS) -> float | None:
    """Return how many times faster `ours` is than `other`."""
    if ours not in at or other not in at:
        return None
    return at[other].median / at[ours].median


def best(at: Mapping[str, Figure], names: Iterable[str]) -> str | None:
    """Return the fastest of the names that have a figure."""
    present = [name for name in names if name in at]
    return min(present, key=lambda name: at[name].median) if present else None


def steady(at: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return the figures whose spread is small enough for a ratio.

    A library that stalls in half of its runs, as torch's threads do on a busy machine,
    would make all others look fast.
    """
    return {name: figure for name, figure in at.items() if figure.scatter <= STALLED}


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of the values that are not None.

    >>> geometric_mean([1.0, None, 4.0])
    2.0
    """
    known = [math.log(value) for value in values if value is not None]
    return math.exp(sum(known) / len(known)) if known else None


def is_rival(name: str) -> bool:
    """Return whether a contender is something to use instead of the default.

    >>> [is_rival(name) for name in ("torch", "jaxlstm scan in turn", "jaxlstm scan")]
    [True, True, False]
    """
    if name in LIMITS:
        return False
    return name.split()[0] != OURS or is_in_turn(name)


def is_in_turn(name: str) -> bool:
    """Return whether a contender runs the members of a population in turn."""
    return name.endswith(" in turn")


# -- tables -------------------------------------------------------------------

Unit = tuple[str, float]
MS: Unit = ("ms", 1e3)
US: Unit = ("µs", 1e6)
MB: Unit = ("MB", 1e-6)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is aligned left, the others right.

    >>> print(markdown(["case", "ms"], [["a", "1"]]))
    | case | ms |
    | :--- | ---: |
    | a | 1 |
    """
    alignment = [":---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, alignment, *rows])


def times(result: Result, cases: Sequence[str], what: str, unit: Unit = MS) -> str:
    """Return a table of times, with a row for each case.

    Columns: FLOP/s, ratios of the default engine and of `native`, and the median ± half
    the interquartile range of each contender. The last row has the geometric means of
    the ratios. Times that are not `steady` have no ratio.
    """
    names = result.contenders(cases, what)
    ours = [name for name in (OURS, NATIVE) if name in names]
    rows, ratios = [], []
    for case in cases:
        at = result.at(case, what)
        usable = steady(at)
        peer = best(usable, JAX_PEERS) or "none"
        ratios.append(
            [ratio(usable, to, one) for one in ours for to in ("torch", peer)]
        )
        own = at.get(OURS)
        speed = None if own is None else result.flops(case, what) / own.median / 1e9
        cells = [_number(speed), *map(_times, ratios[-1])]
        rows.append([case, *cells, *(_spread(at.get(name), unit) for name in names)])
    if len(cases) > 1:
        means = [_times(geometric_mean(column)) for column in zip(*ratios, strict=True)]
        rows.append(["geometric mean", "", *means, *("" for _ in names)])
    heads = ["case", "GFLOP/s"]
    for one in ours:
        by = one.removeprefix(OURS).strip()
        heads += [f"{by} to torch".strip(), f"{by} to best JAX peer".strip()]
    return markdown([*heads, *(f"{name}, {unit[0]}" for name in names)], rows)


def limits(result: Result, what: str) -> str:
    """Return a table of what the machine can do as a share of the times on the grid.

    The limit is the faster of the two matrix products, or the copy if that is slower.
    """
    rows, names = [], (OURS, *LIMITS)
    for case in result.cases("limits"):
        at = result.at(case, what)
        product = best(at, ("GEMM", "GEMM one thread"))
        if product is None or OURS not in at:
            continue
        bounds = [at[name].median for name in (product, "copy") if name in at]
        share = f"{100 * max(bounds) / at[OURS].median:.0f} %"
        rows.append([case, share, *(_spread(at.get(name), MS) for name in names)])
    heads = ["case", "share of limit", *(f"{name}, ms" for name in names)]
    return markdown(heads, rows)


def populations(result: Result) -> str:
    """Return a table of the members of a population by `vmap` and one after another.

    The ratio is the time of the fastest engine in turn over that of `vmap`.
    """
    cases, rows = result.cases("population"), []
    names = result.contenders(cases, "training")
    for case in cases:
        at = result.at(case, "training")
        fastest = best(steady(at), filter(is_in_turn, at)) or "none"
        cells = [_times(ratio(at, fastest)), *(_spread(at.get(n), MS) for n in names)]
        rows.append([case, *cells])
    heads = [f"{name} by vmap" if name == OURS else name for name in names]
    return markdown(
        ["16 members", "vmap to best in turn", *(f"{head}, ms" for head in heads)], rows
    )


def traces(result: Result) -> str:
    """Return a table of the time with a trace over that of the forward pass."""
    pairs = {OURS: "jaxlstm trace", NATIVE: "jaxlstm native trace"}
    rows = []
    for case in result.cases("grid"):
        at = result.at(case, "forward")
        costs = [ratio(at, traced, ours) for ours, traced in pairs.items()]
        if any(cost is not None for cost in costs):
            rows.append([case, *map(_times, costs)])
    return markdown(["trace to forward", *pairs], rows)


def growth(result: Result) -> str:
    """Return a table of µs per step as T grows, and the ratio of the ends."""
    cases = result.cases("growth")
    rows = []
    for name in result.contenders(cases, "training"):
        each = [per_step(result, case, name) for case in cases]
        ends = _quotient(each[-1], each[0])
        rows.append([name, *map(_number, each), _number(ends, 2)])
    lengths = [f"T = {result.plain['cases'][case]['time']:,}" for case in cases]
    return markdown(["µs per step", *lengths, "last to first"], rows)


def per_step(result: Result, case: str, name: str) -> float | None:
    """Return the time of a training step divided by T, in µs."""
    figure = result.at(case, "training").get(name)
    steps = result.plain["cases"][case]["time"]
    return None if figure is None else 1e6 * figure.median / steps


def compiling(result: Result) -> str:
    """Return a table of the seconds to compile a gradient, for short and long T."""
    cases, what = result.cases("compile"), "compile training"
    rows = []
    for name in result.contenders(cases, what):
        found = [result.at(case, what).get(name) for case in cases]
        medians = [None if one is None else one.median for one in found]
        ends = _quotient(medians[-1], medians[0])
        rows.append(
            [name, *(_spread(one, ("s", 1)) for one in found), _number(ends, 2)]
        )
    lengths = [f"T = {result.plain['cases'][case]['time']:,}, s" for case in cases]
    return markdown(["gradient", *lengths, "last to first"], rows)


def tracing(result: Result) -> str:
    """Return a table of the time to trace and to compile a stack of four layers.

    Compiling includes tracing. The last column is the time to trace a gradient over
    that of the engine scan.
    """
    rows: list[list[str]] = []
    for case in result.cases("compile_stack"):
        whats = [f"{kind} {w}" for w in TIMES[:2] for kind in KINDS]
        traced = result.at(case, "trace training")
        for name in result.contenders([case], "compile training"):
            found = [result.at(case, what).get(name) for what in whats]
            own = ratio(traced, name, f"{OURS} scan")
            rows.append([name, *(_spread(one, MS) for one in found), _times(own)])
    heads = [f"{kind} {w}, ms" for w in ("forward", "gradient") for kind in KINDS]
    return markdown(["four layers", *heads, "trace to scan"], rows)


def memory(result: Result, cases: Sequence[str], what: str) -> str:
    """Return a table of MB, a column per contender and a row per case with a figure."""
    names = result.contenders(cases, what)
    cases = [case for case in cases if result.at(case, what)]
    rows = [
        [case, *(_size(result.at(case, what).get(name)) for name in names)]
        for case in cases
    ]
    return markdown(["case", *names], rows)


def engine_choice(result: Result) -> str:
    """Return a table of the engine that `unroll` chose and of the fastest one."""
    modes = [f"{OURS} {mode}" for mode in MODES]
    rows = []
    for case in result.cases("grid"):
        for what in ("forward", "training"):
            at = result.at(case, what)
            mode = best(at, modes)
            quotient = None if mode is None else ratio(at, mode)
            if mode is None or quotient is None:
                continue
            chosen = result.plain["chosen"].get(case) or "-"
            within = "yes" if 1 / quotient <= 1.1 else "NO"
            repeated = ratio(at, f"{OURS} {chosen}")
            cells = [_number(1 / quotient, 2), within, _number(repeated, 2)]
            rows.append([f"{case} {what}", chosen, mode.split()[-1], *cells])
    heads = ["", "chosen", "best", "chosen to best", "within 10 %", "same twice"]
    return markdown(heads, rows)


def losses(result: Result) -> list[str]:
    """Return a line for each case where something else is faster, the worst first."""
    found = []
    for (case, what), at in result.figures.items():
        if what not in TIMES or OURS not in at:
            continue
        peer = best(at, filter(is_rival, at))
        behind = None if peer is None else ratio(at, peer)
        if behind is not None and behind < 1:
            found.append(
                (behind, f"{case}, {what}: {peer} is {1 / behind:.2f}x faster")
            )
    return [sentence for _, sentence in sorted(found)]


def noisy(result: Result) -> list[str]:
    """Return a line for each time whose interquartile range is large."""
    return [
        f"{case}, {what}: {name} by {100 * figure.scatter:.0f} %"
        for (case, what), at in result.figures.items()
        for name, figure in at.items()
        if what in TIMES and figure.scatter > NOISY
    ]


def _quotient(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value / by


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _spread(figure: Figure | None, unit: Unit) -> str:
    """Return the median ± half the interquartile range, to three digits.

    >>> _spread(Figure(0.01234, 0.012, 0.013, 5), MS)
    '12.3 ± 0.5'
    """
    if figure is None:
        return "-"
    median, half = (
        unit[1] * value for value in (figure.median, (figure.high - figure.low) / 2)
    )
    digits = max(0, 2 - math.floor(math.log10(median))) if median > 0 else 2
    return f"{median:.{digits}f} ± {half:.{digits}f}"


def _size(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.median / 1e6:,.1f}"
