"""Other libraries run a converted model, from its own weights, to the same numbers."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop import references

pytestmark = pytest.mark.filterwarnings("ignore")

LIBRARIES = [
    pytest.param(
        name,
        marks=[
            pytest.mark.skipif(
                importlib.util.find_spec(name) is None, reason=f"needs {name}"
            ),
            *([] if name == "flax" else [pytest.mark.thorough]),
        ],
    )
    for name in references.LIBRARIES
]

MODELS = {
    "tokens": lambda: jl.serial(
        embed=jl.embed(9, 4),
        drop=jl.dropout(0.2),
        rnn=jl.stack(jl.lstm(), (5, 3)),
        head=jl.linear(2),
    ),
    "gru": lambda: jl.recurrent(jl.gru(), 5),
    "gru, reset before": lambda: jl.recurrent(jl.gru(reset_after=False), 5),
    "rnn": lambda: jl.recurrent(jl.simple_rnn(), 5),
    "relu": lambda: jl.recurrent(jl.simple_rnn(activation="relu"), 5),
    "both directions": lambda: jl.stack(jl.lstm(), (5, 4), bidirectional=True),
    "projection": lambda: jl.stack(jl.projected_lstm(2), (5, 5), bidirectional=True),
}


def drawn(name):
    """Return a model and parameters without zeros, so that each bias counts."""
    model = MODELS[name]()
    params, _ = model.init(jax.random.key(0), 3)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype), params
    )


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "tokens" else pytest.mark.combinations)
        for name in MODELS
    ],
)
def test_a_model_runs_in_its_library(name, library, relaxed):
    model, params = drawn(name)
    if (name, library) not in RUNS:
        with pytest.raises(ValueError, match="got"):  # the library has no such layer
            jl.interop.reference(library, model, params)
        return
    theirs = jl.interop.reference(library, model, params)
    report = jl.interop.compare(model, params, theirs)
    assert report.largest < 2e-6, str(report)


RUNS = {
    *((name, "torch") for name in MODELS if name != "gru, reset before"),
    *((name, "flax") for name in ("tokens", "gru", "rnn", "relu", "both directions")),
    *((name, "keras") for name in MODELS if name != "projection"),
    *((name, "haiku") for name in ("tokens", "gru, reset before", "relu")),
    *((name, "equinox") for name in ("tokens", "gru")),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_exchanged_gates_are_found(library, relaxed):
    model, params = drawn("tokens")
    first, *rest = params["rnn"]
    swapped = first._replace(w_h=first.w_h[:, jnp.array([1, 0, 2, 3])])
    other = params | {"rnn": (swapped, *rest)}
    theirs = jl.interop.reference(library, model, other)
    assert jl.interop.compare(model, params, theirs).largest > 1e-2


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model, params = drawn("gru")
    with pytest.raises(ImportError, match="torch"):
        jl.interop.reference("torch", model, params)
