"""Where to compute, and why not elsewhere."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from jaxlstm.lab._util.errors import BadInput

Device = Any  # `jax.Device`, which type checkers do not know as a type

_REMEDY = {
    "gpu": 'jaxlib has no working CUDA plugin. pip install "jaxlstm[cuda13]"',
    "tpu": 'jaxlib has no working TPU plugin. pip install "jaxlstm[tpu]"',
}


def find(device: str) -> Device:
    """The first device of a kind, `auto` being the kind that JAX prefers.

    Errors: `BadInput` that says what JAX sees, and what to install.
    """
    try:
        return jax.devices(None if device == "auto" else device)[0]
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device: {_why_not(device, error)}") from None


def cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def provide(count: int) -> None:
    """Let the processor stand for so many devices, unless JAX has begun already.

    They are virtual: there may be more of them than cores. What the user asked for,
    through `JAX_NUM_CPU_DEVICES`, is never made less.
    """
    if jax.config.values["jax_num_cpu_devices"] < count > 1:
        with contextlib.suppress(RuntimeError):  # JAX has begun
            jax.config.update("jax_num_cpu_devices", count)


def siblings(device: Device, count: int) -> list[Device]:
    """So many devices of one kind, from `device` on; each serves again if need be."""
    others = jax.local_devices(backend=device.platform)
    there = [device, *(other for other in others if other != device)]
    return [there[index % len(there)] for index in range(count)]


def side_by_side(device: Device) -> int:
    """How many of its kind compute at the same time; on a processor, each on a core."""
    there = len(jax.local_devices(backend=device.platform))
    return min(there, cores()) if device.platform == "cpu" else there


@contextlib.contextmanager
def using(device: str, *, hosts: int = 1) -> Iterator[Device]:
    """Compute there until the block ends; the processor stands for `hosts` devices.

    Errors: `BadInput`, as for `find`.
    """
    provide(hosts)
    found = find(device)
    with jax.default_device(found):
        yield found


def _why_not(device: str, error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    asked = os.environ.get("JAX_PLATFORMS")
    if device == "auto":
        named = f"JAX_PLATFORMS={asked}" if asked else first
        return f"JAX has none to compute on ({named}); unset JAX_PLATFORMS"
    try:
        seen = sorted({found.platform for found in jax.devices()})
    except (RuntimeError, AssertionError):
        seen = []
    sees = f"JAX sees only {', '.join(seen)}" if seen else f"JAX sees none ({first})"
    remedy = _REMEDY.get(device, "unset JAX_PLATFORMS, or set it to cpu")
    return f"{sees}, and no {device}: {remedy}"
