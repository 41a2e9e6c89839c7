"""Compilation of the CPU kernel of `engine="native"` on the user's machine.

    import jaxlstm as jl

    jl.engines.native.load()
    jl.unroll(cell, params, xs, engine="native")

Compiling needs a C++ compiler and takes a few seconds, once: the library is kept in the
user's cache. A training config with `model.engine: native` does this by itself.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from jaxlstm.engines.native.engine import register

SOURCE = Path(__file__).with_name("lstm_loop.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
QUIET = ("-pthread", "-w", "-Wno-psabi")


class BuildError(RuntimeError):
    """The kernel cannot be compiled, or its library cannot be written."""


def compiler() -> list[str]:
    """Return the command of `$CXX`, or the first of c++, g++ and clang++ on the path.

    Raises:
        BuildError: there is no such compiler.
    """
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]) is None:
            raise BuildError(
                f"native: $CXX: got {command[0]!r}, which is not on the path; name a "
                "C++ compiler, or unset it to use the first of c++, g++ and clang++."
            )
        return command
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise BuildError(
            'native: no C++ compiler found; install one (Debian: "apt install g++"), '
            'name one in $CXX, or use engine="adjoint".'
        )
    return [found]


def library() -> Path:
    """Return the path of the compiled kernel, compiling it if it is not in the cache.

    The file name contains two hashes. The first covers the source, the XLA headers, the
    flags and the macros that the compiler predefines, which identify its version and
    the instruction set of the CPU. The second covers the library itself, so that a
    damaged file is compiled again: loading it could crash the process.

    Raises:
        BuildError: as `compiler`, the compiler reports an error, or the library cannot
            be written.
    """
    cxx, headers = compiler(), Path(jax.ffi.include_dir())
    macros = _run(*cxx, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    parts = (SOURCE.read_bytes(), header.read_bytes(), macros, *map(str.encode, FLAGS))
    stem, folder = "lstm_loop-" + _hash(b"\0".join(parts)), _cache()
    try:
        for kept in sorted(folder.glob(f"{stem}-*.so")):
            if kept.name == f"{stem}-{_hash(kept.read_bytes())}.so":
                return kept
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary, "lstm_loop.so")
            _run(*cxx, *FLAGS, *QUIET, f"-I{headers}", str(SOURCE), "-o", str(built))
            path = folder / f"{stem}-{_hash(built.read_bytes())}.so"
            built.replace(path)  # atomic, as other processes may build it as well
    except OSError as error:
        raise BuildError(
            f"native: cannot write the kernel to {folder} ({error.strerror}); "
            "name another directory in $XDG_CACHE_HOME."
        ) from error
    return path


def load() -> None:
    """Load the kernel of `engine="native"`, compiling it on first use.

    Raises:
        BuildError: there is no C++ compiler, it reports an error, or the library
            cannot be written.
    """
    register(ctypes.cdll.LoadLibrary(str(library())))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _cache() -> Path:
    if sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "jaxlstm"


def _run(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip()[-2000:]
        raise BuildError(f"native: {command[0]} cannot compile the kernel:\n{errors}")
    return done.stdout
