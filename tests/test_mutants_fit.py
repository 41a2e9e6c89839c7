"""Every mutant fits the current source.

`pytest -m mutants` runs the mutants; this quick test fails first if the source changes.
"""

from pathlib import Path

import pytest

import family_mutants
import jaxlstm
import mutants

PACKAGE = Path(jaxlstm.__path__[0])
ALL = [*mutants.MUTANTS, *family_mutants.CELL_MUTANTS, *family_mutants.WRAPPER_MUTANTS]


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_snippet_of_a_mutant_occurs_once(mutant):
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
