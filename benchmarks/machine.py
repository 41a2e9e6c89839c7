"""The machine, the versions, the settings that affect speed, and the date."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    "jaxlstm",
    "jax",
    "jaxlib",
    "torch",
    "flax",
    "dm-haiku",
    "equinox",
    "keras",
    "onnxruntime",
    "numpy",
)
RELEVANT = ("XLA_", "JAX_", "OMP_", "MKL_", "KMP_", "GLIBC_TUNABLES", "MALLOC_", "LD_")
VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def describe(cores: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that a figure depends on, as JSON.

    >>> describe(2, {"XLA_FLAGS": "", "HOME": "/"})["settings"]
    {'XLA_FLAGS': ''}
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu("model name") or platform.processor() or platform.machine(),
        "vectors": [v for v in VECTORS if v in _cpu("flags").split()],
        "cores": cores,
        "cores_of_machine": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "compiler": _compiler(),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": versions(),
        "settings": {k: v for k, v in sorted(environment.items()) if _is_relevant(k)},
    }


def versions() -> dict[str, str | None]:
    """Return the version of each library, None if it is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_relevant(variable: str) -> bool:
    return variable.startswith(RELEVANT)


def _cpu(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(found, "")


def _memory_gb() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return round(size / 1e9, 1)


def _compiler() -> str | None:
    """Return the first line of `cc --version`, None without a compiler."""
    return (_output("cc", "--version") or "").partition("\n")[0] or None


def _commit() -> str | None:
    """Return the commit, with a + if files were changed; None outside a checkout."""
    commit, changes = (
        _output("git", "rev-parse", "--short", "HEAD"),
        _output("git", "status", "--porcelain"),
    )
    if commit is None:
        return None
    return commit + ("+" if changes else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
