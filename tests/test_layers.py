"""Layers and combinators on ragged, carried and transformed sequences."""

import inspect
import itertools
import pickle
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlstm as jl
from cases import assert_same, finite, same_bits
from jaxlstm.interop import model_file

T, B, D = 6, 4, 3
KEY = jax.random.key(8)
CELL = jl.lstm()
XS = jax.random.normal(jax.random.key(1), (T, B, D))
LENGTHS = np.array([0, 2, T, 5], np.int32)
ACTIVE = np.arange(T)[:, None] < LENGTHS
RESETS = jnp.asarray(np.random.default_rng(4).random((T, B)) < 0.3)


def both_directions(size: int) -> jl.Layer:
    return jl.bidirectional(
        jl.recurrent(CELL, size), jl.recurrent(CELL, size, reverse=True)
    )


# Each layer with its number of output features for D = 3.
LAYERS = {
    "recurrent": (jl.recurrent(CELL, 5), 5),
    "reversed": (jl.recurrent(CELL, 5, reverse=True), 5),
    "checkpointed": (jl.recurrent(CELL, 5, checkpoint_every="sqrt"), 5),
    "bidirectional": (both_directions(4), 8),
    "residual": (jl.residual(jl.recurrent(CELL, D)), D),
    "dropout": (jl.dropout(0.5), D),
    "linear": (jl.linear(7), 7),
    "serial": (jl.serial(jl.linear(4), jl.dropout(0.1), jl.recurrent(CELL, 5)), 5),
    "named": (jl.serial(rnn=jl.recurrent(CELL, 4), head=jl.linear(2)), 2),
    "stack": (jl.stack(CELL, (4, 5), dropout=0.2), 5),
    "stack bidirectional": (jl.stack(CELL, (4, 5), bidirectional=True), 10),
    "stack residual": (jl.stack(CELL, (5, 5, 5), residual=True), 5),
}
FORWARD_IN_TIME = [n for n in LAYERS if n not in ("reversed", "bidirectional")]
FORWARD_IN_TIME.remove("stack bidirectional")
# The functions of the other layers are those of the members of these.
DISTINCT = [
    name
    for name in LAYERS
    if name not in ("stack residual", "stack", "residual", "reversed", "checkpointed")
]


def first(default, cases):
    """Return the default cases, and all others for the run of the combinations."""
    others = [case for case in cases if case not in default]
    return default + [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=pytest.mark.combinations,
        )
        for case in others
    ]


every_layer = pytest.mark.parametrize("name", first(DISTINCT, LAYERS))


@cache
def layer_and_params(name: str):
    """Return the layer and its parameters, drawn once per process."""
    layer, size = LAYERS[name]
    params, output_size = layer.init(KEY, D)
    assert output_size == size
    return layer, params


# --- every layer ----------------------------------------------------------------------


@every_layer
def test_shapes_and_signature(name):
    layer, params = layer_and_params(name)
    state, ys = layer.apply(params, XS)
    assert ys.shape == (T, B, LAYERS[name][1])
    assert ys.dtype == XS.dtype
    parameters = inspect.signature(layer.apply).parameters
    expected = ["params", "xs", "state", "key", "lengths", "mask", "resets"]
    assert list(parameters) == [*expected, "reset_state"]
    kinds = [p.kind.name for p in parameters.values()]
    assert kinds[3:] == ["KEYWORD_ONLY"] * 5
    again, _ = layer.apply(params, XS, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("name", "option"),
    first(
        [(name, "lengths") for name in DISTINCT] + [("stack bidirectional", "mask")],
        itertools.product(LAYERS, ("lengths", "mask")),
    ),
)
def test_padding_is_not_read_and_its_outputs_are_zero(name, option):
    layer, params = layer_and_params(name)
    steps = {"lengths": LENGTHS} if option == "lengths" else {"mask": ACTIVE}

    def run(params, xs):
        state, ys = layer.apply(params, xs, key=KEY, resets=RESETS, **steps)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((state, ys))), ys

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    with_nan = both(params, jnp.where(ACTIVE[..., None], XS, jnp.nan))
    assert finite(with_nan)
    assert not np.asarray(with_nan[0][1])[~ACTIVE].any()
    assert not np.asarray(with_nan[1][1])[~ACTIVE].any()
    assert same_bits(with_nan, both(params, jnp.where(ACTIVE[..., None], XS, 3.0)))


@pytest.mark.parametrize(
    ("name", "row"),
    first(
        [(name, 1) for name in DISTINCT] + [("stack bidirectional", 2)],
        itertools.product(LAYERS, (1, 2)),
    ),
)
def test_a_ragged_row_is_the_truncated_row(name, row):
    layer, params = layer_and_params(name)
    apply = jax.jit(layer.apply)
    state, ys = apply(params, XS, lengths=LENGTHS)
    length = LENGTHS[row]
    one, short = apply(params, XS[:length, row])
    assert_same(ys[:length, row], short, 1e-5)
    assert_same(jax.tree.map(lambda leaf: leaf[row], state), one, 1e-5)


@pytest.mark.parametrize("name", FORWARD_IN_TIME)
def test_carrying_the_state_gives_the_unsplit_result(name):
    layer, params = layer_and_params(name)
    apply = jax.jit(layer.apply)
    whole_state, whole = apply(params, XS, resets=RESETS)
    state, first = apply(params, XS[:2], resets=RESETS[:2])
    state, second = apply(params, XS[2:], state, resets=RESETS[2:])
    assert_same(jnp.concatenate([first, second]), whole, 1e-5)
    assert_same(state, whole_state, 1e-5)


@every_layer
@pytest.mark.parametrize("dtype", first([jnp.float32], [jnp.bfloat16]))
def test_the_initial_state_is_that_of_apply(name, dtype):
    """In structure, values and dtypes, for float32 and 16-bit inputs."""
    layer, params = layer_and_params(name)
    state = layer.initial_state(params, (B,), dtype=dtype)
    expected, _ = layer.apply(params, XS[:0].astype(dtype))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert same_bits(state, expected)
    if dtype == jnp.float32:
        assert same_bits(layer.initial_state(params, (B,)), expected)


@every_layer
def test_jit_and_vmap(name):
    """`vmap` over rows and over params equals a loop; `jit` traces once."""
    layer, params = layer_and_params(name)
    more, _ = layer.init(jax.random.key(2), D)
    two = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, more)
    traces = []

    @jax.jit
    def run(params, xs):
        traces.append(None)
        return layer.apply(params, xs)[1]

    ys = run(params, XS)
    run(params, 2 * XS)
    assert len(traces) == 1
    rows = jax.jit(jax.vmap(lambda xs: layer.apply(params, xs)[1], 1, 1))(XS)
    assert_same(rows, ys, 1e-5)
    if jax.tree.leaves(params):
        members = jax.jit(jax.vmap(lambda params: layer.apply(params, XS)[1]))(two)
        assert_same(members[1], run(more, XS), 1e-5)


@every_layer
def test_empty_sequences_and_batches(name):
    layer, params = layer_and_params(name)
    apply = jax.jit(layer.apply)
    _, ys = apply(params, XS[:0])
    assert ys.shape == (0, B, LAYERS[name][1])
    _, ys = apply(params, XS[:, :0], lengths=LENGTHS[:0])
    assert ys.shape == (T, 0, LAYERS[name][1])


@every_layer
@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"xs": np.ones((T, B, D), np.int32)}, "int32"),
        ({"lengths": np.array([1, 2])}, "lengths"),
        ({"lengths": np.array([1.0, 2.0, 3.0, 4.0])}, "lengths"),
        ({"lengths": np.full(B, T + 1)}, "lengths"),
        ({"lengths": LENGTHS, "mask": ACTIVE}, "mask"),
    ],
)
def test_invalid_arguments_are_errors(name, options, piece):
    layer, params = layer_and_params(name)
    with pytest.raises(ValueError, match=piece):
        layer.apply(params, **{"xs": XS} | options)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "dropout"])
def test_wrong_number_of_features(name):
    layer, params = layer_and_params(name)
    with pytest.raises(ValueError, match=r"xs: got 9 features, expected 3 "):
        layer.apply(params, jnp.ones((T, B, 9)))


# --- single layers --------------------------------------------------------------------


def test_recurrent_equals_unroll():
    layer, params = layer_and_params("reversed")
    begin = jl.LSTMState(*jax.random.normal(KEY, (2, B, 5)))
    options = {"lengths": LENGTHS, "resets": RESETS}
    got = layer.apply(params, XS, begin, **options)
    assert same_bits(got, jl.unroll(CELL, params, XS, begin, reverse=True, **options))


def test_recurrent_passes_its_engine_to_unroll():
    layer = jl.recurrent(CELL, 5, engine="warp")
    params, _ = layer.init(KEY, D)
    with pytest.raises(ValueError, match="warp"):
        layer.apply(params, XS)


def test_serial_applies_layers_in_order():
    first, second = jl.recurrent(CELL, 4), jl.recurrent(CELL, 5, reverse=True)
    layer = jl.serial(first, second)
    params, _ = layer.init(KEY, D)
    states, ys = layer.apply(params, XS, lengths=LENGTHS, resets=RESETS)
    one, middle = first.apply(params[0], XS, lengths=LENGTHS, resets=RESETS)
    two, expected = second.apply(params[1], middle, lengths=LENGTHS, resets=RESETS)
    assert same_bits((states, ys), ((one, two), expected))
    assert not np.array_equal(params[0].w_h[:, :, 0], params[1].w_h[:4, :, 0])


def test_serial_is_associative():
    layers = jl.linear(4), jl.recurrent(CELL, 4), jl.linear(2)
    flat, nested = jl.serial(*layers), jl.serial(jl.serial(*layers[:2]), layers[2])
    params, _ = flat.init(KEY, D)
    _, ys = flat.apply(params, XS)
    _, same = nested.apply((params[:2], params[2]), XS)
    assert same_bits(ys, same)


def named_and_positional(*names):
    """The same layers by name, in an order that is not sorted, and by position."""
    members = {
        "stem": jl.linear(4),
        "rnn": jl.stack(CELL, (4, 5), dropout=0.2, bidirectional=True),
        "block": jl.residual(jl.recurrent(CELL, 10)),
        "drop": jl.dropout(0.3),
        "head": jl.bidirectional(jl.linear(2), jl.recurrent(CELL, 3, reverse=True)),
    }
    members = {name: members[name] for name in names or members}
    return jl.serial(**members), jl.serial(*members.values()), tuple(members)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(None, id="no key", marks=pytest.mark.combinations),
        pytest.param(KEY, id="key"),
    ],
)
def test_named_layers_equal_positional_layers(key):
    by_name, by_position, names = named_and_positional()
    params, size = by_name.init(KEY, D)
    positional, positional_size = by_position.init(KEY, D)
    assert type(params) is dict
    assert (tuple(params), size) == (names, positional_size)
    assert same_bits([params[name] for name in names], list(positional))

    options = {"key": key, "lengths": LENGTHS, "resets": RESETS}
    ones = jax.tree.map(jnp.ones_like, jax.eval_shape(by_name.apply, params, XS)[0])
    state, ys = jax.jit(by_name.apply)(params, XS, ones, **options)
    ones = tuple(ones[name] for name in names)
    expected_state, expected = jax.jit(by_position.apply)(
        positional, XS, ones, **options
    )
    assert type(state) is dict
    assert same_bits(ys, expected)
    assert same_bits([state[name] for name in names], list(expected_state))


def test_gradients_of_named_layers_equal_those_of_positional_layers():
    by_name, by_position, names = named_and_positional("stem", "head", "drop")
    params, _ = by_name.init(KEY, D)

    def gradient(layer, params):
        def loss(params, xs):
            return jnp.sum(layer.apply(params, xs, key=KEY)[1] ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, XS)

    d_params, d_xs = gradient(by_name, params)
    expected, expected_xs = gradient(by_position, tuple(params[name] for name in names))
    assert same_bits(d_xs, expected_xs)
    assert same_bits([d_params[name] for name in names], list(expected))


def test_named_layers_under_vmap_over_params():
    layer = jl.serial(rnn=jl.recurrent(CELL, 4), head=jl.linear(2))
    members = [layer.init(key, D)[0] for key in jax.random.split(KEY, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    state, ys = jax.vmap(layer.apply, in_axes=(0, None))(stacked, XS)
    assert state["rnn"].h.shape == (2, B, 4)
    for member in range(2):
        assert_same(ys[member], layer.apply(members[member], XS)[1], 1e-5)


def test_traces_of_named_layers_have_their_names():
    rnn, head = jl.stack(CELL, (4, 4), bidirectional=True), jl.recurrent(CELL, 2)
    inner = jl.serial(a=jl.recurrent(CELL, 3), b=jl.linear(2))
    layer, positional = (
        jl.serial(rnn=rnn, inner=inner, head=head),
        jl.serial(rnn, inner, head),
    )
    params, _ = layer.init(KEY, D)
    assert layer.trace is not None
    assert positional.trace is not None
    _, ys, traces = layer.trace(params, XS)
    _, expected, positional_traces = positional.trace(tuple(params.values()), XS)
    names = {
        "rnn/0/forward": "0/0/forward",
        "rnn/0/backward": "0/0/backward",
        "rnn/1/forward": "0/1/forward",
        "rnn/1/backward": "0/1/backward",
        "inner/a": "1/a",
        "head": "2",
    }
    assert set(traces) == set(names)
    assert same_bits(ys, expected)
    for name, position in names.items():
        assert same_bits(traces[name], positional_traces[position])


def test_serial_refuses_names_mixed_with_positions():
    with pytest.raises(ValueError, match=r"^serial: got 1 layers by position and head"):
        jl.serial(jl.linear(4), head=jl.linear(2))
    with pytest.raises(ValueError, match=r"^serial: got no layers"):
        jl.serial()


@pytest.mark.parametrize("name", ["a/b", "0", "", "two words"])
def test_serial_refuses_names_that_are_not_identifiers(name):
    with pytest.raises(ValueError, match=rf"^serial: got the layer name '{name}'"):
        jl.serial(**{name: jl.linear(2)})
    with pytest.raises(ValueError, match=r"^serial: got lstm\(\), expected a Layer"):
        jl.serial(rnn=CELL)  # pyright: ignore[reportArgumentType]


def test_serial_refuses_a_collection_of_layers():
    layer = jl.linear(2)
    for layers, call in [
        ([layer], r"\*layers"),
        ((layer,), r"\*layers"),
        ({"head": layer}, r"\*\*layers"),
    ]:
        message = rf"^serial: got a {type(layers).__name__}, .*; write serial\({call}\)"
        with pytest.raises(ValueError, match=message):
            jl.serial(layers)  # pyright: ignore[reportArgumentType]


def test_serial_refuses_missing_and_extra_entries():
    layer = jl.serial(rnn=jl.recurrent(CELL, 4), head=jl.linear(2))
    params, _ = layer.init(KEY, D)
    state, _ = layer.apply(params, XS)
    for broken, got in [
        ({}, "got an empty dict, expected the keys rnn, head"),
        ({"rnn": 0}, "got the keys rnn, expected rnn, head"),
        (
            {"rnn": 0, "head": 0, "tail": 0},
            "got the keys rnn, head, tail, expected rnn",
        ),
        ({"rnn": 0, "tail": 0}, "got the keys rnn, tail, expected rnn, head"),
        (tuple(params.values()), "got tuple, expected a dict with the keys rnn, head"),
    ]:
        with pytest.raises(ValueError, match=f"^serial: params: {got}"):
            layer.apply(broken, XS)
        with pytest.raises(ValueError, match=f"^serial: state: {got}"):
            layer.apply(params, XS, broken)
    by_position = jl.serial(jl.recurrent(CELL, 4), jl.linear(2))
    with pytest.raises(
        ValueError, match=r"^serial: params: got dict, expected a tuple"
    ):
        by_position.apply(params, XS)
    with pytest.raises(ValueError, match=r"^serial: state: got dict, expected a tuple"):
        by_position.apply(tuple(params.values()), XS, state)


def test_bidirectional_equals_two_unrolls():
    layer, params = layer_and_params("bidirectional")
    assert isinstance(params, jl.Pair)
    begin = jl.Pair(*(jl.LSTMState(*jax.random.normal(k, (2, B, 4)))
                      for k in jax.random.split(KEY)))  # fmt: skip
    state, ys = layer.apply(params, XS, begin, lengths=LENGTHS)
    assert isinstance(state, jl.Pair)
    ahead = jl.unroll(CELL, params.forward, XS, begin.forward, lengths=LENGTHS)
    back = jl.unroll(
        CELL, params.backward, XS, begin.backward, lengths=LENGTHS, reverse=True
    )
    assert same_bits(state, (ahead[0], back[0]))
    assert same_bits(ys, jnp.concatenate([ahead[1], back[1]], axis=-1))
    assert not np.array_equal(params.forward.w_x, params.backward.w_x)


def test_residual_adds_its_input():
    layer, params = layer_and_params("residual")
    state, ys = layer.apply(params, XS, lengths=LENGTHS)
    expected_state, added = jl.recurrent(CELL, D).apply(params, XS, lengths=LENGTHS)
    assert same_bits(state, expected_state)
    assert_same(ys, added + jnp.where(ACTIVE[..., None], XS, 0.0), 1e-6)
    with pytest.raises(ValueError, match=r"residual.*3.*5"):
        jl.residual(jl.recurrent(CELL, 5)).init(KEY, D)


def test_linear_equals_numpy():
    layer, params = layer_and_params("linear")
    _, ys = layer.apply(params, XS)
    by_hand = np.asarray(XS) @ np.asarray(params.w) + np.asarray(params.b)
    np.testing.assert_allclose(ys, by_hand, rtol=1e-5, atol=1e-6)
    assert not np.any(params.b)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_and_scales(rate):
    """Checks the share of zeros, the scale of the rest, and that steps differ."""
    layer = jl.dropout(rate)
    ones = jnp.ones((200, 50, 10))
    _, ys = layer.apply((), ones, key=KEY)
    dropped = np.asarray(ys) == 0
    np.testing.assert_allclose(dropped.mean(), rate, atol=0.01)
    np.testing.assert_allclose(np.asarray(ys)[~dropped], 1 / (1 - rate), rtol=1e-5)
    assert not np.array_equal(dropped[0], dropped[1])
    assert same_bits(layer.apply((), ones, key=KEY)[1], ys)
    assert not same_bits(layer.apply((), ones, key=jax.random.key(0))[1], ys)
    assert same_bits(layer.apply((), ones)[1], ones)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_refuses_rates_out_of_range(rate):
    with pytest.raises(ValueError, match=r"^dropout: rate: got"):
        jl.dropout(rate)
    with pytest.raises(ValueError, match=r"^stack: dropout: got"):
        jl.stack(CELL, (4, 4), dropout=rate)


def test_no_noise_without_a_key():
    layer, params = layer_and_params("stack")
    plain = jl.stack(CELL, (4, 5))
    _, ys = layer.apply(params, XS)
    _, noisy = layer.apply(params, XS, key=KEY)
    assert not same_bits(ys, noisy)
    recurrent = [p for p in params if jax.tree.leaves(p)]
    assert same_bits(plain.apply(tuple(recurrent), XS)[1], ys)


def test_layers_draw_independent_noise():
    two = jl.serial(jl.dropout(0.5), jl.dropout(0.5))
    _, ys = two.apply(((), ()), jnp.ones((50, 20, 10)), key=KEY)
    np.testing.assert_allclose((np.asarray(ys) != 0).mean(), 0.25, atol=0.02)


def test_embed_looks_up_rows():
    layer = jl.embed(10, 4)
    params, size = layer.init(KEY)
    assert size == 4
    tokens = np.random.default_rng(0).integers(0, 10, (T, B))
    for dtype in ("int32", "uint8", "int8", "uint16", "int64"):
        _, ys = layer.apply(params, tokens.astype(dtype))
        assert same_bits(ys, params.table[jnp.asarray(tokens.astype("int32"))])
    _, one = layer.apply(params, tokens[:, 0])
    assert one.shape == (T, 4)


@pytest.mark.parametrize("bad", [-1, 10, 2**31 - 1])
def test_tokens_outside_the_vocabulary(bad):
    """An error if concrete, NaN if traced, ignored in padding."""
    layer = jl.embed(10, 4)
    params, _ = layer.init(KEY)
    tokens = np.zeros((T, B), np.int32)
    tokens[3, 1] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*10"):
        layer.apply(params, tokens)
    _, ys = jax.jit(layer.apply)(params, tokens)
    unknown = np.zeros((T, B), bool)
    unknown[3, 1] = True
    assert np.array_equal(np.isnan(ys).all(-1), unknown)
    assert np.array_equal(np.isnan(ys).any(-1), unknown)
    _, ys = layer.apply(params, tokens, lengths=LENGTHS)
    assert finite(ys)


@pytest.mark.parametrize(
    "tokens", [np.zeros((T, B), np.float32), np.ones((T, B), bool)]
)
def test_tokens_must_be_integers(tokens):
    layer = jl.embed(10, 4)
    params, _ = layer.init(KEY)
    with pytest.raises(ValueError, match=str(tokens.dtype)):
        layer.apply(params, tokens)


def test_dtype_of_embed_is_that_of_the_layers_after_it():
    model = jl.serial(
        jl.embed(10, 4, dtype=jnp.bfloat16), jl.recurrent(CELL, 5), jl.linear(3)
    )
    params, _ = model.init(KEY)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    state, ys = model.apply(params, jnp.zeros((T, B), jnp.int32))
    assert ys.dtype == jnp.bfloat16
    assert state[1].h.dtype == jnp.bfloat16
    assert state[1].c.dtype == jnp.float32


def test_dropout_in_a_stack_has_no_params_and_precedes_all_layers_but_the_first():
    plain, noisy = jl.stack(CELL, (4, 5)), jl.stack(CELL, (4, 5), dropout=0.3)
    params, _ = noisy.init(KEY, D)
    assert same_bits(params, plain.init(KEY, D)[0])
    assert same_bits(noisy.apply(params, XS), plain.apply(params, XS))
    state, ys = noisy.apply(params, XS, key=KEY)
    whole, _ = plain.apply(params, XS)
    assert same_bits(state[0], whole[0])
    assert not same_bits(state[1], whole[1])
    first = jl.recurrent(CELL, 4).apply(params[0], XS)[1]
    drop, _ = jax.random.split(jax.random.split(KEY)[1])
    dropped = jl.dropout(0.3).apply((), first, key=drop)[1]
    assert same_bits(ys, jl.recurrent(CELL, 5).apply(params[1], dropped)[1])


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_stack_of_one_layer_refuses_rates_out_of_range(rate):
    with pytest.raises(ValueError, match=r"^stack: dropout: got"):
        jl.stack(CELL, (4,), dropout=rate)


@pytest.mark.parametrize("length", [-1, T + 1])
def test_an_invalid_traced_length_gives_nan_in_every_layer(length):
    tokens = jnp.zeros((T, B), jnp.int32)
    model = jl.serial(
        jl.embed(5, 4),
        jl.dropout(0.1),
        jl.residual(jl.recurrent(CELL, 4)),
        jl.linear(2),
    )
    params, _ = model.init(KEY)
    run = jax.jit(lambda n: model.apply(params, tokens, lengths=n)[1])
    ys = run(jnp.full(B, 2).at[1].set(length))
    assert np.isnan(ys[:, 1]).all()
    assert np.isfinite(ys[:, 0]).all()
    linear = jl.linear(2)
    run = jax.jit(lambda n: linear.apply(linear.init(KEY, D)[0], XS, lengths=n)[1])
    assert np.isnan(run(jnp.full(B, length))).all()


def test_integer_dtypes_of_tokens():
    layer = jl.embed(300, 4)
    params, _ = layer.init(KEY)
    expected = layer.apply(params, jnp.array([[3, 100]]))[1]
    for dtype in (np.int8, np.uint8, np.int16, np.int64, np.uint64):
        found = layer.apply(params, np.array([[3, 100]], dtype))[1]
        assert same_bits(found, expected)
    with pytest.raises(ValueError, match="token 4294967299"):
        layer.apply(params, np.array([[2**32 + 3]]))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_stack_equals_serial(options):
    layer = jl.stack(CELL, (4, 5, 6), **options)
    by_hand = []
    for size in (4, 5, 6):
        is_bidirectional = "bidirectional" in options
        by_hand.append(
            both_directions(size) if is_bidirectional else jl.recurrent(CELL, size)
        )
    params, size = layer.init(KEY, D)
    assert size == (12 if "bidirectional" in options else 6)
    expected, _ = jl.serial(*by_hand).init(KEY, D)
    assert same_bits(params, expected)
    got = layer.apply(params, XS, key=KEY, lengths=LENGTHS)
    assert same_bits(
        got, jl.serial(*by_hand).apply(params, XS, key=KEY, lengths=LENGTHS)
    )


@pytest.mark.parametrize("sizes", [(), (0,), (4, -1)])
def test_stack_refuses_invalid_sizes(sizes):
    with pytest.raises(ValueError, match="size"):
        jl.stack(CELL, sizes).init(KEY, D)


def test_stack_refuses_residual_layers_of_unequal_sizes():
    with pytest.raises(
        ValueError, match=r"^stack: sizes: got \(4, 5\), expected equal sizes"
    ):
        jl.stack(CELL, (4, 5), residual=True).init(KEY, D)


@pytest.mark.parametrize(
    "name", ["serial", "stack", "stack bidirectional", "bidirectional"]
)
def test_states_and_params_of_another_depth(name):
    layer, params = layer_and_params(name)
    state, _ = layer.apply(params, XS)
    with pytest.raises(ValueError, match="state"):
        layer.apply(params, XS, tuple(state)[:-1])
    with pytest.raises(ValueError, match="params"):
        layer.apply(tuple(params)[:-1], XS)


@pytest.mark.parametrize("name", ["recurrent", "linear", "dropout", "serial"])
def test_init_needs_the_input_size(name):
    layer, _ = LAYERS[name]
    with pytest.raises(ValueError, match="input"):
        layer.init(KEY)
    with pytest.raises(ValueError, match="input_size"):
        layer.init(KEY, 0)


@pytest.mark.parametrize("build", [lambda: jl.linear(0), lambda: jl.embed(0, 4),
                                   lambda: jl.embed(4, -1)])  # fmt: skip
def test_sizes_below_one_are_errors(build):
    with pytest.raises(ValueError, match=r"size|vocabulary"):
        build()


def test_params_contain_only_arrays():
    model = jl.serial(jl.embed(7, 4), jl.stack(CELL, (5, 5), dropout=0.1), jl.linear(7))
    params, size = model.init(KEY)
    assert size == 7
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    shapes = jax.eval_shape(lambda key: model.init(key)[0], KEY)
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_a_step_mask_equals_lengths_and_resets():
    layer = jl.stack(jl.lstm(), (4, 4), bidirectional=True)
    params, _ = layer.init(jax.random.key(0), 3)
    xs = jax.random.normal(jax.random.key(1), (6, 2, 3))
    lengths, resets = [6, 4], jnp.zeros((6, 2), bool).at[2, 1].set(True)
    mask = jl.StepMask.from_lengths(lengths, 6)._replace(resets=resets)
    expected = layer.apply(params, xs, lengths=lengths, resets=resets)
    got = layer.apply(params, xs, mask=mask)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a == b).all()


# --- checks of a call, and layers of a user -------------------------------------------


@pytest.mark.parametrize(
    "name", ["serial", "named", "stack", "bidirectional", "residual"]
)
def test_errors_name_the_layer_that_was_called(name):
    layer, params = layer_and_params(name)
    prefix = {"named": "serial"}.get(name, name)
    invalid: list[dict[str, Any]] = [
        {"lengths": np.full(B, T + 1)},
        {"mask": ACTIVE.T},
        {"resets": RESETS[:1]},
        {"mask": jl.StepMask(active=jnp.asarray(ACTIVE.T))},
    ]
    for options in invalid:
        with pytest.raises(ValueError, match=rf"^{prefix}: (lengths|mask|resets).*got"):
            layer.apply(params, XS, **options)
    with pytest.raises(TypeError, match=rf"^{prefix}: key: got 0, expected one key"):
        layer.apply(params, XS, key=0)  # pyright: ignore[reportArgumentType]


def halve(seen: list) -> jl.Layer:
    """Return a layer of two functions that keeps every second step."""

    def apply(params, xs, state=None, **options):
        seen.append(options)
        return (), xs[::2]

    def init(key, input_size=None):
        return (), input_size or D

    return jl.Layer(init, apply)


def test_a_layer_of_a_user_gets_the_options_of_the_caller():
    seen = []
    layer = jl.serial(jl.linear(4), halve(seen))
    params, _ = layer.init(KEY, D)
    layer.apply(params, XS, lengths=LENGTHS, resets=RESETS)
    assert seen[0]["lengths"] is LENGTHS
    assert seen[0]["resets"] is RESETS
    assert seen[0]["mask"] is None


def test_a_layer_of_a_user_may_change_the_number_of_steps():
    layer = jl.serial(jl.linear(4), halve([]), jl.recurrent(CELL, 5))
    params, _ = layer.init(KEY, D)
    lengths = np.array([0, 1, 2, 3])
    _, ys = layer.apply(params, XS, lengths=lengths)
    _, inputs = jl.linear(4).apply(params[0], XS, lengths=lengths)
    expected = jl.recurrent(CELL, 5).apply(params[2], inputs[::2], lengths=lengths)[1]
    assert same_bits(ys, expected)
    with pytest.raises(
        ValueError, match=r"^2: recurrent: lengths\[0\]: got 4, expected"
    ):
        layer.apply(params, XS, lengths=np.full(B, 4))


@pytest.mark.parametrize(
    ("layer", "other", "sentence"),
    [
        (
            jl.linear(2),
            jl.linear(3),
            r"params\.w: got shape \[3, 3\], expected \[3, 2\]",
        ),
        (jl.embed(7, 2), jl.embed(9, 2), r"params\.table: got shape \[9, 2\]"),
        (jl.recurrent(CELL, 4), jl.recurrent(CELL, 5), "got parameters of 5 units"),
        (jl.stack(CELL, (4, 6)), jl.stack(CELL, (4, 5)), "of 5 units, expected 6"),
        (
            jl.recurrent(jl.projected_lstm(2), 4),
            jl.recurrent(jl.projected_lstm(3), 4),
            "got parameters of 3 units, expected 2",
        ),
    ],
    ids=["linear", "embed", "recurrent", "stack", "projected"],
)
def test_parameters_of_a_layer_of_another_size_are_refused(layer, other, sentence):
    params, _ = other.init(jax.random.key(0), 3)
    xs = jnp.zeros((5, 2), int) if "table" in sentence else jnp.ones((5, 2, 3))
    for apply in layer.apply, jax.jit(layer.apply):
        with pytest.raises(ValueError, match=sentence):
            apply(params, xs)


def test_a_bias_is_not_broadcast():
    params, _ = jl.linear(2).init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"params\.b: got shape \[1\], expected \[2\]"):
        jl.linear(2).apply(params._replace(b=jnp.ones(1)), jnp.ones((5, 3)))


@pytest.mark.parametrize("name", LAYERS)
def test_deleted_arrays_and_other_dtypes_are_refused(name):
    layer, _ = LAYERS[name]
    params, _ = layer.init(KEY, D)
    key = jax.random.key(2)
    with pytest.raises(ValueError, match="xs: got dtype object, expected numbers"):
        layer.apply(params, np.full((T, B, D), None))
    with pytest.raises(ValueError, match="which JAX does not have; convert it"):
        layer.apply(params, np.ones((T, B, D), np.longdouble))
    if params != ():
        objects = jax.tree.map(lambda leaf: np.full(leaf.shape, None), params)
        for function in layer.apply, layer.trace:
            with pytest.raises(ValueError, match=r"params.*: got dtype object, exp"):
                function(objects, XS)
        jax.tree.map(lambda leaf: leaf.delete(), params)
        for function in layer.apply, layer.trace:
            with pytest.raises(ValueError, match=r"params.*: got a deleted array"):
                function(params, XS)
    key.delete()
    for function in (
        lambda: layer.init(key, D),
        lambda: layer.apply(params, XS, key=key),
    ):
        with pytest.raises(TypeError, match="key: got a deleted array"):
            function()


def test_x64_mode_does_not_change_the_noise():
    layers = {
        "dropout": jl.dropout(0.5),
        "zoneout": jl.recurrent(jl.zoneout(CELL, h_rate=0.5), 4),
        "variational": jl.recurrent(jl.variational_dropout(CELL, x_rate=0.5), 4),
        "weight_drop": jl.recurrent(jl.weight_drop(CELL, 0.5), 4),
        "recurrent_dropout": jl.recurrent(jl.recurrent_dropout(CELL, 0.5), 4),
    }
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    for name, layer in layers.items():
        params, _ = layer.init(jax.random.key(0), 3)
        _, ys = layer.apply(params, xs, key=jax.random.key(1))
        with jax.enable_x64(True):
            drawn, _ = layer.init(jax.random.key(0), 3)
            _, zs = layer.apply(params, xs.astype(float), key=jax.random.key(1))
        np.testing.assert_allclose(ys, zs, atol=1e-6, err_msg=name)
        jax.tree.map(np.testing.assert_array_equal, drawn, params)


# --- initial states, single steps and functions ---------------------------------------


def test_the_initial_state_is_a_carry():
    """`lax.scan` over single steps equals `apply` over the sequence."""
    model = jl.serial(
        embed=jl.embed(9, 4, dtype=jnp.bfloat16),
        rnn=jl.stack(CELL, (4, 4), residual=True),
        head=jl.linear(3),
    )
    params, _ = model.init(KEY)
    tokens = jnp.arange(T * B).reshape(T, B) % 9

    def step(state, token):
        state, ys = model.apply(params, token[None], state)
        return state, ys[0]

    begin = model.initial_state(params, (B,))
    assert begin["rnn"][0].h.dtype == jnp.bfloat16
    got = jax.jit(lambda begin: jax.lax.scan(step, begin, tokens))(begin)
    assert_same(got, jax.jit(model.apply)(params, tokens), 0.1)


def test_initial_states_of_layers_of_a_user():
    def apply(params, xs, state=None, **_):
        return (state or 0) + 1, xs

    layer = jl.serial(jl.Layer(lambda key, size: ((), size), apply), jl.linear(2))
    params, _ = layer.init(KEY, D)
    with pytest.raises(ValueError, match="serial: 0: initial_state: got a layer that"):
        layer.initial_state(params, (B,))
    own = jl.Layer(
        lambda key, size: ((), size),
        apply,
        initial_state=lambda params, batch_shape=(), *, dtype=None: 0,
    )
    assert jl.serial(own, jl.linear(2)).initial_state(params, (B,)) == (0, ())
    with pytest.raises(ValueError, match="batch_shape: got 3, expected a tuple"):
        jl.linear(2).initial_state(params[1], 3)


def test_an_own_layer_without_a_state_needs_no_reset_state():
    def apply(
        params, xs, state=None, *, key=None, lengths=None, mask=None, resets=None
    ):
        return (), 2 * xs

    model = jl.serial(
        jl.Layer(lambda key, size: ((), size), apply), jl.recurrent(jl.gru(), 4)
    )
    params, _ = model.init(KEY, D)
    state, ys = model.apply(params, XS)
    resets = np.zeros((T, B), bool)
    resets[3] = True
    _, again = model.apply(params, XS, resets=resets, reset_state=state)
    assert_same(again[:3], ys[:3], 0)
    assert not np.allclose(again[3], ys[3])


def test_single_steps_of_layers_without_a_state():
    linear, embed = jl.linear(2), jl.embed(9, 4)
    params, _ = linear.init(KEY, D)
    table, _ = embed.init(KEY)
    assert_same(linear.apply(params, XS[0, 0])[1], linear.apply(params, XS)[1][0, 0], 0)
    assert_same(embed.apply(table, 7)[1], table.table[7], 0)
    assert embed.apply(table, np.int32(7))[1].shape == (4,)
    assert jl.dropout(0.5).apply((), XS[0, 0], key=KEY)[1].shape == (D,)
    both = jl.serial(jl.embed(9, D), jl.residual(jl.linear(D)), jax.nn.relu)
    assert both.apply(both.init(KEY)[0], 3)[1].shape == (D,)
    with pytest.raises(ValueError, match="the token 9, expected 0 to 8"):
        embed.apply(table, 9)
    with pytest.raises(ValueError, match="xs: got a single step, expected a time axis"):
        linear.apply(params, XS[0, 0], mask=jnp.ones(D, bool))
    with pytest.raises(ValueError, match=r"recurrent: xs: got shape \[3\], expected"):
        jl.recurrent(CELL, 5).apply(CELL.init(KEY, D, 5), XS[0, 0])


def scaled(x):
    return x / 10


def test_functions_are_layers():
    """They see one step at a time, and padding as zeros."""
    layer = jl.serial(jl.linear(4), scaled, jl.recurrent(CELL, 5), jax.nn.relu)
    params, size = layer.init(KEY, D)
    assert (size, params[1], params[3]) == (5, (), ())
    _, inner = jl.linear(4).apply(params[0], XS, lengths=LENGTHS)
    _, ys = jl.recurrent(CELL, 5).apply(params[2], inner / 10, lengths=LENGTHS)
    assert_same(layer.apply(params, XS, lengths=LENGTHS)[1], jax.nn.relu(ys), 1e-6)
    one = jl.serial(lambda x: x + 1)
    assert not np.asarray(one.apply(((),), XS, lengths=LENGTHS)[1])[~ACTIVE].any()
    assert one.apply(((),), XS[:0])[1].shape == (0, B, D)

    # A function of a step cannot mix steps.
    first_row = jl.serial(lambda x: x - x[:1])
    assert_same(first_row.apply(((),), XS)[1], XS - XS[:, :1], 0)


def test_functions_of_tokens_and_of_other_sizes():
    layer = jl.serial(
        one_hot=lambda token: jax.nn.one_hot(token, 9),
        wider=lambda x: jnp.concatenate([x, x], -1),
        rnn=jl.recurrent(CELL, 5),
    )
    params, _ = layer.init(KEY)
    assert params["rnn"].w_x.shape[0] == 18
    tokens = jnp.arange(T * B).reshape(T, B) % 9
    assert layer.apply(params, tokens, resets=RESETS)[1].shape == (T, B, 5)
    begin = layer.initial_state(params, (B,))
    assert same_bits(begin, layer.apply(params, tokens[:0])[0])


def test_equal_functions_are_equal_layers_and_can_be_pickled():
    layer = jl.serial(jl.linear(4), scaled)
    assert layer is not jl.serial(jl.linear(4), lambda x: x / 10)
    assert layer == jl.serial(jl.linear(4), scaled) == pickle.loads(pickle.dumps(layer))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum(-1), r"got a function from \[3\] to an array \[\], expected"),
        (lambda x: x @ jnp.ones((2, 2)), r"got a function that fails for a step \[3\]"),
        (lambda x: None, r"got a function from \[3\] to None, expected one"),
    ],
)
def test_functions_without_features_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        jl.serial(function).init(KEY, D)


@pytest.mark.parametrize(
    ("library", "place", "instead"),
    [
        ("torch.nn", "torch.nn.modules.module", r"jl\.interop\.torch\.load\(module\)"),
        ("keras", "keras.src.layers.layer", r"jl\.interop\.keras\.load\(layer\)"),
        ("flax.linen", "flax.linen.module", r"jl\.modules\.linen\.Recurrent"),
    ],
)
def test_modules_of_other_libraries_are_refused(library, place, instead):
    name = "Layer" if library == "keras" else "Module"
    base = type(name, (), {"__module__": place, "__call__": lambda self, x: x})
    message = rf"serial: got the module Mine of {library}, expected .*{instead}"
    with pytest.raises(ValueError, match=message):
        jl.serial(jl.linear(4), type("Mine", (base,), {})())


def test_modules_of_nnx_are_refused():
    """Their weights would be missing in the params; so would those of a method."""
    linear = nnx.Linear(D, 2, rngs=nnx.Rngs(0))
    for function in linear, linear.__call__:
        with pytest.raises(ValueError, match=r"module Linear of flax\.nnx, expected"):
            jl.serial(function)
    assert jl.serial(nnx.relu).init(KEY, D) == (((),), D)


def test_modules_of_equinox_are_refused_if_they_have_arrays():
    @jax.tree_util.register_pytree_node_class
    class Module:
        __module__ = "equinox._module"

        def __init__(self, leaf):
            self.leaf = leaf

        def __call__(self, x):
            return x

        def tree_flatten(self):
            return (self.leaf,), None

        @classmethod
        def tree_unflatten(cls, _, leaves):
            return cls(*leaves)

    with pytest.raises(ValueError, match="module Module of equinox, expected"):
        jl.serial(Module(jnp.ones(2)))
    assert jl.serial(Module(jax.nn.relu)).init(KEY, D) == (((),), D)


def test_functions_that_change_the_rows_are_refused():
    layer = jl.serial(jl.linear(4), lambda x: x.reshape(-1))
    params, _ = layer.init(KEY, D)
    with pytest.raises(ValueError, match=r"from \[6, 4, 4\] to \[6, 16\], expected"):
        layer.apply(params, XS)


def test_parameters_may_be_numpy_arrays():
    """As `jax.device_get` and files of weights give them."""
    layer = jl.serial(jl.embed(9, 4), jl.recurrent(CELL, 5), jl.linear(2))
    params, _ = layer.init(jax.random.key(0))
    tokens = np.array([[3, 1], [0, 8]])
    assert_same(
        layer.apply(jax.device_get(params), tokens), layer.apply(params, tokens), 0
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"lenghts": 1}, "did you mean lengths?"),
        ({"initial_carry": 1}, "did you mean state?"),
        ({"rngs": 1}, "did you mean key?"),
        ({"return_carry": True}, "leave it out: the state is always returned"),
        ({"emit": None}, "use key, lengths, mask, resets, reset_state"),
    ],
)
def test_unknown_options_are_answered_by_the_right_ones(call, message):
    layer = jl.recurrent(jl.lstm(), 4)
    params, _ = layer.init(jax.random.key(0), 3)
    with pytest.raises(TypeError, match="recurrent: got an unknown.*" + message):
        layer.apply(params, jnp.ones((5, 3)), **call)


def test_errors_name_the_layer_by_its_path():
    stack = jl.stack(jl.lstm(), (4, 5), bidirectional=True)
    model = jl.serial(rnn=stack, head=jl.linear(2))
    params, _ = model.init(jax.random.key(0), 3)
    other = jl.lstm().init(jax.random.key(0), 7, 5)
    wrong = (params["rnn"][0], params["rnn"][1]._replace(backward=other))
    with pytest.raises(ValueError, match=r"^rnn/1/backward: .* 8 features, expected 7"):
        model.apply(params | {"rnn": wrong}, jnp.ones((6, 3)))
    head, _ = jl.linear(2).init(jax.random.key(0), 9)
    with pytest.raises(ValueError, match=r"^head: linear: xs: got 10 features"):
        model.apply(params | {"head": head}, jnp.ones((6, 3)))
    model = jl.serial(jl.linear(4), jl.residual(jl.linear(3)))
    with pytest.raises(ValueError, match=r"^1: residual: got a layer from 4 features"):
        model.init(jax.random.key(0), 3)


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.gelu, jnp.tanh, "silu"])
def test_functions_of_jax_are_saved_by_name(function, tmp_path):
    model = jl.serial(jl.linear(3), function, jl.linear(2))
    params, _ = model.init(jax.random.key(0), 4)
    xs = jax.random.normal(jax.random.key(1), (5, 4))
    model_file.save(tmp_path / "m.safetensors", model, params)
    _, loaded = model_file.load(tmp_path / "m.safetensors")
    for copy in pickle.loads(pickle.dumps(model)), loaded:
        assert copy == model
        assert (copy.apply(params, xs)[1] == model.apply(params, xs)[1]).all()


def test_an_unknown_function_is_answered_by_the_known_ones():
    with pytest.raises(ValueError, match=r"got 'rel', expected a Layer, .* relu"):
        jl.serial(jl.linear(3), "rel")
