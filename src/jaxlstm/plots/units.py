"""One unit of a trained cell: its life over a text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jaxlstm.plots.canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    VERMILION,
    new_axes,
    panels_of,
    tidy,
)
from jaxlstm.plots.symbols import write_symbols
from jaxlstm.plots.traces import of_unit

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace


_GATE = (-0.12, 1.12)  # a gate's 0 to 1, with room for the labels of its axis


def unit_trace(
    symbols: Sequence[str], trace: "Trace", unit: int, *, ax: Axes | None = None
) -> Axes:
    """All that one unit does over a text: its gates, its cell c, its output h.

    `trace` is what `unroll(..., emit=emit.trace)` gives, with arrays `[T, H]`.

    Errors: `ValueError` for a unit that is not there, for the trace of another cell
    than an LSTM, and for one that does not fit the symbols.

    >>> import numpy as np
    >>> from jaxlstm.cells.base import Gates, LSTMState
    >>> from jaxlstm.cells.emit import Trace
    >>> half = np.full((3, 2), 0.5)
    >>> trace = Trace(LSTMState(half, half), Gates(half, half, half, half))
    >>> unit_trace("abc", trace, 1).get_title()
    'unit 1'
    """
    found = of_unit(symbols, trace, unit)
    rows = (
        ("input i", GREEN, True),
        ("forget f", BLUE, True),
        ("output o", PURPLE, True),
        ("candidate g", ORANGE, False),
        ("cell c", INK, False),
        ("output h", VERMILION, False),
    )
    panels = panels_of(new_axes(ax), [1, 1, 1, 1.3, 1.6, 1.3])
    for panel, (name, colour, is_gate) in zip(panels, rows, strict=True):
        series = found[name[-1]]
        _strip(panel, name, series, colour, _GATE if is_gate else _around(series))
    panels[0].set_title(f"unit {unit}")
    write_symbols(panels[-1], symbols)
    return panels[0]


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
    ax.axhline(0.0, color=QUIET, lw=0.6)
    ax.set_ylim(*limits)
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    tidy(ax)


def _around(series: NDArray[np.float64]) -> tuple[float, float]:
    """Limits that hold the series and zero, with a little room."""
    finite = series[np.isfinite(series)]
    low, high = finite.min(initial=0.0), finite.max(initial=0.0)
    room = 0.08 * (high - low) or 1.0
    return low - room * (low < 0), high + room * (high > 0 or low == 0)
