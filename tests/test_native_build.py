"""The CPU kernel is compiled at installation, and only intact libraries are loaded.

Most tests build fake packages with a stand-in compiler, whose libraries are text files.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

import jaxlstm as jl
from jaxlstm.engines import native
from jaxlstm.engines.native import build, compiling, kernel
from jaxlstm.lab import cli
from jaxlstm.lab import native as lab_native

ROOT = Path(__file__).resolve().parents[1]
HEADERS = Path(jax.ffi.include_dir())
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
V2, V3, V4 = (compiling.REQUIRED_FLAGS[f"x86-64-v{n}"] for n in (2, 3, 4))


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Set $CXX to a script that writes its options to the output; count its calls."""
    script = tmp_path / "stand-in"
    script.write_text(
        f"#!/bin/sh\necho called >> {tmp_path}/calls\nkept=\n"
        "while [ $# -gt 0 ]; do\n"
        '  if [ "$1" = -o ]; then out=$2; shift; else kept="$kept $1"; fi\n'
        "  shift\n"
        "done\n"
        'echo "$kept" > "$out"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return lambda: len(
        (tmp_path / "calls").read_text().split()
        if (tmp_path / "calls").exists()
        else ""
    )


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Empty folder of the package's libraries, on a CPU of level 3 without a cache."""
    path = tmp_path / "package"
    path.mkdir()
    monkeypatch.setattr(compiling, "HERE", path)
    monkeypatch.setattr(compiling, "platform_name", lambda: "linux-x86_64")
    monkeypatch.setattr(compiling, "cpu_description", lambda: f"flags : {V2} {V3}")
    monkeypatch.setattr(kernel, "LOADED_KERNELS", [])
    monkeypatch.setattr(build, "REFUSALS", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def opened(monkeypatch):
    """Record the paths of libraries in place of loading them."""
    paths = []

    class Library:
        def __init__(self, path):
            self._name = path
            paths.append(Path(path).name)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(
        kernel, "register", lambda found, version: kernel.LOADED_KERNELS.append(found)
    )
    return paths


def test_a_package_has_a_library_of_each_level(folder, stand_in):
    written = compiling.build_package(HEADERS, folder=folder)
    assert sorted(folder.iterdir()) == sorted(written)
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        text = (folder / f"loop-{level}.kernel").read_text()
        assert f" -march={level} " in text
        assert f"-I{HEADERS}" in text
    assert stand_in() == 3


@pytest.mark.parametrize(
    ("name", "cpu", "levels"),
    [
        ("linux-x86_64", f"flags : {V2} {V3} {V4} sse", ["v4", "v3", "v2"]),
        ("linux-x86_64", f"flags : {V2} {V3}", ["v3", "v2"]),
        ("linux-x86_64", f"flags : {V2} {V4}", ["v2"]),
        ("linux-x86_64", "flags : sse2", []),
        ("linux-x86_64", "", ["v2"]),
        ("linux-aarch64", "Features : asimd", ["aarch64"]),
        ("darwin-arm64", "", ["aarch64"]),
        ("win32-AMD64", "", []),
    ],
)
def test_the_levels_of_a_cpu(name, cpu, levels):
    found = compiling.supported_levels(name, cpu)
    assert [level.removeprefix("x86-64-") for level in found] == levels


def test_the_library_of_this_cpu_is_loaded_once(folder, stand_in, opened):
    compiling.build_package(HEADERS, folder=folder)
    assert native.load_built() is None
    native.load()
    assert native.load_built() is None
    assert opened == ["loop-x86-64-v3.kernel"]
    assert native.describe() == f"loaded: {folder / opened[0]}"
    assert stand_in() == 3


def flip_byte(folder):
    path = folder / "loop-x86-64-v3.kernel"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def truncate(folder):
    os.truncate(folder / "loop-x86-64-v3.kernel", 4)


def swap(folder):
    shutil.copy(folder / "loop-x86-64-v4.kernel", folder / "loop-x86-64-v3.kernel")


def delete_library(folder):
    (folder / "loop-x86-64-v3.kernel").unlink()


def delete_manifest(folder):
    (folder / "loop.json").unlink()


def garble_manifest(folder):
    (folder / "loop.json").write_text('["loop"')


def manifest(**changed):
    def change(folder):
        path = folder / "loop.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


DAMAGE = [
    (flip_byte, r"loop-x86-64-v3\.kernel: got a damaged file"),
    (truncate, r"loop-x86-64-v3\.kernel: got a damaged file"),
    (swap, r"loop-x86-64-v3\.kernel: got a damaged file"),
    (delete_library, r"loop-x86-64-v3\.kernel: cannot be read \(No such file"),
    (delete_manifest, "installed without the compiled kernel; install a C"),
    (garble_manifest, r"loop\.json: got JSONDecodeError.*, expected a manifest"),
    (manifest(libraries=None), r"loop\.json: got TypeError.*, expected a manifest"),
    (manifest(ffi=["x", 1]), r"loop\.json: got ValueError.*, expected a manifest"),
    (manifest(libraries={}), r"loop-x86-64-v3\.kernel: got a damaged file"),
    (manifest(source="0"), r"loop\.json: got .* another version of loop\.cpp"),
    (
        manifest(platform="darwin-arm64"),
        r"loop\.json: got libraries for darwin-arm64, expected linux-x86_64",
    ),
    (manifest(ffi=[0, 99]), r"for version 0\.99 of XLA's FFI, expected at most 0\."),
    (manifest(ffi=[1, 0]), r"for version 1\.0 of XLA's FFI, expected at most 0\."),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_library_that_does_not_fit_is_refused(
    folder, stand_in, opened, damage, message
):
    """It is not loaded, no compiler is started, and `load` compiles another one."""
    compiling.build_package(HEADERS, folder=folder)
    damage(folder)
    reason = native.load_built()
    with pytest.raises(native.BuildError, match=f"^native: .*{message}") as caught:
        compiling.check_package(folder, HEADERS)
    assert reason == str(caught.value) == native.describe()
    assert "jl.engines.native.load() to compile" in str(reason)
    assert opened == []
    assert stand_in() == 3
    native.load()
    assert opened == [build.library().name]
    assert native.load_built() is None
    assert stand_in() == 4


def test_only_a_build_that_would_be_the_same_is_kept(folder, stand_in, monkeypatch):
    """That of the same source, compiler, flags and FFI, intact, which can be loaded."""
    load_file = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: None)
    ffi = compiling.ffi_version(HEADERS)
    assert not compiling.is_current(ffi, folder=folder)
    for damage, _ in DAMAGE:
        compiling.build_package(HEADERS, folder=folder)
        assert compiling.is_current(ffi, folder=folder)
        assert not compiling.is_current((0, 99), folder=folder)
        damage(folder)
        assert not compiling.is_current(ffi, folder=folder)
    compiling.build_package(HEADERS, folder=folder)
    with monkeypatch.context() as changed:
        changed.setattr(compiling, "FLAGS", ("-O1",))
        assert not compiling.is_current(ffi, folder=folder)
    with monkeypatch.context() as changed:
        changed.setenv("CXX", "g++")
        assert not compiling.is_current(ffi, folder=folder)
    assert compiling.is_current(ffi, folder=folder)
    monkeypatch.setattr(ctypes, "CDLL", load_file)
    assert not compiling.is_current(ffi, folder=folder)


def test_a_cpu_below_the_smallest_level_is_refused(folder, stand_in, monkeypatch):
    compiling.build_package(HEADERS, folder=folder)
    monkeypatch.setattr(compiling, "cpu_description", lambda: "flags : sse2")
    assert 'x86-64-v2; use engine="adjoint"' in str(native.load_built())


def test_an_older_version_of_the_ffi_is_accepted(folder, stand_in, opened):
    compiling.build_package(HEADERS, folder=folder)
    manifest(ffi=[0, 1])(folder)
    assert native.load_built() is None


def test_headers_without_a_version_are_named(tmp_path):
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    with pytest.raises(native.BuildError, match=r"cannot read .*c_api\.h"):
        compiling.ffi_version(tmp_path)
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n")
    with pytest.raises(native.BuildError, match=r"c_api\.h: got no XLA_FFI_API_MAJOR"):
        compiling.ffi_version(tmp_path)


def test_a_library_that_the_system_cannot_load_is_refused(folder, stand_in):
    """Its hash is right, but it is a text file."""
    compiling.build_package(HEADERS, folder=folder)
    assert "loop-x86-64-v3.kernel cannot be loaded (" in str(native.load_built())


def test_a_kernel_in_the_cache_is_found_without_a_compiler(
    folder, stand_in, opened, monkeypatch
):
    cached = build.library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.load_built() is None
    assert opened == [cached.name]


def test_a_build_without_a_compiler_leaves_no_libraries(
    folder, stand_in, no_compiler, monkeypatch
):
    with monkeypatch.context() as before:
        before.setenv("CXX", str(folder.parent / "stand-in"))
        before.setenv("PATH", os.defpath)
        compiling.build_package(HEADERS, folder=folder)
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler found; install"):
        compiling.build_package(HEADERS, folder=folder)
    assert list(folder.iterdir()) == []


def test_a_platform_without_a_kernel_needs_no_compiler(
    folder, no_compiler, monkeypatch
):
    monkeypatch.setattr(compiling, "platform_name", lambda: "win32-AMD64")
    assert compiling.build_package(HEADERS, folder=folder) == []


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """Set $CXX to a script that fails with a message."""
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.parametrize(
    "start",
    [lambda: compiling.build_package(HEADERS, folder=compiling.HERE), native.load],
)
def test_compiler_errors_are_quoted(folder, broken, start):
    message = "cannot compile the kernel:\nno such header"
    with pytest.raises(native.BuildError, match=message):
        start()
    assert list(folder.iterdir()) == []


def test_two_builds_at_once_leave_an_intact_package(folder, stand_in):
    code = f"""
        import importlib.util, pathlib
        spec = importlib.util.spec_from_file_location("c", {compiling.__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.platform_name = lambda: "linux-x86_64"
        for _ in range(5):
            headers, folder = map(pathlib.Path, {[str(HEADERS), str(folder)]!r})
            module.build_package(headers, folder=folder)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    names = [f"loop-x86-64-v{n}.kernel" for n in (2, 3, 4)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "loop.json"]
    assert compiling.check_package(folder, HEADERS).name == names[1]
    assert stand_in() == 30


def test_missing_compiler_says_how_to_get_one(folder, no_compiler):
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler found; install"):
        native.load()


def test_cxx_is_used_or_reported(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(native.BuildError, match=r"\$CXX: got 'no-such-compiler'"):
        compiling.compiler()
    monkeypatch.setenv("CXX", "env LANG=C c++")
    assert compiling.compiler() == ["env", "LANG=C", "c++"]


def test_damaged_library_in_the_cache_is_compiled_again(folder, stand_in):
    first = build.library()
    content = first.read_text()
    assert " -march=native " in content
    assert build.library() == first
    assert stand_in() == 1
    first.write_text(content[:-2])
    assert build.library() == first
    assert first.read_text() == content
    assert stand_in() == 2


def test_cache_that_cannot_be_written_is_named(folder, stand_in, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        native.BuildError, match=r"cannot write the kernel to .*XDG_CACHE_HOME"
    ):
        build.library()


def test_lab_reports_a_missing_compiler_as_bad_input(folder, no_compiler):
    with pytest.raises(jl.lab.BadInput, match=r"native: no C\+\+ compiler found"):
        lab_native.load_kernel()


def test_the_old_name_warns(folder, no_compiler):
    with (
        pytest.warns(DeprecationWarning, match=r"jaxlstm\.engines\.native\.load"),
        pytest.raises(jl.lab.BadInput),
    ):
        jl.lab.native.load()


def test_doctor_says_how_to_get_the_kernel(folder, capsys):
    assert cli.main(["doctor"]) == 0
    rows = capsys.readouterr().out.splitlines()
    row = next(row for row in rows if row.startswith("kernel "))
    assert "installed without the compiled kernel; install a C++ compiler" in row


USE = """
import jax, jax.numpy as jnp, numpy as np, jaxlstm as jl
print(jl.__file__)
print(jl.engines.native.describe())
cell = jl.lstm()
params = cell.init(jax.random.key(0), 4, 8)
xs = jnp.ones((5, 3, 4))
expected = jl.unroll(cell, params, xs, engine="scan")[1]
np.testing.assert_allclose(jl.unroll(cell, params, xs)[1], expected, atol=1e-6)
for engine in ("native", "adjoint"):
    try:
        ys = jl.unroll(cell, params, xs, engine=engine)[1]
    except NotImplementedError:
        print(engine, "refuses")
    else:
        np.testing.assert_allclose(ys, expected, atol=1e-6)
        print(engine, "serves")
"""


def install(tmp_path, **variables):
    """Install a copy of the package from a wheel; return the wheel and the folder."""
    tree, wheels, site = (tmp_path / name for name in ("tree", "wheels", "site"))
    tree.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    ignore = shutil.ignore_patterns("loop-*", "loop.json", "__pycache__")
    shutil.copytree(ROOT / "src", tree / "src", ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", wheels, tree],
        env=os.environ | variables,
        check=True,
    )
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    return wheel, site / "jaxlstm"


def use(package, tmp_path):
    """Use an installed package with an empty PATH; return what the process prints."""
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={
            "PATH": "",
            "PYTHONPATH": str(package.parent),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    file, *lines = done.stdout.splitlines()
    assert Path(file).parent == package
    return lines


@pytest.mark.thorough
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.skipif(
    compiling.platform_name() not in compiling.LEVELS, reason="no kernel for this CPU"
)
def test_a_wheel_carries_the_kernel(tmp_path):
    """It serves without a compiler; a damaged one is refused, and adjoint serves."""
    wheel, package = install(tmp_path)
    assert wheel.stem.split("-")[2:4] == ["py3", "none"]
    assert not wheel.stem.endswith("any")
    loaded, *served = use(package, tmp_path)
    assert loaded.startswith(f"loaded: {package / 'engines' / 'native' / 'loop-'}")
    assert served == ["native serves", "adjoint serves"]
    for path in package.glob("engines/native/loop-*.kernel"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused, *served = use(package, tmp_path)
    assert "got a damaged file" in refused
    assert served == ["native refuses", "adjoint serves"]


@pytest.mark.thorough
def test_a_wheel_built_without_a_compiler_is_pure(tmp_path):
    wheel, package = install(tmp_path, PATH=str(tmp_path), CXX="")
    assert wheel.stem.endswith("py3-none-any")
    refused, *served = use(package, tmp_path)
    assert "installed without the compiled kernel" in refused
    assert served == ["native refuses", "adjoint serves"]
