"""The compiled kernel of this process: its functions are registered with XLA once."""

import threading
from typing import Any

import jax

FUNCTIONS = {"float32": "jaxlstm_loop_f32", "float64": "jaxlstm_loop_f64"}
SESSIONS = {"float32": "jaxlstm_open_f32", "float64": "jaxlstm_open_f64"}

LOADED_KERNELS: list[Any] = []
TARGETS: dict[str, str] = {}
"""The names by which XLA knows the functions of the loaded kernel, by dtype."""

_REGISTRATION = threading.Lock()


def register(kernel: Any, *, version: str = "") -> None:
    """Register the functions of a compiled kernel with XLA, once per process.

    Args:
        kernel: the library as loaded by `ctypes`.
        version: identifies its content. It is part of the names of the targets, so that
            another copy of this module can register another kernel.
    """
    with _REGISTRATION:
        if LOADED_KERNELS:
            return
        functions = {name: getattr(kernel, name) for name in FUNCTIONS.values()}
        for dtype, name in FUNCTIONS.items():
            target = f"{name}_{version}" if version else name
            capsule = jax.ffi.pycapsule(functions[name])
            try:
                jax.ffi.register_ffi_target(target, capsule, platform="cpu")
            except jax.errors.JaxRuntimeError as error:
                # Another copy of this module has registered the same kernel.
                if "Duplicate" not in str(error):
                    raise
            TARGETS[dtype] = target
        LOADED_KERNELS.append(kernel)
