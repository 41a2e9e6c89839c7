"""Gates and state of one unit of a trace."""

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxlstm.plots.symbols import per_symbol

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace


def unit_series(
    symbols: Sequence[object], trace: "Trace", unit: int
) -> dict[str, NDArray[np.float64]]:
    """Return i, f, g, o, c and h of one unit, `[T]` each.

    Raises:
        ValueError: the trace is not of an LSTM or does not fit the symbols, h and c
            have different sizes, or the unit does not exist.
    """
    state, gates = _records(trace)
    fields = {name: getattr(gates, name) for name in "ifgo"}
    fields |= {name: getattr(state, name) for name in "ch"}
    series = {name: per_symbol(symbols, field) for name, field in fields.items()}
    shapes = {name: list(values.shape) for name, values in series.items()}
    if any(shape != shapes["c"] for shape in shapes.values()):
        raise ValueError(
            f"trace: got shapes {shapes}, expected one shape for all, so that a unit "
            "is the same column in each."
        )
    column = _index(unit, shapes["c"][-1])
    return {name: values[:, column] for name, values in series.items()}


def _records(trace: "Trace") -> tuple[object, object]:
    """Return the state and the gates; both must have the fields of an LSTM."""
    for name, fields in (("gates", "ifgo"), ("state", "ch")):
        record = getattr(trace, name, None)
        missing = [field for field in fields if not hasattr(record, field)]
        if missing:
            raise ValueError(
                f"trace.{name}: got {type(record).__name__} without "
                f"{', '.join(missing)}, expected the trace of an LSTM."
            )
    return trace.state, trace.gates


def _index(unit: int, units: int) -> int:
    try:
        column = index(unit)
    except TypeError:
        column = -1
    if not 0 <= column < units:
        raise ValueError(f"unit: got {unit!r}, expected 0 to {units - 1}.")
    return column
