"""The table of docs/interop.md is that of the conversions, library by library."""

import pytest

import interop_matrix


def columns(table: str) -> dict[str, list[str]]:
    """Return the signs of each library."""
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    names, _, *body = [[cell.strip() for cell in row] for row in rows]
    return {name: [row[n] for row in body] for n, name in enumerate(names)}


PAGE = columns(interop_matrix.written(interop_matrix.PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("library", interop_matrix.libraries())
def test_the_page_has_the_column(library):
    if library == "ONNX":
        pytest.importorskip("onnx")
    assert PAGE[""] == list(interop_matrix.features())
    assert PAGE[library] == interop_matrix.column(library)
