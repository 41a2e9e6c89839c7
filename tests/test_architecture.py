"""The package structure: import contracts, import chains and public signatures."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import architecture
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
    """A copy of the package and its import contracts, for tests to modify."""
    shutil.copytree(architecture.SOURCE, tmp_path / "src" / "jaxlstm")
    shutil.copy(architecture.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_import_contracts_hold(copy):
    found = lint_imports(copy)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("typing.py", "from jaxlstm import initializers"),
        ("cells/lstm.py", "from jaxlstm.unrolling import unroll"),
        ("engines/scan.py", "import jaxlstm.layers"),
        ("engines/scan.py", "from jaxlstm.engines import adjoint"),
        ("layers/base.py", "from jaxlstm.lab import runs"),
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
    assert imports_of_jax_internals(architecture.SOURCE) == ["engines/_jaxpr.py"]


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
    path = copy / "src" / "jaxlstm" / "masking.py"
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = imports_of_jax_internals(copy / "src" / "jaxlstm")
    assert found == ["engines/_jaxpr.py", "masking.py"]


def test_no_module_imports_itself_through_others():
    assert architecture.import_cycles(architecture.graph()) == []


def test_public_signatures_are_annotated():
    assert architecture.unannotated_signatures() == []


def test_optional_arguments_are_keyword_only():
    assert architecture.keyword_only_share() >= architecture.KEYWORD_ONLY_SHARE


def test_every_public_name_exists():
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
def test_each_name_can_be_imported_first(name):
    """The top-level package is lazy: each path works without the others."""
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
