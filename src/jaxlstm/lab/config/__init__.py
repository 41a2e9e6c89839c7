"""Configs: read YAML into a frozen `Config`, and report errors with file and line."""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
