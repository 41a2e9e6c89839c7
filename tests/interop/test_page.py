"""The blocks of docs/interop.md that need torch run; `test_docs` runs the others."""

import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
BLOCK = re.compile(r'^```python title="needs torch"\n(.*?)^```$', re.M | re.S)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_blocks_that_need_torch_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 3
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)
