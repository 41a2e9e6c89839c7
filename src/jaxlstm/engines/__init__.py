"""Engines: ways to run a cell over a sequence, with one signature and one result."""

from jaxlstm.engines import adjoint as adjoint
from jaxlstm.engines import memory as memory
from jaxlstm.engines import native as native
from jaxlstm.engines import scan as scan
