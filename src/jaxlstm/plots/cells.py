"""Diagram of an unrolled LSTM cell with the values of one unit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from jaxlstm.plots import diagram
from jaxlstm.plots.canvas import new_axes, prefix_errors
from jaxlstm.plots.diagram import Step
from jaxlstm.plots.traces import unit_series

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace


@prefix_errors
def unrolled_cell(
    symbols: Sequence[object],
    trace: "Trace",
    unit: int,
    *,
    start: int = 0,
    steps: int = 3,
    initial: tuple[float, float] = (0.0, 0.0),
    ax: Axes | None = None,
) -> Axes:
    """Draw one unit of an LSTM over a few steps, as a diagram with its values:

        c_t = f · c_{t-1} + i · g        the thick line: × f, then + i · g
        h_t = o · tanh(c_t)              the branch at the right of each step

    The line of c is as thick as |c|, and hollow where c is negative. A gate is filled
    up to its value; g, which lies in -1..1, from the middle. The numbers below the
    line are f · c_{t-1} and i · g. They do not sum to c_t if a wrapper changes the
    state after the step (`clip_cell`, `zoneout`), at a reset, and at a masked step.

    Args:
        symbols: the T inputs, as text or numbers.
        trace: the result of `unroll(..., emit=jl.emit.trace)` for one row: arrays
            `[T, H]`.
        unit: index of the unit, from 0.
        start: the first step to draw, from 0.
        steps: how many steps to draw; 2 to 4 fit on a page.
        initial: h and c of the unit before step 0.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: the unit or the steps do not exist, a symbol is neither text nor a
            number, or the trace is not of an LSTM or does not fit the symbols.

    Example:
        >>> import numpy as np
        >>> from jaxlstm.cells.base import Gates, LSTMState
        >>> from jaxlstm.cells.emit import Trace
        >>> half = np.full((3, 2), 0.5)
        >>> trace = Trace(LSTMState(half, half), Gates(half, half, half, half))
        >>> unrolled_cell("abc", trace, 1, steps=2).get_title()
        'unit 1, steps 0 to 1'
    """
    labels = [_label(place, symbol) for place, symbol in enumerate(symbols)]
    shown = _steps(labels, trace, unit, range(start, start + steps), initial)
    ax = diagram.draw(new_axes(ax, diagram.size(steps)), shown)
    ax.set_title(f"unit {unit}, steps {start} to {start + steps - 1}")
    return ax


def _label(place: int, symbol: object) -> str:
    if isinstance(symbol, str):
        return symbol
    try:
        return f"{symbol:.3g}"
    except (TypeError, ValueError):
        raise ValueError(
            f"symbols[{place}]: got {symbol!r:.60}, expected text or a number, such as "
            "one feature of the input."
        ) from None


def _steps(
    symbols: list[str],
    trace: "Trace",
    unit: int,
    chosen: range,
    initial: tuple[float, float],
) -> list[Step]:
    """Return the values of the unit in the chosen steps."""
    series = unit_series(symbols, trace, unit)
    values = {name: column.tolist() for name, column in series.items()}
    if not len(chosen) or chosen.start < 0 or chosen.stop > len(symbols):
        raise ValueError(
            f"start, steps: got {chosen.start} and {len(chosen)}, expected one or more "
            f"of the steps 0 to {len(symbols) - 1}."
        )
    states = [initial, *zip(values["h"], values["c"], strict=True)]
    return [
        Step(
            t,
            symbols[t],
            {name: values[name][t] for name in "ifgo"},
            *states[t : t + 2],
        )
        for t in chosen
    ]
