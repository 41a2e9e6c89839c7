"""Cells and parameters of ONNX's LSTM, GRU and RNN nodes.

The order of the gates is that of `interop.layout`. Besides it:

    ONNX                                     jaxlstm
    W [d, n H, D], R [d, n H, H]             w_x [D, n, H], w_h [H, n, H]
    B [d, 2 n H]: two biases, Wb and Rb      b [n, H]: their sum; b_h: Rb of h
    P [d, 3 H]: peepholes                    peephole_lstm
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

from jaxlstm.cells.base import Cell, LSTMParams
from jaxlstm.cells.classic import ClassicLSTMParams, classic_lstm
from jaxlstm.cells.coupled import coupled_lstm
from jaxlstm.cells.gru import gru
from jaxlstm.cells.lstm import lstm
from jaxlstm.cells.peephole import peephole_lstm
from jaxlstm.cells.simple import simple_rnn
from jaxlstm.cells.wrappers.initial_states import Learned, learned_initial_state
from jaxlstm.interop import layout
from jaxlstm.interop.onnx.activations import (
    NodeActivation,
    cell_activation,
    read_activations,
)

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # gates of each operator
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


class NodeWeights(NamedTuple):
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
    place: str, op: str, attributes: Mapping[str, Any], weights: NodeWeights
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
        own = NodeWeights(*(None if w is None else w[n] for w in weights))  # pyright: ignore
        cell, params = read(place, attributes, own, chosen[n], clip)
        cell, params = _with_initial_state(op, cell, params, own)
        found.append(Direction(cell, params, size, reverse))
    return found


def _check_shapes(
    place: str, op: str, attributes: Mapping, weights: NodeWeights, directions: int
) -> int:
    """Return the number of hidden units that all shapes agree on."""
    n, d = GATES[op], directions
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


def _with_initial_state(op: str, cell: Cell, params: Any, own: NodeWeights) -> Any:
    """Return cell and params with a learned initial state if there is one."""
    if own.initial_h is None and own.initial_c is None:
        return cell, params
    size = own.R.shape[1]
    leaves = [own.initial_h] if op != "LSTM" else [own.initial_h, own.initial_c]
    zeros = np.zeros(size, own.W.dtype)
    state = cell.initial_state(params)._replace(
        **{
            field: zeros if leaf is None else leaf
            for field, leaf in zip(("h", "c"), leaves, strict=False)
        }
    )
    return learned_initial_state(cell), Learned(params, state)


def _params(kind: str, own: NodeWeights) -> Any:
    """Return the parameters of a cell of this kind, by the table of layouts."""
    b_x, b_h = (None, None) if own.B is None else np.split(own.B, 2)
    weights = layout.Weights(own.W, own.R, b_x, b_h, p=own.P)
    return layout.to_params(layout.layout("onnx", kind), weights)


def _lstm(
    place: str,
    attributes: Mapping,
    own: NodeWeights,
    functions: list[NodeActivation],
    clip: float | None,
) -> tuple[Cell, Any]:
    gate = dataclasses.replace(functions[0], clip=clip)
    options: dict[str, Any] = {
        "gate_activation": cell_activation(functions[0], clip),
        "candidate_activation": cell_activation(functions[1], clip),
        "output_activation": cell_activation(functions[2], None),
    }
    if attributes.get("input_forget", 0):
        if not is_symmetric(gate):
            raise ValueError(
                f"{place}: input_forget: got the gate activation {gate.name}"
                f"{list(gate.numbers) or ''}; jaxlstm couples i = 1 - f and ONNX "
                "f = 1 - i, which agree only for Sigmoid and HardSigmoid with beta 0.5."
            )
        cell = coupled_lstm(peepholes=own.P is not None, **options)
        return cell, _params("coupled_lstm", own)
    params = _params("lstm", own)
    if own.P is not None:
        return peephole_lstm(**options), params
    if _is_classic(params, gate):
        igo = [0, 2, 3]
        return classic_lstm(**options), ClassicLSTMParams(
            params.w_x[:, igo], params.w_h[:, igo], params.b[igo]
        )
    return lstm(**options), params


def is_symmetric(function: NodeActivation) -> bool:
    """Return whether 1 - f(z) = f(-z)."""
    if function.name == "HardSigmoid":
        return function.numbers[1] == 0.5
    return function.name == "Sigmoid"


def _is_classic(params: LSTMParams, gate: NodeActivation) -> bool:
    """Return whether the forget gate is 1 for every input and state."""
    b = np.asarray(params.b)[1]
    if np.any(params.w_x[:, 1]) or np.any(params.w_h[:, 1]) or b.max() != b.min():
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
    own: NodeWeights,
    functions: list[NodeActivation],
    clip: float | None,
) -> tuple[Cell, Any]:
    reset_after = bool(attributes.get("linear_before_reset", 0))
    cell = gru(
        reset_after=reset_after,
        gate_activation=cell_activation(functions[0], clip),
        candidate_activation=cell_activation(functions[1], clip),
    )
    return cell, _params("gru" if reset_after else "gru_reset_before", own)


def _rnn(
    place: str,
    attributes: Mapping,
    own: NodeWeights,
    functions: list[NodeActivation],
    clip: float | None,
) -> tuple[Cell, Any]:
    cell = simple_rnn(activation=cell_activation(functions[0], clip))
    return cell, _params("rnn", own)
