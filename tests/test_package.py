"""Public names of the package: renamed modules keep working, unknown names hint."""

import inspect

import pytest

import jaxlstm as jl
from jaxlstm import masking, typing, validation


@pytest.mark.parametrize(
    ("old", "module"),
    [("shapes", typing), ("sequences", masking), ("arguments", validation)],
)
def test_a_renamed_module_warns_and_names_the_new_one(old, module):
    with pytest.warns(DeprecationWarning, match=f"use {module.__name__}"):
        assert getattr(jl, old) is module


def test_the_module_of_noise_is_now_the_wrappers():
    with pytest.warns(DeprecationWarning, match=r"use jaxlstm\.cells\.wrappers"):
        noise = jl.cells.noise
    assert noise.zoneout is jl.zoneout


def test_an_unknown_name_suggests_a_near_one():
    with pytest.raises(AttributeError, match=r"no unrol; did you mean unroll\?"):
        _ = jl.unrol
    with pytest.raises(AttributeError, match="no attribute 'noises'"):
        _ = jl.cells.noises


@pytest.mark.parametrize("function", [jl.unroll, jl.explain, jl.estimate_memory])
def test_options_are_shown_and_an_unknown_one_suggests_a_near_one(function):
    names = list(inspect.signature(function).parameters)[4:]
    assert names == list(jl.UnrollOptions.__annotations__)
    message = rf"^{function.__name__}: got an unknown option 'lenghts'; .* lengths\?"
    with pytest.raises(TypeError, match=message):
        function(jl.lstm(), None, None, lenghts=[3])
    with pytest.raises(TypeError, match="unknown option 'x'; use lengths, mask"):
        function(jl.lstm(), None, None, x=1)
