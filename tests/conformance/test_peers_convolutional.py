"""The convolutional LSTM equals the peers that have one: values and gradients.

Keras    i f g o   one bias
Haiku    i g f o   two biases, f + 1
linen    i g f o   two biases, f + 1
"""

import jax.numpy as jnp
import pytest
from questions import (
    FEATURES,
    HIDDEN,
    ROWS,
    TIME,
    agree,
    haiku_run,
    joined,
    keras_layer,
    keras_run,
    question,
    scanned,
)

import jaxlstm as jl
from jaxlstm.cells.convolutional import ConvLSTMParams

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("relaxed"),
]

SPACE = (4, 3, 2)


@pytest.mark.parametrize(("dimensions", "reverse"), [(1, False), (2, True), (3, False)])
def test_keras_conv_lstm(dimensions, reverse):
    """With padding "same" for the inputs, as always for the state."""
    space, kernel = SPACE[:dimensions], (3, 2, 3)[:dimensions]
    layer = keras_layer(
        f"ConvLSTM{dimensions}D", HIDDEN, kernel, reverse=reverse, padding="same",
        recurrent_activation="sigmoid", data_format="channels_last",
    )  # fmt: skip
    layer.build((ROWS, TIME, *space, FEATURES))
    cell = jl.conv_lstm(kernel)

    def peer(params, xs, state):
        weights = [joined(w, "ifgo", "ifgo") for w in params]
        return keras_run(layer, weights, xs, state, None, reverse)

    agree(cell, question(cell, space), peer, reverse=reverse)


def conv_weights(params: ConvLSTMParams, names: tuple[str, str, str, str]):
    """Kernel and bias of the two convolutions; the bias is with x, minus 1 for f."""
    w_x, w_h, b = params
    kernel, bias, there, back = names
    b = joined(b.at[1].add(-1.0), "igfo", "ifgo")
    return {
        there: {kernel: joined(w_x, "igfo", "ifgo"), bias: b},
        back: {kernel: joined(w_h, "igfo", "ifgo"), bias: jnp.zeros_like(b)},
    }


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_linen_conv_lstm(dimensions):
    linen = pytest.importorskip("flax.linen")
    space, kernel = SPACE[:dimensions], (3, 2, 3)[:dimensions]
    own = linen.ConvLSTMCell(HIDDEN, kernel, param_dtype=jnp.float64)
    cell = jl.conv_lstm(kernel)

    def peer(params, xs, state):
        variables = {"params": conv_weights(params, ("kernel", "bias", "ih", "hh"))}
        step = lambda x, s: jl.LSTMState(*own.apply(variables, s[::-1], x)[0][::-1])  # noqa: E731
        return scanned(step, state, xs)

    agree(cell, question(cell, space), peer)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_haiku_conv_lstm(dimensions):
    pytest.importorskip("haiku")
    space, kernel = SPACE[:dimensions], (3, 2, 3)[:dimensions]
    cell, name = jl.conv_lstm(kernel), f"conv{dimensions}_dlstm"

    def core(hk):
        kind = getattr(hk, f"Conv{dimensions}DLSTM")
        return kind((*space, FEATURES)[:-1], HIDDEN, kernel)

    def peer(params, xs, state):
        sides = (f"{name}/input_to_hidden", f"{name}/hidden_to_hidden")
        weights = conv_weights(params, ("w", "b", *sides))
        haiku = pytest.importorskip("haiku")
        last, hs = haiku_run(core, weights, xs, haiku.LSTMState(*state))
        return jl.LSTMState(last.hidden, last.cell), hs

    agree(cell, question(cell, space), peer)
