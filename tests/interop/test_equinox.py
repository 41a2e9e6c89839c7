"""Modules of Equinox: cells, lists of cells, fields of other modules."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop import equinox as interop
from random_models import MODELS, Options, assert_same_bits, draw, ones

OPTIONS = Options(("lstm", "gru"), bidirectional=False, pointwise=False)


def as_modules(arrays):
    """Objects with these fields in place of modules; a list for numbered ones."""
    if "weight_hh" in arrays:
        return types.SimpleNamespace(**arrays)
    cells = {}
    for path, array in arrays.items():
        number, _, name = path.partition(".")
        cells.setdefault(int(number), {})[name] = array
    return [types.SimpleNamespace(**cells[n]) for n in range(len(cells))]


@MODELS
def test_loading_what_was_dumped_returns_the_same_bits(count):
    rng = np.random.default_rng(71)
    for _ in range(count):
        model, params = draw(rng, OPTIONS)
        got, same = interop.load(as_modules(interop.dump(model, params)))
        assert_same_bits(got, params)
        assert same == model


def test_what_equinox_does_not_have_is_refused():
    def refused(model, message):
        params = ones(model)
        with pytest.raises(ValueError, match=rf"^equinox\.dump: .*{message}"):
            interop.dump(model, params)

    refused(
        jl.recurrent(jl.simple_rnn(), 4), "got a simple RNN, expected one of: an LS"
    )
    refused(jl.stack(jl.lstm(), (4,), bidirectional=True), "Equinox has cells only")
    refused(jl.recurrent(jl.gru(reset_after=False), 4), "got a GRU with the reset gate")
    with pytest.raises(
        ValueError, match="got no arrays; expected the weights of an LS"
    ):
        interop.load(3)


@pytest.fixture
def equinox():
    return pytest.importorskip("equinox")


@pytest.mark.thorough
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_live_modules_in_and_out(equinox, name, use_bias, relaxed):
    class Model(equinox.Module):
        embed: equinox.nn.Embedding
        cells: list
        head: equinox.nn.Linear
        scale: jax.Array

    make, keys = getattr(equinox.nn, name), jax.random.split(jax.random.key(0), 4)
    cells = [
        make(size, 4, use_bias=use_bias, key=key)
        for size, key in zip((3, 4), keys[:2], strict=True)
    ]
    peer = Model(
        equinox.nn.Embedding(9, 3, key=keys[2]),
        cells,
        equinox.nn.Linear(4, 2, use_bias=use_bias, key=keys[3]),
        jnp.ones(2),
    )
    message = r"got 4 layers: embed: .*; other arrays: scale; pass prefix='cells\.0'"
    with pytest.raises(ValueError, match=message):
        interop.load(peer)
    params, model = interop.load(peer, prefix=("embed", "cells", "head"))
    cell = jl.lstm() if name == "LSTMCell" else jl.gru()
    assert model == jl.serial(
        embed=jl.embed(9, 3), cells=jl.stack(cell, (4, 4)), head=jl.linear(2)
    )
    tokens = jnp.array([3, 1, 8])
    _, ours = model.apply(params, tokens)
    np.testing.assert_allclose(ours, run(peer, tokens), atol=1e-6)
    other = jax.tree.map(lambda leaf: leaf / 2, params)
    other = {name: other[name] for name in params}
    without_scale = types.SimpleNamespace(**vars(peer))
    del without_scale.scale
    stack, only = jl.stack(cell, (4, 4)), other["cells"]
    written = interop.dump(stack, only, into=peer.cells)
    assert type(written) is list
    assert_same_bits(interop.load(written)[0], only)
    changed = equinox.tree_at(lambda m: m.cells, peer, written)
    assert not np.allclose(run(changed, tokens), run(peer, tokens))
    with pytest.raises(ValueError, match="into: got a module of 1 layers, expected 2"):
        interop.dump(stack, only, into=peer.cells[0])
    with pytest.raises(
        ValueError, match=r"into: got shape \(16, 3\) for weight_ih|into"
    ):
        interop.dump(stack, only, into=peer.cells[::-1])


def run(peer, tokens):
    xs = jax.vmap(peer.embed)(tokens)
    for cell in peer.cells:
        is_lstm = hasattr(cell, "bias_n") is False
        state = (jnp.zeros(4), jnp.zeros(4)) if is_lstm else jnp.zeros(4)
        ys = []
        for x in xs:
            state = cell(x, state)
            ys.append(state[0] if is_lstm else state)
        xs = jnp.stack(ys)
    return jax.vmap(peer.head)(xs)
