"""One unit of a trace: its gates and its state, checked."""

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jaxlstm.plots.symbols import per_symbol

if TYPE_CHECKING:
    from jaxlstm.cells.emit import Trace


def of_unit(
    symbols: Sequence[object], trace: "Trace", unit: int
) -> dict[str, NDArray[np.float64]]:
    """The `[T]` of i, f, g, o, c and h of one unit.

    Errors: `ValueError` for a trace of another cell than an LSTM, for one that does
    not fit the symbols, for an h of another size than c, and for a unit that is not
    there.
    """
    state, gates = _records(trace)
    found = {name: getattr(gates, name) for name in "ifgo"}
    found |= {name: getattr(state, name) for name in "ch"}
    values = {name: per_symbol(symbols, each) for name, each in found.items()}
    shapes = {name: list(each.shape) for name, each in values.items()}
    if any(shape != shapes["c"] for shape in shapes.values()):
        raise ValueError(
            f"trace has the shapes {shapes}; one shape is needed, so that a unit is "
            "the same column in all."
        )
    place = _index(unit, shapes["c"][-1])
    return {name: each[:, place] for name, each in values.items()}


def _records(trace: "Trace") -> tuple[object, object]:
    """The state and the gates, which have what an LSTM has."""
    for name, fields in (("gates", "ifgo"), ("state", "ch")):
        record = getattr(trace, name, None)
        missing = [field for field in fields if not hasattr(record, field)]
        if missing:
            raise ValueError(
                f"trace.{name} is a {type(record).__name__} without "
                f"{', '.join(missing)}; the trace of an LSTM is needed."
            )
    return trace.state, trace.gates


def _index(unit: int, units: int) -> int:
    try:
        place = index(unit)
    except TypeError:
        place = -1
    if not 0 <= place < units:
        raise ValueError(f"unit must be one of 0 to {units - 1}, but is {unit!r}")
    return place
