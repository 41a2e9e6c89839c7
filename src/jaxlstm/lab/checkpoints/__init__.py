"""Checkpoints that are either complete or invisible, with a hash of every array.

The names are listed in `__init__.pyi` and loaded on first use: reading a run directory
needs the list of checkpoints but not JAX.
"""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
