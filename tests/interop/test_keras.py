"""Arrays and files of Keras: order, both biases of the GRU, directions, live layers."""

import os

import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop import keras as interop
from random_models import MODELS, Options, assert_same_bits, draw

os.environ.setdefault("KERAS_BACKEND", "jax")

OPTIONS = Options(("lstm", "gru", "gru_reset_before", "rnn"), pointwise=False)


@MODELS
def test_loading_what_was_dumped_returns_the_same_bits(count):
    """Random models: stacks, directions, and the GRU with both places of the reset."""
    rng = np.random.default_rng(63)
    for _ in range(count):
        model, params = draw(rng, OPTIONS)
        both = any(isinstance(layer, jl.Pair) for layer in params)
        got, same = interop.load(interop.dump(model, params), bidirectional=both)
        assert_same_bits(got, params)
        assert same == model


def arrays(*shapes):
    rng = np.random.default_rng(64)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_layers_around_the_recurrent_ones():
    listed = arrays((9, 3), (3, 20), (5, 20), (20,), (5, 2), (2,))
    params, model = interop.load(listed)
    assert model == jl.serial(jl.embed(9, 3), jl.recurrent(jl.lstm(), 5), jl.linear(2))
    for got, expected in zip(interop.dump(model, params), listed, strict=True):
        assert got.tobytes() == expected.tobytes()
    square = arrays((9, 4), (4, 4), (4, 4), (4,))
    assert interop.load(square)[1] == jl.serial(
        jl.embed(9, 4), jl.recurrent(jl.simple_rnn(), 4)
    )


def test_the_place_of_the_reset_gate_is_read_from_the_bias():
    kernels = arrays((3, 15), (5, 15))
    after, model = interop.load([*kernels, *arrays((2, 15))])
    assert model == jl.recurrent(jl.gru(), 5)
    assert after.b_h.any()
    before, model = interop.load([*kernels, *arrays((15,))])
    assert model == jl.recurrent(jl.gru(reset_after=False), 5)
    assert before.b_h is None
    assert interop.load(kernels)[1] == jl.recurrent(jl.gru(), 5)
    assert interop.load(kernels, reset_after=False)[1] == model
    written = interop.dump(model, before._replace(b=0 * before.b), biases=False)
    assert [array.shape for array in written] == [(3, 15), (5, 15)]


def test_equal_shapes_are_ambiguous():
    listed = 2 * arrays((5, 20), (5, 20), (20,))
    with pytest.raises(
        ValueError, match=r"which fit 2 models; pass bidirectional=True or"
    ):
        interop.load(listed)
    assert interop.load(listed, bidirectional=False)[1] == jl.stack(jl.lstm(), (5, 5))
    both = jl.stack(jl.lstm(), (5,), bidirectional=True)
    assert interop.load(listed, bidirectional=True)[1] == both
    wider = 2 * arrays((3, 20), (5, 20), (20,))
    assert interop.load(wider)[1] == both


@pytest.mark.parametrize(
    "shapes",
    [[], [(3, 20)], [(3, 20), (5, 20), (7,)], [(3,), (5, 20)], [(3, 21), (5, 21)]],
)
def test_arrays_of_no_layer(shapes):
    if shapes == [(3, 20)]:  # a table on its own
        assert interop.load(arrays(*shapes))[1] == jl.embed(3, 20)
        return
    with pytest.raises(ValueError, match=r"^keras\.load: got "):
        interop.load(arrays(*shapes))


def test_what_keras_does_not_have_is_refused():
    params, model = interop.load(arrays((3, 20), (5, 20), (20,)))
    other = jl.recurrent(jl.lstm(candidate_activation="relu"), 5)
    with pytest.raises(ValueError, match="got candidate_activation='relu' and output"):
        interop.dump(other, params)
    with pytest.raises(ValueError, match="prefix: got 'lstm' for a list of arrays"):
        interop.load(arrays((3, 20), (5, 20)), prefix="lstm")
    with pytest.raises(
        ValueError, match="got dict, expected a list of arrays, a layer"
    ):
        interop.load({})
    assert model == jl.recurrent(jl.lstm(), 5)


# --- files ----------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Return a function that writes arrays as Keras does."""
    h5py = pytest.importorskip("h5py")

    def write(**layers):
        path = tmp_path / "model.weights.h5"
        with h5py.File(path, "w") as file:
            for name, listed in layers.items():
                for n, array in enumerate(listed):
                    file[f"layers/{name.replace('__', '/')}/vars/{n}"] = array
        return path

    return write


def test_files_of_keras(write):
    lstm, second = arrays((3, 20), (5, 20), (20,)), arrays((5, 20), (5, 20), (20,))
    params, model = interop.load(write(lstm__cell=lstm, lstm_1__cell=second))
    assert model == jl.stack(jl.lstm(), (5, 5))
    assert_same_bits(params, interop.load([*lstm, *second], bidirectional=False)[0])
    table, head = arrays((9, 3)), arrays((5, 2), (2,))
    path = write(embedding=table, lstm__cell=lstm, dense=head)
    message = "got 3 layers: .*dense: Linear 5 -> 2; .*pass prefix='lstm' for one of"
    with pytest.raises(ValueError, match=message):
        interop.load(path)
    assert_same_bits(interop.load(path, prefix="lstm")[0], interop.load(lstm)[0])
    _, model = interop.load(path, prefix=("embedding", "lstm", "dense"))
    assert model == jl.serial(
        embedding=jl.embed(9, 3), lstm=jl.recurrent(jl.lstm(), 5), dense=jl.linear(2)
    )
    both = write(both__forward_layer__cell=lstm, both__backward_layer__cell=lstm)
    params, model = interop.load(both)
    assert model == jl.stack(jl.lstm(), (5,), bidirectional=True)
    assert_same_bits(params[0].backward, interop.load(lstm)[0])


def test_wrong_files_name_the_layer(write):
    path = write(lstm__cell=arrays((3, 20), (5, 21)))
    with pytest.raises(
        ValueError, match=r"lstm: recurrent_kernel: got shape \[5, 21\]"
    ):
        interop.load(path)
    path = write(lstm__cell=arrays((3, 20), (5, 20), (7,)))
    with pytest.raises(
        ValueError, match=r"lstm: bias: got shape \[7\], expected \[20\]"
    ):
        interop.load(path)


# --- live layers ----------------------------------------------------------------------


@pytest.fixture
def keras():
    return pytest.importorskip("keras")


def layers_of(keras, kind, both, **options):
    layers = []
    for _ in range(2):
        layer = getattr(keras.layers, kind)(4, return_sequences=True, **options)
        layers.append(keras.layers.Bidirectional(layer) if both else layer)
    return layers


LIVE = [
    ("LSTM", {}),
    ("LSTM", {"use_bias": False}),
    ("GRU", {"bias_initializer": "uniform"}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"use_bias": False}),
    ("SimpleRNN", {"activation": "relu"}),
    ("LSTM", {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}),
]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("relaxed")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("kind", "options"), LIVE)
def test_a_live_model_gives_the_same_numbers(keras, kind, options, both, tmp_path):
    """The model, its file and its arrays give the same parameters, and back again."""
    peer = keras.Sequential(
        [keras.Input((None, 3)), *layers_of(keras, kind, both, **options)]
    )
    params, model = interop.load(peer)
    path = tmp_path / "model.weights.h5"
    peer.save_weights(path)
    assert_same_bits(interop.load(path)[0], params)
    whole = tmp_path / "model.keras"
    peer.save(whole)
    assert_same_bits(interop.load(whole)[0], params)
    xs = np.random.default_rng(65).normal(size=(7, 2, 3)).astype(np.float32)
    _, ours = model.apply(params, xs)
    theirs = np.asarray(peer(xs.swapaxes(0, 1))).swapaxes(0, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    written = interop.dump(model, params, biases=options.get("use_bias", True))
    assert_same_bits(interop.load(written, bidirectional=both)[0], params)
    peer.set_weights(written)
    again = np.asarray(peer(xs.swapaxes(0, 1))).swapaxes(0, 1)
    np.testing.assert_allclose(again, theirs, atol=1e-6)
