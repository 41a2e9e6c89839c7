"""LSTMs in JAX: pure functions for every gate, compiled sequences, training runs.

Public names are listed in `__init__.pyi` and imported on first use, so that
`jaxlstm --help` starts without importing JAX.
"""

import importlib
import warnings

from jaxlstm import _lazy

# Names of Flax, Haiku, Keras and torch.
SYNONYMS = {
    "dense": "linear",
    "embedding": "embed",
    "linen": "modules.linen",
    "lstmcell": "lstm",
    "grucell": "gru",
    "nn": "modules.nnx",
    "nnx": "modules.nnx",
    "rnn": "recurrent",
    "scan": "unroll",
    "sequential": "serial",
    "train": "lab.train",
}

_attribute, __dir__, __all__ = _lazy.attach_stub(__name__, __file__, SYNONYMS)


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
    return _attribute(name)
