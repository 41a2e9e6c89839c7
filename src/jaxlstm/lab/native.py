"""The compiled kernel of `engine="native"`, built for this machine when asked for.

    import jaxlstm as jl

    jl.lab.native.load()
    jl.unroll(cell, params, xs, engine="native")

It needs a C++ compiler and takes some seconds, once: the library is kept in the user's
cache. A config with `model.engine: native` does the same.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from jaxlstm.engines import native
from jaxlstm.lab.errors import BadInput

SOURCE = Path(native.__file__).with_name("lstm_loop.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
QUIET = ("-pthread", "-w", "-Wno-psabi")


def compiler() -> str:
    """The C++ compiler: `$CXX`, or the first of c++, g++ and clang++ on the path.

    Errors: `BadInput` where there is none.
    """
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if found is None:
        raise BadInput(
            'native: no C++ compiler found. Install one (Debian: "apt install g++"), '
            'name one in $CXX, or choose engine="adjoint".'
        )
    return found


def library() -> Path:
    """The path of the compiled kernel, compiled now if it is not in the cache.

    The name is a hash of the source, the headers of XLA, the flags and the macros that
    the compiler defines, which tell its version and the instructions of this CPU.

    Errors: `BadInput` as for `compiler`, where it refuses the kernel, and where the
    library cannot be kept.
    """
    cxx, headers = compiler(), Path(jax.ffi.include_dir())
    macros = _run(cxx, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    parts = (SOURCE.read_bytes(), header.read_bytes(), macros, *map(str.encode, FLAGS))
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = _cache() / f"lstm_loop-{digest}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            built = Path(place, path.name)
            _run(cxx, *FLAGS, *QUIET, f"-I{headers}", str(SOURCE), "-o", str(built))
            built.replace(path)  # whole or not at all, whoever else is building it
    except OSError as error:
        raise BadInput(
            f"native: the kernel cannot be kept in {path.parent} ({error.strerror}); "
            "name another directory in $XDG_CACHE_HOME"
        ) from error
    return path


def load() -> None:
    """Make the kernel known to JAX; compile it first, if that was never done here.

    Errors: `BadInput` where there is no compiler, or where it refuses the kernel.
    """
    native.register(ctypes.cdll.LoadLibrary(str(library())))


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
        raise BadInput(f"native: {command[0]} does not compile it:\n{errors}")
    return done.stdout
