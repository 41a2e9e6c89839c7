"""Values and gradients equal those of the installed peers.

The gradient is that of the same scalar, with cotangents on hs, h_T and c_T, from a
non-zero initial state, in float64 if the peer supports it. Layouts of the weights:

    peer                gates      weights                            state
    torch               i f g o    w_ih [4H, D], w_hh [4H, H], 2 b    (h, c)
    Keras               i f g o    kernel [D, 4H], recurrent, b       [h, c]
    Flax linen, nnx     by name    i* [D, H], h* [H, H] with b        (c, h)
    Haiku               i g f o    w [D + H, 4H], b, f + 1            (h, c)
    Equinox             i f g o    w_ih [4H, D], w_hh [4H, H], b      (h, c)
    JAX, `lstm_ref`     i f g o    W_ih [4H, D], W_hh [4H, H], 2 b    (h, c)
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import Case, Kind, Shape, active_steps, assert_same, draw

OPTIMISED = True  # compared bit for bit or nearly: compile as users do

os.environ.setdefault("KERAS_BACKEND", "jax")

# The peers rely on implicit promotion and broadcasting, and give warnings.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("relaxed"),
]

SHAPE = Shape(7, (3,), 4, 5)
CELL = jl.lstm()


def question(masking: str = "none", reverse: bool = False) -> Case:
    """Draw a case without NaN in padding, which some peers do not support."""
    case = draw(np.random.default_rng(21), SHAPE, Kind(masking, False, reverse))
    if masking == "lengths":
        lengths = np.array([1, SHAPE.time, 4], np.int32)
        case = case._replace(which=case.which._replace(lengths=lengths))
    if masking == "mask":
        case.which.mask[:, 0] = False  # a row of no steps
    active = active_steps(case.which, SHAPE.time, SHAPE.batch)[..., None]
    noise = np.random.default_rng(22).normal(size=case.xs.shape)
    return case._replace(xs=noise, d_hs=case.d_hs * active)


def ours(case: Case):
    """Return (hs, h, c) and the gradients in the order of `leaves`."""

    def run(w_x, w_h, b, xs, h, c):
        last, hs = jl.unroll(
            CELL,
            jl.LSTMParams(w_x, w_h, b),
            xs,
            jl.LSTMState(h, c),
            lengths=case.which.lengths,
            mask=case.which.mask,
            reverse=case.which.reverse,
        )
        return hs, last.h, last.c

    return pulled(run, case)


def leaves(case: Case):
    return (*case.weights, case.xs, case.h, case.c)


def pulled(run, case: Case):
    out, pull = jax.vjp(run, *map(jnp.asarray, leaves(case)))
    return out, pull(tuple(map(jnp.asarray, (case.d_hs, case.d_h, case.d_c))))


def joined(weight):
    """Reshape [D, 4, H] or [4, H] to [D, 4H] or [4H]."""
    return weight.reshape(*weight.shape[:-2], -1)


# --- torch ----------------------------------------------------------------------------


@pytest.mark.parametrize("masking", ["none", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_torch(masking, bidirectional):
    """Packed sequences for lengths; the backward half of a bidirectional LSTM."""
    torch = pytest.importorskip("torch")
    directions = [question(masking, reverse) for reverse in (False, True)]
    directions = directions if bidirectional else directions[:1]
    peer = torch.nn.LSTM(4, 5, bidirectional=bidirectional, dtype=torch.float64)
    load_torch(torch, peer, directions)

    def tensor(array):
        return torch.tensor(np.asarray(array), requires_grad=True)

    def both(field):
        return [tensor(getattr(case, field)) for case in directions]

    xs, hs, cs = tensor(directions[0].xs), both("h"), both("c")
    inputs = packed(torch, xs, directions[0].which.lengths)
    outputs, (h, c) = peer(inputs, (torch.stack(hs), torch.stack(cs)))
    if masking == "lengths":
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, total_length=7)
    halves = outputs.split(5, dim=-1)
    scalar = sum(
        (half * torch.tensor(case.d_hs)).sum()
        + (h[n] * torch.tensor(case.d_h)).sum()
        + (c[n] * torch.tensor(case.d_c)).sum()
        for n, (half, case) in enumerate(zip(halves, directions, strict=True))
    )
    scalar.backward()
    d_xs = 0.0
    for n, case in enumerate(directions):
        suffix = "_l0_reverse" if n else "_l0"
        values, gradients = ours(case)
        assert_same([v.detach() for v in (halves[n], h[n], c[n])], values)
        assert_same(torch_gradients(peer, suffix), gradients[:3])
        assert_same((hs[n].grad, cs[n].grad), gradients[4:])
        d_xs = d_xs + gradients[3]
    assert_same(xs.grad, d_xs)


def torch_layer(directions):
    """Return our layer and its parameters."""
    params = [jl.LSTMParams(*case.weights) for case in directions]
    if len(params) == 1:
        return jl.recurrent(CELL, 5), params[0]
    return jl.stack(CELL, (5,), bidirectional=True), (jl.Pair(*params),)


def load_torch(torch, peer, directions) -> None:
    """Split our bias, the sum of torch's two, into parts."""
    arrays = jl.interop.torch.dump(*torch_layer(directions))
    for name in arrays:
        if "bias_ih" in name:
            arrays[name] = arrays[name] / 4
            arrays[name.replace("_ih", "_hh")] = arrays[name] * 3
    peer.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})


def torch_gradients(peer, suffix: str):
    """Return the gradients of our parameters; both biases have that of the sum."""
    grads = {
        name: tensor.grad.numpy() * ("bias_hh" not in name)
        for name, tensor in peer.named_parameters()
        if name.endswith(suffix)
    }
    names = {name: name.removesuffix("_reverse") for name in grads}
    return tuple(jl.interop.torch.load({names[n]: g for n, g in grads.items()})[0])


def packed(torch, xs, lengths):
    if lengths is None:
        return xs
    counts = torch.tensor(lengths.astype(np.int64))
    return torch.nn.utils.rnn.pack_padded_sequence(xs, counts, enforce_sorted=False)


# --- Keras ----------------------------------------------------------------------------


@pytest.mark.parametrize("masking", ["none", "lengths", "mask"])
@pytest.mark.parametrize("reverse", [False, True])
def test_keras(masking, reverse):
    """Includes masks with holes. Batch first; reversed outputs are in running order."""
    keras = pytest.importorskip("keras")
    case = question(masking, reverse)
    layer = keras.layers.LSTM(
        5,
        return_sequences=True,
        return_state=True,
        go_backwards=reverse,
        activation=jnp.tanh,  # its own is exact to float32 only
        zero_output_for_mask=True,
        dtype="float64",
    )
    layer.build((3, 7, 4))
    active = active_steps(case.which, SHAPE.time, SHAPE.batch)
    mask = None if masking == "none" else jnp.asarray(active.T)

    def run(w_x, w_h, b, xs, h, c):
        weights = [joined(w_x), joined(w_h), joined(b)]
        extra = [v.value for v in layer.non_trainable_variables]
        (hs, h, c), _ = layer.stateless_call(
            weights, extra, xs.swapaxes(0, 1), initial_state=[h, c], mask=mask
        )
        hs = hs.swapaxes(0, 1)
        return hs[::-1] if reverse else hs, h, c

    assert_same(pulled(run, case), ours(case))


# --- Flax -----------------------------------------------------------------------------


def flax_names(w_x, w_h, b):
    """One dense layer per gate for x and for h; the bias is with h."""
    return {
        f"{side}{gate}": weights
        for k, gate in enumerate("ifgo")
        for side, weights in (
            ("i", {"kernel": w_x[:, k]}),
            ("h", {"kernel": w_h[:, k], "bias": b[k]}),
        )
    }


@pytest.mark.parametrize("masking", ["none", "lengths"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell"])
def test_linen(name, masking, reverse):
    linen = pytest.importorskip("flax.linen")
    case = question(masking, reverse)
    cell = getattr(linen, name)(5, param_dtype=jnp.float64, dtype=jnp.float64)
    peer = linen.RNN(cell, time_major=True, return_carry=True, reverse=reverse,
                     keep_order=True)  # fmt: skip

    def run(w_x, w_h, b, xs, h, c):
        variables = {"params": {"cell": flax_names(w_x, w_h, b)}}
        (c, h), hs = peer.apply(
            variables, xs, initial_carry=(c, h), seq_lengths=case.which.lengths
        )
        return silenced(hs, case), h, c

    assert_same(pulled(run, case), ours(case))


@pytest.mark.parametrize("masking", ["none", "lengths"])
@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell"])
def test_nnx(name, masking):
    nnx = pytest.importorskip("flax.nnx")
    case = question(masking)

    def run(w_x, w_h, b, xs, h, c):
        rngs = nnx.Rngs(0)  # a module lives at the trace level that made it
        cell = getattr(nnx, name)(
            4, 5, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs
        )
        load_nnx(nnx, cell, w_x, w_h, b)
        peer = nnx.RNN(cell, time_major=True, return_carry=True, rngs=rngs)
        (c, h), hs = peer(xs, initial_carry=(c, h), seq_lengths=case.which.lengths)
        return silenced(hs, case), h, c

    assert_same(pulled(run, case), ours(case))


def load_nnx(nnx, cell, w_x, w_h, b) -> None:
    """`LSTMCell` has a layer per gate, `OptimizedLSTMCell` one for x and one for h."""
    if hasattr(cell, "dense_i"):
        cell.dense_i.kernel = nnx.Param(joined(w_x))
        cell.dense_h.kernel = nnx.Param(joined(w_h))
        cell.dense_h.bias = nnx.Param(joined(b))
        return
    for name, weights in flax_names(w_x, w_h, b).items():
        for part, value in weights.items():
            layer = cell.if_ if name == "if" else getattr(cell, name)
            setattr(layer, part, nnx.Param(value))


def silenced(hs, case: Case):
    """Ignore the outputs at padding, which Flax does not define."""
    active = active_steps(case.which, SHAPE.time, SHAPE.batch)
    return jnp.where(active[..., None], hs, 0.0)


# --- Haiku and Equinox ----------------------------------------------------------------


def test_haiku():
    """Haiku orders gates i g f o and adds 1 to the forget gate in the forward pass."""
    haiku = pytest.importorskip("haiku")
    case = question()

    def network(xs, h, c):
        hs, last = haiku.dynamic_unroll(haiku.LSTM(5), xs, haiku.LSTMState(h, c))
        return hs, last.hidden, last.cell

    peer = haiku.without_apply_rng(haiku.transform(network))
    igfo = np.array([0, 2, 1, 3])

    def run(w_x, w_h, b, xs, h, c):
        fused = jnp.concatenate([w_x, w_h])[:, igfo]
        bias = b.at[1].add(-1.0)[igfo]
        weights = {"w": joined(fused), "b": joined(bias)}
        return peer.apply({"lstm/linear": weights}, xs, h, c)

    assert_same(pulled(run, case), ours(case))


def test_equinox():
    """Equinox has one step of one row, which is scanned and mapped here."""
    equinox = pytest.importorskip("equinox")
    case = question()
    cell = equinox.nn.LSTMCell(4, 5, key=jax.random.key(0), dtype=jnp.float64)

    def run(w_x, w_h, b, xs, h, c):
        where = lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias)  # noqa: E731
        own = joined(w_x).T, joined(w_h).T, joined(b)
        peer = jax.vmap(equinox.tree_at(where, cell, own))

        def step(state, x):
            state = peer(x, state)
            return state, state[0]

        (h, c), hs = jax.lax.scan(step, (h, c), xs)
        return hs, h, c

    assert_same(pulled(run, case), ours(case))


# --- JAX ------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", ["none", "lengths"])
def test_jax(masking):
    """cuDNN's layer in plain JAX, bidirectional."""
    rnn = pytest.importorskip("jax.experimental.rnn")
    directions = [question(masking, reverse) for reverse in (False, True)]
    lengths = directions[0].which.lengths
    lengths = np.full(3, SHAPE.time) if lengths is None else lengths

    def run(there, back):
        w_x, w_h, b = (
            dict(enumerate(joined(one[k]).T for one in (there, back))) for k in range(3)
        )
        h, c = (jnp.stack([there[k], back[k]]) for k in (4, 5))
        xs, none = there[3].swapaxes(0, 1), {0: jnp.zeros(20), 1: jnp.zeros(20)}
        counts = jnp.asarray(lengths, jnp.int32)
        hs, h, c = rnn.lstm_ref(xs, h, c, w_x, w_h, b, none, counts, 4, 5, 1, 0.0, True)
        halves = jnp.split(hs.swapaxes(0, 1), 2, axis=-1)
        return tuple(zip(halves, h, c, strict=True))

    given = [tuple(map(jnp.asarray, leaves(case))) for case in directions]
    out, pull = jax.vjp(run, *given)
    got = pull(tuple((case.d_hs, case.d_h, case.d_c) for case in directions))
    expected = [ours(case) for case in directions]
    assert_same(out, tuple(values for values, _ in expected))
    for one, (_, gradients) in zip(got, expected, strict=True):
        assert_same((*one[:3], *one[4:]), (*gradients[:3], *gradients[4:]))
    assert_same(got[0][3], expected[0][1][3] + expected[1][1][3])
