"""The package structure: import contracts, import chains and public signatures."""

import ast
import itertools
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
        ("layers/base.py", "from jaxlstm.interop import layout"),
        ("interop/torch.py", "from jaxlstm.lab import runs"),
        ("unrolling.py", "import optax"),
        ("masking.py", "import pathlib"),
        ("engines/native/engine.py", "import subprocess"),
        ("lab/training/loop.py", "import matplotlib"),
        ("lab/_util/files.py", "from jaxlstm.lab import runs"),
        ("lab/config/schema.py", "from jaxlstm.lab.tasks import base"),
        ("lab/data/files.py", "from jaxlstm.lab.checkpoints import store"),
        ("lab/sinks/base.py", "from jaxlstm.lab.training import loop"),
        ("lab/tasks/base.py", "from jaxlstm.lab.runs.trained import Trained"),
    ],
)
def test_a_planted_import_is_found(copy, file, line):
    path = copy / "src" / "jaxlstm" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = lint_imports(copy)
    assert found.returncode != 0
    assert "BROKEN" in found.stdout


@pytest.mark.parametrize(
    ("file", "contract"),
    [
        ("new.py", "Imports go from upper to lower packages"),
        ("lab/new.py", "Imports inside lab go from upper to lower packages"),
        ("engines/new.py", "Engines do not import each other"),
    ],
)
def test_a_module_without_a_layer_is_found(copy, file, contract):
    (copy / "src" / "jaxlstm" / file).write_text('"""A module of no layer."""\n')
    found = lint_imports(copy)
    assert found.returncode != 0
    assert f"{contract} BROKEN" in found.stdout


INTERNALS = ("jax._src", "jax.interpreters", "jax.extend")


def imports_of_jax_internals(source: Path) -> list[str]:
    """Return the files below a package that import internals of JAX."""
    found = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(architecture.parse(path.read_text())):
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


def test_import_chains_are_short():
    chain = architecture.longest_chain(architecture.executed_imports())
    assert len(chain) <= architecture.LONGEST_CHAIN, " -> ".join(chain)


@pytest.fixture
def planted(copy, monkeypatch):
    """A copy of the package that the checks of `architecture` read."""
    monkeypatch.setattr(architecture, "SOURCE", copy / "src" / "jaxlstm")
    return architecture.SOURCE


PLANTED = [f"planted_{n:02d}" for n in range(architecture.LONGEST_CHAIN + 1)]


@pytest.mark.parametrize(
    ("template", "is_found"),
    [
        ("import jaxlstm.{}", True),
        *(
            pytest.param(template, True, marks=pytest.mark.combinations)
            for template in (
                "from jaxlstm import typing, {}",
                "from jaxlstm.{} import x",
                "class A:\n    from jaxlstm import {}",
                "try:\n    from jaxlstm import {}\nfinally:\n    pass",
            )
        ),
        ("def f():\n    from jaxlstm import {}", True),
        ("if TYPE_CHECKING:\n    from jaxlstm import {}", False),
    ],
)
def test_a_planted_chain_is_found(planted, template, is_found):
    for name, imported in zip(PLANTED, [*PLANTED[1:], "typing"], strict=True):
        (planted / f"{name}.py").write_text(f"{template.format(imported)}\n")
    chain = architecture.longest_chain(architecture.executed_imports())
    expected = [f"jaxlstm.{name}" for name in [*PLANTED, "typing"]]
    assert (chain == expected) == is_found
    assert (len(chain) > architecture.LONGEST_CHAIN) == is_found


def test_the_report_of_facts_fails_for_a_planted_chain(planted, capsys):
    assert architecture.main() == 0
    for name, imported in itertools.pairwise([*PLANTED, "typing"]):
        (planted / f"{name}.py").write_text(f"from jaxlstm import {imported}\n")
    assert architecture.main() == 1
    assert f"-> jaxlstm.{PLANTED[-1]} -> jaxlstm.typing" in capsys.readouterr().out


def test_no_module_imports_a_test_module():
    assert architecture.imports_of_test_modules() == []


def test_a_planted_import_of_a_test_module_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(architecture, "TESTS", tmp_path)
    (tmp_path / "test_one.py").write_text("from test_two import draw\n")
    (tmp_path / "test_two.py").write_text("import helpers\n")
    assert architecture.imports_of_test_modules() == ["test_one.py: test_two"]


def test_docstrings_and_messages_are_phrased_uniformly():
    assert architecture.misphrased_strings() == []


@pytest.mark.parametrize(
    "line",
    [
        '"""What a cell returns."""',
        'def f():\n    """Whether it is finite."""',
        'class A:\n    """How it is computed."""',
        'class A:\n    def f(self):\n        """\n        Which is first."""',
        'x: int\n"""Which of them is used."""',
        'raise ValueError(f"{x} came; {y} is wanted")',
        'raise ValueError("units: 3 came" f"; {y} or more are wanted.")',
        'message = "the state was made for another cell"',
    ],
)
def test_a_planted_phrase_is_found(planted, line):
    path = planted / "masking.py"
    number = len(path.read_text().splitlines())
    path.write_text(f"{path.read_text()}{line}\n")
    found = architecture.misphrased_strings()
    assert found
    assert all(int(place.split(":")[1]) > number for place in found)


@pytest.mark.parametrize(
    "line",
    [
        '"""Whatever the cell returns, the engine stacks it."""',
        'x = "What a cell returns"',
        '"""Return what a cell returns."""',
        'raise ValueError("lengths: got 3, expected 4; use lengths=None")',
    ],
)
def test_other_phrases_are_not_found(planted, line):
    path = planted / "masking.py"
    path.write_text(f"{path.read_text()}{line}\n")
    assert architecture.misphrased_strings() == []


def test_public_signatures_are_annotated():
    assert architecture.unannotated_signatures() == []


def test_optional_arguments_are_keyword_only():
    assert architecture.keyword_only_share() >= architecture.KEYWORD_ONLY_SHARE


def test_every_public_name_exists():
    import jaxlstm

    for name in jaxlstm.__all__:
        assert getattr(jaxlstm, name) is not None


IMPORTED_FIRST = """
import os, sys, traceback
import jax  # once for all children, which takes most of the time

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            import jaxlstm as jl
            eval("jl." + name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


def test_each_name_can_be_imported_first():
    """The top-level package is lazy: each path works without the others."""
    names = [
        "cells.lstm.preactivations",
        "emit.trace",
        "initializers.chrono",
        "engines.scan.run",
        "engines.adjoint.run",
        "plots.loss_curve",
        "lab.config.load",
        "lab.load",
        *jaxlstm.RENAMED.values(),
    ]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_FIRST, *names, "no.such.name"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "no.such.name\n", done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("old", "new"), jaxlstm.RENAMED.items())
def test_a_renamed_module_warns(old, new):
    with pytest.warns(DeprecationWarning, match=rf"use jaxlstm\.{re.escape(new)}\."):
        module = getattr(jaxlstm, old)
    assert module.__name__ == f"jaxlstm.{new}"
