"""200 random `torch.nn.LSTM`s, deep, projected, packed and bidirectional, equal ours.

A group has one program and one shape; its cases differ in weights, inputs,
lengths, initial states and cotangents, and half of them are packed. float32 to 1e-5 and
float64 to 1e-12 of the largest number in each array. Weights and gradients go through
`jaxlstm.interop.torch`.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop import torch as interop

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]

torch.set_num_threads(1)  # small products: more threads only wait for each other

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


class Group(NamedTuple):
    """The number of layers, and the options of torch that a program uses."""

    layers: int
    projected: bool
    bidirectional: bool


GROUPS = [Group(*g) for g in itertools.product((1, 2, 3), *2 * [(False, True)])]
CASES = [17 if n < 8 else 16 for n in range(len(GROUPS))]


class Shape(NamedTuple):
    """T steps, b rows, D features, H units, P projected units."""

    time: int
    rows: int
    features: int
    hidden: int
    shown: int


def name(group: Group) -> str:
    options = [option for option in group._fields[1:] if getattr(group, option)]
    return "-".join([f"{group.layers} layers", *options])


def test_number_of_cases():
    assert sum(CASES) == 200


def draw_shape(rng, group: Group) -> Shape:
    hidden = int(rng.integers(2, 7))
    shown = int(rng.integers(1, hidden)) if group.projected else hidden
    return Shape(
        int(rng.integers(2, 9)), *map(int, rng.integers(1, 5, 2)), hidden, shown
    )


def draw(rng, group: Group, shape: Shape, dtype: str):
    """Torch's weights by name, xs, h, c, lengths and cotangents."""
    ways = 1 + group.bidirectional
    halves = (group.layers * ways, shape.rows)

    def normal(*size: int) -> np.ndarray:
        return rng.normal(size=size).astype(dtype)

    weights = {
        name: 0.7 * normal(*tensor.shape)
        for name, tensor in torch_lstm(group, shape, dtype).named_parameters()
    }
    inputs = (
        normal(shape.time, shape.rows, shape.features),
        normal(*halves, shape.shown),
        normal(*halves, shape.hidden),
    )
    packed = rng.random() < 0.5
    lengths = rng.integers(1, shape.time + 1, shape.rows, dtype=np.int32)
    d_hs = normal(shape.time, shape.rows, ways * shape.shown)
    if packed:
        d_hs *= (np.arange(shape.time)[:, None] < lengths)[..., None]
    cotangents = (d_hs, normal(*halves, shape.shown), normal(*halves, shape.hidden))
    return weights, inputs, lengths if packed else None, cotangents


def torch_lstm(group: Group, shape: Shape, dtype: str):
    return torch.nn.LSTM(
        shape.features,
        shape.hidden,
        num_layers=group.layers,
        bidirectional=group.bidirectional,
        proj_size=shape.shown if group.projected else 0,
        dtype=getattr(torch, dtype),
    )


def theirs(peer, weights, inputs, lengths, cotangents):
    """Values, and gradients of the weights by name, of xs and of both states."""
    for name, tensor in peer.named_parameters():
        tensor.data.copy_(torch.tensor(weights[name]))
    peer.zero_grad()
    xs, h, c = (torch.tensor(array, requires_grad=True) for array in inputs)
    fed = xs
    if lengths is not None:
        counts = torch.tensor(lengths.astype(np.int64))
        fed = torch.nn.utils.rnn.pack_padded_sequence(xs, counts, enforce_sorted=False)
    hs, (last_h, last_c) = peer(fed, (h, c))
    if lengths is not None:
        hs, _ = torch.nn.utils.rnn.pad_packed_sequence(hs, total_length=len(xs))
    out = (hs, last_h, last_c)
    torch.autograd.backward(out, [torch.tensor(array) for array in cotangents])
    by_name = {name: tensor.grad for name, tensor in peer.named_parameters()}
    return [array.detach() for array in out], (by_name, xs.grad, h.grad, c.grad)


# --- jaxlstm --------------------------------------------------------------------------


def program(model: jl.Layer, group: Group):
    """Return our function of params, xs and states, with gradients by torch's names."""

    def run(params, xs, h, c, lengths):
        state = tuple(layer_state(h, c, n, group) for n in range(group.layers))
        state = state if is_stack(group) else state[0]
        last, hs = model.apply(params, xs, state, lengths=lengths)
        last = jax.tree.leaves(last, is_leaf=lambda s: isinstance(s, jl.LSTMState))
        return hs, jnp.stack([s.h for s in last]), jnp.stack([s.c for s in last])

    @jax.jit
    def values_and_gradients(params, inputs, lengths, cotangents):
        out, pull = jax.vjp(
            lambda *given: run(*given, lengths=lengths), params, *inputs
        )
        return out, pull(cotangents)

    def by_name(params, inputs, lengths, cotangents):
        out, (d_params, *rest) = values_and_gradients(
            params, inputs, lengths, cotangents
        )
        named = interop.dump(model, d_params)
        for name in named:  # both biases have the gradient of their sum
            if "bias_hh" in name:
                named[name] = named[name.replace("_hh", "_ih")]
        return out, (named, *rest)

    return by_name


def is_stack(group: Group) -> bool:
    return group.layers > 1 or group.bidirectional


def layer_state(h, c, n: int, group: Group):
    if not group.bidirectional:
        return jl.LSTMState(h[n], c[n])
    there, back = 2 * n, 2 * n + 1
    return jl.Pair(jl.LSTMState(h[there], c[there]), jl.LSTMState(h[back], c[back]))


# --- comparison -----------------------------------------------------------------------


def agree(got, expected, tolerance: float) -> None:
    """Assert equal structure and shape, with errors relative to the largest value."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        largest = max(1.0, float(np.abs(other).max(initial=0.0)))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", range(len(GROUPS)), ids=lambda n: name(GROUPS[n]))
def test_torch(n, dtype, x64):
    group, rng = GROUPS[n], np.random.default_rng([31, n])
    shape = draw_shape(rng, group)
    peer, ours = torch_lstm(group, shape, dtype), None
    for _ in range(CASES[n]):
        question = draw(rng, group, shape, dtype)
        values, gradients = theirs(peer, *question)
        as_numpy = jax.tree.map(np.asarray, (tuple(values), gradients))
        weights, inputs, lengths, cotangents = question
        whole = np.full(shape.rows, shape.time, np.int32)
        lengths = whole if lengths is None else lengths
        params, model = interop.load(weights)
        ours = ours or program(model, group)
        agree(ours(params, inputs, lengths, cotangents), as_numpy, TOLERANCE[dtype])
