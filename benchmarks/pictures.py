"""Plots of one result: ratios to torch, and growth with T, in black and white."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peers import JAX_PEERS, MODES
from benchmarks.tables import NATIVE, OURS, Result, best, per_step, ratio, steady

GROUPS = ("gru", "bidirectional", "ragged")  # besides the grid, those that torch has
BARS = (OURS, NATIVE, f"{OURS} split", "best JAX peer")
HATCHES = ("", "///", "...", "xxx")
GREYS = ("0.15", "0.45", "0.7", "1.0")
MARKERS = "os^Dv<>P*Xhd"
LINES = ("-", "--", ":", "-.")


def draw(result: Result, stem: Path) -> list[Path]:
    """Write `STEM-ratio.png` and others, as far as there are figures for them."""
    drawn = {f"{group}-ratio": ratios(result, group) for group in GROUPS}
    drawn |= {"ratio": ratios(result), "growth": growth(result)}
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure.savefig(path, dpi=80)
            written.append(path)
    return written


def ratios(result: Result, group: str = "grid") -> Figure | None:
    """Return bars of the ratio to torch at each size, or None for less than two."""
    cases = [c for c in result.cases(group) if "torch" in result.at(c, "training")]
    if len(cases) < 2:
        return None
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, what in ((upper, "training"), (lower, "forward")):
        _bars(axes, result, cases, what)
    upper.legend(
        ncols=4, frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1)
    )
    sizes = [case.removeprefix(f"{group}-").replace("-", ", ") for case in cases]
    lower.set_xticks(range(len(cases)), sizes, fontsize=9)
    lower.set_xlabel("T, B, D, H")
    return figure


def _bars(axes: Axes, result: Result, cases: list[str], what: str) -> None:
    heights = {name: [_to_torch(result, c, what, name) for c in cases] for name in BARS}
    names = [name for name in BARS if any(heights[name])]
    for k, name in enumerate(names):
        left = (k - (len(names) - 1) / 2) * 0.21
        axes.bar(
            [n + left for n in range(len(cases))],
            heights[name],
            width=0.2,
            label=name,
            color=GREYS[k],
            edgecolor="black",
            hatch=HATCHES[k],
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_ylabel(f"{what}: times as fast as torch")
    axes.spines[["top", "right"]].set_visible(False)


def _to_torch(result: Result, case: str, what: str, name: str) -> float:
    """Return the ratio to torch, or 0 for no bar if there is no steady figure."""
    at = steady(result.at(case, what))
    who = best(at, JAX_PEERS) if name == "best JAX peer" else name
    return 0.0 if who is None else ratio(at, "torch", who) or 0.0


def growth(result: Result) -> Figure | None:
    """Return lines of µs per step of training over T, or None without such cases."""
    cases = result.cases("growth")
    modes = {f"{OURS} {mode}" for mode in MODES} - {NATIVE}
    names = [n for n in result.contenders(cases, "training") if n not in modes]
    if not names:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for n, name in enumerate(names):
        points = [
            (result.plain["cases"][case]["time"], each)
            for case in cases
            if (each := per_step(result, case, name)) is not None
        ]
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            color="black" if name.startswith(OURS) else "0.5",
            marker=MARKERS[n % len(MARKERS)],
            linestyle=LINES[n % len(LINES)],
        )
    axes.set_xscale("log", base=2)
    times = [result.plain["cases"][case]["time"] for case in cases]
    axes.set_xticks(times, [f"{time:,}" for time in times])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("T")
    axes.set_ylabel("training: µs per step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
