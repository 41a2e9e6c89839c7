"""All other cells equal the peers that have them: values and gradients, float64.

Layouts of the weights:

    torch GRU         r z n   two biases; the reset gate scales b_hn
    Keras GRU         z r n   one bias, or two with reset_after
    linen, nnx GRU    r z n   by name, side by side; nnx has no b_hn
    Haiku GRU         z r n   reset before the product, and 1 - z in place of z
    Equinox GRU       r z n   one bias and b_hn
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from questions import (
    FEATURES,
    HIDDEN,
    LENGTHS,
    ROWS,
    TIME,
    active_steps,
    agree,
    haiku_run,
    joined,
    keras_layer,
    keras_run,
    question,
    scanned,
)

import jaxlstm as jl
from cases import assert_same
from jaxlstm.cells.gru import GRUParams
from jaxlstm.cells.simple import RNNParams

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("relaxed"),
]


# --- torch ----------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["GRU", "tanh", "relu"])
def test_torch(kind, packed):
    """Tests `nn.GRU`, and `nn.RNN` with both activations."""
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
    layer = jl.recurrent(cell, HIDDEN)
    weights = jl.interop.torch.dump(layer, params)
    peer.load_state_dict({n: torch.from_numpy(value) for n, value in weights.items()})
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
    expected = jl.interop.torch.dump(layer, d)
    assert_same(grads["weight_ih_l0"], expected["weight_ih_l0"])
    assert_same(grads["weight_hh_l0"], expected["weight_hh_l0"])
    assert_same(grads["bias_ih_l0"], d.b.ravel())
    b_hn = d.b_h if kind == "GRU" else d.b
    assert_same(grads["bias_hh_l0"][-HIDDEN:], b_hn)


# --- Keras ----------------------------------------------------------------------------


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
    cell, active = jl.gru(reset_after=reset_after), active_steps(masking)

    def peer(params, xs, state):
        w_x, w_h, b = (joined(w, "zrn", "rzn") for w in params[:3])
        if reset_after:
            b = jnp.stack([b, jnp.zeros(3 * HIDDEN).at[-HIDDEN:].set(params.b_h)])
        return keras_run(layer, [w_x, w_h, b], xs, state, active, reverse)

    agree(cell, question(cell), peer, mask=active, reverse=reverse)


@MASKED
@REVERSED
def test_keras_simple_rnn(reverse, masking):
    layer = keras_layer("SimpleRNN", HIDDEN, reverse=reverse, zero_output_for_mask=True)
    layer.build((ROWS, TIME, FEATURES))
    cell, active = jl.simple_rnn(), active_steps(masking)

    def peer(params, xs, state):
        return keras_run(layer, list(params), xs, state, active, reverse)

    agree(cell, question(cell), peer, mask=active, reverse=reverse)


# --- Flax -----------------------------------------------------------------------------


def flax_gru(params: GRUParams):
    """One dense layer per gate for x and for h."""
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
        return jl.cells.base.HiddenState(h), hs

    agree(cell, question(cell), peer, active=active_steps(masking), lengths=lengths,
          reverse=reverse)  # fmt: skip


@pytest.mark.parametrize("name", ["GRUCell", "SimpleCell"])
def test_nnx(name):
    """Its GRU has no b_hn: ours is zero, and its gradient is not compared."""
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
        return jl.cells.base.HiddenState(h), hs

    agree(outer, asked._replace(params=free), peer)


# --- Haiku and Equinox ----------------------------------------------------------------


def test_haiku_gru():
    """Its z is one minus ours: 1 - σ(a) = σ(-a), so those weights are negated."""
    pytest.importorskip("haiku")
    cell = jl.gru(reset_after=False)

    def peer(params, xs, state):
        w_x, w_h, b = (
            joined(w.at[..., 1, :].multiply(-1.0), "zrn", "rzn") for w in params[:3]
        )
        weights = {"gru": {"w_i": w_x, "w_h": w_h, "b": b}}
        h, hs = haiku_run(lambda hk: hk.GRU(HIDDEN), weights, xs, state.h)
        return jl.cells.base.HiddenState(h), hs

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
        return jl.cells.base.HiddenState(h), hs

    agree(cell, question(cell), peer)


def test_haiku_resets():
    """`ResetCore` selects zeros at a reset, as ours does."""
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
        return scanned(
            lambda x, s: jl.cells.base.HiddenState(mapped(x, s.h)), state, xs
        )

    agree(cell, question(cell), peer)
