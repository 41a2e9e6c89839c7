"""Runs an ONNX `LSTM` node, given by attributes and tensors, by this library.

    ONNX                                   jaxlstm
    gates i o f c                          gates i f g o
    W [d, 4H, D], R [d, 4H, H]             w_x [D, 4, H], w_h [H, 4, H]
    B [d, 8H]: two biases                  b [4, H]: their sum
    P [d, 3H]: peepholes i o f             p_i, p_f, p_o [H]
    clip: the pre-activations of i f g o   activations that clip first
    input_forget: f = 1 - i                coupled_lstm, i = 1 - f, with z_f = -z_i
    layout 1: batch first                  time first

The preactivation of a coupled node's input gate is negated because 1 - σ(z) = σ(-z),
which holds for Sigmoid, and for HardSigmoid with beta 0.5.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxlstm as jl
from jaxlstm.cells.base import Activation, Cell
from jaxlstm.cells.coupled import CoupledLSTMParams
from jaxlstm.cells.peephole import PeepholeLSTMParams


class Function(NamedTuple):
    """An activation of the operator: its defaults of alpha and beta, as far as it
    has them, and what it makes of z with those.
    """

    defaults: tuple[float, ...]
    of: Callable[..., jax.Array]


FUNCTIONS = {
    "affine": Function((1.0, 0.0), lambda z, a, b: a * z + b),
    "elu": Function((1.0,), lambda z, a: jax.nn.elu(z, a)),
    "hardsigmoid": Function((0.2, 0.5), lambda z, a, b: jnp.clip(a * z + b, 0.0, 1.0)),
    "leakyrelu": Function((0.01,), lambda z, a: jax.nn.leaky_relu(z, a)),
    "relu": Function((), jax.nn.relu),
    "scaledtanh": Function((1.0, 1.0), lambda z, a, b: a * jnp.tanh(b * z)),
    "sigmoid": Function((), jax.nn.sigmoid),
    "softplus": Function((), jax.nn.softplus),
    "softsign": Function((), jax.nn.soft_sign),
    "tanh": Function((), jnp.tanh),
    "thresholdedrelu": Function((1.0,), lambda z, a: jnp.where(z > a, z, 0.0)),
}


class Output(NamedTuple):
    """The outputs of a node: `Y [T, d, b, H]`, `Y_h` and `Y_c [d, b, H]`."""

    Y: np.ndarray
    Y_h: np.ndarray
    Y_c: np.ndarray


def run(attributes: dict[str, Any], inputs: dict[str, np.ndarray]) -> Output:
    """Return the outputs of this library; a row of length 0 keeps its state."""
    batch_first = attributes.get("layout", 0) == 1
    if batch_first:
        sequences = ("X", "initial_h", "initial_c")
        turned = {n: np.swapaxes(inputs[n], 0, 1) for n in sequences if n in inputs}
        inputs = {**inputs, **turned}
    direction = attributes.get("direction", "forward")
    ways = (False, True) if direction == "bidirectional" else (direction == "reverse",)
    runs = [one_way(attributes, inputs, n, reverse) for n, reverse in enumerate(ways)]
    ys = np.stack([hs for _, hs in runs], axis=1)
    h, c = (
        np.stack(leaves) for leaves in zip(*(last for last, _ in runs), strict=True)
    )
    if batch_first:
        return Output(np.moveaxis(ys, 2, 0), h.swapaxes(0, 1), c.swapaxes(0, 1))
    return Output(ys, h, c)


def one_way(attributes, inputs, way: int, reverse: bool):
    """Return the last state and the outputs of one direction."""
    own = {name: inputs[name][way] for name in ("W", "R", "B", "P") if name in inputs}
    cell, params = cell_and_params(attributes, own, way)
    state = cell.initial_state(params, inputs["X"].shape[1:2])
    if "initial_h" in inputs:
        state = state._replace(h=inputs["initial_h"][way])
    if "initial_c" in inputs:
        state = state._replace(c=inputs["initial_c"][way])
    lengths = inputs.get("sequence_lens")
    return jl.unroll(cell, params, inputs["X"], state, lengths=lengths, reverse=reverse)


def cell_and_params(attributes, own: dict[str, np.ndarray], way: int):
    """Return the cell that the attributes describe, and its parameters."""
    size = attributes["hidden_size"]
    bias = own.get("B", np.zeros(8 * size, np.float32)).reshape(2, 4 * size).sum(axis=0)
    weights = [named(own["W"], size, "iofg"), named(own["R"], size, "iofg")]
    weights.append(named(bias, size, "iofg"))
    peep = named(own["P"], size, "iof") if "P" in own else None
    options = activations(attributes, way)
    if attributes.get("input_forget", 0):
        return coupled(weights, peep, options)
    ifgo = [side_by_side(w, "ifgo") for w in weights]
    if peep is None:
        return jl.lstm(**options), jl.LSTMParams(*ifgo)
    p = {f"p_{gate}": value for gate, value in peep.items()}
    return jl.peephole_lstm(**options), PeepholeLSTMParams(*ifgo, **p)


def coupled(weights, peep, options) -> tuple[Cell, CoupledLSTMParams]:
    """Return our forget gate: the node's input gate with negated weights."""
    fgo = [side_by_side({**w, "f": -w["i"]}, "fgo") for w in weights]
    p = {} if peep is None else {"p_f": -peep["i"], "p_o": peep["o"]}
    cell = jl.coupled_lstm(peepholes=peep is not None, **options)
    return cell, CoupledLSTMParams(*fgo, **p)


def named(weight: np.ndarray, size: int, gates: str) -> dict[str, np.ndarray]:
    """Split `[gates * H]` or `[gates * H, K]` into `[H]` or `[K, H]` by gate name."""
    parts = weight.reshape(len(gates), size, *weight.shape[1:])
    return {gate: part.T for gate, part in zip(gates, parts, strict=True)}


def side_by_side(weights: dict[str, np.ndarray], gates: str) -> np.ndarray:
    """`[K, gates, H]`."""
    return np.stack([weights[gate] for gate in gates], axis=-2)


def activations(attributes, way: int) -> dict[str, Activation]:
    """The options of a cell: the functions f, g and h of the node's direction.

    Alphas and betas stand in the order of those functions that take one.
    """
    names = attributes.get("activations", ["Sigmoid", "Tanh", "Tanh"] * (way + 1))
    alphas = iter(attributes.get("activation_alpha", ()))
    betas = iter(attributes.get("activation_beta", ()))
    functions = []
    for name in names:
        defaults = FUNCTIONS[name.lower()].defaults
        pairs = zip((alphas, betas), defaults, strict=False)
        numbers = [float(next(given, default)) for given, default in pairs]
        functions.append((name.lower(), tuple(numbers)))
    clip = attributes.get("clip")
    f, g, h = functions[3 * way : 3 * way + 3]
    return {
        "gate_activation": function(*f, clip),
        "candidate_activation": function(*g, clip),
        "output_activation": function(*h, None),  # its input is not clipped
    }


@functools.cache
def function(name: str, numbers: tuple[float, ...], clip: float | None) -> Activation:
    """Return the activation after the clip; equal arguments give the same object."""
    of = FUNCTIONS[name].of

    def activation(z: jax.Array) -> jax.Array:
        z = z if clip is None else jnp.clip(z, -clip, clip)
        return of(z, *numbers)

    return activation
