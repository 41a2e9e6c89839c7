"""Fixtures shared by the tests of `jaxlstm.lab`."""

import PIL.Image
import pytest
import tiny
from matplotlib.figure import Figure


@pytest.fixture
def book(tmp_path):
    """Write a text file to train on."""
    path = tmp_path / "book.txt"
    path.write_text(tiny.text())
    return path


@pytest.fixture(autouse=True, scope="module")
def rasterised(request):
    """Draw pictures but write one pixel, in modules without `PICTURES = True`.

    Layout and rasterisation of its pictures take most of the time of a tiny run. The
    calls that draw on the axes are executed, and the files exist. The value is the
    `savefig` of Matplotlib.
    """
    real = Figure.savefig
    if getattr(request.module, "PICTURES", False):
        yield real
        return

    def savefig(figure, file, *, format=None, **options):
        PIL.Image.new("RGB", (1, 1)).save(file, format or "png")

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Figure, "savefig", savefig)
        yield real
