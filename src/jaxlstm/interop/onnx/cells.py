"""ONNX nodes of cells: the counterpart of `nodes`.

    lstm, peephole_lstm, gru, simple_rnn   the node of that name
    coupled_lstm                           LSTM with input_forget
    classic_lstm                           LSTM whose forget gate is always 1
    projected_lstm                         LSTM of the unprojected m, with h = m W_p
                                           after it and W_p W_h as recurrent matrix
    learned_initial_state                  constant initial states
    dropouts, weight_drop, taps            the cell inside: nothing is random

Other cells, and activations that ONNX does not have, are refused.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlstm.cells import wrappers
from jaxlstm.cells.base import Cell, LSTMParams, LSTMState
from jaxlstm.cells.classic import ClassicLSTMParams, classic_lstm
from jaxlstm.cells.convolutional import conv_lstm
from jaxlstm.cells.coupled import coupled_lstm
from jaxlstm.cells.gru import gru
from jaxlstm.cells.normalized import layer_norm_lstm
from jaxlstm.cells.projected import ProjectedLSTMParams, projected_lstm
from jaxlstm.cells.simple import simple_rnn
from jaxlstm.construction import Construction, construction_of
from jaxlstm.interop import layout
from jaxlstm.interop.onnx.activations import NodeActivation, node_activation
from jaxlstm.interop.onnx.nodes import DEFAULTS, NodeWeights, is_symmetric, open_bias

# Wrappers that change nothing without a key.
SILENT = (
    wrappers.variational_dropout,
    wrappers.recurrent_dropout,
    wrappers.weight_drop,
)

REFUSED: dict[Callable[..., Any], str] = {
    layer_norm_lstm: "ONNX's LSTM has no layer normalization",
    conv_lstm: "ONNX has no convolutional LSTM",
    wrappers.clip_cell: "ONNX's clip limits pre-activations and not the cell state",
}


class CellNode(NamedTuple):
    """One direction of a recurrent node.

    Attributes:
        op: LSTM, GRU or RNN.
        weights: W, R, B, P and, if it is learned, the initial state `[H]`, in float32
            and without an axis of directions.
        activations: functions of the direction, without the clip.
        options: attributes that both directions share: clip, input_forget,
            linear_before_reset.
        projection: `[H, P]`: the outputs and h are the node's times this matrix.
    """

    op: str
    weights: NodeWeights
    activations: tuple[NodeActivation, ...]
    options: dict[str, Any]
    projection: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of units of the node."""
        return self.weights.R.shape[1]

    @property
    def output_size(self) -> int:
        """Number of output features."""
        return self.size if self.projection is None else self.projection.shape[1]


def unwrap(place: str, cell: Cell, params: Any) -> tuple[Construction, Any, Any]:
    """Return the construction of the cell without wrappers, its params and state.

    The state is the learned initial one, or None.

    Raises:
        ValueError: a wrapper changes the results without a key, or the cell was not
            made by a constructor of this package.
    """
    state = None
    while True:
        construction = construction_of(cell)
        if construction is None:
            raise ValueError(
                f"{place}: got a cell of your own, expected a cell of jaxlstm; "
                "jax.export writes any cell, as StableHLO."
            )
        function, arguments = construction
        if function in REFUSED:
            raise ValueError(
                f"{place}: {function.__name__}: {REFUSED[function]}; jax.export writes "
                "any cell, as StableHLO."
            )
        if function is wrappers.zoneout:
            if arguments["h_rate"] or arguments["c_rate"]:
                raise ValueError(
                    f"{place}: zoneout: mixes the old and the new state without a key "
                    "too, which ONNX's nodes do not; jax.export writes any cell, as "
                    "StableHLO."
                )
        elif function is wrappers.taps:
            if params.taps is not None:
                raise ValueError(
                    f"{place}: taps: got params with taps, expected taps=None."
                )
            params = params.params
        elif function is wrappers.learned_initial_state:
            state = params.state if state is None else state
            params = params.params
        elif function not in SILENT:
            return construction, params, state
        cell = arguments["cell"]


def cell_node(place: str, cell: Cell, params: Any) -> CellNode:
    """Return the ONNX node of one direction of a recurrent layer.

    Args:
        place: prefix of error messages.
        cell: the cell.
        params: its parameters.

    Raises:
        ValueError: ONNX has no node for the cell.
    """
    (function, arguments), params, state = unwrap(place, cell, params)
    params = type(params)(
        *(None if leaf is None else np.asarray(leaf, np.float32) for leaf in params)
    )
    names = ("gate_activation", "candidate_activation", "output_activation")
    if function is simple_rnn:
        names = ("activation",)
    elif function is gru:
        names = names[:2]
    found = [node_activation(place, name, arguments[name]) for name in names]
    options = _clip(place, names, found)
    plain = tuple(dataclasses.replace(one, clip=None) for one in found)
    op = {gru: "GRU", simple_rnn: "RNN"}.get(function, "LSTM")
    kind, projection = "lstm", None
    if function is gru and arguments["reset_after"]:
        kind, options["linear_before_reset"] = "gru", 1
    elif function is gru:
        kind = "gru_reset_before"
    elif function is simple_rnn:
        kind = "rnn"
    elif function is coupled_lstm:
        kind, options["input_forget"] = "coupled_lstm", 1
        if not is_symmetric(plain[0]):
            raise ValueError(
                f"{place}: gate_activation: got {plain[0].name}, expected sigmoid or "
                "hard_sigmoid: for others 1 - f(z) is not f(-z), and ONNX couples "
                "f = 1 - i."
            )
    elif function is classic_lstm:
        params = _with_forget_gate(place, params, found[0])
    elif function is projected_lstm:
        params, projection = _without_projection(params)
        if state is not None:
            state = _lifted(place, state, projection)
    weights = layout.from_params(layout.layout("onnx", kind), params)
    assert weights.b_x is not None
    assert weights.b_h is not None
    b = np.concatenate([weights.b_x, weights.b_h])
    begin = [] if state is None else [np.asarray(leaf, np.float32) for leaf in state]
    return CellNode(
        op, NodeWeights(weights.w_x, weights.w_h, b, weights.p, *begin), plain, options,
        projection,
    )  # fmt: skip


def _clip(place: str, names: tuple[str, ...], found: list) -> dict[str, Any]:
    """Return the attribute clip, which all pre-activations share."""
    clips = [one.clip for one in found]
    inner = clips if len(clips) < 3 else clips[:2]
    if len(set(inner)) > 1 or (len(clips) == 3 and clips[2] is not None):
        raise ValueError(
            f"{place}: got the clips {clips} for {', '.join(names)}, expected one for "
            "all but the output activation, which ONNX does not clip."
        )
    return {} if clips[0] is None else {"clip": clips[0]}


def _with_forget_gate(
    place: str, params: ClassicLSTMParams, gate: NodeActivation
) -> LSTMParams:
    """Return the params with a forget gate that is 1 whatever the input."""
    bias = open_bias(gate)
    if bias is None:
        raise ValueError(
            f"{place}: classic_lstm: got the gate activation {gate.name}"
            f"{'' if gate.clip is None else f' with clip {gate.clip}'}, expected one "
            "that reaches 1: ONNX's LSTM always has a forget gate."
        )
    w_x, w_h, b = (np.insert(leaf, 1, 0.0, axis=-2) for leaf in params)
    b[1] = bias
    return LSTMParams(w_x, w_h, b)  # pyright: ignore[reportArgumentType]


def _without_projection(
    params: ProjectedLSTMParams,
) -> tuple[LSTMParams, np.ndarray]:
    """Return the params of the LSTM whose output m gives h = m W_p.

    Its gates read W_h h = (W_p W_h) m.
    """
    w_p = np.asarray(params.w_p)
    w_h = np.tensordot(w_p.astype(np.float64), params.w_h, 1).astype(np.float32)
    plain = LSTMParams(params.w_x, w_h, params.b)  # pyright: ignore
    return plain, w_p


def lift(place: str, projection: np.ndarray) -> np.ndarray:
    """Return the matrix `[P, H]` that gives an m with m W_p = h.

    Raises:
        ValueError: there is no such m for every h.
    """
    exact = projection.astype(np.float64)
    inverse = np.linalg.pinv(exact)
    size = projection.shape[1]
    if not np.allclose(inverse @ exact, np.eye(size), atol=1e-6):
        raise ValueError(
            f"{place}: projected_lstm: got a projection {list(projection.shape)} of "
            f"rank below {size}, expected full rank: the node carries the unprojected "
            "state, which an initial h has to determine."
        )
    return inverse.astype(np.float32)


def _lifted(place: str, state: LSTMState, projection: np.ndarray) -> LSTMState:
    h = np.asarray(state.h, np.float32) @ lift(place, projection)
    return state._replace(h=h)


def default_activations(op: str) -> tuple[NodeActivation, ...]:
    """Return the activations of an operator without the attribute."""
    return tuple(NodeActivation(name) for name in DEFAULTS[op])
