"""Every program of README.md in this folder prints the output shown below it.

The programs of a section share one namespace and run in order, if the library of the
section is installed.
"""

import contextlib
import importlib.metadata
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")

OPTIMISED = True  # as users run it

PAGE = (Path(__file__).parent / "README.md").read_text()
HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
PROGRAM = re.compile(r"```python\n(.*?)```\n+(?:```text\n(.*?)```)?", re.DOTALL)
PEER = re.compile(r"^(?:import|from) (flax|haiku|keras|torch|equinox|onnx)\b", re.M)
VERSION = re.compile(r"^\| `([a-z-]+)` \| ([\d.]+) \|", re.MULTILINE)


class Section(NamedTuple):
    """A heading, and its programs with their outputs."""

    heading: str
    programs: list[tuple[str, str]]


def sections() -> list[Section]:
    parts = HEADING.split(PAGE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = [Section(heading, PROGRAM.findall(text)) for heading, text in pairs]
    return [section for section in found if section.programs]


def versions() -> str:
    """Return the versions that differ from those of the page."""
    changed = []
    for name, written in VERSION.findall(PAGE):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed = importlib.metadata.version(name).split("+")[0]
            changed += [f"{name} {written} -> {installed}"] * (installed != written)
    return "; ".join(changed) or "the versions are those of the page"


@pytest.fixture
def outside():
    """JAX's default rules, and NumPy printing three digits."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        np.printoptions(precision=3),
    ):
        yield


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("section", sections(), ids=lambda section: section.heading)
def test_programs_print_the_output_of_the_page(section, outside):
    for code, _ in section.programs:
        for peer in PEER.findall(code):
            pytest.importorskip(peer)
        if "from jax.experimental import rnn" in code:
            pytest.importorskip("jax.experimental.rnn")
    names = {"__name__": "page"}
    for code, expected in section.programs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, section.heading, "exec"), names)
        assert printed.getvalue() == expected, f"{code}\n({versions()})"


def test_every_library_of_the_table_has_a_version():
    assert len(VERSION.findall(PAGE)) >= 8
