"""Both columns of every table of docs/migration.md run, and their outputs are equal."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
IMPORTS = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[1]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
LIBRARIES = {
    "Flax nnx": "flax",
    "Haiku": "haiku",
    "Equinox": "equinox",
    "Keras": "keras",
    "torch": "torch",
}


def columns(section: str) -> tuple[list[str], list[str]]:
    """Return the code of the two columns, row by row; "" for an empty cell."""
    rows = [row for row in section.splitlines() if row.startswith("| ")][2:]
    cells = [[cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in rows]
    left, right = zip(*cells, strict=True)
    return list(left), list(right)


def run(name: str, code: list[str], names: dict) -> list:
    """Run a column; return `ys` after each row."""
    found = []
    for line in code:
        names["ys"] = None
        exec(compile(line, name, "exec"), names)
        ys = names["ys"]
        ys = ys.detach() if hasattr(ys, "detach") else ys
        found.append(None if ys is None else np.asarray(ys))
    return found


def test_every_section_is_run():
    assert set(LIBRARIES) == set(SECTIONS)
    left, right = columns(SECTIONS["torch"])
    assert len(left) == len(right) == 7
    assert left[0].startswith("net = torch.nn.LSTM(")


# nnx is installed with the library, the others with the extra `parity`.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "section",
    [
        pytest.param(name, marks=[] if name == "Flax nnx" else [pytest.mark.thorough])
        for name in LIBRARIES
    ],
)
def test_both_columns_give_the_same_outputs(section, relaxed):
    pytest.importorskip(LIBRARIES[section])
    names: dict = {"__name__": "page"}
    setup = re.findall(r"`([^`]+)`", SECTIONS[section].strip().splitlines()[0])
    exec("\n".join([IMPORTS, *setup]), names)
    left, right = columns(SECTIONS[section])
    theirs, ours = run(section, left, names), run(section, right, names)
    assert sum(ys is not None for ys in ours) >= 1
    for expected, got in zip(theirs, ours, strict=True):
        assert (expected is None) == (got is None)
        if got is not None:
            if got.ndim == 3 and got.shape != expected.shape:
                got = got.swapaxes(0, 1)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
