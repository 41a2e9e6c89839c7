"""One function per picture. Numbers in, a Matplotlib `Axes` out.

Each draws into `ax`, or into a new figure where it is None, and returns the axes.
A picture of several panels splits `ax` and returns the top panel. The colours are
told apart by a colour-blind reader, and line style or lightness tells them apart
in black and white.

`records` are the lines of `metrics.jsonl`: mappings with `step`, `split`, `loss`
and whatever else was measured. None stands for a number that is not finite.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )
except ImportError as error:
    raise ImportError(
        'jaxlstm.plots needs Matplotlib: pip install "jaxlstm[plot]"'
    ) from error

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace

Record = Mapping[str, Any]

# Okabe and Ito's colours, in falling order of contrast with white.
_INK, _BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE = (
    "#222222",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
)
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_QUIET = "#777777"


# --- learning ---------------------------------------------------------------


class _Score(NamedTuple):
    """A number to learn by: its key in a record and its name on an axis."""

    key: str
    label: str
    unit: str


_SCORES = (
    _Score("bits_per_character", "bits per character", "bits"),
    _Score("perplexity", "perplexity per token", ""),
    _Score("loss", "loss (nats per token)", "nats"),
)


def loss_curve(records: Sequence[Record], *, ax: Axes | None = None) -> Axes:
    """Training and validation against the step, with the best validation marked.

    The score is bits per character where the records have it, else perplexity,
    else the loss. The first steep descent is cut off at the top, and named, so
    that the rest can be read.

    >>> records = [{"step": n, "split": "train", "loss": 9 / n} for n in (1, 2, 3)]
    >>> loss_curve(records).get_xlabel()
    'step'
    """
    ax = _axes(ax)
    score = _score(records)
    train = _series(records, "train", score.key)
    validation = _series(records, "validation", score.key)
    ax.plot(*train, color=_BLUE, lw=1.0, label="training")
    if validation.values.size:
        ax.plot(*validation, color=_INK, lw=1.8, marker="o", ms=4, label="validation")
    _mark_best(ax, validation, score)
    _cut_descent(ax, [train, validation])
    ax.set(xlabel="step", ylabel=score.label)
    ax.legend(loc="upper right", frameon=False)
    return _tidy(ax)


def compare_runs(
    runs: Mapping[str, Sequence[Record]], *, ax: Axes | None = None
) -> Axes:
    """The validation curves of several runs, each named with its best.

    `runs` maps a name to the records of a run. All are drawn in the same unit: the
    first of bits per character, perplexity and loss that every run has.

    >>> run = [{"step": 9, "split": "validation", "loss": 1.5}]
    >>> compare_runs({"a": run, "b": run}).get_ylabel()
    'validation loss (nats per token)'
    """
    ax = _axes(ax)
    score = _score(*runs.values())
    colours = (_INK, _VERMILION, _BLUE, _GREEN, _PURPLE, _ORANGE)
    curves = [_series(run, "validation", score.key) for run in runs.values()]
    for index, (name, curve) in enumerate(zip(runs, curves, strict=True)):
        best = f"{name}: best {_best(curve)[1]:.4g}" if curve.values.size else name
        style = _STYLES[index % len(_STYLES)]
        colour = colours[index % len(colours)]
        ax.plot(*curve, color=colour, ls=style, lw=1.6, marker="o", ms=3, label=best)
    _cut_descent(ax, curves)
    ax.set(xlabel="step", ylabel=f"validation {score.label}")
    ax.legend(loc="upper right", frameon=False)
    return _tidy(ax)


def training_health(records: Sequence[Record], *, ax: Axes | None = None) -> Axes:
    """The gradient's norm, and the learning rate below it, against the step.

    A norm that climbs while the loss does not fall asks for a smaller learning
    rate or for clipping.

    >>> record = {"step": 1, "gradient_norm": 0.5, "learning_rate": 1e-3}
    >>> training_health([record]).get_ylabel()
    'gradient norm'
    """
    top, bottom = _panels(_axes(ax), [3, 2])
    norm = _series(records, "train", "gradient_norm")
    top.plot(*norm, color=_BLUE, lw=1.0)
    top.set(ylabel="gradient norm")
    if (norm.values > 0).any():
        top.set_yscale("log")
        _plain_logarithm(top.yaxis)
    bottom.plot(*_series(records, "train", "learning_rate"), color=_INK, lw=1.5)
    bottom.set(xlabel="step", ylabel="learning rate")
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _tidy(bottom)
    return _tidy(top)


class _Curve(NamedTuple):
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def _series(records: Sequence[Record], split: str, key: str) -> _Curve:
    """The steps and values of `key` in one split; None becomes NaN, a gap."""
    rows = [
        (record["step"], np.nan if record[key] is None else record[key])
        for record in records
        if record.get("split", "train") == split and key in record
    ]
    return _Curve(*np.array(rows, dtype=float).reshape(-1, 2).T)


def _score(*runs: Sequence[Record]) -> _Score:
    """The first score that every run has."""
    for score in _SCORES[:-1]:
        if all(any(score.key in record for record in run) for run in runs):
            return score
    return _SCORES[-1]


def _best(curve: _Curve) -> tuple[float, float]:
    """(step, value) of the lowest finite value; NaN where there is none."""
    if not np.isfinite(curve.values).any():
        return np.nan, np.nan
    index = np.nanargmin(curve.values)
    return curve.steps[index], curve.values[index]


def _mark_best(ax: Axes, curve: _Curve, score: _Score) -> None:
    step, value = _best(curve)
    if np.isnan(value):
        return
    ax.plot(step, value, marker="*", ms=13, color=_VERMILION, mec=_INK, ls="none")
    right = step > 0.4 * curve.steps.max()
    ax.annotate(
        f"best {value:.3f} {score.unit}".rstrip() + f"\nat step {step:.0f}",
        (step, value),
        xytext=(-10 if right else 10, 26),
        textcoords="offset points",
        ha="right" if right else "left",
        bbox={"color": "white", "alpha": 0.8, "pad": 1},
    )


def _cut_descent(ax: Axes, curves: Sequence[_Curve]) -> None:
    """Give the room to what comes after the first twentieth of the steps."""
    steps, values = np.concatenate(curves, axis=1)
    finite = np.isfinite(values)
    if finite.sum() < 20:
        return
    low, first = values[finite].min(), values[finite].max()
    high = values[finite & (steps >= 0.05 * steps.max())].max()
    if first - low > 1.5 * (high - low):
        ax.set_ylim(low - 0.08 * (high - low), high + 0.05 * (high - low))
        ax.annotate(
            f"\u2191 from {first:.3g}",
            (0.05 * steps.max(), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(8, -4),
            textcoords="offset points",
            va="top",
            color=_QUIET,
        )


# --- a trained cell over a text -----------------------------------------------


_GATE = (-0.12, 1.12)  # a gate's 0 to 1, with room for the labels of its axis


def gate_heatmap(
    symbols: Sequence[str],
    values: ArrayLike,
    name: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """The values `[T, units]` of a gate over a text of T symbols.

    A row is a unit, a column a symbol; the rows stand in order of their mean. Dark
    is the lower of `limits`, bright the upper, on screen and on paper.

    >>> gate_heatmap("abc", [[0.1, 0.9]] * 3, "forget gate f").get_title()
    'forget gate f'
    """
    values = _checked(symbols, values)
    ax = _axes(ax)
    rows = values[:, np.argsort(-values.mean(0), kind="stable")].T
    low, high = limits
    image = ax.imshow(
        rows, aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="none"
    )
    ax.figure.colorbar(image, ax=ax, pad=0.01, aspect=25)
    ax.set(title=name, ylabel="unit, highest mean on top")
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    _write_symbols(ax, symbols)
    return ax


def unit_trace(
    symbols: Sequence[str], trace: "Trace", unit: int, *, ax: Axes | None = None
) -> Axes:
    """All that one unit does over a text: its gates, its cell c, its output h.

    `trace` is what `unroll(..., emit=emit.trace)` gives, with arrays `[T, H]`.

    >>> from jaxlstm.cells.base import Gates, LSTMState
    >>> from jaxlstm.cells.emit import Trace
    >>> half = np.full((3, 2), 0.5)
    >>> trace = Trace(LSTMState(half, half), Gates(half, half, half, half))
    >>> unit_trace("abc", trace, 1).get_title()
    'unit 1'
    """
    state, gates = trace
    units = np.shape(state.c)[-1]
    if not 0 <= unit < units:
        raise ValueError(f"unit must be one of 0 to {units - 1}, but is {unit}")
    rows = (
        ("input i", gates.i, _GREEN, True),
        ("forget f", gates.f, _BLUE, True),
        ("output o", gates.o, _PURPLE, True),
        ("candidate g", gates.g, _ORANGE, False),
        ("cell c", state.c, _INK, False),
        ("output h", state.h, _VERMILION, False),
    )
    panels = _panels(_axes(ax), [1, 1, 1, 1.3, 1.6, 1.3])
    for panel, (name, values, colour, is_gate) in zip(panels, rows, strict=True):
        series = _checked(symbols, values)[:, unit]
        _strip(panel, name, series, colour, _GATE if is_gate else _around(series))
    panels[0].set_title(f"unit {unit}")
    _write_symbols(panels[-1], symbols)
    return panels[0]


def timescales(forget: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """How long each unit remembers, as a histogram over the units.

    What a unit holds shrinks by f at each step, so that over a text it fades by a
    factor e in

        tau = -1 / mean(log f)     steps.

    `forget` is `[T, *b, H]`, the forget gate over a text. Units that never forget
    stand in the last bar.

    >>> timescales(np.full((10, 4), 0.9)).get_xlabel()
    'time constant of a unit (steps)'
    """
    ax = _axes(ax)
    tau = _time_constants(np.asarray(forget, float))
    longest = tau[np.isfinite(tau)].max(initial=5.0)
    edges = np.geomspace(min(0.3, tau.min()), 2 * longest, 31)
    shown = np.minimum(tau, edges[-1])
    ax.hist(shown, edges, color=_BLUE, ec="white", lw=0.6)
    ax.axvline(float(np.median(shown)), color=_INK, ls="--", lw=1.4)
    ax.annotate(
        f"median {np.median(tau):.3g} steps",
        (float(np.median(shown)), 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
    )
    ax.set(xscale="log", xlabel="time constant of a unit (steps)")
    ax.set(ylabel="number of units")
    ax.margins(y=0.15)
    _plain_logarithm(ax.xaxis)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return _tidy(ax)


def _time_constants(forget: NDArray[np.float64]) -> NDArray[np.float64]:
    if forget.size == 0:
        raise ValueError("the forget gate is empty; give a text of at least one symbol")
    tiny = np.finfo(np.float32).tiny
    logarithm = np.log(np.clip(forget, tiny, 1.0)).reshape(-1, forget.shape[-1])
    with np.errstate(divide="ignore"):
        return 1.0 / np.abs(logarithm.mean(0))


def _strip(
    ax: Axes,
    name: str,
    series: NDArray[np.float64],
    colour: str,
    limits: tuple[float, float],
) -> None:
    """One row of a unit's trace: a filled step line with its name at the left."""
    edges = np.arange(series.size + 1) - 0.5
    ax.stairs(series, edges, fill=True, color=colour, alpha=0.3, lw=0)
    ax.stairs(series, edges, baseline=None, color=colour, lw=1.3)
    ax.axhline(0.0, color=_QUIET, lw=0.6)
    ax.set_ylim(*limits)
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    _tidy(ax)


def _around(series: NDArray[np.float64]) -> tuple[float, float]:
    """Limits that hold the series and zero, with a little room."""
    low, high = min(0.0, series.min()), max(0.0, series.max())
    room = 0.08 * (high - low) or 1.0
    return low - room * (low < 0), high + room * (high > 0 or low == 0)


def _checked(symbols: Sequence[str], values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, float)
    if values.ndim != 2 or len(values) != len(symbols) or values.size == 0:
        raise ValueError(
            f"values must be [T, units] with a row for each of the {len(symbols)} "
            f"symbols, but have the shape {list(values.shape)}; take one text of a "
            "batch, of at least one symbol"
        )
    return values


def _write_symbols(ax: Axes, symbols: Sequence[str]) -> None:
    """The text itself below the axis, one symbol per step."""
    words = any(len(symbol) > 1 for symbol in symbols)
    ax.set_xticks(
        range(len(symbols)),
        [_drawable(symbol) for symbol in symbols],
        family="monospace",
        fontsize=min(10.0, 1.5 * _points_across(ax) / max(1, len(symbols))),
        rotation=90 if words else 0,
        parse_math=False,
    )
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(symbols) - 0.5)


def _points_across(ax: Axes) -> float:
    """About how wide the axes are, in points (a 72nd of an inch)."""
    figure = ax.figure.get_figure(root=True)
    return 72 * figure.get_figwidth() * ax.get_position().width


_STAND_INS = str.maketrans({"\n": "↵", "\t": "→", "\r": "←"})


def _drawable(symbol: str) -> str:
    """The symbol with marks for line ends, and a box for what the font lacks."""
    marked = symbol.translate(_STAND_INS)
    return "".join(mark if _has_glyph(mark) else "□" for mark in marked)


@cache
def _has_glyph(character: str) -> bool:
    font = get_font(findfont(FontProperties(family="monospace")))
    return character.isprintable() and font.get_char_index(ord(character)) != 0


# --- axes -------------------------------------------------------------------


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _panels(ax: Axes, heights: Sequence[float]) -> list[Axes]:
    """Split `ax` into panels one above the other that share their steps."""
    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError(
            "ax must come from subplots or add_subplot, because it is split in panels"
        )
    grid = spec.subgridspec(len(heights), 1, height_ratios=heights, hspace=0.08)
    ax.set_subplotspec(grid[0])
    below = range(1, len(heights))
    panels = [ax, *(ax.figure.add_subplot(grid[row], sharex=ax) for row in below)]
    for panel in panels[:-1]:
        panel.tick_params(axis="x", labelbottom=False)
    return panels


def _plain_logarithm(axis: Axis) -> None:
    """Numbers as they are said, 0.5 and 200, instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _tidy(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    return ax
