"""The programs of docs/cookbook run as they are, and are short enough to copy."""

import re
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "cookbook"
BLOCK = re.compile(r'^```python(?: title="needs (\w+)")?\n(.*?)^```$', re.M | re.S)
PROGRAMS = {
    path.stem: BLOCK.findall(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.md"))
    if path.stem != "index"
}
QUICK = {"acting", "regression"}  # the others train for longer


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_page_has_one_program_below_60_lines(name):
    ((_, program),) = PROGRAMS[name]
    assert program.count("\n") < 60


def test_the_index_lists_every_program():
    listed = re.findall(r"\((.*?)\.md\)", (FOLDER / "index.md").read_text())
    assert sorted(listed) == list(PROGRAMS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.thorough])
        for name in PROGRAMS
    ],
)
def test_a_program_runs(name):
    ((library, program),) = PROGRAMS[name]
    if library:
        pytest.importorskip(library)
    # Readers run it with JAX's default promotion, not that of the tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(program, f"{name}.md", "exec"), {"__name__": "__main__"})
