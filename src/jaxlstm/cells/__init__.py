"""Cells: pure functions of a single time step, and wrappers from cell to cell."""

import warnings

from jaxlstm.cells import base as base
from jaxlstm.cells import classic as classic
from jaxlstm.cells import convolutional as convolutional
from jaxlstm.cells import coupled as coupled
from jaxlstm.cells import emit as emit
from jaxlstm.cells import gru as gru
from jaxlstm.cells import lstm as lstm
from jaxlstm.cells import normalized as normalized
from jaxlstm.cells import parameters as parameters
from jaxlstm.cells import peephole as peephole
from jaxlstm.cells import projected as projected
from jaxlstm.cells import simple as simple
from jaxlstm.cells import wrappers as wrappers


def __getattr__(name: str) -> object:
    if name == "noise":
        message = "jaxlstm.cells.noise is deprecated; use jaxlstm.cells.wrappers."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return wrappers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
