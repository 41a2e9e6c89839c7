"""The software and hardware that a run used, recorded in `env.json`."""

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlstm.lab.runs.paths import Run, write_text

_PACKAGES = ("jaxlstm", "jax", "jaxlib", "numpy", "optax")


def describe_environment(devices: Sequence[str]) -> dict[str, Any]:
    """Return the package versions, Python version, platform and devices.

    Example:
        >>> describe_environment(["cpu:0"])["devices"]
        ['cpu:0']
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "devices": list(devices),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def write_environment(run: Run, environment: Mapping[str, Any]) -> None:
    """Write `env.json`.

    Raises:
        LabError: the file cannot be written.
    """
    write_text(run.environment, json.dumps(environment, indent=2) + "\n")
