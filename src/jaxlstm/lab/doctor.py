"""Report what is installed, which devices JAX sees, and why others are missing."""

import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import jaxlstm as jl
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.parallel import devices

EXTRAS = {"plot": "matplotlib", "tensorboard": "tensorboardX", "notebook": "jupyterlab"}
"""One module of each extra, whose presence shows that the extra is installed."""


def examine() -> dict[str, str]:
    """Return versions, installed extras and devices by name.

    Example:
        >>> examine()["python"].split(".")[0]
        '3'
    """
    rows = {
        "jaxlstm": importlib.metadata.version("jaxlstm"),
        "python": f"{platform.python_version()} ({sys.executable})",
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "cores": f"{devices.cores()} available to this process",
    }
    rows |= {name: importlib.metadata.version(name) for name in _dependencies()}
    rows |= {
        f"extra {extra}": _extra(extra, module) for extra, module in EXTRAS.items()
    }
    rows |= {device: _device(device) for device in ("cpu", "gpu", "tpu")}
    return rows | {"kernel": jl.engines.native.describe().removeprefix("native: ")}


def _dependencies() -> list[str]:
    """Return the packages that every installation requires, from our metadata."""
    requirements = importlib.metadata.requires("jaxlstm") or []
    required = [line for line in requirements if "extra ==" not in line]
    return [re.split(r"[^\w.-]", line)[0] for line in required]


def _extra(extra: str, module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return f"not installed: {install_command(extra)}"
    return "installed"


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation of jaxlstm.

    One from a directory, such as a checkout, is installed from there again: a package
    index may have another version, or none.
    """
    text = importlib.metadata.distribution("jaxlstm").read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    address = urllib.parse.urlsplit(origin.get("url", ""))
    if address.scheme != "file" or "dir_info" not in origin:
        return f'pip install "jaxlstm[{extra}]"'
    path = Path(urllib.request.url2pathname(address.path))
    place = "." if path == Path.cwd() else path
    option = "-e " if origin["dir_info"].get("editable") else ""
    return f'pip install {option}"{place}[{extra}]"'


def _device(device: str) -> str:
    """Return the kind of a device, or the reason why none is available."""
    nvidia = device == "gpu" and Path("/dev/nvidia0").exists()
    hardware = " (an NVIDIA GPU is present: /dev/nvidia0)" if nvidia else ""
    try:
        return f"{devices.find(device).device_kind}{hardware}"
    except BadInput as error:
        reason = str(error).removeprefix(f"device: got {device}, but ")
        return f"none: {reason}{hardware}"
