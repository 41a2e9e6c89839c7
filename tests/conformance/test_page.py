"""The page beside this file is executed: each program prints what stands below it.

A section is what follows one heading: its programs share their names and run in order,
if the library that the section is about is installed.
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
    """A heading, and the programs below it with what they print."""

    heading: str
    programs: list[tuple[str, str]]


def sections() -> list[Section]:
    parts = HEADING.split(PAGE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = [Section(heading, PROGRAM.findall(text)) for heading, text in pairs]
    return [section for section in found if section.programs]


def versions() -> str:
    """How what is installed differs from what the page was written with."""
    changed = []
    for name, written in VERSION.findall(PAGE):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed = importlib.metadata.version(name).split("+")[0]
            changed += [f"{name} {written} -> {installed}"] * (installed != written)
    return "; ".join(changed) or "the versions are those of the page"


@pytest.fixture
def outside():
    """The world of a user, who prints three places: JAX's usual rules."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        np.printoptions(precision=3),
    ):
        yield


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("section", sections(), ids=lambda section: section.heading)
def test_programs_print_what_is_below_them(section, outside):
    for code, _ in section.programs:
        for peer in PEER.findall(code):
            pytest.importorskip(peer)
        if "from jax.experimental import rnn" in code:
            pytest.importorskip("jax.experimental.rnn")
    names = {"__name__": "page"}
    for code, wanted in section.programs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, section.heading, "exec"), names)
        assert printed.getvalue() == wanted, f"{code}\n({versions()})"


def test_every_library_of_the_table_has_a_version():
    assert len(VERSION.findall(PAGE)) >= 8
