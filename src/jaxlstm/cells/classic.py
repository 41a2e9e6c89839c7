"""The LSTM of 1997: what is written stays. There is no forget gate.

    z = W_x x_t + W_h h_{t-1} + b         i, o = σ(z_i), σ(z_o)       g = tanh(z_g)
    c_t = c_{t-1} + i ⊙ g                 h_t = o ⊙ tanh(c_t)

The gradient flows back through c undiminished, whatever the gates do: the constant
error carousel. Nothing is ever forgotten, so that on a stream without resets c grows
until tanh saturates.

Reference: Hochreiter and Schmidhuber, "Long short-term memory", 1997,
https://doi.org/10.1162/neco.1997.9.8.1735
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlstm.cells import parameters
from jaxlstm.cells.base import (
    UNEDITED,
    Activation,
    Cell,
    Edit,
    Gates,
    LSTMState,
    activation,
    edited,
    typed_like,
)
from jaxlstm.cells.lstm import activate, at_rest, transition
from jaxlstm.cells.products import recurrent
from jaxlstm.initializers import (
    CANDIDATE,
    INPUT,
    NO_FORGET_BIAS,
    OUTPUT,
    Preset,
    chosen_preset,
)
from jaxlstm.typing import Key, Projected


class ClassicLSTMParams(NamedTuple):
    """`w_x [D, 3, H]`, `w_h [H, 3, H]`, `b [3, H]`, the gates in the order i, g, o."""

    w_x: Float[Array, "D 3 H"]
    w_h: Float[Array, "H 3 H"]
    b: Float[Array, "3 H"]


def classic_lstm(
    *,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """The LSTM of 1997, without a forget gate; `gates.f` is reported as 1.

    The equations are at the head of `jaxlstm.cells.classic`; the options are those of
    `lstm`. A preset's forget bias finds no gate here.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.classic_lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> state, trace = jl.unroll(cell, params, jnp.ones((7, 2, 3)), emit=jl.emit.trace)
    >>> written = (trace.gates.i * trace.gates.g).sum(0)
    >>> bool(jnp.allclose(state.c, written))
    True
    """
    return _classic_lstm(
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        chosen_preset(init, NO_FORGET_BIAS),
    )


@functools.cache
def _classic_lstm(
    gate: Activation, candidate: Activation, output: Activation, init: Preset
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> ClassicLSTMParams:
        gates = (INPUT, CANDIDATE, OUTPUT)
        drawn = parameters.draw(init, key, input_size, hidden_size, dtype, gates=gates)
        return ClassicLSTMParams(*drawn)

    def step(
        params: ClassicLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        i, g, o = recurrent(edited(edit.hidden, state.h), params.w_h, z)
        gates = Gates(i=i, f=i, g=g, o=o)
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        gates = gates._replace(f=jnp.ones_like(gates.i))
        after = transition(gates, state.c, output=output, edit=edit.cell)
        return typed_like(state, after), gates

    begin = at_rest(ClassicLSTMParams)
    return Cell(draw, begin, parameters.projecting(ClassicLSTMParams), step)
