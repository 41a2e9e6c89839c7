"""The modules of `flax.linen`: transformations, variables, noise and layouts."""

import functools

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


def init(module: nn.Module, seed: int = 0):
    return module.init(jax.random.key(seed), XS)


# --- transformations ------------------------------------------------------------------


def test_scan_over_windows_carries_the_state():
    """`nn.scan` over two windows equals one call over both."""

    class Windows(nn.Module):
        @nn.compact
        def __call__(self, carry, xs):
            lstm = LSTM(HIDDEN, num_layers=2, return_carry=True)
            return lstm(xs, initial_carry=carry)

    whole = LSTM(HIDDEN, num_layers=2, return_carry=True)
    variables = init(whole)
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
    expected, hs = whole.apply(variables, XS)
    assert_close((carry, ys.reshape(hs.shape)), (expected, hs))


def test_ensemble_by_vmap():
    """Three models in one, each with its own parameters."""
    plain = Recurrent(ragged.both_directions())
    models = vmapped(plain)
    variables = jax.jit(models.init)(KEY, XS)
    assert variables["params"]["layer"]["1"]["w"].shape == (3, 2 * HIDDEN, 2)
    together = jax.jit(models.apply)(variables, XS)
    own = jax.tree.map(lambda leaf: leaf[1], variables)
    assert_close(together[1], jax.jit(plain.apply)(own, XS))


def test_members_of_an_ensemble_draw_independent_noise():
    models = vmapped(Recurrent(LAYER, deterministic=False))
    one = init(Recurrent(LAYER, deterministic=True))
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), one)
    ys = jax.jit(models.apply)(same, XS, rngs={"dropout": KEY})
    assert ys.shape == (3, ROWS, TIME, 2)
    assert (ys[0] != ys[1]).any()


def vmapped(model: Recurrent) -> nn.Module:
    models = nn.vmap(
        Recurrent,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=None,
        out_axes=0,
        axis_size=3,
    )
    return models(model.layer, deterministic=model.deterministic)


def test_inside_another_module():
    """`setup` with lengths and resets, under `jit` and `grad`."""

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

    variables = init(LSTM(HIDDEN, num_layers=2))
    for _ in range(3):
        call(variables, XS)
    assert len(calls) == 1


# --- variables ------------------------------------------------------------------------


def test_parameters_are_nested_dicts_of_arrays():
    variables = init(LSTM(HIDDEN, num_layers=2, bidirectional=True))
    paths = set(traverse_util.flatten_dict(variables, sep="/"))
    assert paths == {
        f"params/layer/{depth}/{way}/{name}"
        for depth in (0, 1)
        for way in ("backward", "forward")
        for name in ("b", "w_h", "w_x")
    }


def test_parameters_convert_to_those_of_the_layer():
    """`to_state_dict` converts the params of a layer to those of the module."""
    params, _ = LAYER.init(KEY, FEATURES)
    variables = {"params": {"layer": serialization.to_state_dict(params)}}
    model = Recurrent(LAYER, deterministic=True, time_major=True)
    xs = XS.swapaxes(0, 1)
    assert_equal(model.apply(variables, xs), LAYER.apply(params, xs)[1])
    saved = serialization.to_bytes(variables)
    again = serialization.from_bytes(init(model), saved)
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
    variables = model.init(KEY, XS)
    assert model.apply(variables, XS).shape == (ROWS, TIME, 2)


def test_modules_compare_by_fields():
    assert LSTM(HIDDEN) == LSTM(HIDDEN)
    assert hash(LSTM(HIDDEN, dropout=0.1)) == hash(LSTM(HIDDEN, dropout=0.1))
    assert LSTM(HIDDEN) != LSTM(HIDDEN, num_layers=2)
    assert nn.tabulate(LSTM(HIDDEN), KEY)(XS)


# --- noise ----------------------------------------------------------------------------


def test_noise_comes_from_the_stream():
    noisy = LSTM(HIDDEN, num_layers=2, dropout=0.5, deterministic=False)
    plain = LSTM(HIDDEN, num_layers=2)
    variables = init(noisy)
    one, same, other = (
        noisy.apply(variables, XS, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 1, 2)
    )
    assert_equal(one, same)
    assert (one != other).any()
    silent = noisy.apply(variables, XS, deterministic=True)
    assert_equal(silent, plain.apply(variables, XS))
    assert (one != silent).any()


def test_the_argument_of_a_call_overrides_the_field():
    model = Recurrent(LAYER, deterministic=True)
    variables, rngs = init(model), {"dropout": KEY}
    noisy = model.apply(variables, XS, deterministic=False, rngs=rngs)
    assert (noisy != model.apply(variables, XS)).any()


def test_a_stream_of_another_name():
    model = Recurrent(LAYER, deterministic=False, rng_collection="noise")
    assert model.apply(init(model), XS, rngs={"noise": KEY}).shape == (ROWS, TIME, 2)


def test_noise_needs_deterministic_and_a_stream():
    model = Recurrent(LAYER)
    variables = model.init(KEY, XS, deterministic=True)
    with pytest.raises(
        ValueError, match=r"^deterministic: got None in a module with noise"
    ):
        model.apply(variables, XS)
    with pytest.raises(errors.InvalidRngError, match="dropout"):
        model.apply(variables, XS, deterministic=False)


def test_a_stochastic_cell_draws_from_the_stream():
    cell = jl.weight_drop(jl.lstm(), 0.5)
    model = LSTM(HIDDEN, cell=cell, deterministic=False)
    variables, call = init(model), jax.jit(model.apply)
    one, other = (
        call(variables, XS, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 2)
    )
    assert (one != other).any()
    silent = model.apply(variables, XS, deterministic=True)
    assert_equal(silent, LSTM(HIDDEN).apply(variables, XS))


# --- layouts and errors ---------------------------------------------------------------


def test_time_major_equals_batch_major():
    model, other = LSTM(HIDDEN), LSTM(HIDDEN, time_major=True)
    variables = init(model)
    active = np.arange(TIME) < BATCH.lengths[:, None]
    ys = model.apply(variables, XS, mask=active, resets=BATCH.resets)
    zs = other.apply(variables, XS.swapaxes(0, 1), mask=active.T, resets=BATCH.resets.T)
    assert_close(ys, zs.swapaxes(0, 1))


def test_convolutions_have_spatial_axes_after_time():
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


def test_invalid_arguments_are_errors():
    model = LSTM(HIDDEN)
    variables = init(model)
    with pytest.raises(
        ValueError, match=r"resets: got shape \[6, 8\], expected \[8, 6\]"
    ):
        model.apply(variables, XS, resets=BATCH.resets.T)
    with pytest.raises(
        ValueError, match=r"inputs: got shape \[3\], expected at least 2"
    ):
        model.apply(variables, XS[0, 0])
    with pytest.raises(errors.ScopeParamShapeError):
        model.apply(variables, XS[..., :2])
    with pytest.raises(ValueError, match="xs: got a masked array"):
        model.apply(variables, np.ma.masked_invalid(BATCH.xs))
    with pytest.raises(ValueError, match=r"layer: got lstm\(\), expected a Layer"):
        init(Recurrent(jl.lstm()))
    with pytest.raises(ValueError, match="num_layers: got 0, expected an integer"):
        init(LSTM(HIDDEN, num_layers=0))


def test_paths_of_named_layers_contain_the_names():
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


def test_a_step_mask_has_time_first():
    model = LSTM(HIDDEN)
    call = functools.partial(model.apply, init(model))
    mask = jl.StepMask.from_lengths(BATCH.lengths, TIME)
    mask = mask._replace(resets=jnp.asarray(BATCH.resets.T))
    expected = call(XS, seq_lengths=BATCH.lengths, resets=BATCH.resets)
    assert_equal(call(XS, mask=mask), expected)
    with pytest.raises(ValueError, match=r"mask\.active: got shape \[8, 6\], expected"):
        call(XS, mask=jl.StepMask(active=mask.active.T))
