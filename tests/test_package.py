"""Public names of the package: renamed modules keep working, unknown names hint."""

import inspect
import subprocess
import sys

import pytest

import fast_compilation
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


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            jl.unroll,
            "(cell, params, xs, state=None, *, lengths=None, mask=None, resets=None, "
            "reset_state=None, burn_in=0, reverse=False, emit=emit.hidden, key=None, "
            "checkpoint_every=None, engine=None)",
        ),
        (
            jl.linear(2).apply,
            "(params, xs, state=None, *, key=None, lengths=None, mask=None, "
            "resets=None, reset_state=None)",
        ),
    ],
)
def test_signatures_are_short(function, text):
    """Without the unions that types such as `ArrayLike` stand for."""
    assert str(inspect.signature(function)) == text


BLOCKED = ("flax", "optax", "orbax", "pydantic", "rich", "ruamel", "safetensors")

WITHOUT_THEM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError("imported " + name)

sys.meta_path.insert(0, Refuse())
import jax, jax.numpy as jnp
import jaxlstm as jl

rnn = jl.stack(jl.lstm(), (3, 3), bidirectional=True)
model = jl.serial(rnn=rnn, head=jl.linear(2))
cell = jl.zoneout(jl.lstm(), h_rate=0.1)
xs = jnp.ones((4, 2, 2))

@jax.jit
def run(key):
    params, _ = model.init(key, 2)
    slope = jax.grad(lambda p: model.apply(p, xs, lengths=[4, 2])[1].sum())(params)
    drawn = cell.init(key, 2, 3)
    _, trace = jl.unroll(cell, drawn, xs, emit=jl.emit.trace)
    return slope, jl.diagnostics.timescales(trace.gates)

run(jax.random.key(0))
explained = jl.explain(cell, cell.init(jax.random.key(1), 2, 3), xs)
print(explained.engine in ("native", "adjoint"))
try:
    jl.modules.nnx.LSTM
except ImportError as error:
    print(error)
"""


def test_the_core_imports_nothing_that_only_modules_and_lab_need():
    """The module for Flax at the end proves that the import hook refuses."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THEM.format(blocked=BLOCKED)],
        env=fast_compilation.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\nimported flax\n", done.stderr
    assert done.returncode == 0, done.stderr
