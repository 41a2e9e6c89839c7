"""The other cells against the peers that have them: values and gradients, float64.

How weights are laid out here is written here:

    torch GRU         r z n   two biases; b_hn inside the reset gate's reach
    Keras GRU         z r n   one bias, or two with reset_after
    linen, nnx GRU    r z n   by name, side by side; nnx has no b_hn
    Haiku GRU         z r n   reset before the product, and 1 - z where ours has z
    Equinox GRU       r z n   one bias and b_hn
    Keras ConvLSTM    i f g o
    Haiku ConvLSTM    i g f o   two biases, f + 1
    linen ConvLSTM    i g f o   two biases, f + 1
"""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same
from jaxlstm.cells.convolutional import ConvLSTMParams
from jaxlstm.cells.gru import GRUParams
from jaxlstm.cells.simple import RNNParams

os.environ.setdefault("KERAS_BACKEND", "jax")

pytestmark = pytest.mark.filterwarnings("ignore")

TIME, ROWS, FEATURES, HIDDEN = 6, 3, 4, 5
SPACE = (4, 3, 2)
LENGTHS = np.array([1, TIME, 4], np.int32)


@pytest.fixture(autouse=True)
def relaxed(x64):
    """Float64, and JAX's usual rules in place of the strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Question(NamedTuple):
    """Parameters, inputs and a state that is not zero."""

    params: Any
    xs: jax.Array
    state: Any


def ask(params_of, state_of, frame: tuple[int, ...] = ()) -> Question:
    """Random numbers in the shapes that a cell's `init` and `initial_state` give."""
    rng = np.random.default_rng(51)

    def draw(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)

    params = draw(jax.eval_shape(params_of, jax.random.key(0)))
    state = draw(jax.eval_shape(lambda: state_of(params, (ROWS, *frame))))
    xs = jnp.asarray(rng.normal(size=(TIME, ROWS, *frame, FEATURES)))
    return Question(params, xs, state)


def question(cell: jl.Cell, frame: tuple[int, ...] = ()) -> Question:
    return ask(lambda key: cell.init(key, FEATURES, HIDDEN), cell.initial_state, frame)


def agree(cell: jl.Cell, asked: Question, peer, *, happens=None, **options) -> None:
    """`peer(params, xs, state) -> (state, hs)` has our values and our gradients."""

    def ours(params, xs, state):
        return jl.unroll(cell, params, xs, state, **options)

    def theirs(params, xs, state):
        state, hs = peer(params, xs, state)
        return state, hs if happens is None else jnp.where(happens[..., None], hs, 0.0)

    rng = np.random.default_rng(52)
    shapes = jax.eval_shape(ours, *asked)
    cotangents = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)
    got, wanted = (pulled(run, asked, cotangents) for run in (ours, theirs))
    assert_same(got, wanted)


def pulled(run, asked: Question, cotangents):
    out, pull = jax.vjp(run, *asked)
    return out, pull(cotangents)


def joined(weight, order: str, names: str):
    """The gate axis in another order, and one with the last: `[..., gates * H]`."""
    taken = weight[..., [names.index(gate) for gate in order], :]
    return taken.reshape(*weight.shape[:-2], -1)


def happening(masking: str):
    """None, or bool `[T, b]`: the first steps of each row, or any of them."""
    if masking == "none":
        return None
    if masking == "lengths":
        return np.arange(TIME)[:, None] < LENGTHS
    return np.random.default_rng(53).random((TIME, ROWS)) < 0.7


def scanned(cell, state, xs, shown=lambda state: state[0]):
    """A peer that has no sequences: `cell(x, state) -> state`, scanned here."""

    def step(state, x):
        state = cell(x, state)
        return state, shown(state)

    return jax.lax.scan(step, state, xs)


# --- torch ----------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["GRU", "tanh", "relu"])
def test_torch(kind, packed):
    """`nn.GRU`, and `nn.RNN` with both its activations."""
    torch = pytest.importorskip("torch")
    cell = jl.gru() if kind == "GRU" else jl.simple_rnn(activation=kind)
    params, xs, state = question(cell)
    lengths = LENGTHS if packed else None
    (last, hs), pull = jax.vjp(
        lambda *given: jl.unroll(cell, *given, lengths=lengths), params, xs, state
    )
    gradients = pull((last, hs))  # the cotangents are the values themselves
    options = {} if kind == "GRU" else {"nonlinearity": kind}
    peer = getattr(torch.nn, "GRU" if kind == "GRU" else "RNN")
    peer = peer(FEATURES, HIDDEN, dtype=torch.float64, **options)
    for name, value in torch_weights(params).items():
        getattr(peer, name).data.copy_(torch.tensor(np.asarray(value)))
    x, h = (torch.tensor(np.asarray(v), requires_grad=True) for v in (xs, state.h))
    fed = x
    if packed:
        counts = torch.tensor(LENGTHS.astype(np.int64))
        fed = torch.nn.utils.rnn.pack_padded_sequence(x, counts, enforce_sorted=False)
    outputs, end = peer(fed, h[None])
    if packed:
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs)
    assert_same((end[0].detach(), outputs.detach()), (last, hs))
    torch.autograd.backward((outputs, end), (outputs.detach(), end.detach()))
    grads = {name: tensor.grad.numpy() for name, tensor in peer.named_parameters()}
    assert_same([x.grad, h.grad], list(gradients[1:]))
    d = gradients[0]
    wanted = torch_weights(d)
    assert_same(grads["weight_ih_l0"], wanted["weight_ih_l0"])
    assert_same(grads["weight_hh_l0"], wanted["weight_hh_l0"])
    assert_same(grads["bias_ih_l0"], d.b.ravel())
    b_hn = d.b_h if kind == "GRU" else d.b
    assert_same(grads["bias_hh_l0"][-HIDDEN:], b_hn)


def torch_weights(params):
    """All of our b on the side of x; on the side of h what the reset gate scales."""
    w_x, w_h = (jnp.moveaxis(w, 0, -1).reshape(-1, len(w)) for w in params[:2])
    b, b_h = params.b.ravel(), jnp.zeros(params.b.size)
    if isinstance(params, GRUParams):
        b_h = b_h.at[-HIDDEN:].set(params.b_h)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return dict(zip(names, (w_x, w_h, b, b_h), strict=True))


# --- Keras ----------------------------------------------------------------------------


def keras_layer(name: str, *size, reverse: bool = False, **options):
    """The layer, its rates of dropout not zero: without training they are nothing."""
    keras = pytest.importorskip("keras")
    return getattr(keras.layers, name)(
        *size,
        return_sequences=True,
        return_state=True,
        go_backwards=reverse,
        activation=jnp.tanh,  # its own is exact to float32 only
        dropout=0.3,
        recurrent_dropout=0.4,
        dtype="float64",
        **options,
    )


def keras_run(layer, weights, xs, state, mask, reverse: bool):
    """The last state and the outputs at their own t, which Keras gives as they run."""
    extra = [v.value for v in layer.non_trainable_variables]
    (hs, *last), _ = layer.stateless_call(
        weights,
        extra,
        xs.swapaxes(0, 1),
        initial_state=list(state),
        mask=None if mask is None else jnp.asarray(mask.T),
    )
    hs = hs.swapaxes(0, 1)
    return type(state)(*last), hs[::-1] if reverse else hs


MASKED = pytest.mark.parametrize("masking", ["none", "lengths", "mask"])
REVERSED = pytest.mark.parametrize("reverse", [False, True])


@MASKED
@REVERSED
@pytest.mark.parametrize("reset_after", [True, False])
def test_keras_gru(reset_after, reverse, masking):
    layer = keras_layer(
        "GRU",
        HIDDEN,
        reverse=reverse,
        reset_after=reset_after,
        zero_output_for_mask=True,
    )
    layer.build((ROWS, TIME, FEATURES))
    cell, happens = jl.gru(reset_after=reset_after), happening(masking)

    def peer(params, xs, state):
        w_x, w_h, b = (joined(w, "zrn", "rzn") for w in params[:3])
        if reset_after:
            b = jnp.stack([b, jnp.zeros(3 * HIDDEN).at[-HIDDEN:].set(params.b_h)])
        return keras_run(layer, [w_x, w_h, b], xs, state, happens, reverse)

    agree(cell, question(cell), peer, mask=happens, reverse=reverse)


@MASKED
@REVERSED
def test_keras_simple_rnn(reverse, masking):
    layer = keras_layer("SimpleRNN", HIDDEN, reverse=reverse, zero_output_for_mask=True)
    layer.build((ROWS, TIME, FEATURES))
    cell, happens = jl.simple_rnn(), happening(masking)

    def peer(params, xs, state):
        return keras_run(layer, list(params), xs, state, happens, reverse)

    agree(cell, question(cell), peer, mask=happens, reverse=reverse)


@REVERSED
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_keras_conv_lstm(dimensions, reverse):
    """Padding "same" for the inputs, as it always is for the state."""
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


# --- Flax -----------------------------------------------------------------------------


def flax_gru(params: GRUParams):
    """One dense layer for each gate and side."""
    names = {f"i{gate}": {"kernel": params.w_x[:, k], "bias": params.b[k]}
             for k, gate in enumerate("rzn")}  # fmt: skip
    names |= {f"h{gate}": {"kernel": params.w_h[:, k]} for k, gate in enumerate("rzn")}
    names["hn"]["bias"] = params.b_h
    return names


def flax_simple(params: RNNParams):
    return {"i": {"kernel": params.w_x, "bias": params.b}, "h": {"kernel": params.w_h}}


@pytest.mark.parametrize("masking", ["none", "lengths"])
@REVERSED
@pytest.mark.parametrize("name", ["GRUCell", "SimpleCell"])
def test_linen(name, reverse, masking):
    linen = pytest.importorskip("flax.linen")
    cell, named = {
        "GRUCell": (jl.gru(), flax_gru),
        "SimpleCell": (jl.simple_rnn(), flax_simple),
    }[name]
    layer = getattr(linen, name)(HIDDEN, param_dtype=jnp.float64, dtype=jnp.float64)
    layer = linen.RNN(layer, time_major=True, return_carry=True, reverse=reverse,
                      keep_order=True)  # fmt: skip
    lengths = LENGTHS if masking == "lengths" else None

    def peer(params, xs, state):
        variables = {"params": {"cell": named(params)}}
        h, hs = layer.apply(variables, xs, initial_carry=state.h, seq_lengths=lengths)
        return jl.HiddenState(h), hs

    agree(cell, question(cell), peer, happens=happening(masking), lengths=lengths,
          reverse=reverse)  # fmt: skip


@pytest.mark.parametrize("name", ["GRUCell", "SimpleCell"])
def test_nnx(name):
    """Its GRU has no b_hn: ours is zero here, and so is not asked for its gradient."""
    nnx = pytest.importorskip("flax.nnx")
    cell = jl.gru() if name == "GRUCell" else jl.simple_rnn()
    asked = question(cell)
    fixed = {"b_h": jnp.zeros(HIDDEN)} if name == "GRUCell" else {}
    free = tuple(asked.params)[:3]

    def whole(params):
        return type(asked.params)(*params, **fixed)

    outer = cell._replace(
        initial_state=lambda params, *a, **k: cell.initial_state(
            whole(params), *a, **k
        ),
        project=lambda params, x: cell.project(whole(params), x),
        step=lambda params, state, z: cell.step(whole(params), state, z),
    )

    def peer(params, xs, state):
        rngs = nnx.Rngs(0)
        own = getattr(nnx, name)(FEATURES, HIDDEN, param_dtype=jnp.float64,
                                 dtype=jnp.float64, rngs=rngs)  # fmt: skip
        w_x, w_h, b = (
            w.reshape(*w.shape[: w.ndim - 1 - (name == "GRUCell")], -1) for w in params
        )
        own.dense_i.kernel, own.dense_i.bias = nnx.Param(w_x), nnx.Param(b)
        own.dense_h.kernel = nnx.Param(w_h)
        layer = nnx.RNN(own, time_major=True, return_carry=True, rngs=rngs)
        h, hs = layer(xs, initial_carry=state.h)
        return jl.HiddenState(h), hs

    agree(outer, asked._replace(params=free), peer)


def conv_weights(params: ConvLSTMParams, names: tuple[str, str, str, str]):
    """Kernel and bias of the two convolutions: the bias on the side of x, f less 1."""
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


# --- Haiku and Equinox ----------------------------------------------------------------


def haiku_run(core_of, weights, xs, state):
    """The core over the sequence, with these weights."""
    haiku = pytest.importorskip("haiku")

    def network(xs, state):
        hs, last = haiku.dynamic_unroll(core_of(haiku), xs, state)
        return last, hs

    return haiku.without_apply_rng(haiku.transform(network)).apply(weights, xs, state)


def test_haiku_gru():
    """Its z is one minus ours: 1 - σ(a) = σ(-a), so those weights change their sign."""
    pytest.importorskip("haiku")
    cell = jl.gru(reset_after=False)

    def peer(params, xs, state):
        w_x, w_h, b = (
            joined(w.at[..., 1, :].multiply(-1.0), "zrn", "rzn") for w in params[:3]
        )
        weights = {"gru": {"w_i": w_x, "w_h": w_h, "b": b}}
        h, hs = haiku_run(lambda hk: hk.GRU(HIDDEN), weights, xs, state.h)
        return jl.HiddenState(h), hs

    agree(cell, question(cell), peer)


def test_haiku_simple_rnn():
    pytest.importorskip("haiku")
    cell = jl.simple_rnn(activation="relu")

    def peer(params, xs, state):
        w_x, w_h, b = params
        weights = {
            "vanilla_rnn/linear": {"w": w_x, "b": b},
            "vanilla_rnn/linear_1": {"w": w_h, "b": jnp.zeros_like(b)},
        }
        h, hs = haiku_run(lambda hk: hk.VanillaRNN(HIDDEN), weights, xs, state.h)
        return jl.HiddenState(h), hs

    agree(cell, question(cell), peer)


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


def test_haiku_resets():
    """`ResetCore` begins anew by a select, as ours does; from zeros."""
    haiku = pytest.importorskip("haiku")
    cell, igfo = jl.lstm(), "igfo"
    resets = jnp.asarray(np.random.default_rng(54).random((TIME, ROWS)) < 0.3)

    def peer(params, xs, state):
        fused = joined(jnp.concatenate(params[:2]), igfo, "ifgo")
        bias = joined(params.b.at[1].add(-1.0), igfo, "ifgo")
        weights = {"lstm/linear": {"w": fused, "b": bias}}
        last, hs = haiku_run(
            lambda hk: hk.ResetCore(hk.LSTM(HIDDEN)),
            weights,
            (xs, resets),
            haiku.LSTMState(*state),
        )
        return jl.LSTMState(last.hidden, last.cell), hs

    agree(cell, question(cell), peer, resets=resets)


def test_equinox_gru():
    equinox = pytest.importorskip("equinox")
    cell = jl.gru()
    own = equinox.nn.GRUCell(FEATURES, HIDDEN, key=jax.random.key(0), dtype=jnp.float64)

    def peer(params, xs, state):
        where = lambda own: (own.weight_ih, own.weight_hh, own.bias, own.bias_n)  # noqa: E731
        w_x, w_h, b = (joined(w, "rzn", "rzn") for w in params[:3])
        mapped = jax.vmap(equinox.tree_at(where, own, (w_x.T, w_h.T, b, params.b_h)))
        return scanned(lambda x, s: jl.HiddenState(mapped(x, s.h)), state, xs)

    agree(cell, question(cell), peer)
