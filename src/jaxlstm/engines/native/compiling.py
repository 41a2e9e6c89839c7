"""Compilation of the CPU kernel, and the manifest of a compiled one.

The build hook of the package loads this file by its path, in an environment without
JAX, so it imports the standard library only.

The installed package has one library for each instruction set in `LEVELS`. Beside them
is a manifest that identifies the libraries, their source, their platform and the
version of XLA's FFI that they were compiled against.
"""

import concurrent.futures
import ctypes
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "loop.cpp"
MANIFEST = "loop.json"

# -O3 takes half as much time again to compile the kernel, which is written in vectors,
# and the result is not faster.
FLAGS = (
    "-std=c++17", "-O2", "-fno-math-errno", "-fPIC", "-shared",
    "-pthread", "-w", "-Wno-psabi",
)  # fmt: skip

LEVELS = {
    "linux-x86_64": ("x86-64-v4", "x86-64-v3", "x86-64-v2"),
    "linux-aarch64": ("aarch64",),
    "darwin-arm64": ("aarch64",),
}
"""Instruction sets of the libraries of a platform, the largest first."""

REQUIRED_FLAGS = {
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
    "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "x86-64-v2": "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3",
}
"""Flags in /proc/cpuinfo that each level adds to those of the levels below."""


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


def platform_name() -> str:
    """Return the operating system and the architecture, such as "linux-x86_64"."""
    return f"{sys.platform}-{platform.machine()}"


def cpu_description() -> str:
    """Return the model and the flags of the CPU, or "" where they are unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    lines = re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*", text, re.M)
    return "\n".join(sorted(set(lines)))


def supported_levels(name: str, cpu: str) -> tuple[str, ...]:
    """Return the levels of a platform that a CPU can run, the best first.

    Args:
        name: `platform_name()`.
        cpu: `cpu_description()`; without flags in it the smallest level is assumed.
    """
    levels = LEVELS.get(name, ())
    match = re.search(r"^flags\s*:(.*)", cpu, re.M)
    if match is None:
        return levels[-1:]
    flags, supported = set(match[1].split()), []
    for level in reversed(levels):
        if not flags.issuperset(REQUIRED_FLAGS.get(level, "").split()):
            break
        supported.insert(0, level)
    return tuple(supported)


def ffi_version(headers: Path) -> tuple[int, int]:
    """Return the version of XLA's FFI that headers declare.

    XLA accepts handlers compiled against the same or an older version. Registering a
    newer one makes the initialization of the CPU backend fail, so it is refused before.

    Raises:
        BuildError: the header cannot be read, or it declares no version.
    """
    header = headers / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text()
    except OSError as error:
        raise BuildError(
            f"native: cannot read {header} ({error.strerror}); install jaxlib again."
        ) from error
    pattern = r"^#define XLA_FFI_API_(MAJOR|MINOR) (\d+)$"
    found = dict(re.findall(pattern, text, re.MULTILINE))
    if len(found) != 2:
        raise BuildError(
            f"native: {header}: got no XLA_FFI_API_MAJOR and XLA_FFI_API_MINOR; "
            "install a jaxlib that jaxlstm supports."
        )
    return int(found["MAJOR"]), int(found["MINOR"])


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def library_name(level: str) -> str:
    """Return the file name of the packaged library of an instruction set.

    Its suffix is not that of an extension module, which it would be taken for.
    """
    return f"loop-{level}.kernel"


def compile_kernel(
    cxx: list[str], headers: Path, target: Path, flags: tuple[str, ...]
) -> None:
    """Compile the kernel to a file.

    Raises:
        BuildError: the compiler reports an error.
        OSError: the compiler cannot be started.
    """
    command = [*cxx, *FLAGS, *flags, f"-I{headers}", str(SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip()[-2000:]
        raise BuildError(f"native: {cxx[0]} cannot compile the kernel:\n{errors}")


def build_package(headers: Path, *, folder: Path = HERE) -> list[Path]:
    """Compile one library for each instruction set of this platform, in parallel.

    Files of an earlier build stay in place until all libraries are compiled, since
    other processes may use them, and are deleted if that fails.

    Args:
        headers: the include directory of jaxlib.
        folder: where the libraries and their manifest are written.

    Returns:
        The written files; none on a platform that the kernel does not support.

    Raises:
        BuildError: there is no compiler, it reports an error, the headers are not
            those of XLA's FFI, or the folder cannot be written.
    """
    try:
        return _build_package(headers, folder)
    except (BuildError, OSError) as error:
        for path in (folder / MANIFEST, *folder.glob("loop-*.kernel")):
            path.unlink(missing_ok=True)
        if isinstance(error, BuildError):
            raise
        raise BuildError(f"native: cannot build the kernel ({error}).") from error


def _build_package(headers: Path, folder: Path) -> list[Path]:
    name = platform_name()
    if name not in LEVELS:
        return []
    cxx, version, source = compiler(), ffi_version(headers), SOURCE.read_bytes()
    with tempfile.TemporaryDirectory(dir=folder, prefix="loop-") as temporary:
        built = {lv: Path(temporary, library_name(lv)) for lv in LEVELS[name]}

        def compile_level(level: str) -> None:
            march = (f"-march={level}",) if level in REQUIRED_FLAGS else ()
            compile_kernel(cxx, headers, built[level], march)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_level, built))
        manifest = {
            "platform": name,
            "ffi": version,
            "source": digest(source),
            "flags": FLAGS,
            "cxx": os.environ.get("CXX", ""),
            "libraries": {p.name: digest(p.read_bytes()) for p in built.values()},
        }
        Path(temporary, MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        # A build that is interrupted here leaves hashes that differ, which are refused.
        names = [*manifest["libraries"], MANIFEST]
        return [Path(temporary, part).replace(folder / part) for part in names]


def is_current(ffi: tuple[int, int], *, folder: Path = HERE) -> bool:
    """Return whether `build_package` would write again what it has written earlier.

    Args:
        ffi: the version of XLA's FFI that would be compiled against.
        folder: the folder of the libraries and their manifest.
    """
    levels = LEVELS.get(platform_name(), ())
    expected = {
        "platform": platform_name(),
        "ffi": list(ffi),
        "source": digest(SOURCE.read_bytes()),
        "flags": list(FLAGS),
        "cxx": os.environ.get("CXX", ""),
    }
    try:
        names = [library_name(level) for level in levels]
        hashes = {name: digest((folder / name).read_bytes()) for name in names}
        expected["libraries"] = hashes
        if json.loads((folder / MANIFEST).read_bytes()) != expected:
            return False
        for level in supported_levels(platform_name(), cpu_description())[:1]:
            ctypes.CDLL(str(folder / library_name(level)))
    except (OSError, ValueError):
        return False
    return bool(levels)


def check_package(folder: Path, headers: Path) -> Path:
    """Return the packaged library for this CPU after checking that it can be loaded.

    Args:
        folder: the folder of the libraries and their manifest.
        headers: the include directory of the installed jaxlib.

    Raises:
        BuildError: there is no library, or it is damaged, outdated, of another
            platform, or compiled against a newer version of XLA's FFI.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        built_on, libraries = manifest["platform"], dict(manifest["libraries"])
        built_for, source = tuple(map(int, manifest["ffi"])), manifest["source"]
        current = digest(SOURCE.read_bytes())
    except FileNotFoundError:
        raise BuildError(
            "native: jaxlstm was installed without the compiled kernel; install a C++ "
            "compiler and jaxlstm again, or call jl.engines.native.load() to compile "
            "it now."
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _refused(path, f"got {error!r}, expected a manifest") from error
    name = platform_name()
    if built_on != name:
        raise _refused(path, f"got libraries for {built_on}, expected {name}")
    if source != current:
        raise _refused(path, f"got libraries of another version of {SOURCE.name}")
    expected = ffi_version(headers)
    if built_for[0] != expected[0] or built_for > expected:
        raise _refused(
            path,
            f"got libraries for version {'.'.join(map(str, built_for))} of XLA's FFI, "
            f"expected at most {'.'.join(map(str, expected))}",
        )
    levels = supported_levels(name, cpu_description())
    if not levels:
        raise BuildError(
            f"native: got a CPU of {name} below the level x86-64-v2; use "
            'engine="adjoint".'
        )
    library = folder / library_name(levels[0])
    try:
        found = digest(library.read_bytes())
    except OSError as error:
        raise _refused(library, f"cannot be read ({error.strerror})") from error
    if found != libraries.get(library.name):
        raise _refused(library, "got a damaged file: its SHA-256 is not the manifest's")
    return library


def _refused(path: Path, problem: str) -> BuildError:
    return BuildError(
        f"native: {path}: {problem}; install jaxlstm again with pip, or call "
        "jl.engines.native.load() to compile the kernel now."
    )
