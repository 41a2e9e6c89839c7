"""LSTMs in JAX: pure functions for every gate, compiled sequences, training runs.

Public names are listed in `__init__.pyi` and imported on first use, so that
`jaxlstm --help` starts without importing JAX.
"""

import importlib
import warnings

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


# Modules that were renamed; their old names work in this version, with a warning.
RENAMED = {
    "shapes": "typing",
    "sequences": "masking",
    "arguments": "validation",
    "memory": "engines.memory",
}


def __getattr__(name: str) -> object:
    if name in RENAMED:
        message = f"jaxlstm.{name} is deprecated; use jaxlstm.{RENAMED[name]}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return importlib.import_module(f"jaxlstm.{RENAMED[name]}")
    if name in RENAMED.values():
        # The warnings name these modules, which are not among the public names.
        return importlib.import_module(f"jaxlstm.{name}")
    if name in __all__ or name.startswith("_"):
        return _attribute(name)
    import difflib

    known = {public.lower(): public for public in __all__}
    near = difflib.get_close_matches(name.lower(), known, n=3)
    names = " or ".join(known[public] for public in near)
    hint = f"; did you mean {names}?" if near else ""
    raise AttributeError(f"jaxlstm has no {name}{hint}")
