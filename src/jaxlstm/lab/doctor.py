"""What is installed, what JAX sees, and why it does not see more."""

import importlib.metadata
import importlib.util
import platform
import re
import sys
from pathlib import Path

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.parallel import devices

EXTRAS = {"plot": "matplotlib", "tensorboard": "tensorboardX", "notebook": "jupyterlab"}


def examine() -> dict[str, str]:
    """One row for each thing that can be missing; nothing is changed.

    >>> examine()["python"].split(".")[0]
    '3'
    """
    rows = {
        "jaxlstm": importlib.metadata.version("jaxlstm"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "cores": f"{devices.cores()} for this process, and as many shards of a batch",
    }
    rows |= {name: importlib.metadata.version(name) for name in _dependencies()}
    rows |= {f"extra {extra}": _extra(extra, name) for extra, name in EXTRAS.items()}
    return rows | {device: _device(device) for device in ("cpu", "gpu", "tpu")}


def _dependencies() -> list[str]:
    """The packages that every installation needs, by the names in our metadata."""
    wanted = importlib.metadata.requires("jaxlstm") or []
    return [re.split(r"[^\w.-]", line)[0] for line in wanted if "extra ==" not in line]


def _extra(extra: str, name: str) -> str:
    if importlib.util.find_spec(name) is None:
        return f'not installed: pip install "jaxlstm[{extra}]"'
    return "installed"


def _device(device: str) -> str:
    hardware = (
        ""
        if device != "gpu" or not Path("/dev/nvidia0").exists()
        else (" (an NVIDIA device is there: /dev/nvidia0)")
    )
    try:
        return f"{devices.find(device).device_kind}{hardware}"
    except BadInput as error:
        return f"none; {str(error).removeprefix('device: ')}{hardware}"
