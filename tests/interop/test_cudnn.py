"""The flat buffer of cuDNN: its order, its sizes, and JAX's own functions for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.engines import cudnn as engine
from jaxlstm.interop import cudnn as interop
from jaxlstm.interop import layout
from random_models import MODELS, Options, assert_same_bits, draw, ones

OPTIONS = Options(("lstm", "gru", "rnn"), equal_sizes=True, pointwise=False)


def sizes_of(params):
    """Return the sizes that the buffer does not have."""
    layers = params if type(params) is tuple else (params,)
    first = layers[0]
    both = isinstance(first, jl.Pair)
    first = first.forward if both else first
    return {
        "input_size": first.w_x.shape[0],
        "hidden_size": first.b.shape[-1],
        "layers": len(layers),
        "bidirectional": both,
        "kind": layout.kind_of(first),
    }


@MODELS
def test_loading_what_was_dumped_returns_the_same_bits(count):
    rng = np.random.default_rng(72)
    for _ in range(count):
        model, params = draw(rng, OPTIONS)
        buffer = interop.dump(model, params)
        got, same = interop.load(buffer, **sizes_of(params))
        assert_same_bits(got, params)
        assert same == model


@pytest.mark.parametrize("both", [False, True])
def test_the_buffer_is_that_of_the_engine(both):
    """The engine's `pack` and JAX's `unpack_lstm_weights` have the same order."""
    options = Options(("lstm",), bidirectional=both, equal_sizes=True, pointwise=False)
    rng = np.random.default_rng(73)
    for _ in range(3):
        model, params = draw(rng, options, dtype=np.float32)
        layers = jax.tree.leaves(params, is_leaf=lambda n: isinstance(n, jl.LSTMParams))
        buffer = interop.dump(model, params)
        assert_same_bits(
            buffer, engine.pack([jax.tree.map(jnp.asarray, p) for p in layers])
        )
        sizes = sizes_of(params)
        assert sizes.pop("kind") == "lstm"
        unpacked = engine.unpack(jnp.asarray(buffer), **sizes)
        for one, other in zip(unpacked, layers, strict=True):
            # JAX adds two biases, and replaces subnormal sums by zero.
            np.testing.assert_allclose(one.b, other.b, rtol=0, atol=1e-37)
            assert_same_bits(one[:2], other[:2])


def test_the_number_of_biases_is_read_from_the_size():
    rng, sizes = np.random.default_rng(74), {"input_size": 3, "hidden_size": 5}
    full = rng.normal(size=4 * 5 * (3 + 5) + 40).astype(np.float32)
    params, _ = interop.load(full, **sizes)
    np.testing.assert_array_equal(params.b.ravel(), full[160:180] + full[180:])
    one, _ = interop.load(full[:180], **sizes)
    np.testing.assert_array_equal(one.b.ravel(), full[160:180])
    none, _ = interop.load(full[:160], **sizes)
    assert not none.b.any()
    message = r"got an array of shape \[199\], expected one axis of 200 numbers, or 180"
    with pytest.raises(ValueError, match=message):
        interop.load(full[:199], **sizes)


def test_wrong_arguments_and_models_are_refused():
    with pytest.raises(ValueError, match="kind: got 'peephole', expected one of lstm"):
        interop.load(np.ones(3), input_size=1, hidden_size=1, kind="peephole")
    with pytest.raises(
        ValueError, match="hidden_size: got 0, expected an integer >= 1"
    ):
        interop.load(np.ones(3), input_size=1, hidden_size=0)

    def refused(model, message):
        params = ones(model)
        with pytest.raises(ValueError, match=rf"^cudnn\.dump: .*{message}"):
            interop.dump(model, params)

    refused(
        jl.serial(jl.recurrent(jl.lstm(), 4), jl.linear(2)), "got LSTM 3 -> 4; Line"
    )
    refused(jl.recurrent(jl.projected_lstm(2), 4), "got an LSTM with a projection")
    refused(
        jl.stack(jl.lstm(), (4, 5)), r"got layers of \[4, 5\] hidden units, expected"
    )
    refused(
        jl.recurrent(jl.lstm(), 4, reverse=True), "units that run in reverse, expec"
    )
