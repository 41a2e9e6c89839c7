"""Members of a population: in turn on each core of a CPU, or one batch elsewhere.

A batched program of XLA:CPU multiplies small matrices slower than one program for each
member does, and it uses no more cores. On a CPU the members are therefore divided among
virtual devices, one for each core, and each device runs its members one after another
inside one program. A member then runs the operations of a run alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm.lab.parallel.devices import Device, cycle_devices, parallel_count

Members = Any  # a pytree whose leaves have a leading axis of members


def groups(count: int, device: Device) -> list[tuple[Device, slice]]:
    """Return the devices that run `count` members, and which members each one runs.

    Example:
        >>> [which for _, which in groups(3, jax.devices()[0])][-1].stop
        3
    """
    parts = 1 if device.platform != "cpu" else min(count, parallel_count(device))
    bounds = np.linspace(0, count, parts + 1).astype(int).tolist()
    slices = map(slice, bounds[:-1], bounds[1:])
    return list(zip(cycle_devices(device, parts), slices, strict=True))


def for_each(function: Callable[..., Any], device: Device) -> Callable[..., Any]:
    """Return a function of all members of a device from a function of one."""
    if device.platform != "cpu":
        return jax.vmap(function)
    return lambda *members: jax.lax.map(lambda each: function(*each), members)


def take(members: Members, which: slice, device: Device) -> Members:
    """Return some members on a device."""
    return jax.device_put(jax.tree.map(lambda leaf: leaf[which], members), device)


def join(parts: list[Members], device: Device) -> Members:
    """Return the members of all parts on one device."""
    moved = jax.device_put(parts, device)
    if len(moved) == 1:
        return moved[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *moved)
