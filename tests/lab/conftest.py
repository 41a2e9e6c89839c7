"""What the laboratory's tests share."""

import pytest
import tiny


@pytest.fixture
def book(tmp_path):
    """A text file to learn."""
    path = tmp_path / "book.txt"
    path.write_text(tiny.text())
    return path
