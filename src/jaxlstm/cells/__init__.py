"""Cells: one instant of a recurrent network. No time axis lives on this floor."""

from jaxlstm.cells import base as base
from jaxlstm.cells import emit as emit
from jaxlstm.cells import lstm as lstm
