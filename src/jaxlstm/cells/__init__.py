"""Cells: one instant of a recurrent network. No time axis lives on this floor."""

from jaxlstm.cells import base as base
from jaxlstm.cells import classic as classic
from jaxlstm.cells import convolutional as convolutional
from jaxlstm.cells import coupled as coupled
from jaxlstm.cells import emit as emit
from jaxlstm.cells import gru as gru
from jaxlstm.cells import lstm as lstm
from jaxlstm.cells import noise as noise
from jaxlstm.cells import normalized as normalized
from jaxlstm.cells import parameters as parameters
from jaxlstm.cells import peephole as peephole
from jaxlstm.cells import projected as projected
from jaxlstm.cells import simple as simple
from jaxlstm.cells import wrappers as wrappers
