"""Choosing the device to compute on, and explaining why one is not available."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.base import RunConfig

Device = Any  # `jax.Device`, which type checkers do not accept as a type

_REMEDY = {
    "gpu": 'jaxlib has no working CUDA plugin; pip install "jaxlstm[cuda13]"',
    "tpu": 'jaxlib has no working TPU plugin; pip install "jaxlstm[tpu]"',
}


def find(device: str) -> Device:
    """Return the first device of a kind.

    Args:
        device: "cpu", "gpu" or "tpu", or "auto" for the kind that JAX prefers.

    Raises:
        BadInput: there is none. The message lists the devices that JAX sees and the
            package to install.
    """
    try:
        return jax.devices(None if device == "auto" else device)[0]
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device: {_why_unavailable(device, error)}") from None


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def request_cpu_devices(count: int) -> None:
    """Make JAX present the CPU as at least `count` devices, if it can still do so.

    The number is fixed once JAX has been initialised. It may exceed the number of
    cores. A larger number requested through `JAX_NUM_CPU_DEVICES` is kept.
    """
    if jax.config.values["jax_num_cpu_devices"] < count > 1:
        with contextlib.suppress(RuntimeError):  # JAX is already initialised
            jax.config.update("jax_num_cpu_devices", count)


def cycle_devices(device: Device, count: int) -> list[Device]:
    """Return `count` devices of one kind starting with `device`, cyclically."""
    others = jax.local_devices(backend=device.platform)
    distinct = [device, *(other for other in others if other != device)]
    return [distinct[index % len(distinct)] for index in range(count)]


def parallel_count(device: Device) -> int:
    """Return how many devices of this kind compute in parallel.

    Virtual CPU devices share the cores, so at most one per core counts.
    """
    available = len(jax.local_devices(backend=device.platform))
    return min(available, cores()) if device.platform == "cpu" else available


@contextlib.contextmanager
def default_device(device: str, *, cpu_devices: int = 1) -> Iterator[Device]:
    """Make a device the default for the duration of the block.

    Args:
        device: as for `find`.
        cpu_devices: the number of devices that the CPU is presented as.

    Raises:
        BadInput: as for `find`.
    """
    request_cpu_devices(cpu_devices)
    found = find(device)
    with jax.default_device(found):
        yield found


def _why_unavailable(device: str, error: Exception) -> str:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    platforms = os.environ.get("JAX_PLATFORMS")
    if device == "auto":
        cause = f"JAX_PLATFORMS={platforms}" if platforms else first_line
        return f"JAX found no device ({cause}); unset JAX_PLATFORMS"
    try:
        seen = sorted({found.platform for found in jax.devices()})
    except (RuntimeError, AssertionError):
        seen = []
    sees = f"sees only {', '.join(seen)}" if seen else f"found no device ({first_line})"
    remedy = _REMEDY.get(device, "unset JAX_PLATFORMS, or set it to cpu")
    return f"got {device}, but JAX {sees}: {remedy}"


def require_jax_settings(config: RunConfig) -> None:
    """Raise `BadInput` if JAX is set up in a way that does not fit a config."""
    x64 = jnp.zeros(0, float).dtype == np.float64
    if getattr(config.model, "dtype", None) == "float64" and not x64:
        raise BadInput(
            "model.dtype: got float64 with JAX's x64 mode off, which would compute in "
            "float32; set JAX_ENABLE_X64=1 in the environment, or model.dtype=float32"
        )
    if jax.config.values["jax_disable_jit"]:
        raise BadInput(
            "JAX_DISABLE_JIT: got 1, expected 0: lab runs compiled programs; unset it, "
            "or run single steps of the model in Python"
        )
