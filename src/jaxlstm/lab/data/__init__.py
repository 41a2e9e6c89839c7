"""Read text, time series and labelled sequences into NumPy arrays, without JAX."""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
