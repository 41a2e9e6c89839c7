"""Arguments of Flax's `RNN`: each works, or is answered with what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ragged
from flax import linen, nnx
from ragged import FEATURES, HIDDEN, LENGTHS, ROWS, TIME, assert_close, ours, pure

import jaxlstm as jl

BATCH = ragged.draw()
XS = np.nan_to_num(BATCH.xs)
every_kind = pytest.mark.parametrize("kind", ragged.KINDS)


@pytest.mark.parametrize("place", ["call", "constructor"])
@every_kind
def test_reverse(kind, place):
    """It equals a reversed layer, for ragged rows with NaN in padding and resets."""
    at_call, given = ({}, {"reverse": True})[:: 1 if place == "constructor" else -1]
    model = ours(kind, return_carry=True, **given)
    steps = {"seq_lengths": LENGTHS, "resets": BATCH.resets}
    carry, ys = model(BATCH.xs, **steps, **at_call)
    layer = jl.recurrent(jl.lstm(), HIDDEN, reverse=True)
    params = parameters(kind)
    state, expected = layer.apply(
        params, BATCH.xs.swapaxes(0, 1), lengths=LENGTHS, resets=BATCH.resets.T
    )
    assert_close((carry[0], ys), (state, expected.swapaxes(0, 1)))


def parameters(kind):
    """Return the parameters of the module that `ours` builds."""
    if kind == "nnx":
        return pure(jl.modules.nnx.LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0)))[0]
    module = jl.modules.linen.LSTM(HIDDEN)
    variables = module.init(jax.random.key(0), jnp.ones((1, 1, FEATURES)))
    return jl.LSTMParams(**variables["params"]["layer"]["0"])


def test_a_reversed_run_equals_that_of_flax():
    """With lengths, from the weights of a module of nnx."""
    cell = nnx.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    theirs = nnx.RNN(cell, reverse=True, keep_order=True, rngs=nnx.Rngs(0))
    params, layer = jl.interop.flax.load(theirs)
    model = jl.modules.nnx.Recurrent(layer, FEATURES, reverse=True, rngs=nnx.Rngs(0))
    model.params = nnx.data(jax.tree.map(nnx.Param, params))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = theirs(jnp.asarray(XS), seq_lengths=jnp.asarray(LENGTHS))
    active = (np.arange(TIME) < LENGTHS[:, None])[..., None]
    ys = model(XS, seq_lengths=LENGTHS)
    assert_close(ys, np.where(active, expected, 0))


def test_the_preset_that_draws_as_flax():
    """Of docs/layers.md: one orthogonal matrix, LeCun normal, no forget bias."""
    draw, size = jl.initializers, 32
    preset = draw.Preset(
        draw.lecun_per_gate(), draw.orthogonal_fused(), draw.forget_bias(0.0)
    )
    cell = nnx.OptimizedLSTMCell(size, size, rngs=nnx.Rngs(0))
    theirs, _ = jl.interop.flax.load(nnx.RNN(cell, rngs=nnx.Rngs(0)))
    ours = jl.lstm(init=preset).init(jax.random.key(0), size, size)
    for params in theirs, ours:
        fused = params.w_h.reshape(size, 4 * size)
        np.testing.assert_allclose(fused @ fused.T, np.eye(size), atol=1e-5)
        np.testing.assert_allclose(params.w_x.std() * size**0.5, 1, atol=0.05)
        assert not params.b.any()


def with_weights_of(theirs) -> jl.modules.nnx.Recurrent:
    """Return our module with the weights of an `nnx.RNN`."""
    params, layer = jl.interop.flax.load(theirs)
    model = jl.modules.nnx.Recurrent(layer, FEATURES, rngs=nnx.Rngs(0))
    model.params = nnx.data(jax.tree.map(nnx.Param, params))
    return model


@pytest.mark.parametrize("time_major", [False, True])
def test_the_order_of_execution_equals_that_of_flax(time_major):
    """`keep_order=False`, with and without lengths; the default of Flax."""
    cell = nnx.OptimizedLSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    theirs = nnx.RNN(cell, time_major=time_major, rngs=nnx.Rngs(0))
    model = with_weights_of(theirs)
    xs = XS.swapaxes(0, 1) if time_major else XS
    options = {"time_major": time_major, "keep_order": False}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        whole = theirs(jnp.asarray(xs), reverse=True)
        padded = theirs(jnp.asarray(xs), reverse=True, seq_lengths=jnp.asarray(LENGTHS))
    assert_close(model(xs, reverse=True, **options), whole)
    active = np.arange(TIME) < LENGTHS[:, None]
    active = (active.T if time_major else active)[..., None]
    ys = model(xs, reverse=True, seq_lengths=LENGTHS, **options)
    assert_close(ys, np.where(active, padded, 0))
    assert_close(model(xs, **options), theirs(jnp.asarray(xs)))


@every_kind
def test_the_order_of_execution(kind):
    """Each row begins at its last executed step; the carry and gradients agree."""
    model = ours(kind, return_carry=True, reverse=True)
    mask = np.arange(TIME) < LENGTHS[:, None]
    mask[1] = [True, True, False, True, False, False]

    def run(xs, keep_order):
        return model(xs, mask=mask, keep_order=keep_order)

    def flipped(values):
        result = np.zeros_like(values)
        for row, active in enumerate(mask):
            count = max(np.flatnonzero(active), default=-1) + 1
            result[row, :count] = values[row, :count][::-1]
        return result

    carry, kept = run(XS, True)
    other, ys = jax.jit(run, static_argnums=1)(XS, False)
    assert_close(other, carry)
    assert_close(ys, flipped(np.asarray(kept)))
    weights = np.random.default_rng(0).normal(size=kept.shape).astype(np.float32)
    weights = np.where(mask[..., None], weights, 0)
    gradients = [
        jax.grad(lambda xs, w=w, k=k: (run(xs, k)[1] * w).sum())(XS)
        for w, k in ((weights, True), (flipped(weights), False))
    ]
    assert_close(*gradients)


@every_kind
def test_the_order_of_execution_of_no_steps(kind):
    options = {"reverse": True, "keep_order": False}
    ys = ours(kind, **options)(XS[:, :0], seq_lengths=np.zeros(ROWS, int))
    assert ys.shape == (ROWS, 0, HIDDEN)


@every_kind
def test_time_major_at_the_call(kind):
    model = ours(kind)
    ys = model(XS.swapaxes(0, 1), time_major=True, seq_lengths=LENGTHS)
    assert_close(ys.swapaxes(0, 1), model(XS, seq_lengths=LENGTHS))


@every_kind
def test_dtypes(kind):
    model = ours(kind, dtype=jnp.bfloat16, return_carry=True)
    carry, ys = model(XS)
    assert (ys.dtype, carry[0].c.dtype) == (jnp.bfloat16, jnp.float32)
    wide = ours(kind, dtype=jnp.float32)(XS.astype(np.float16))
    assert wide.dtype == jnp.float32


def test_dtypes_of_parameters():
    model = jl.modules.nnx.LSTM(
        FEATURES, HIDDEN, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    module = jl.modules.linen.LSTM(HIDDEN, param_dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), XS)
    for params in (nnx.state(model, nnx.Param), variables):
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    assert model(XS).dtype == module.apply(variables, XS).dtype == jnp.float32


def test_bidirectional_of_nnx_around_ours():
    """It equals `jl.stack(..., bidirectional=True)` with the same parameters."""
    forward, backward = (
        jl.modules.nnx.LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(n)) for n in range(2)
    )
    both = nnx.Bidirectional(forward, backward)
    layer = jl.stack(jl.lstm(), (HIDDEN,), bidirectional=True)
    params = (jl.Pair(pure(forward)[0], pure(backward)[0]),)
    state, expected = layer.apply(params, BATCH.xs.swapaxes(0, 1), lengths=LENGTHS)
    carry, ys = both(BATCH.xs, seq_lengths=LENGTHS, return_carry=True)
    assert_close(ys, expected.swapaxes(0, 1))
    assert_close((carry[0][0], carry[1][0]), tuple(state[0]))


def test_bidirectional_of_linen_around_ours():
    both = linen.Bidirectional(jl.modules.linen.LSTM(5), jl.modules.linen.LSTM(5))
    variables = both.init(jax.random.key(0), XS)
    params = (
        jl.Pair(
            *(
                jl.LSTMParams(**variables["params"][way]["layer"]["0"])
                for way in ("forward_rnn", "backward_rnn")
            )
        ),
    )
    layer = jl.stack(jl.lstm(), (HIDDEN,), bidirectional=True)
    _, expected = layer.apply(params, BATCH.xs.swapaxes(0, 1), lengths=LENGTHS)
    ys = both.apply(variables, BATCH.xs, seq_lengths=LENGTHS)
    assert_close(ys, expected.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("kernel_init", r"cell=jl\.lstm\(init=jl\.initializers\.Preset"),
        ("bias_init", r"cell=jl\.lstm\(init=jl\.initializers\.Preset"),
        ("gate_fn", r"cell=jl\.lstm\(gate_activation=\.\.\.\)"),
        ("activation_fn", r"cell=jl\.lstm\(candidate_activation=\.\.\., output_act"),
        ("carry_init", r"cell=jl\.learned_initial_state"),
        ("unroll", "nothing in its place"),
    ],
)
@every_kind
def test_options_of_flax_are_answered(kind, option, instead):
    with pytest.raises(TypeError, match=f"LSTM: got the option {option} .*{instead}"):
        ours(kind, **{option: 1})


@every_kind
def test_unknown_options_are_refused(kind):
    with pytest.raises(TypeError, match="LSTM: got an unexpected keyword argument 'x'"):
        ours(kind, x=1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lengths", "it is seq_lengths here"),
        ("state", "it is initial_carry here"),
        ("reset_state", r"layer\.apply, which takes it"),
        ("seq_length", r"did you mean seq_lengths\?"),
        ("x", "expected initial_carry, seq_lengths, mask, resets, return_carry, "),
    ],
)
@every_kind
def test_unknown_arguments_of_a_call_are_answered(kind, argument, message):
    with pytest.raises(TypeError, match=f"'{argument}'; .*{message}"):
        ours(kind)(XS, **{argument: LENGTHS})


@pytest.mark.parametrize("arguments", [((ROWS, FEATURES),), (XS, nnx.Rngs(0))])
def test_a_carry_is_not_made_from_a_shape(arguments):
    model = jl.modules.nnx.LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    message = r"initialize_carry: got a shape .* pass inputs \[\*b, T, D\], not their"
    with pytest.raises(TypeError, match=message):
        model.initialize_carry(*arguments)
    module, key = jl.modules.linen.LSTM(HIDDEN), jax.random.key(0)
    with pytest.raises(TypeError, match=message):
        module.init(key, key, arguments[0], method="initialize_carry")


@pytest.mark.parametrize("rngs", [jax.random.key(0), 0])
def test_sources_of_keys(rngs):
    with pytest.raises(TypeError, match=r"LSTM: rngs: got .*write rngs=nnx\.Rngs\(key"):
        jl.modules.nnx.LSTM(FEATURES, HIDDEN, rngs=rngs)
    layer, rngs = jl.dropout(0.5), nnx.Rngs(0)
    with pytest.raises(TypeError, match=r"dropout: key: got Rngs .* rngs\.dropout\(\)"):
        layer.apply((), XS, key=rngs)
    with pytest.raises(
        TypeError, match=r"got RngStream .* pass for example stream\(\)"
    ):
        layer.apply((), XS, key=rngs.dropout)
    assert layer.apply((), XS, key=rngs.dropout())[1].shape == XS.shape


@every_kind
def test_classes_of_flax_are_answered(kind):
    modules = getattr(jl.modules, kind)
    with pytest.raises(
        AttributeError, match=rf"{kind}\.LSTM\(\.\.\., cell=jl\.gru\(\)\)"
    ):
        modules.GRU  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'Mine'$"):
        modules.Mine  # noqa: B018
    with pytest.raises(
        ValueError, match=r"cell: got GRUCell, expected a Cell, such as"
    ):
        ours(kind, cell=nnx.GRUCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("in_features", [None, 3])
def test_tokens_need_no_feature_axis(in_features):
    layer = jl.serial(jl.embed(9, 3), jl.recurrent(jl.lstm(), HIDDEN))
    tokens, message = np.ones((ROWS, TIME), int), r"feature_axes: got 1 .* expected 0;"
    with pytest.raises(ValueError, match=message):
        jl.modules.nnx.Recurrent(layer, in_features, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        jl.modules.linen.Recurrent(layer).init(jax.random.key(0), tokens)
    model = jl.modules.nnx.Recurrent(layer, feature_axes=0, rngs=nnx.Rngs(0))
    assert model(tokens).shape == (ROWS, TIME, HIDDEN)
    with pytest.raises(ValueError, match="got dtype float32, expected integer tokens"):
        model(np.ones((ROWS, TIME), np.float32))


@every_kind
def test_the_carry_has_names(kind):
    """Not the order (c, h) of Flax, which is refused."""
    model = ours(kind, return_carry=True)
    carry, _ = model(XS)
    (state,) = carry  # c, h = carry fails
    assert state._fields == ("h", "c")
    with pytest.raises(ValueError, match=r"initial_carry: got a tuple of two arrays"):
        model(XS, initial_carry=(state.c, state.h))
    assert_close(model(XS, initial_carry=carry), model(XS, initial_carry=(state,)))
