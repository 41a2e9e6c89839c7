"""Statistics of a recurrent layer, and the limits that they are reported with."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.diagnostics.gates import Saturation

Floats = NDArray[np.floating]

STRETCH = 1536  # symbols that a model reads without a break
ROWS = 8  # passages that gradients are taken of
SHARE = 0.01  # of the largest gradient; smaller ones are ignored


class LayerFacts(NamedTuple):
    """Statistics of one layer.

    Attributes:
        units: The number of units.
        saturation: Shares of steps at which each gate is closed and open, `[H]` by
            letter; None for a cell without gates.
        timescales: Time constants `[H]` in steps; None without a forget or update gate.
        dead: Units whose h never changes.
        duplicates: Pairs of units whose h is the same up to scale.
        flow: `[rows, T - 1]`, norm of the gradient of the last loss with respect to c,
            or h, after each step but the last, as a share of its maximum.
        span: The largest lag at which an input of the layer changes its output by
            `SHARE` of the largest change.
    """

    units: int
    saturation: Saturation | None
    timescales: Floats | None
    dead: list[int]
    duplicates: list[tuple[int, int]]
    flow: Floats
    span: int

    @property
    def steps(self) -> int:
        """The number of steps T of the gradients."""
        return self.flow.shape[1] + 1

    @property
    def reach(self) -> int:
        """Steps before the last that the median gradient reaches with `SHARE`."""
        return reach(self.flow)


def reach(flow: Floats) -> int:
    """Return how far back the median over rows is at least `SHARE`; -1 for nowhere.

    Example:
        >>> reach(np.array([[0.0, 0.002, 0.02, 1.0]]))
        2
    """
    large = np.flatnonzero(np.median(flow, axis=0) >= SHARE)
    return flow.shape[1] - int(large[0]) if large.size else -1
