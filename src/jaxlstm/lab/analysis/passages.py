"""Pictures of what was found: a unit over a passage in which it switches, a layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from jaxlstm.lab.analysis import readings
from jaxlstm.lab.analysis.features import Feature
from jaxlstm.lab.analysis.findings import Finding
from jaxlstm.lab.analysis.readings import SHARE, LayerFacts, Watched
from jaxlstm.lab.tasks.base import Picture as Drawing

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]
Axes = Any  # Matplotlib's: only plots and reports know it

WIDTH = 88  # symbols in a picture
_SHADE, _INK = "#dcdcdc", "#222222"


class Passage(NamedTuple):
    """Some symbols of a text, and what all units of a layer did over them."""

    symbols: list[str]
    places: NDArray[np.int64]
    trace: "Trace"


def of_finding(
    number: int, finding: Finding, watched: Watched, columns: Sequence[Feature]
) -> Drawing:
    """A unit's life where what it stands for begins and ends several times.

    `columns` are those of the text that was watched, at its places.
    """
    layer, unit = finding.place
    marks = _marks(finding, watched, columns)
    held = _numpy(readings.holds(watched.traces[layer]))[..., unit].T
    passage = _passage(watched, layer, *_best_window(watched, marks, held))
    shaded, title = None, f"unit {unit}"
    if marks is not None and finding.feature.is_flag:
        shaded = marks[np.isin(watched.places, passage.places)]
        title += f"; grey: {finding.feature.phrase.replace('`', '')}"
    return Drawing(
        f"finding-{number}.png",
        f"U{title[1:]}",
        _size(passage, 7 if _has_own_output(passage.trace) else 4),
        lambda ax: _unit(ax, passage, unit, shaded, title),
    )


def of_layer(
    number: int, facts: LayerFacts, watched: Watched, shown: Watched
) -> list[Drawing]:
    """The gate that keeps, over `shown`; timescales, saturation and gradient flow."""
    from jaxlstm import plots

    passage = _passage(shown, number, *_best_window(shown, None, None))
    stem = f"layer-{number + 1}"
    drawings = [_heatmap(stem, passage)]
    if facts.timescales is not None:
        gates = watched.traces[number].gates
        kept = _numpy(getattr(gates, "f", getattr(gates, "z", None)))
        histogram = Drawing(
            f"{stem}-timescales.png",
            "How long the units keep what they hold.",
            (8, 4),
            lambda ax: plots.timescales(kept, ax=ax),
        )
        drawings.append(histogram)
    if facts.saturation is not None:
        shares = facts.saturation
        bars = Drawing(
            f"{stem}-saturation.png",
            "How often each unit's gates are shut (below 0.1), and how often open "
            "(above 0.9).",
            (8, 4),
            lambda ax: plots.saturation(shares, ax=ax),
        )
        drawings.append(bars)
    flow = Drawing(
        f"{stem}-gradient-flow.png",
        "The gradient of the last prediction's loss with respect to what the units "
        "held so many steps before.",
        (8, 4),
        lambda ax: _flow(ax, facts),
    )
    return [*drawings, flow]


# -- passages ----------------------------------------------------------------


def _marks(
    finding: Finding, watched: Watched, columns: Sequence[Feature]
) -> NDArray[Any] | None:
    """What the unit stands for, `[R, S]`, where this text has it at all."""
    for column in columns:
        if column.phrase == finding.feature.phrase:
            return column.values.reshape(watched.places.shape)
    return None


def _best_window(
    watched: Watched, marks: NDArray[Any] | None, held: Floats | None
) -> tuple[int, int]:
    """The row and the first place of the passage to show, from the second half.

    Where it switches up to four times, stands for half of the passage, and the unit
    goes along.
    """
    rows, size = watched.places.shape
    width = min(WIDTH, size)
    begins = np.arange(0, size - width + 1, 4)
    symbols = np.array(watched.text.symbols, object)[watched.places]
    filled = _windows(symbols != " ", width)[:, begins].mean(-1)
    score = np.minimum(filled, 0.6)
    if marks is not None and held is not None:
        score = score + _telling(marks, held, width, begins)
    score[: rows // 2] -= 100.0 * (rows > 1)
    row, at = np.unravel_index(int(score.argmax()), score.shape)
    return int(row), int(begins[at])


def _telling(
    marks: NDArray[Any], held: Floats, width: int, begins: NDArray[np.integer]
) -> Floats:
    """How well a window shows what a unit stands for, `[R, windows]`."""
    values, unit = (
        _windows(np.asarray(each, np.float32), width)[:, begins]
        for each in (marks, held)
    )
    switches = np.minimum((np.diff(values, axis=-1) != 0).sum(-1), 8) / 4
    if marks.dtype == np.bool_:
        switches = switches - 3 * abs(values.mean(-1) - 0.5)
    a = values - values.mean(-1, keepdims=True)
    b = unit - unit.mean(-1, keepdims=True)
    spread = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return switches + 2 * abs((a * b).sum(-1)) / np.maximum(spread, 1e-9)


def _windows(values: NDArray[Any], width: int) -> NDArray[Any]:
    return sliding_window_view(values, width, axis=1)


def _passage(watched: Watched, layer: int, row: int, begin: int) -> Passage:
    width = min(WIDTH, watched.places.shape[1])
    places = watched.places[row, begin : begin + width]
    trace = jax.tree.map(
        lambda leaf: _numpy(leaf[begin : begin + width, row]), watched.traces[layer]
    )
    return Passage([watched.text.symbols[at] for at in places], places, trace)


def _numpy(values: Any) -> Floats:
    return np.asarray(values, np.float32)


# -- drawing -----------------------------------------------------------------


def _size(passage: Passage, height: float) -> tuple[float, float]:
    return (min(16.0, max(8.0, 0.14 * len(passage.symbols))), height)


def _has_own_output(trace: "Trace") -> bool:
    """Whether the units have four gates, a c and an h of their own to be drawn."""
    state, gates = trace
    four = all(hasattr(gates, name) for name in "ifgo")
    return four and hasattr(state, "c") and state.c.shape == state.h.shape


def _unit(
    ax: Axes, passage: Passage, unit: int, shaded: Flags | None, title: str
) -> None:
    from jaxlstm import plots

    if _has_own_output(passage.trace):
        plots.unit_trace(passage.symbols, passage.trace, unit, ax=ax)
    else:
        _strips(ax, passage, unit)
    panels = ax.figure.axes
    panels[0].set_title(title, parse_math=False)
    if shaded is not None:
        for panel in panels:
            _shade(panel, shaded)


def _strips(ax: Axes, passage: Passage, unit: int) -> None:
    """The gates that a cell has, and what the unit holds, one below the other."""
    from jaxlstm.plots.canvas import panels_of, tidy
    from jaxlstm.plots.symbols import write_symbols

    state = passage.trace.state
    held = {"c" if hasattr(state, "c") else "h": readings.holds(passage.trace)}
    rows = readings.gates_of(passage.trace) | held
    panels = panels_of(ax, [1.0] * (len(rows) - 1) + [1.6])
    for panel, (name, values) in zip(panels, rows.items(), strict=True):
        edges = np.arange(len(values) + 1) - 0.5
        panel.stairs(values[:, unit], edges, fill=True, color=_INK, alpha=0.35)
        panel.stairs(values[:, unit], edges, baseline=None, color=_INK, lw=1.3)
        panel.set_ylabel(NAMES.get(name, name), rotation=0, ha="right", va="center")
        panel.tick_params(axis="x", length=0)
        tidy(panel)
    write_symbols(panels[-1], passage.symbols)


NAMES = {
    "i": "input i",
    "f": "forget f",
    "o": "output o",
    "g": "candidate g",
    "r": "reset r",
    "z": "update z",
    "n": "candidate n",
    "c": "cell c",
    "h": "state h",
}


def _shade(ax: Axes, at: Flags) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], at.astype(int), [0]])))
    for begin, end in edges.reshape(-1, 2):
        ax.axvspan(begin - 0.5, end - 0.5, color=_SHADE, zorder=-1, lw=0)


def _heatmap(stem: str, passage: Passage) -> Drawing:
    from jaxlstm import plots

    gates = readings.gates_of(passage.trace)
    for letter, name in ("f", "forget"), ("z", "update"):
        if letter in gates:
            values, limits = _numpy(gates[letter]), (0.0, 1.0)
            title = f"{name} gate {letter}"
            caption = f"The {name} gates while the model reads: bright keeps."
            break
    else:
        values, title = _numpy(readings.holds(passage.trace)), "what the units hold"
        limits = float(values.min()), float(values.max())
        caption = "What the units hold while the model reads."
    return Drawing(
        f"{stem}-gates.png",
        caption,
        _size(passage, 5),
        lambda ax: plots.gate_heatmap(
            passage.symbols, values, title, limits=limits, ax=ax
        ),
    )


def _flow(ax: Axes, facts: LayerFacts) -> None:
    from jaxlstm import plots

    plots.gradient_flow({"loss of the last prediction": facts.flow}, ax=ax)
    ax.axhline(SHARE, color="#777777", lw=1.0, ls="--")
    ax.set_ylim(bottom=min(SHARE / 2, ax.get_ylim()[0]))
    if facts.reach >= facts.steps - 1:
        said = f"{SHARE:.0%} or more at every step"
        ax.annotate(said, (0.02, 0.02), xycoords="axes fraction")
    elif facts.reach >= 0:
        ax.axvline(facts.reach - 1, color="#777777", lw=1.0, ls=":")
        said = f" up to here {SHARE:.0%} or more; {facts.reach} steps from the last"
        top = "data", "axes fraction"
        ax.annotate(said, (facts.reach - 1, 1.0), xycoords=top, va="top")
    ax.set_xlabel("steps back from the last but one")
    ax.set_ylabel("gradient, as a share of its largest")
