"""Run directories: creating, opening and locking one, its metrics and its weights.

The names are listed in `__init__.pyi` and loaded on first use. Importing this package
does not import JAX. Trained models are in `runs.trained`.
"""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
