"""Build hook that compiles the CPU kernel when jaxlstm is built or installed.

Without a C++ compiler, or if it fails, the package is built without the kernel, and one
line of the output says why.
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src", "jaxlstm", "engines", "native")

# XLA accepts kernels compiled against its own or an older version of its FFI, so the
# headers are those of the oldest jaxlib that jaxlstm supports. A Python newer than that
# release takes the oldest that it can install.
HEADERS = [
    'jaxlib==0.10.0; python_version < "3.15"',
    'jaxlib>=0.10,<0.13; python_version >= "3.15"',
]
FFI = (0, 3)  # of jaxlib 0.10.0


class KernelHook(BuildHookInterface):
    """Compile the kernel into the source tree, and add it to a wheel."""

    def dependencies(self) -> list[str]:
        """Require jaxlib, for its headers, if the kernel has to be compiled."""
        compiling = self._load_compiling()
        if compiling.platform_name() not in compiling.LEVELS:
            return []
        if compiling.is_current(FFI):
            return []
        try:
            compiling.compiler()
        except compiling.BuildError:
            return []
        return HEADERS

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernel; tag the wheel with the platform if that succeeds."""
        compiling = self._load_compiling()
        if not compiling.is_current(FFI):
            try:
                compiling.build_package(_headers(compiling))
            except compiling.BuildError as error:
                warning = f"{error} jaxlstm is built without its kernel."
                self.app.display_warning(warning)
                return
        levels = compiling.LEVELS.get(compiling.platform_name(), ())
        if not levels:
            return
        names = [compiling.MANIFEST, *map(compiling.library_name, levels)]
        build_data["artifacts"] += [f"/{NATIVE.as_posix()}/{name}" for name in names]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"

    def _load_compiling(self) -> ModuleType:
        path = Path(self.root, NATIVE, "compiling.py")
        spec = importlib.util.spec_from_file_location("jaxlstm_compiling", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"hatch_build.py: cannot import {path}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _headers(compiling: ModuleType) -> Path:
    """Return the include directory of jaxlib, which need not be importable."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise compiling.BuildError("native: jaxlib is not in the build environment.")
    return Path(spec.origin).with_name("include")


def _platform_tag() -> str:
    """Return the platform of the wheel; the kernel does not use the ABI of Python."""
    if sys.platform == "darwin":
        return "macosx_11_0_arm64"  # Python itself may be a universal binary
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
