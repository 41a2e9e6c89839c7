"""Fixtures shared by the tests of `jaxlstm.lab`."""

import pytest
import tiny


@pytest.fixture
def book(tmp_path):
    """Write a text file to train on."""
    path = tmp_path / "book.txt"
    path.write_text(tiny.text())
    return path
