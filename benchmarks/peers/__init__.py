"""Who is measured. A contender is one record; a library, one small file.

A file is imported when its contender is asked for, so that a process holds only the
libraries that it measures, and a library that is not installed costs a reason only.
"""

import importlib
import importlib.util
import os

from benchmarks.peers.base import Contender

# Engines that are measured by name. `jaxlstm` is what `unroll` chooses by itself: what
# it chose is measured twice, and the two figures tell how noisy all the others are.
MODES = (
    "adjoint",
    "adjoint/lean",
    "adjoint/rows_first",
    "adjoint/weights_first",
    "scan",
    "native",
)

# Each contender: the file it is in, and the package that it needs.
FILES: dict[str, tuple[str, str]] = {
    "jaxlstm": ("ours", "jaxlstm"),
    **{f"jaxlstm {mode}": ("ours", "jaxlstm") for mode in MODES},
    "jaxlstm split": ("ours", "jaxlstm"),
    "jaxlstm sqrt": ("ours", "jaxlstm"),
    "jaxlstm trace": ("ours", "jaxlstm"),
    "jaxlstm native trace": ("ours", "jaxlstm"),
    "torch": ("torch", "torch"),
    "flax linen": ("linen", "flax"),
    "flax nnx": ("nnx", "flax"),
    "haiku": ("haiku", "haiku"),
    "equinox": ("equinox", "equinox"),
    "keras": ("keras", "keras"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
}
JAX_PEERS = ("flax linen", "flax nnx", "haiku", "equinox", "keras")


def absent() -> dict[str, str]:
    """Contenders whose package is not installed, and why they cannot be measured."""
    return {
        name: f"not installed (no package {package})"
        for name, (_, package) in FILES.items()
        if importlib.util.find_spec(package) is None
    }


def chosen(words: list[str]) -> list[str]:
    """The contenders of these names, `jaxlstm` among them; all of them for no words.

    Errors: `ValueError` for a name that nobody has.

    >>> chosen(["torch"])
    ['jaxlstm', 'torch']
    """
    for word in words:
        if word not in FILES:
            raise ValueError(
                f"no contender is called {word!r}; there are {', '.join(FILES)}"
            )
    return [n for n in FILES if not words or n in words or n == "jaxlstm"]


def find(name: str) -> Contender:
    """The contender of a name; its library is imported."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    file = importlib.import_module(f"benchmarks.peers.{FILES[name][0]}")
    return next(one for one in file.CONTENDERS if one.name == name)
