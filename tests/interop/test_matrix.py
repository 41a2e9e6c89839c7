"""The tables of docs/interop.md are those of the conversions and of the layouts."""

import pytest

import interop_matrix


def columns(table: str) -> dict[str, list[str]]:
    """Return the signs of each library."""
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    names, _, *body = [[cell.strip() for cell in row] for row in rows]
    return {name: [row[n] for row in body] for n, name in enumerate(names)}


TEXT = interop_matrix.PAGE.read_text(encoding="utf-8")
PAGE = columns(interop_matrix.written(TEXT, interop_matrix.FEATURES))


@pytest.mark.parametrize("library", interop_matrix.libraries())
def test_the_page_has_the_column(library):
    if library == "ONNX":
        pytest.importorskip("onnx")
    assert PAGE[""] == list(interop_matrix.features())
    assert PAGE[library] == interop_matrix.column(library)


def test_the_page_has_the_table_of_layouts():
    assert interop_matrix.written(TEXT, interop_matrix.ROWS) == interop_matrix.layouts()
