"""Plot of one unit over a text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jaxlstm.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILION,
    new_axes,
    prefix_errors,
    split_panels,
    style_axes,
)
from jaxlstm.plots.symbols import write_symbols
from jaxlstm.plots.traces import unit_series

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace


_GATE = (-0.12, 1.12)  # limits of 0..1 with space for the tick labels


@prefix_errors
def unit_trace(
    symbols: Sequence[str], trace: "Trace", unit: int, *, ax: Axes | None = None
) -> Axes:
    """Plot the gates, the cell state c and the output h of one unit over a text.

    Args:
        symbols: the T symbols of the text.
        trace: the result of `unroll(..., emit=jl.emit.trace)` for one row: arrays
            `[T, H]`.
        unit: index of the unit, from 0.
        ax: the axes to split into panels; None for a new figure.

    Returns:
        The axes of the top panel.

    Raises:
        ValueError: the unit does not exist, or the trace is not of an LSTM or does not
            fit the symbols.

    Example:
        >>> import numpy as np
        >>> from jaxlstm.cells.base import Gates, LSTMState
        >>> from jaxlstm.cells.emit import Trace
        >>> half = np.full((3, 2), 0.5)
        >>> trace = Trace(LSTMState(half, half), Gates(half, half, half, half))
        >>> unit_trace("abc", trace, 1).get_title()
        'unit 1'
    """
    series = unit_series(symbols, trace, unit)
    rows = (
        ("input gate i", GREEN, True),
        ("forget gate f", BLUE, True),
        ("output gate o", PURPLE, True),
        ("candidate g", ORANGE, False),
        ("cell state c", INK, False),
        ("output h", VERMILION, False),
    )
    panels = split_panels(new_axes(ax), [1, 1, 1, 1.3, 1.6, 1.3])
    for panel, (name, colour, is_gate) in zip(panels, rows, strict=True):
        values = series[name[-1]]
        limits = _GATE if is_gate else _limits_with_margin(values)
        _draw_series(panel, name, values, colour, limits)
    panels[0].set_title(f"unit {unit}")
    write_symbols(panels[-1], symbols)
    return panels[0]


def _draw_series(
    ax: Axes,
    name: str,
    series: NDArray[np.float64],
    colour: str,
    limits: tuple[float, float],
) -> None:
    """Draw one panel: a filled step line with its name at the left."""
    edges = np.arange(series.size + 1) - 0.5
    ax.stairs(series, edges, fill=True, color=colour, alpha=0.3, lw=0)
    ax.stairs(series, edges, baseline=None, color=colour, lw=1.3)
    ax.axhline(0.0, color=GREY, lw=0.6)
    ax.set_ylim(*limits)
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    style_axes(ax)


def _limits_with_margin(series: NDArray[np.float64]) -> tuple[float, float]:
    """Return limits that include the series and zero, with a margin."""
    finite = series[np.isfinite(series)]
    low, high = finite.min(initial=0.0), finite.max(initial=0.0)
    margin = 0.08 * (high - low) or 1.0
    return low - margin * (low < 0), high + margin * (high > 0 or low == 0)
