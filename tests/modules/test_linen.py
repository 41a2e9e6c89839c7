"""The modules of `flax.linen`: transformations, noise, edges, and what they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ragged
from flax import errors, serialization, traverse_util
from flax import linen as nn
from ragged import FEATURES, HIDDEN, ROWS, TIME, assert_close, assert_equal

import jaxlstm as jl

Recurrent, LSTM = jl.modules.linen.Recurrent, jl.modules.linen.LSTM
LAYER = ragged.noisy()
BATCH = ragged.draw()
XS = np.nan_to_num(BATCH.xs)
KEY = jax.random.key(0)


def drawn(module: nn.Module, seed: int = 0):
    return module.init(jax.random.key(seed), XS)


# --- transformations ------------------------------------------------------------------


def test_windows_by_scan_carry_the_state():
    """`nn.scan` over two windows is one call over both."""

    class Windows(nn.Module):
        @nn.compact
        def __call__(self, carry, xs):
            lstm = LSTM(HIDDEN, num_layers=2, return_carry=True)
            return lstm(xs, initial_carry=carry)

    whole = LSTM(HIDDEN, num_layers=2, return_carry=True)
    variables = drawn(whole)
    begin = whole.apply(variables, XS, method="initialize_carry")
    scanned = nn.scan(
        Windows,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )()
    windows = XS.reshape(ROWS, 2, TIME // 2, FEATURES)
    shapes = jax.eval_shape(scanned.init, KEY, begin, windows)
    inner = {"params": {"LSTM_0": variables["params"]}}
    assert jax.tree.map(jnp.shape, inner) == jax.tree.map(jnp.shape, shapes)
    carry, ys = jax.jit(scanned.apply)(inner, begin, windows)
    wanted, hs = whole.apply(variables, XS)
    assert_close((carry, ys.reshape(hs.shape)), (wanted, hs))


def test_an_ensemble_by_vmap():
    """Three models in one, each with parameters of its own."""
    quiet = Recurrent(ragged.both_ways())
    models = vmapped(quiet)
    variables = jax.jit(models.init)(KEY, XS)
    assert variables["params"]["layer"]["1"]["w"].shape == (3, 2 * HIDDEN, 2)
    together = jax.jit(models.apply)(variables, XS)
    own = jax.tree.map(lambda leaf: leaf[1], variables)
    assert_close(together[1], jax.jit(quiet.apply)(own, XS))


def test_an_ensemble_by_vmap_has_noise_of_its_own():
    models = vmapped(Recurrent(LAYER, deterministic=False))
    one = drawn(Recurrent(LAYER, deterministic=True))
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), one)
    ys = jax.jit(models.apply)(same, XS, rngs={"dropout": KEY})
    assert ys.shape == (3, ROWS, TIME, 2)
    assert (ys[0] != ys[1]).any()


def vmapped(model: Recurrent) -> nn.Module:
    made = nn.vmap(
        Recurrent,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=None,
        out_axes=0,
        axis_size=3,
    )
    return made(model.layer, deterministic=model.deterministic)


def test_inside_another_module():
    """`setup`, lengths and resets, under jit and grad."""

    class Model(nn.Module):
        def setup(self):
            self.lstm = LSTM(HIDDEN, bidirectional=True)
            self.head = nn.Dense(2)

        def __call__(self, batch):
            ys = self.lstm(batch.xs, seq_lengths=batch.lengths, resets=batch.resets)
            return self.head(ys)

    model = Model()
    variables = jax.jit(model.init)(KEY, BATCH)
    loss = lambda variables: model.apply(variables, BATCH).sum()  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert set(gradients["params"]) == {"lstm", "head"}


def test_traced_once():
    calls = []

    @jax.jit
    def call(variables, xs):
        calls.append(xs)
        return LSTM(HIDDEN, num_layers=2).apply(variables, xs)

    variables = drawn(LSTM(HIDDEN, num_layers=2))
    for _ in range(3):
        call(variables, XS)
    assert len(calls) == 1


# --- what a module holds --------------------------------------------------------------


def test_parameters_are_nested_dicts_of_arrays():
    variables = drawn(LSTM(HIDDEN, num_layers=2, bidirectional=True))
    paths = set(traverse_util.flatten_dict(variables, sep="/"))
    assert paths == {
        f"params/layer/{depth}/{way}/{name}"
        for depth in (0, 1)
        for way in ("backward", "forward")
        for name in ("b", "w_h", "w_x")
    }


def test_parameters_are_those_of_the_core():
    """There and back: `to_state_dict` gives what the module takes."""
    params, _ = LAYER.init(KEY, FEATURES)
    variables = {"params": {"layer": serialization.to_state_dict(params)}}
    model = Recurrent(LAYER, deterministic=True, time_major=True)
    xs = XS.swapaxes(0, 1)
    assert_equal(model.apply(variables, xs), LAYER.apply(params, xs)[1])
    saved = serialization.to_bytes(variables)
    again = serialization.from_bytes(drawn(model), saved)
    assert_equal(model.apply(again, xs), model.apply(variables, xs))


def test_a_parameter_may_be_none():
    def init(key, input_size=None):
        return jl.layers.LinearParams(jax.random.normal(key, (input_size, 2)), None), 2

    def apply(
        params, xs, state=None, *, key=None, lengths=None, mask=None, resets=None
    ):
        assert params.b is None
        return (), xs @ params.w

    model = Recurrent(jl.Layer(init, apply))
    assert model.apply(drawn(model), XS).shape == (ROWS, TIME, 2)


def test_modules_are_compared_by_their_fields():
    assert LSTM(HIDDEN) == LSTM(HIDDEN)
    assert hash(LSTM(HIDDEN, dropout=0.1)) == hash(LSTM(HIDDEN, dropout=0.1))
    assert LSTM(HIDDEN) != LSTM(HIDDEN, num_layers=2)
    assert nn.tabulate(LSTM(HIDDEN), KEY)(XS)


# --- noise ----------------------------------------------------------------------------


def test_noise_comes_from_the_stream():
    noisy = LSTM(HIDDEN, num_layers=2, dropout=0.5, deterministic=False)
    quiet = LSTM(HIDDEN, num_layers=2)
    variables = drawn(noisy)
    one, same, other = (
        noisy.apply(variables, XS, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 1, 2)
    )
    assert_equal(one, same)
    assert (one != other).any()
    still = noisy.apply(variables, XS, deterministic=True)
    assert_equal(still, quiet.apply(variables, XS))
    assert (one != still).any()


def test_the_call_comes_before_the_field():
    model = Recurrent(LAYER, deterministic=True)
    variables, rngs = drawn(model), {"dropout": KEY}
    noisy = model.apply(variables, XS, deterministic=False, rngs=rngs)
    assert (noisy != model.apply(variables, XS)).any()


def test_a_stream_of_another_name():
    model = Recurrent(LAYER, deterministic=False, rng_collection="noise")
    assert model.apply(drawn(model), XS, rngs={"noise": KEY}).shape == (ROWS, TIME, 2)


def test_noise_without_a_word_or_a_stream_is_refused():
    model = Recurrent(LAYER)
    variables = model.init(KEY, XS, deterministic=True)
    with pytest.raises(ValueError, match="this module draws noise: pass deterministic"):
        model.apply(variables, XS)
    with pytest.raises(errors.InvalidRngError, match="dropout"):
        model.apply(variables, XS, deterministic=False)


def test_a_stochastic_cell_gets_a_key_of_the_stream():
    cell = jl.weight_drop(jl.lstm(), 0.5)
    model = LSTM(HIDDEN, cell=cell, deterministic=False)
    variables, call = drawn(model), jax.jit(model.apply)
    one, other = (
        call(variables, XS, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 2)
    )
    assert (one != other).any()
    still = model.apply(variables, XS, deterministic=True)
    assert_equal(still, LSTM(HIDDEN).apply(variables, XS))


# --- the edges ------------------------------------------------------------------------


def test_time_major_is_the_same_with_time_first():
    model, other = LSTM(HIDDEN), LSTM(HIDDEN, time_major=True)
    variables = drawn(model)
    active = np.arange(TIME) < BATCH.lengths[:, None]
    ys = model.apply(variables, XS, mask=active, resets=BATCH.resets)
    zs = other.apply(variables, XS.swapaxes(0, 1), mask=active.T, resets=BATCH.resets.T)
    assert_close(ys, zs.swapaxes(0, 1))


def test_a_convolution_has_space_behind_time():
    model, xs = LSTM(HIDDEN, cell=jl.conv_lstm((3,))), np.ones((2, TIME, 4, FEATURES))
    xs = xs.astype(np.float32)
    ys, variables = model.init_with_output(KEY, xs)
    assert ys.shape == (2, TIME, 4, HIDDEN)
    assert_close(ys[0], model.apply(variables, xs[0]))


def test_tokens_have_no_features():
    layer = jl.serial(jl.embed(10, FEATURES), jl.recurrent(jl.lstm(), HIDDEN))
    model, tokens = Recurrent(layer, feature_axes=0), np.zeros((2, 4, TIME), np.int32)
    ys, variables = model.init_with_output(KEY, tokens)
    assert ys.shape == (2, 4, TIME, HIDDEN)
    carry = model.apply(variables, tokens, method="initialize_carry")
    assert carry[1].h.shape == (2, 4, HIDDEN)


def test_refusals_are_sentences():
    model = LSTM(HIDDEN)
    variables = drawn(model)
    with pytest.raises(
        ValueError, match=r"resets has shape \[6, 8\]; inputs have \[8, 6\]"
    ):
        model.apply(variables, XS, resets=BATCH.resets.T)
    with pytest.raises(ValueError, match=r"inputs have shape \[3\]; 2 axes are needed"):
        model.apply(variables, XS[0, 0])
    with pytest.raises(errors.ScopeParamShapeError):
        model.apply(variables, XS[..., :2])
    with pytest.raises(ValueError, match="xs: got a masked array"):
        model.apply(variables, np.ma.masked_invalid(BATCH.xs))
    with pytest.raises(ValueError, match=r"layer is Cell.*; a Layer is needed"):
        drawn(Recurrent(jl.lstm()))
    with pytest.raises(ValueError, match="num_layers: got 0, expected an integer"):
        drawn(LSTM(HIDDEN, num_layers=0))


def test_named_layers_give_parameter_paths_their_names():
    layer = jl.serial(rnn=jl.stack(jl.lstm(), (5, 4)), head=jl.linear(2))
    model = jl.modules.linen.Recurrent(layer)
    xs = jax.random.normal(jax.random.key(1), (4, 7, 3))
    variables = model.init(jax.random.key(0), xs)
    params = variables["params"]["layer"]
    assert sorted(params) == ["head", "rnn"]
    assert sorted(params["head"]) == ["b", "w"]
    ys = model.apply(variables, xs)
    restored = {
        "rnn": tuple(jl.LSTMParams(**params["rnn"][place]) for place in ("0", "1")),
        "head": jl.layers.LinearParams(**params["head"]),
    }
    expected = jnp.moveaxis(layer.apply(restored, jnp.moveaxis(xs, 1, 0))[1], 0, 1)
    np.testing.assert_array_equal(ys, expected)
