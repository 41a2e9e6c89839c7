"""Engines: the same many steps by different means, behind one signature."""

from jaxlstm.engines import adjoint as adjoint
from jaxlstm.engines import scan as scan
