"""Blocks of docs/interop.md that need other libraries; `test_docs` runs the rest."""

import re
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
BLOCK = r'^```python title="needs %s"\n(.*?)^```$'


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "count"), [("torch", 3), ("onnxruntime", 1)])
def test_blocks_that_need_a_library_run(library, count, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    pattern = re.compile(BLOCK % library, re.M | re.S)
    blocks = pattern.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= count
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)
