"""The notebooks run in a clean kernel without warnings and match their scripts."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

STRICT = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("default", module="ipykernel")  # warns at exit
"""
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_all_notebooks_are_found():
    scripts = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
    assert len(NOTEBOOKS) >= 7
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in scripts]


def outputs(notebook) -> list:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    warnings = [
        output.text for output in outputs(notebook) if output.get("name") == "stderr"
    ]
    assert warnings == []
    assert not any(output.output_type == "error" for output in outputs(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_match_the_script(path):
    """The stored outputs belong to this text and were produced in order."""
    notebook = nbformat.read(path, as_version=4)
    text = jupytext.read(path.with_suffix(".py"))
    assert [cell.source for cell in notebook.cells] == [c.source for c in text.cells]
    pictures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 1
    assert path.stat().st_size < 1_000_000
    counts = [cell.execution_count for cell in notebook.cells if "outputs" in cell]
    assert counts == list(range(1, len(counts) + 1))
    assert not any(output.output_type == "error" for output in outputs(notebook))
