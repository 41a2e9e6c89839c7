"""LSTMs in JAX: pure functions for every gate, compiled sequences, whole runs.

The names are listed in `__init__.pyi` and loaded when they are first used, so that
`jaxlstm --help` does not wait for JAX.
"""

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name in __all__ or name.startswith("_"):
        return _attribute(name)
    import difflib

    known = {each.lower(): each for each in __all__}
    near = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"; did you mean {' or '.join(known[each] for each in near)}?" * bool(near)
    raise AttributeError(f"jaxlstm has no {name}{hint}")
