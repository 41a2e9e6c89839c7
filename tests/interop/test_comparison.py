"""Live parity: outputs, final states and gradients of models of other libraries.

float32 to 1e-6 and float64 to 1e-12 of the largest value. The table of docs/interop.md
lists the cases that are tested here.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl

os.environ.setdefault("KERAS_BACKEND", "jax")

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def noise(shape, dtype):
    rng = np.random.default_rng(shape)
    return (0.4 * rng.normal(size=shape)).astype(dtype)


def agree(report, dtype, *, rows) -> None:
    """Assert a small difference, and that this many results were compared."""
    assert len(report.differences) == rows, str(report)
    assert report.largest < TOLERANCE[dtype], str(report)


# --- torch ----------------------------------------------------------------------------

TORCH = {
    "LSTM": ("LSTM", {}),
    "LSTM without bias": ("LSTM", {"bias": False}),
    "LSTM, layers": ("LSTM", {"num_layers": 3, "dropout": 0.3}),
    "LSTM, both directions": ("LSTM", {"bidirectional": True}),
    "LSTM, projection": (
        "LSTM",
        {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    ),
    "GRU": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "GRU without bias": ("GRU", {"bias": False}),
    "RNN, tanh": ("RNN", {"num_layers": 2}),
    "RNN, relu": ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.mark.thorough
@DTYPES
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", TORCH)
def test_torch(case, batch_first, dtype, relaxed, x64):
    torch = pytest.importorskip("torch")
    name, options = TORCH[case]
    torch.manual_seed(0)
    peer = getattr(torch.nn, name)(
        3, 5, batch_first=batch_first, dtype=getattr(torch, dtype), **options
    )
    params, model = jl.interop.torch.load(peer)
    report = jl.interop.compare(model, params, peer)
    states = len(jax.tree.leaves(model.apply(params, jnp.ones((1, 1, 3)))[0]))
    agree(report, dtype, rows=2 + states + len(list(peer.parameters())))
    again = getattr(torch.nn, name)(3, 5, dtype=getattr(torch, dtype), **options)
    arrays = jl.interop.torch.dump(model, params, biases=options.get("bias", True))
    again.load_state_dict({key: torch.from_numpy(a) for key, a in arrays.items()})
    agree(jl.interop.compare(model, params, again), dtype, rows=len(report.differences))


# --- Keras ----------------------------------------------------------------------------

KERAS = {
    "LSTM": ("LSTM", {}),
    "LSTM without bias": ("LSTM", {"use_bias": False}),
    "GRU, reset after": ("GRU", {"bias_initializer": "glorot_uniform"}),
    "GRU, reset before": ("GRU", {"reset_after": False}),
    "RNN": ("SimpleRNN", {"activation": "softsign"}),
}


def exact_tanh(keras):
    """The tanh of Keras is exact to float32 only."""

    @keras.saving.register_keras_serializable("jaxlstm")
    def tanh(x):
        return jnp.tanh(x)

    return tanh


@pytest.mark.thorough
@DTYPES
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("case", KERAS)
def test_keras(case, both, dtype, relaxed, x64):
    keras = pytest.importorskip("keras")
    name, options = KERAS[case]
    if "activation" not in options:
        options = options | {"activation": exact_tanh(keras)}
    layer = getattr(keras.layers, name)(
        5, return_sequences=True, return_state=True, dtype=dtype, **options
    )
    layer = keras.layers.Bidirectional(layer, dtype=dtype) if both else layer
    layer.build((None, 12, 3))
    params, model = jl.interop.keras.load(layer)
    states = (2 if name == "LSTM" else 1) * (1 + both)
    agree(jl.interop.compare(model, params, layer), dtype, rows=2 + states)


# --- Flax -----------------------------------------------------------------------------

FLAX = pytest.mark.parametrize(
    "name", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"]
)
BOTH = pytest.mark.parametrize("both", [False, True])


@pytest.mark.thorough
@DTYPES
@BOTH
@FLAX
def test_linen(name, both, dtype, relaxed, x64):
    from flax import linen

    def rnn():
        return linen.RNN(getattr(linen, name)(5, dtype=dtype, param_dtype=dtype))

    peer = linen.Bidirectional(rnn(), rnn()) if both else rnn()
    variables = peer.init(jax.random.key(0), jnp.ones((1, 1, 3)))
    variables = jax.tree.map(lambda w: w + noise(w.shape, dtype), variables)
    params, model = jl.interop.flax.load(variables)
    states = (2 if "LSTM" in name else 1) * (1 + both)
    report = jl.interop.compare(model, params, (peer, variables))
    agree(report, dtype, rows=2 + states)


@pytest.mark.thorough
@DTYPES
@BOTH
@FLAX
def test_nnx(name, both, dtype, relaxed, x64):
    from flax import nnx

    rngs = nnx.Rngs(0)

    def rnn():
        cell = getattr(nnx, name)(3, 5, dtype=dtype, param_dtype=dtype, rngs=rngs)
        return nnx.RNN(cell, rngs=rngs)

    peer = nnx.Bidirectional(rnn(), rnn(), rngs=rngs) if both else rnn()
    params, model = jl.interop.flax.load(peer)
    states = (2 if "LSTM" in name else 1) * (1 + both)
    agree(jl.interop.compare(model, params, peer), dtype, rows=2 + states)


# --- Haiku and Equinox ----------------------------------------------------------------


@pytest.mark.thorough
@DTYPES
@pytest.mark.parametrize("name", ["LSTM", "GRU", "VanillaRNN"])
def test_haiku(name, dtype, relaxed, x64):
    haiku = pytest.importorskip("haiku")

    def network(xs):
        core = haiku.DeepRNN([getattr(haiku, name)(5), getattr(haiku, name)(4)])
        return haiku.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

    peer = haiku.without_apply_rng(haiku.transform(network))
    weights = peer.init(jax.random.key(0), jnp.ones((2, 1, 3)))
    weights = jax.tree.map(lambda w: (w + noise(w.shape, dtype)).astype(dtype), weights)
    params, model = jl.interop.haiku.load(weights)
    report = jl.interop.compare(
        model, params, lambda xs, lengths: peer.apply(weights, xs), ragged=False
    )
    agree(report, dtype, rows=2)


@pytest.mark.thorough
@DTYPES
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_equinox(name, use_bias, dtype, relaxed, x64):
    equinox = pytest.importorskip("equinox")
    make, keys = getattr(equinox.nn, name), jax.random.split(jax.random.key(0))
    peer = [
        make(size, 5, use_bias=use_bias, dtype=jnp.dtype(dtype), key=key)
        for size, key in zip((3, 5), keys, strict=True)
    ]
    params, model = jl.interop.equinox.load(peer)
    states = 4 if name == "LSTMCell" else 2
    agree(jl.interop.compare(model, params, peer), dtype, rows=2 + states)


# --- any function ---------------------------------------------------------------------


def small():
    model = jl.recurrent(jl.lstm(), 5)
    return model, model.init(jax.random.key(0), 3)[0]


def test_a_function_of_jax_or_of_numpy():
    model, params = small()

    def same(xs, lengths):
        return model.apply(params, xs, lengths=lengths)[1]

    report = jl.interop.compare(model, params, same)
    assert [d.name for d in report.differences] == ["outputs", "gradient of inputs"]
    assert report.largest < 1e-6
    host = lambda xs, lengths: np.asarray(same(np.asarray(xs), lengths))  # noqa: E731
    report = jl.interop.compare(model, params, host)
    assert [d.name for d in report.differences] == ["outputs"]
    tokens = jl.serial(jl.embed(9, 3), model)
    given = (tokens.init(jax.random.key(1))[0][0], params)
    report = jl.interop.compare(
        tokens, given, lambda xs, lengths: tokens.apply(given, xs, lengths=lengths)[1]
    )
    assert [d.name for d in report.differences] == ["outputs"]


def test_a_difference_is_found_and_printed():
    model, params = small()
    other = params._replace(b=params.b.at[0, 0].add(0.1))

    def different(xs, lengths):
        return model.apply(other, xs, lengths=lengths)[1]

    report = jl.interop.compare(model, params, different, steps=4, rows=2)
    assert 1e-4 < report.largest < 0.1
    lines = str(report).splitlines()
    assert lines[0].split() == ["result", "shape", "difference", "largest", "value"]
    assert lines[1].startswith("outputs             [4, 2, 5]  ")
    nan = jl.interop.compare(model, params, lambda xs, _: different(xs, None) * jnp.nan)
    assert np.isnan(nan.largest)


def test_values_in_padding_are_not_compared():
    model, params = small()

    def wrong_padding(xs, lengths):
        ys = model.apply(params, xs, lengths=lengths)[1]
        active = jnp.arange(len(xs))[:, None] < lengths[None]
        return jnp.where(active[..., None], ys, 7.0)

    assert jl.interop.compare(model, params, wrong_padding).largest < 1e-6


def test_models_that_cannot_be_compared_are_refused():
    model, params = small()
    with pytest.raises(
        ValueError, match=r"^compare: other: got int, expected a module"
    ):
        jl.interop.compare(model, params, 3)
    with pytest.raises(
        ValueError, match=r"other: got outputs of shape \[12, 5, 4\], ex"
    ):
        jl.interop.compare(model, params, lambda xs, _: jnp.ones((12, 5, 4)))
