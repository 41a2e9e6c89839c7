"""Engines: ways to run a cell over a sequence, with one signature and one result."""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
