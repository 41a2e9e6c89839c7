"""Where to compute, and why not elsewhere."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from jaxlstm.lab.errors import BadInput

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


@contextlib.contextmanager
def using(device: str) -> Iterator[Device]:
    """Compute there until the block ends.

    Errors: `BadInput`, as for `find`.
    """
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
    return f"{device} was asked for, but {sees}: {remedy}"
