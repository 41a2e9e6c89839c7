"""The unrolled cell: one unit over a few steps, with its real values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from jaxlstm.plots import diagram
from jaxlstm.plots.canvas import new_axes
from jaxlstm.plots.diagram import Step
from jaxlstm.plots.traces import of_unit

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace


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
    """One unit of an LSTM, unrolled over a few steps: the diagram with its numbers.

        c_t = f · c_{t-1} + i · g        the thick line: × f, then + i · g
        h_t = o · tanh(c_t)              the way down on the right

    The line of the cell is as thick as its number is large, and hollow where that is
    negative: what the forget gate lets go of makes it thinner. A gate is filled as far
    as it is open; g, between -1 and 1, from the middle. Where c_t is not that sum, as
    in a cell that clips its state or lets units keep it (zoneout), at a reset, and at a
    step that does not happen, the numbers under the line do not add up to it.

    Arguments:
        symbols: the T inputs: symbols of a text, or numbers.
        trace: what `unroll(..., emit=jl.emit.trace)` gives, with arrays `[T, H]`.
        unit: which of the H.
        start, steps: the first step to draw, from 0, and how many; 2 to 4 fit a page.
        initial: h and c of the unit before step 0.

    Errors: `ValueError` for a unit or steps that are not there, for symbols that are
    neither text nor numbers, for the trace of another cell than an LSTM, and for one
    that does not fit the symbols.

    >>> import numpy as np
    >>> from jaxlstm.cells.base import Gates, LSTMState
    >>> from jaxlstm.cells.emit import Trace
    >>> half = np.full((3, 2), 0.5)
    >>> trace = Trace(LSTMState(half, half), Gates(half, half, half, half))
    >>> unrolled_cell("abc", trace, 1, steps=2).get_title()
    'unit 1, steps 0 to 1'
    """
    written = [_written(place, symbol) for place, symbol in enumerate(symbols)]
    shown = _steps(written, trace, unit, range(start, start + steps), initial)
    ax = diagram.draw(new_axes(ax, diagram.size(steps)), shown)
    ax.set_title(f"unit {unit}, steps {start} to {start + steps - 1}")
    return ax


def _written(place: int, symbol: object) -> str:
    if isinstance(symbol, str):
        return symbol
    try:
        return f"{symbol:.3g}"
    except (TypeError, ValueError):
        raise ValueError(
            f"symbols[{place}] is {symbol!r:.60}; a text or a number is needed, such "
            "as one feature of an input."
        ) from None


def _steps(
    symbols: list[str],
    trace: "Trace",
    unit: int,
    chosen: range,
    initial: tuple[float, float],
) -> list[Step]:
    """What the unit does in the chosen steps."""
    found = {
        name: each.tolist() for name, each in of_unit(symbols, trace, unit).items()
    }
    if not len(chosen) or chosen.start < 0 or chosen.stop > len(symbols):
        raise ValueError(
            f"start is {chosen.start} and steps is {len(chosen)}; at least one of the "
            f"steps 0 to {len(symbols) - 1} is needed, and none beyond."
        )
    states = [initial, *zip(found["h"], found["c"], strict=True)]
    return [
        Step(
            t,
            symbols[t],
            {name: found[name][t] for name in "ifgo"},
            *states[t : t + 2],
        )
        for t in chosen
    ]
