"""The contenders: one record each, one small file per library.

A file is imported when its contender is needed, so that a process imports only the
libraries that it measures. A library that is not installed is reported and left out.
"""

import importlib
import importlib.util
import os

from benchmarks.peers.base import Contender

# Engines measured by name. The engine that `unroll` chooses is also measured as
# `jaxlstm`; the difference of the two figures shows the noise of the measurement.
MODES = (
    "adjoint",
    "adjoint/lean",
    "adjoint/rows_first",
    "adjoint/weights_first",
    "scan",
    "native",
)

MODES_IN_TURN = ("adjoint", "scan", "native")  # for the members of a population

# The file of each contender, and the package that it needs.
FILES: dict[str, tuple[str, str]] = {
    "jaxlstm": ("ours", "jaxlstm"),
    **{f"jaxlstm {mode}": ("ours", "jaxlstm") for mode in MODES},
    "jaxlstm split": ("ours", "jaxlstm"),
    "jaxlstm sqrt": ("ours", "jaxlstm"),
    "jaxlstm trace": ("ours", "jaxlstm"),
    "jaxlstm native trace": ("ours", "jaxlstm"),
    "jaxlstm in turn": ("ours", "jaxlstm"),
    **{f"jaxlstm {mode} in turn": ("ours", "jaxlstm") for mode in MODES_IN_TURN},
    "torch": ("torch", "torch"),
    "flax linen": ("linen", "flax"),
    "flax nnx": ("nnx", "flax"),
    "haiku": ("haiku", "haiku"),
    "equinox": ("equinox", "equinox"),
    "keras": ("keras", "keras"),
    "lax.scan": ("plain", "jax"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "C loop": ("c_loop", "ctypes"),
    "GEMM": ("limits", "torch"),
    "GEMM one thread": ("limits", "torch"),
    "copy": ("limits", "torch"),
}
JAX_PEERS = ("flax linen", "flax nnx", "haiku", "equinox", "keras", "lax.scan")
LIMITS = ("GEMM", "GEMM one thread", "copy")  # what the machine can do


def absent() -> dict[str, str]:
    """Return the contenders whose package is not installed, with the reason."""
    return {
        name: f"not installed (no package {package})"
        for name, (_, package) in FILES.items()
        if importlib.util.find_spec(package) is None
    }


def select(names: list[str]) -> list[str]:
    """Return the contenders with these names and `jaxlstm`; all for an empty list.

    Raises:
        ValueError: an unknown name.

    >>> select(["torch"])
    ['jaxlstm', 'torch']
    """
    for name in names:
        if name not in FILES:
            raise ValueError(f"peers: got {name!r}, expected one of {', '.join(FILES)}")
    return [n for n in FILES if not names or n in names or n == "jaxlstm"]


def find(name: str) -> Contender:
    """Import the library of a contender and return the contender."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    file = importlib.import_module(f"benchmarks.peers.{FILES[name][0]}")
    return next(one for one in file.CONTENDERS if one.name == name)
