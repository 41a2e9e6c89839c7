"""Every Python block of the documentation pages runs and prints what the page says."""

import doctest
import re
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(?:python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = (
    doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
)
PAGES = {
    path.stem: blocks
    for path in sorted(DOCS.glob("**/*.md"))
    if path.parent.name != "cookbook"  # see test_cookbook
    and (blocks := BLOCK.findall(path.read_text(encoding="utf-8")))
}

SLOW = {"inside", "layers", "serving"}  # several seconds each


def run(name: str, blocks: list[str]) -> str:
    """Run the blocks in one namespace and return a report of what failed."""
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=OPTIONS)
    names: dict[str, object] = {"__name__": name}
    said: list[str] = []
    for block in blocks:
        if not block.startswith(">>>"):
            exec(compile(block, f"{name}.md", "exec"), names)
            continue
        test = parser.get_doctest(block, names, name, f"{name}.md", 0)
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
    return "".join(said)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.thorough] if name in SLOW else [])
        for name in PAGES
    ],
)
def test_blocks_of_the_page_run(name):
    # Readers run the blocks with JAX's default promotion, not that of the tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert run(name, PAGES[name]) == ""


def test_a_wrong_block_is_reported():
    assert "Expected" in run("page", [">>> x = 1\n", ">>> x + 1\n3\n"])


def test_all_pages_with_code_are_found():
    assert {"index", "functional", "sequences", "engines", "own-cell"} <= set(PAGES)
