"""Pictures of findings and of layers, over a passage of the text."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from jaxlstm.lab.analysis import traces
from jaxlstm.lab.analysis.facts import SHARE, LayerFacts
from jaxlstm.lab.analysis.features import Feature
from jaxlstm.lab.analysis.search import Finding
from jaxlstm.lab.analysis.traces import Traces
from jaxlstm.lab.tasks.base import Picture

Floats = NDArray[np.floating]
Axes = Any  # of Matplotlib, which is imported by plots and reports only

WIDTH = 88  # symbols of a passage
_SHADE, _INK, _GREY = "#dcdcdc", "#222222", "#777777"


def of_finding(
    number: int, finding: Finding, seen: Traces, features: Sequence[Feature]
) -> Picture:
    """Return the gates and states of a unit where its feature begins and ends.

    Args:
        number: The number of the finding, from 1.
        finding: The finding.
        seen: The traces that are shown.
        features: The features of their text, at their positions.
    """
    layer, unit = finding.unit
    _, state = traces.memory(seen.layers[layer])
    marks = next(
        (
            feature.values.reshape(seen.positions.shape)
            for feature in features
            if feature.phrase == finding.feature.phrase
        ),
        None,  # the text that is shown need not have the feature
    )
    row, begin = _best_window(seen, marks, np.asarray(state)[..., unit].T)
    symbols, trace = _passage(seen, layer, row, begin)
    shaded, title = None, f"unit {unit}"
    if marks is not None and finding.feature.is_flag:
        shaded = marks[row, begin : begin + WIDTH]
        title += f"; grey: {finding.feature.phrase.replace('`', '')}"

    def draw(ax: Axes) -> None:
        _unit(ax, symbols, trace, unit)
        ax.figure.axes[0].set_title(title, parse_math=False)
        edges = np.diff(np.concatenate([[0], [] if shaded is None else shaded, [0]]))
        for start, end in np.flatnonzero(edges).reshape(-1, 2):
            for panel in ax.figure.axes:
                panel.axvspan(start - 0.5, end - 0.5, color=_SHADE, zorder=-1, lw=0)

    name, height = f"finding-{number}.png", 7 if _is_lstm(trace) else 4
    return Picture(name, f"U{title[1:]}", _size(symbols, height), draw)


def of_layer(number: int, facts: LayerFacts, shown: Traces) -> list[Picture]:
    """Return a layer's gates over a passage, and its statistics."""
    from jaxlstm import plots

    symbols, trace = _passage(shown, number, *_best_window(shown, None, None))
    gates, (title, values) = traces.gates(trace), traces.memory(trace)
    limits, caption = (float(values.min()), float(values.max())), f"The states {title}"
    for letter, name in ("z", "update"), ("f", "forget"):
        if letter in gates:
            values, limits = gates[letter], (0.0, 1.0)
            title, caption = f"{name} gate {letter}", f"The {name} gates"
    stem, small = f"layer-{number + 1}", (8.0, 4.0)
    found = [
        Picture(
            f"{stem}-gates.png",
            f"{caption} while the model reads; bright is high.",
            _size(symbols, 5),
            lambda ax: plots.gate_heatmap(symbols, values, title, limits=limits, ax=ax),
        ),
        Picture(
            f"{stem}-gradient-flow.png",
            "Gradient of the last prediction's loss with respect to earlier states, as "
            f"a share of its maximum. Dashed: {SHARE:.0%}; dotted: the reach.",
            small,
            lambda ax: _flow(ax, facts),
        ),
    ]
    if (taus := facts.timescales) is not None:
        picture = Picture(
            f"{stem}-timescales.png",
            "Time constants of the units.",
            small,
            lambda ax: plots.timescales(taus, ax=ax),
        )
        found.append(picture)
    if (shares := facts.saturation) is not None:
        picture = Picture(
            f"{stem}-saturation.png",
            "Shares of steps with a gate closed (below 0.1) and open (above 0.9).",
            small,
            lambda ax: plots.saturation(shares, ax=ax),
        )
        found.append(picture)
    return found


def _passage(seen: Traces, layer: int, row: int, begin: int) -> tuple[list[str], Any]:
    """Return the symbols and the trace `[width, H]` of a window."""
    window = slice(begin, begin + WIDTH)
    symbols = [seen.text.symbols[at] for at in seen.positions[row, window]]
    return symbols, jax.tree.map(
        lambda leaf: np.asarray(leaf[window, row], np.float32), seen.layers[layer]
    )


def _best_window(
    seen: Traces, marks: NDArray[Any] | None, state: Floats | None
) -> tuple[int, int]:
    """Return the row and the first column of the window to show.

    From the second half of the rows. A good window has few blanks, up to four changes
    of the feature, the feature in half of it, and a unit that is correlated with it.

    Args:
        seen: The traces.
        marks: `[R, S]`, the values of the feature, or None.
        state: `[R, S]`, the state of the unit, or None.
    """
    rows, size = seen.positions.shape
    width = min(WIDTH, size)
    begins = np.arange(0, size - width + 1, 4)

    def windows(values: NDArray[Any]) -> NDArray[Any]:
        return sliding_window_view(values, width, axis=1)[:, begins]

    symbols = np.array(seen.text.symbols, object)[seen.positions]
    score = np.minimum(windows(symbols != " ").mean(-1), 0.6)
    if marks is not None and state is not None:
        a, b = windows(marks.astype(np.float32)), windows(state)
        score = score + np.minimum((np.diff(a, axis=-1) != 0).sum(-1), 8) / 4
        if marks.dtype == np.bool_:
            score = score - 3 * abs(a.mean(-1) - 0.5)
        a, b = (each - each.mean(-1, keepdims=True) for each in (a, b))
        spread = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
        score = score + 2 * abs((a * b).sum(-1)) / np.maximum(spread, 1e-9)
    score[: rows // 2] -= 100.0 * (rows > 1)
    row, at = np.unravel_index(int(score.argmax()), score.shape)
    return int(row), int(begins[at])


def _size(symbols: Sequence[str], height: float) -> tuple[float, float]:
    return (min(16.0, max(8.0, 0.14 * len(symbols))), height)


def _is_lstm(trace: Any) -> bool:
    """Return whether `plots.unit_trace` can draw the trace."""
    state, gates = trace
    has_gates = all(hasattr(gates, name) for name in "ifgo")
    return has_gates and hasattr(state, "c") and state.c.shape == state.h.shape


def _unit(ax: Axes, symbols: Sequence[str], trace: Any, unit: int) -> None:
    """Draw the gates and states of a unit, one panel each."""
    from jaxlstm import plots
    from jaxlstm.plots.canvas import split_panels, style_axes
    from jaxlstm.plots.symbols import write_symbols

    if _is_lstm(trace):
        plots.unit_trace(symbols, trace, unit, ax=ax)
        return
    rows = traces.gates(trace) | dict([traces.memory(trace)])
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
    from jaxlstm import plots

    plots.gradient_flow({"loss of the last prediction": facts.flow}, ax=ax)
    ax.axhline(SHARE, color=_GREY, lw=1.0, ls="--")
    ax.set_ylim(bottom=min(SHARE / 2, ax.get_ylim()[0]))
    if facts.reach > 0:
        ax.axvline(facts.reach - 1, color=_GREY, lw=1.0, ls=":")
    ax.set_xlabel("steps back from the last but one")
    ax.set_ylabel("gradient, as a share of its maximum")
