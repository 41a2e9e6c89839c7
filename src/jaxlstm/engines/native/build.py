"""Loading of the compiled CPU kernel of `engine="native"`.

    import jaxlstm as jl

    jl.engines.native.load()
    jl.unroll(cell, params, xs, engine="native")

The kernel is compiled when jaxlstm is installed, if there is a C++ compiler. Otherwise
`load` compiles it, once, and keeps the library in the user's cache. Nothing else starts
a compiler: `load_built` uses what is already compiled. A library is loaded only after
its hash was checked, since a damaged one could crash the process.
"""

import ctypes
import os
import sys
import tempfile
import threading
from pathlib import Path

import jax

from jaxlstm.engines.native import compiling, kernel
from jaxlstm.engines.native.compiling import BuildError

REFUSALS: list[str] = []
"""Why no kernel was loaded, once `load_built` has tried."""

_LOCK = threading.Lock()


def load() -> None:
    """Load the kernel of `engine="native"`, compiling it if it is not compiled yet.

    Raises:
        BuildError: there is no C++ compiler, it reports an error, or the library
            cannot be written or loaded.
    """
    if load_built() is None:
        return
    with _LOCK:
        if not kernel.LOADED_KERNELS:
            _register(library())


def load_built() -> str | None:
    """Load the kernel if the package or the cache has it compiled; compile nothing.

    Returns:
        `None` if the kernel is loaded, or a sentence that says why it is not and how to
        get it. Later calls return the same, unless `load` has succeeded since.
    """
    with _LOCK:
        if kernel.LOADED_KERNELS:
            return None
        if not REFUSALS:
            try:
                _register(find_built())
            except BuildError as error:
                REFUSALS.append(str(error))
        return None if kernel.LOADED_KERNELS else REFUSALS[0]


def describe() -> str:
    """Return the path of the loaded kernel, or why none is loaded."""
    return load_built() or f"loaded: {kernel.LOADED_KERNELS[0]._name}"


def find_built() -> Path:
    """Return the library that was compiled with the package, or the one in the cache.

    Raises:
        BuildError: there is none that is intact and fits; the sentence is about the
            one of the package.
    """
    try:
        return compiling.check_package(compiling.HERE, Path(jax.ffi.include_dir()))
    except BuildError:
        if (cached := _in_cache(_cache_stem())) is None:
            raise
        return cached


def library() -> Path:
    """Return the library in the cache, compiling it for this CPU if it is not there.

    The file name contains two hashes. The first covers the source, the version of
    XLA's FFI, the flags, the platform and the CPU. The second covers the library
    itself, so that a damaged file is compiled again.

    Raises:
        BuildError: as `load`.
    """
    stem, folder = _cache_stem(), _cache()
    if (cached := _in_cache(stem)) is not None:
        return cached
    cxx, headers = compiling.compiler(), Path(jax.ffi.include_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary, "loop.so")
            compiling.compile_kernel(cxx, headers, built, ("-march=native",))
            path = folder / f"{stem}-{compiling.digest(built.read_bytes())[:16]}.so"
            built.replace(path)  # atomic, as other processes may build it as well
    except OSError as error:
        raise BuildError(
            f"native: cannot write the kernel to {folder} ({error.strerror}); "
            "name another directory in $XDG_CACHE_HOME."
        ) from error
    return path


def _register(path: Path) -> None:
    """Load a library whose hash was checked, and register its functions with XLA."""
    try:
        version = compiling.digest(path.read_bytes())[:12]
        kernel.register(ctypes.CDLL(str(path)), version=version)
    except (OSError, AttributeError) as error:
        raise BuildError(
            f"native: {path} cannot be loaded ({error}); install a C++ compiler and "
            'jaxlstm again, or use engine="adjoint".'
        ) from error


def _cache() -> Path:
    if sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "jaxlstm"


def _cache_stem() -> str:
    parts = (
        compiling.digest(compiling.SOURCE.read_bytes()),
        str(compiling.ffi_version(Path(jax.ffi.include_dir()))),
        *compiling.FLAGS,
        compiling.platform_name(),
        compiling.cpu_description(),
    )
    return "loop-" + compiling.digest("\0".join(parts).encode())[:16]


def _in_cache(stem: str) -> Path | None:
    """Return an intact library with this stem in the cache, if there is one."""
    try:
        for path in sorted(_cache().glob(f"{stem}-*.so")):
            if path.stem == f"{stem}-{compiling.digest(path.read_bytes())[:16]}":
                return path
    except OSError:
        return None
    return None
