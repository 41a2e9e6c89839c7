"""Cells and parameters of ONNX's LSTM, GRU and RNN nodes.

    ONNX                                     jaxlstm
    LSTM gates i o f c                       i f g o
    GRU gates z r h, Ht = z H + (1-z) h      r z n
    W [d, n H, D], R [d, n H, H]             w_x [D, n, H], w_h [H, n, H]
    B [d, 2 n H]: two biases, Wb and Rb      b [n, H]: their sum; b_h: Rb of h
    P [d, 3 H]: peepholes i o f              p_i, p_f, p_o [H]
    clip: limits the pre-activations         activations that clip first
    input_forget: f = 1 - i                  coupled_lstm, i = 1 - f, with z_f = -z_i
    f = 1 for every input                    classic_lstm
    linear_before_reset                      reset_after

The pre-activation of a coupled node's input gate is negated because 1 - σ(z) = σ(-z),
which holds for Sigmoid, and for HardSigmoid with beta 0.5.

Reference:
    https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlstm.cells.base import Cell, LSTMParams, LSTMState
from jaxlstm.cells.classic import ClassicLSTMParams, classic_lstm
from jaxlstm.cells.coupled import CoupledLSTMParams, coupled_lstm
from jaxlstm.cells.gru import GRUParams, gru
from jaxlstm.cells.lstm import lstm
from jaxlstm.cells.peephole import PeepholeLSTMParams, peephole_lstm
from jaxlstm.cells.simple import RNNParams, simple_rnn
from jaxlstm.cells.wrappers.initial_states import Learned, learned_initial_state
from jaxlstm.interop.onnx.activations import (
    NodeActivation,
    cell_activation,
    read_activations,
)

GATES = {"LSTM": "iofg", "GRU": "zrn", "RNN": "g"}
PEEPHOLES = "iof"
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")

_COMMON = {
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
    "output_sequence",
}
ATTRIBUTES = {
    "LSTM": _COMMON | {"input_forget"},
    "GRU": _COMMON | {"linear_before_reset"},
    "RNN": _COMMON,
}
DEFAULTS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class Weights(NamedTuple):
    """The weights of a node; B, P and the initial states may be None.

    The initial states are `[d, H]`, the same for every row of the batch.
    """

    W: np.ndarray
    R: np.ndarray
    B: np.ndarray | None = None
    P: np.ndarray | None = None
    initial_h: np.ndarray | None = None
    initial_c: np.ndarray | None = None


class Direction(NamedTuple):
    """One direction of a node: cell, parameters, number of units, and reverse."""

    cell: Cell
    params: Any
    size: int
    reverse: bool


def directions_of(
    place: str, op: str, attributes: Mapping[str, Any], weights: Weights
) -> list[Direction]:
    """Return cell and parameters of each direction of a node.

    Args:
        place: prefix of error messages.
        op: LSTM, GRU or RNN.
        attributes: attributes of the node.
        weights: its constant inputs.

    Raises:
        ValueError: shapes or attributes are wrong, or jaxlstm cannot represent them.
    """
    unknown = sorted(set(attributes) - ATTRIBUTES[op])
    if unknown:
        raise ValueError(
            f"{place}: got the attribute {unknown[0]!r}, which {op} does not have."
        )
    name = attributes.get("direction", "forward")
    if name not in DIRECTIONS:
        raise ValueError(
            f"{place}: direction: got {name!r}, expected {' or '.join(DIRECTIONS)}."
        )
    reversals = DIRECTIONS[name]
    size = _check_shapes(place, op, attributes, weights, len(reversals))
    clip = attributes.get("clip")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(
            f"{place}: clip: got {clip}, expected a positive, finite number."
        )
    chosen = read_activations(place, attributes, DEFAULTS[op], len(reversals))
    read = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[op]
    found = []
    for n, reverse in enumerate(reversals):
        own = Weights(*(w if w is None else w[n] for w in weights))
        cell, params = read(place, attributes, own, chosen[n], clip)
        cell, params = _with_initial_state(op, cell, params, own)
        found.append(Direction(cell, params, size, reverse))
    return found


def _check_shapes(
    place: str, op: str, attributes: Mapping, weights: Weights, directions: int
) -> int:
    """Return the number of hidden units that all shapes agree on."""
    n, d = len(GATES[op]), directions
    if weights.R.ndim != 3 or weights.W.ndim != 3:
        raise ValueError(
            f"{place}: got W {list(weights.W.shape)} and R {list(weights.R.shape)}, "
            "expected three axes each."
        )
    size, features = weights.R.shape[2], weights.W.shape[2]
    expected = {
        "W": (d, n * size, features),
        "R": (d, n * size, size),
        "B": (d, 2 * n * size),
        "P": (d, 3 * size),
        "initial_h": (d, size),
        "initial_c": (d, size),
    }
    for name, shape in expected.items():
        leaf = getattr(weights, name)
        if leaf is not None and leaf.shape != shape:
            raise ValueError(
                f"{place}: {name}: got the shape {list(leaf.shape)}, expected "
                f"{list(shape)} for {d} direction(s) of {size} units."
            )
        if leaf is not None and leaf.dtype != weights.W.dtype:
            raise ValueError(
                f"{place}: {name}: got {leaf.dtype}, expected {weights.W.dtype} as W."
            )
    if not jnp.issubdtype(weights.W.dtype, jnp.floating):
        raise ValueError(f"{place}: W: got {weights.W.dtype}, expected real numbers.")
    if size < 1 or features < 1:
        raise ValueError(f"{place}: got {size} units and {features} features, "
                         "expected at least one of each.")  # fmt: skip
    if attributes.get("hidden_size", size) != size:
        raise ValueError(
            f"{place}: hidden_size: got {attributes['hidden_size']}, expected {size}, "
            f"since R is {list(weights.R.shape)}."
        )
    return size


def _with_initial_state(op: str, cell: Cell, params: Any, own: Weights) -> Any:
    """Return cell and params with a learned initial state if there is one."""
    if own.initial_h is None and own.initial_c is None:
        return cell, params
    size = own.R.shape[1]
    leaves = [own.initial_h] if op != "LSTM" else [own.initial_h, own.initial_c]
    zeros = np.zeros(size, own.W.dtype)
    state = cell.initial_state(params)._replace(
        **{
            field: jnp.asarray(zeros if leaf is None else leaf)
            for field, leaf in zip(("h", "c"), leaves, strict=False)
        }
    )
    return learned_initial_state(cell), Learned(params, state)


def _by_gate(weight: np.ndarray, gates: str) -> dict[str, np.ndarray]:
    """Split `[n H]` or `[n H, K]` into `[H]` or `[K, H]` for each gate."""
    parts = weight.reshape(len(gates), -1, *weight.shape[1:])
    return {gate: part.T for gate, part in zip(gates, parts, strict=True)}


def _stack(weights: Mapping[str, np.ndarray], gates: str) -> jnp.ndarray:
    """Return `[H]` or `[K, H]` of each gate as `[n, H]` or `[K, n, H]`."""
    return jnp.asarray(np.stack([weights[gate] for gate in gates], axis=-2))


def _add(b: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the sum; where one is zero, the bits of the other."""
    return np.where(other == 0, b, np.where(b == 0, other, b + other))


def _biases(own: Weights, gates: str) -> tuple[dict, dict]:
    """Return Wb and Rb, each by gate."""
    size = len(gates) * own.R.shape[1]
    both = np.zeros(2 * size, own.W.dtype) if own.B is None else own.B
    return _by_gate(both[:size], gates), _by_gate(both[size:], gates)


def _lstm(
    place: str,
    attributes: Mapping,
    own: Weights,
    functions: list[NodeActivation],
    clip: float | None,
) -> tuple[Cell, Any]:
    w_b, r_b = _biases(own, GATES["LSTM"])
    weights = [_by_gate(own.W, "iofg"), _by_gate(own.R, "iofg")]
    weights.append({gate: _add(w_b[gate], r_b[gate]) for gate in "iofg"})
    peepholes = None if own.P is None else _by_gate(own.P, PEEPHOLES)
    options = {
        "gate_activation": cell_activation(functions[0], clip),
        "candidate_activation": cell_activation(functions[1], clip),
        "output_activation": cell_activation(functions[2], None),
    }
    if attributes.get("input_forget", 0):
        return _coupled(place, weights, peepholes, functions[0], options)
    gate = dataclasses.replace(functions[0], clip=clip)
    if _is_classic(weights, peepholes, gate):
        return classic_lstm(**options), ClassicLSTMParams(
            *(_stack(w, "igo") for w in weights)
        )
    ifgo = [_stack(w, "ifgo") for w in weights]
    if peepholes is None:
        return lstm(**options), LSTMParams(*ifgo)
    p = {f"p_{gate}": jnp.asarray(value) for gate, value in peepholes.items()}
    return peephole_lstm(**options), PeepholeLSTMParams(*ifgo, **p)


def _coupled(
    place: str,
    weights: list[dict],
    peepholes: dict | None,
    function: NodeActivation,
    options: dict,
) -> tuple[Cell, CoupledLSTMParams]:
    """Return our forget gate: the node's input gate with negated weights."""
    if not is_symmetric(function):
        raise ValueError(
            f"{place}: input_forget: got the gate activation {function.name}"
            f"{list(function.numbers) or ''}; jaxlstm couples i = 1 - f and ONNX "
            "f = 1 - i, which agree only for Sigmoid and HardSigmoid with beta 0.5."
        )
    fgo = [_stack({**w, "f": -w["i"]}, "fgo") for w in weights]
    if peepholes is None:
        return coupled_lstm(**options), CoupledLSTMParams(*fgo)
    p_f, p_o = jnp.asarray(-peepholes["i"]), jnp.asarray(peepholes["o"])
    cell = coupled_lstm(peepholes=True, **options)
    return cell, CoupledLSTMParams(*fgo, p_f, p_o)


def is_symmetric(function: NodeActivation) -> bool:
    """Return whether 1 - f(z) = f(-z)."""
    if function.name == "HardSigmoid":
        return function.numbers[1] == 0.5
    return function.name == "Sigmoid"


def _is_classic(
    weights: list[dict], peepholes: dict | None, gate: NodeActivation
) -> bool:
    """Return whether the forget gate is 1 for every input and state."""
    w_x, w_h, b = (w["f"] for w in weights)
    if peepholes is not None or w_x.any() or w_h.any() or b.max() != b.min():
        return False
    return open_bias(gate) == float(b[0])


def open_bias(gate: NodeActivation) -> float | None:
    """Return a pre-activation for which the gate is exactly 1; None if none is known.

    The writer and the reader of a node without forget gate agree on it.
    """
    for candidate in (1e4, 1.0):
        if float(gate(jnp.float32(candidate))) == 1.0:
            return candidate
    return None


def _gru(
    place: str,
    attributes: Mapping,
    own: Weights,
    functions: list[NodeActivation],
    clip: float | None,
) -> tuple[Cell, GRUParams]:
    reset_after = bool(attributes.get("linear_before_reset", 0))
    w_b, r_b = _biases(own, GATES["GRU"])
    b = {gate: _add(w_b[gate], r_b[gate]) for gate in "zrn"}
    b_h = None
    if reset_after:
        b, b_h = {**b, "n": w_b["n"]}, jnp.asarray(r_b["n"])
    cell = gru(
        reset_after=reset_after,
        gate_activation=cell_activation(functions[0], clip),
        candidate_activation=cell_activation(functions[1], clip),
    )
    w_x, w_h = _by_gate(own.W, "zrn"), _by_gate(own.R, "zrn")
    return cell, GRUParams(*(_stack(w, "rzn") for w in (w_x, w_h, b)), b_h)


def _rnn(
    place: str,
    attributes: Mapping,
    own: Weights,
    functions: list[NodeActivation],
    clip: float | None,
) -> tuple[Cell, RNNParams]:
    w_b, r_b = _biases(own, GATES["RNN"])
    cell = simple_rnn(activation=cell_activation(functions[0], clip))
    b = _add(w_b["g"], r_b["g"])
    return cell, RNNParams(*map(jnp.asarray, (own.W.T, own.R.T, b)))
