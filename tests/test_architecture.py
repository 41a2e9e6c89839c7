"""The house stands: imports go down, the numbers are kept, and both checks can fail."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import house
import jaxlstm

LINT = Path(sys.executable).parent / "lint-imports"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path):
    """The package and its contracts, to be damaged."""
    shutil.copytree(house.SOURCE, tmp_path / "src" / "jaxlstm")
    shutil.copy(house.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down(copy):
    found = lint_imports(copy)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("typing.py", "from jaxlstm import initializers"),
        ("cells/lstm.py", "from jaxlstm.unrolling import unroll"),
        ("engines/scan.py", "import jaxlstm.layers"),
        ("engines/scan.py", "from jaxlstm.engines import adjoint"),
        ("layers.py", "from jaxlstm.lab import runs"),
        ("unrolling.py", "import optax"),
        ("masking.py", "import pathlib"),
        ("engines/native/engine.py", "import subprocess"),
        ("lab/training/loop.py", "import matplotlib"),
    ],
)
def test_a_planted_import_is_found(copy, file, line):
    path = copy / "src" / "jaxlstm" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = lint_imports(copy)
    assert found.returncode != 0
    assert "BROKEN" in found.stdout


INTERNALS = ("jax._src", "jax.interpreters", "jax.extend")


def imports_of_jax_internals(source: Path) -> list[str]:
    """Return the files below a package that import internals of JAX."""
    found = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            if any(f"{name}.".startswith(f"{i}.") for name in names for i in INTERNALS):
                found.add(path.relative_to(source).as_posix())
    return sorted(found)


def test_one_file_imports_the_internals_of_jax():
    assert imports_of_jax_internals(house.SOURCE) == ["engines/_jaxpr.py"]


@pytest.mark.parametrize(
    "line",
    [
        "import jax._src.core",
        "from jax.interpreters import ad",
        "from jax import extend",
        "def f():\n    from jax.extend.core import Jaxpr",
    ],
)
def test_a_planted_import_of_jax_internals_is_found(copy, line):
    path = copy / "src" / "jaxlstm" / "layers.py"
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = imports_of_jax_internals(copy / "src" / "jaxlstm")
    assert found == ["engines/_jaxpr.py", "layers.py"]


@pytest.mark.parametrize("number", house.numbers(), ids=lambda number: number.name)
def test_house_number(number):
    assert number.kept, f"{number.name}: {number.value:.3g}, wanted {number.wanted}"


def test_contributing_quotes_every_house_number():
    text = (house.ROOT / "CONTRIBUTING.md").read_text()
    for number in house.numbers():
        assert f"| {number.name} |" in text
        assert f"| {number.wanted} |" in text


def test_every_name_at_the_door_is_there():
    import jaxlstm

    for name in jaxlstm.__all__:
        assert getattr(jaxlstm, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "cells.lstm.preactivations",
        "emit.trace",
        "initializers.chrono",
        "engines.scan.run",
        "engines.adjoint.run",
        "plots.loss_curve",
        "lab.config.load",
        "lab.load",
    ],
)
def test_a_name_can_be_the_first_that_is_used(name):
    """The door is lazy: every path behind it must open on its own."""
    code = f"import jaxlstm as jl; jl.{name}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(("old", "new"), jaxlstm.RENAMED.items())
def test_a_renamed_module_warns(old, new):
    with pytest.warns(DeprecationWarning, match=rf"use jaxlstm\.{re.escape(new)}\."):
        module = getattr(jaxlstm, old)
    assert module.__name__ == f"jaxlstm.{new}"
