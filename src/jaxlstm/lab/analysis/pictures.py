"""Pictures of findings and of layers, over a passage of the text."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import jaxlstm as jl
from jaxlstm.cells.base import Gates, LSTMState
from jaxlstm.cells.emit import Trace
from jaxlstm.lab.analysis import traces
from jaxlstm.lab.analysis.layers import SHARE, LayerFacts
from jaxlstm.lab.analysis.search import Finding
from jaxlstm.lab.analysis.traces import Floats, Traces, Units
from jaxlstm.lab.tasks.base import Picture

Axes = Any  # of Matplotlib, which is imported by plots and reports only

WIDTH = 88  # symbols of a passage
_SHADE, _INK, _GREY = "#dcdcdc", "#222222", "#777777"


def of_finding(
    number: int, finding: Finding, shown: Traces, features: Mapping[str, NDArray[Any]]
) -> Picture:
    """Return the gates and states of a unit where its feature begins and ends.

    Args:
        number: The number of the finding, from 1.
        finding: The finding.
        shown: The traces that are shown.
        features: `[N]` by phrase, of their text; it need not have the finding's.
    """
    (layer, unit), phrase = finding.unit, finding.feature.phrase
    whole, marks = shown.layers[layer], features.get(phrase)
    state = whole[traces.memory(whole)][:, unit]
    window = _best_window(shown, marks, state)
    symbols, units = _passage(shown, layer, window)
    title, edges = f"unit {unit}", np.zeros(0, int)
    if marks is not None and finding.feature.is_flag:
        title += f"; grey: {phrase.replace('`', '')}"
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks[window], [0]])))

    def draw(ax: Axes) -> None:
        _unit(ax, symbols, units, unit)
        ax.figure.axes[0].set_title(title, parse_math=False)
        for start, end in edges.reshape(-1, 2):
            for panel in ax.figure.axes:
                panel.axvspan(start - 0.5, end - 0.5, color=_SHADE, zorder=-1, lw=0)

    size = _width(symbols), 7 if _is_lstm(units) else 4
    return Picture(f"finding-{number}.png", f"U{title[1:]}", size, draw)


def of_layer(number: int, facts: LayerFacts, shown: Traces) -> list[Picture]:
    """Return a layer's gates over a passage, and its statistics."""
    symbols, units = _passage(shown, number, _best_window(shown, None, None))
    gates, title = traces.gates(units), traces.memory(units)
    values = units[title]
    limits, caption = (float(values.min()), float(values.max())), f"The states {title}"
    for letter, name in ("z", "update"), ("f", "forget"):
        if letter in gates:
            values, limits = gates[letter], (0.0, 1.0)
            title, caption = f"{name} gate {letter}", f"The {name} gates"
    found = []

    def add(
        name: str,
        caption: str,
        draw: Callable[[Axes], object],
        size: tuple[float, float] = (8.0, 4.0),
    ) -> None:
        found.append(Picture(f"layer-{number + 1}-{name}.png", caption, size, draw))

    add(
        "gates",
        f"{caption} of layer {number + 1} while the model reads, a row per unit; "
        "bright is high.",
        lambda ax: jl.plots.gate_heatmap(symbols, values, title, limits=limits, ax=ax),
        (_width(symbols), 5),
    )
    add(
        "gradient-flow",
        "Gradient of the last prediction's loss with respect to earlier states, as a "
        f"share of its maximum. Line and band: median and middle half of "
        f"{len(facts.flow)} passages at each step. Dashed: {100 * SHARE:.0f} %. "
        "Dotted: for how many steps a passage stays above it (median).",
        lambda ax: _flow(ax, facts),
    )
    if (taus := facts.timescales) is not None:
        caption = (
            "Timescales of the units while they read the text of the findings: steps "
            "after which 37 % (1/e) of the state is left if nothing is written."
        )
        add("timescales", caption, lambda ax: jl.plots.timescales(taus, ax=ax))
    if (shares := facts.saturation) is not None:
        caption = (
            "Shares of steps with a gate closed (below 0.1) and open (above 0.9); the "
            "rest, white, is between."
        )
        add("saturation", caption, lambda ax: jl.plots.saturation(shares, ax=ax))
    return found


def _passage(shown: Traces, layer: int, window: slice) -> tuple[list[str], Units]:
    """Return the symbols and the values `[width, H]` of a window."""
    symbols = [shown.text.symbols[at] for at in shown.positions.ravel()[window]]
    units = shown.layers[layer]
    return symbols, {name: values[window] for name, values in units.items()}


def _best_window(
    shown: Traces, marks: NDArray[Any] | None, state: Floats | None
) -> slice:
    """Return the positions to show of a feature `[N]` and the state `[N]` of a unit.

    From the second half of the rows. A good window has few blanks, up to four changes
    of the feature, the feature in half of it, a unit that is correlated with it, and
    levels of the unit that are near those of the whole text.
    """
    rows, size = shown.positions.shape
    width = min(WIDTH, size)
    begins = np.arange(0, size - width + 1, 4)

    def windows(values: NDArray[Any]) -> NDArray[Any]:
        return sliding_window_view(values.reshape(rows, size), width, axis=1)[:, begins]

    symbols = np.array(shown.text.symbols, object)[shown.positions]
    score = np.minimum(windows(symbols != " ").mean(-1), 0.6)
    if marks is not None and state is not None:
        a, b = windows(marks.astype(np.float32)), windows(state)
        score = score + np.minimum((np.diff(a, axis=-1) != 0).sum(-1), 8) / 4
        if marks.dtype == np.bool_:
            score = score - 3 * abs(a.mean(-1) - 0.5)
            score = score - 3 * _distance_of_levels(a, b, marks, state)
        a, b = (each - each.mean(-1, keepdims=True) for each in (a, b))
        spread = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
        score = score + 2 * abs((a * b).sum(-1)) / np.maximum(spread, 1e-9)
    score[: rows // 2] -= 100.0 * (rows > 1)
    row, at = np.unravel_index(int(score.argmax()), score.shape)
    begin = int(row) * size + int(begins[at])
    return slice(begin, begin + width)


def _distance_of_levels(
    marked: Floats, values: Floats, marks: NDArray[np.bool_], state: Floats
) -> Floats:
    """Return how far the levels of a unit in each window are from the usual ones.

    In units of the difference between inside and outside, at most 1.

    Args:
        marked: `[..., width]`, 1 where the feature holds.
        values: `[..., width]`, the state of the unit.
        marks: `[N]`, the feature in the whole text.
        state: `[N]`, the unit in the whole text.
    """
    if marks.all() or not marks.any():
        return np.zeros(marked.shape[:-1])
    usual = [float(np.median(state[where])) for where in (marks, ~marks)]
    weights = marked, 1 - marked
    found = [(w * values).sum(-1) / np.maximum(w.sum(-1), 1) for w in weights]
    distance = sum(abs(f - u) for f, u in zip(found, usual, strict=True))
    return np.minimum(distance / max(abs(usual[0] - usual[1]), 1e-9), 1.0)


def _width(symbols: list[str]) -> float:
    return min(16.0, max(8.0, 0.14 * len(symbols)))


def _is_lstm(units: Units) -> bool:
    """Return whether `plots.unit_trace` can draw the units."""
    return units.keys() >= set("ifgoc") and units["c"].shape == units["h"].shape


def _unit(ax: Axes, symbols: list[str], units: Mapping[str, Any], unit: int) -> None:
    """Draw the gates and states of a unit, one panel each."""
    from jaxlstm.plots.canvas import split_panels, style_axes
    from jaxlstm.plots.symbols import write_symbols

    if _is_lstm(units):
        gates = Gates(*(units[name] for name in Gates._fields))
        trace = Trace(LSTMState(units["h"], units["c"]), gates)
        jl.plots.unit_trace(symbols, trace, unit, ax=ax)
        return
    rows = traces.gates_and_memory(units)
    panels = split_panels(ax, [1.0] * (len(rows) - 1) + [1.6])
    for panel, (name, values) in zip(panels, rows.items(), strict=True):
        edges = np.arange(len(values) + 1) - 0.5
        panel.stairs(values[:, unit], edges, fill=True, color=_INK, alpha=0.35)
        panel.stairs(values[:, unit], edges, baseline=None, color=_INK, lw=1.3)
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
        panel.tick_params(axis="x", length=0)
        style_axes(panel)
    write_symbols(panels[-1], symbols)


def _flow(ax: Axes, facts: LayerFacts) -> None:
    jl.plots.gradient_flow({"loss of the last prediction": facts.flow}, ax=ax)
    ax.axhline(SHARE, color=_GREY, lw=1.0, ls="--")
    ax.set_ylim(bottom=min(SHARE / 2, ax.get_ylim()[0]))
    if (steps := float(np.median(facts.reach))) > 0:
        ax.axvline(steps - 1, color=_GREY, lw=1.0, ls=":")
    ax.set_xlabel("steps back, from the last state but one")
    ax.set_ylabel("gradient, as a share of its maximum")
