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
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from jaxlstm.engines import native
from jaxlstm.lab._util.errors import BadInput

SOURCE = Path(native.__file__).with_name("lstm_loop.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
QUIET = ("-pthread", "-w", "-Wno-psabi")


def compiler() -> list[str]:
    """The C++ compiler: the words of `$CXX`, or the first of c++, g++ and clang++ on
    the path.

    Errors: `BadInput` where there is none.
    """
    if wanted := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(wanted[0]) is None:
            raise BadInput(
                f"native: $CXX asks for {wanted[0]!r}, which is not on the path. Name "
                "a C++ compiler there, or unset it for the first of c++, g++, clang++."
            )
        return wanted
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise BadInput(
            'native: no C++ compiler found. Install one (Debian: "apt install g++"), '
            'name one in $CXX, or choose engine="adjoint".'
        )
    return [found]


def library() -> Path:
    """The path of the compiled kernel, compiled now if it is not in the cache.

    The name has two hashes. The first is of the source, the headers of XLA, the flags
    and the macros that the compiler defines, which tell its version and the
    instructions of this CPU; the second is of the library, so that a damaged one is
    compiled anew: to load it could end the process.

    Errors: `BadInput` as for `compiler`, where it refuses the kernel, and where the
    library cannot be kept.
    """
    cxx, headers = compiler(), Path(jax.ffi.include_dir())
    macros = _run(*cxx, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull)
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    parts = (SOURCE.read_bytes(), header.read_bytes(), macros, *map(str.encode, FLAGS))
    stem, place = "lstm_loop-" + _hash(b"\0".join(parts)), _cache()
    try:
        for kept in sorted(place.glob(f"{stem}-*.so")):
            if kept.name == f"{stem}-{_hash(kept.read_bytes())}.so":
                return kept
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as beside:
            built = Path(beside, "lstm_loop.so")
            _run(*cxx, *FLAGS, *QUIET, f"-I{headers}", str(SOURCE), "-o", str(built))
            path = place / f"{stem}-{_hash(built.read_bytes())}.so"
            built.replace(path)  # whole or not at all, whoever else is building it
    except OSError as error:
        raise BadInput(
            f"native: the kernel cannot be kept in {place} ({error.strerror}); "
            "name another directory in $XDG_CACHE_HOME"
        ) from error
    return path


def load() -> None:
    """Make the kernel known to JAX; compile it first, if that was never done here.

    Errors: `BadInput` where there is no compiler, or where it refuses the kernel.
    """
    native.register(ctypes.cdll.LoadLibrary(str(library())))


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
        raise BadInput(f"native: {command[0]} does not compile it:\n{errors}")
    return done.stdout
