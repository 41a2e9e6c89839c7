"""Training runs: the verbs of the command line as Python functions.

Example:
    >>> import jaxlstm as jl
    >>> jl.lab.config.load(overrides=["model.layers=2"]).model.layers
    2
"""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
