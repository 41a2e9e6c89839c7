"""Refusals: what came and what was wanted, in the caller's names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from problems import CELL, B, D, H, T, problem


def _refusals():
    """(name, changes to the arguments, pieces of the sentence)."""
    wide = jl.LSTMState(jnp.zeros((3, H)), jnp.zeros((3, H)))
    one = jl.LSTMState(jnp.zeros((1, H)), jnp.zeros((1, H)))
    units = jl.LSTMState(jnp.zeros((B, H + 1)), jnp.zeros((B, H + 1)))
    complexes = np.ones((2, B, H), np.complex64)
    steps = jnp.ones((T, B), bool)
    params = problem()[0]
    return [
        ("xs of rank 1", {"xs": jnp.ones(T)}, "xs", str(T)),
        ("xs of rank 0", {"xs": jnp.ones(())}, "xs"),
        ("features", {"xs": jnp.ones((T, B, 7))}, "xs", "7", str(D), "w_x"),
        ("integer xs", {"xs": jnp.ones((T, B, D), jnp.int32)}, "xs", "int32"),
        ("boolean xs", {"xs": jnp.ones((T, B, D), bool)}, "xs", "bool"),
        ("complex xs", {"xs": jnp.ones((T, B, D), jnp.complex64)}, "xs", "complex64"),
        ("strings", {"xs": np.full((T, B, D), "a")}, "xs"),
        ("objects", {"xs": np.full((T, B, D), None)}, "xs"),
        ("dates", {"xs": np.zeros((T, B, D), "datetime64[s]")}, "xs"),
        ("unequal rows", {"xs": [[[1.0] * D], [[1.0] * D] * 2]}, "xs"),
        ("masked array", {"xs": np.ma.masked_all((T, B, D))}, "xs|masked"),
        ("no xs", {"xs": None}, "xs"),
        ("state of 3 rows", {"state": wide}, "state", "3", str(B)),
        ("state of 1 row", {"state": one}, "state", "1", str(B)),
        ("state of 6 units", {"state": units}, "state", str(H + 1), str(H)),
        ("state a tuple", {"state": tuple(units)}, "state"),
        ("state one array", {"state": jnp.zeros((B, H))}, "state"),
        ("complex state", {"state": jl.LSTMState(*complexes)}, "state", "complex"),
        ("three gates", {"params": params._replace(w_h=params.w_h[:, :3])}, "w_h"),
        ("fused gates", {"params": params._replace(b=jnp.zeros(4 * H))}, "b"),
        ("a dictionary", {"params": params._asdict()}, "params"),
        ("lengths of 2", {"lengths": jnp.array([1, 2])}, "lengths", "2", str(B)),
        ("lengths of 5", {"lengths": jnp.ones(5, int)}, "lengths", "5", str(B)),
        ("lengths a column", {"lengths": jnp.ones((B, 1), int)}, "lengths", "4, 1"),
        ("lengths a row", {"lengths": jnp.ones((1, B), int)}, "lengths", "1, 4"),
        ("one length", {"lengths": jnp.asarray(2)}, "lengths", str(B)),
        ("float lengths", {"lengths": jnp.full(B, 2.0)}, "lengths", "float32"),
        ("boolean lengths", {"lengths": jnp.ones(B, bool)}, "lengths", "bool"),
        ("mask of 5 steps", {"mask": steps[1:]}, "mask", str(T - 1), str(T)),
        ("mask of 3 rows", {"mask": steps[:, 1:]}, "mask", "3", str(B)),
        ("mask of rank 1", {"mask": steps[:, 0]}, "mask"),
        ("mask per feature", {"mask": jnp.ones((T, B, D), bool)}, "mask"),
        ("float mask", {"mask": jnp.full((T, B), 0.5)}, "mask", "float32"),
        ("resets of 5 steps", {"resets": steps[1:]}, "resets", str(T - 1), str(T)),
        ("float resets", {"resets": jnp.ones((T, B))}, "resets", "float32"),
        ("resets one row", {"resets": steps[:, :1]}, "resets", "1", str(B)),
        ("both", {"mask": steps, "lengths": jnp.ones(B, int)}, "mask", "lengths"),
        ("0 remembered", {"checkpoint_every": 0}, "checkpoint_every", "0"),
        ("-1 remembered", {"checkpoint_every": -1}, "checkpoint_every", "-1"),
        ("2.5 remembered", {"checkpoint_every": 2.5}, "checkpoint_every", "2.5"),
        ("unknown word", {"checkpoint_every": "log"}, "checkpoint_every", "log"),
        ("unknown engine", {"engine": "warp"}, "warp", "scan"),
        ("one unknown", {"engine": ("scan", "warp")}, "warp", "scan"),
        ("no engine", {"engine": ()}, "engine"),
        ("emit no function", {"emit": "hidden"}, "emit"),
        ("cell a factory", {"cell": jl.lstm}, "cell|lstm"),
        ("no cell", {"cell": None}, "cell"),
    ]  # fmt: skip


REFUSALS = _refusals()


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [pytest.param(changes, pieces, id=name) for name, changes, *pieces in REFUSALS],
)
@pytest.mark.parametrize("door", [jl.unroll, jl.explain], ids=["unroll", "explain"])
def test_refusals(door, changes, pieces):
    params, xs, _ = problem()
    arguments = {"cell": CELL, "params": params, "xs": xs} | changes
    with pytest.raises((TypeError, ValueError, LookupError)) as error:
        door(**arguments)
    sentence = str(error.value)
    for piece in pieces:
        assert re.search(piece, sentence), sentence
    assert len(sentence) < 400
    assert "dot_general" not in sentence


@pytest.mark.parametrize(
    "name", ["features", "lengths of 2", "float lengths", "mask of 5 steps", "both"]
)
def test_refusals_under_jit(name):
    """Shapes and dtypes are known to the tracer too."""
    changes, pieces = next((c, p) for n, c, *p in REFUSALS if n == name)
    params, xs, _ = problem()
    arguments = {"params": params, "xs": xs} | changes
    with pytest.raises((TypeError, ValueError)) as error:
        jax.jit(lambda arguments: jl.unroll(CELL, **arguments))(arguments)
    assert all(re.search(piece, str(error.value)) for piece in pieces)


def test_unknown_options_are_refused():
    params, xs, _ = problem()
    with pytest.raises(TypeError):
        jl.unroll(CELL, params, xs, length=jnp.ones(B, int))  # pyright: ignore
    with pytest.raises(TypeError):
        jl.unroll(CELL, params, xs, None, jnp.ones(B, int))  # pyright: ignore
