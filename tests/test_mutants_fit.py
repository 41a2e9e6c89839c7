"""Every mutant is written for a text that stands there now, and stands there once.

The mutants themselves are run by `pytest -m mutants`; this is what a change of the
library breaks first.
"""

from pathlib import Path

import pytest

import family_mutants
import jaxlstm
import mutants

PACKAGE = Path(jaxlstm.__path__[0])
ALL = [*mutants.MUTANTS, *family_mutants.CELL_MUTANTS, *family_mutants.WRAPPER_MUTANTS]


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_the_text_of_a_mutant_is_there_once(mutant):
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
