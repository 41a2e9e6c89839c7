"""The LSTM of 1997, without a forget gate.

    z = W_x x_t + W_h h_{t-1} + b         i, o = σ(z_i), σ(z_o)       g = tanh(z_g)
    c_t = c_{t-1} + i ⊙ g                 h_t = o ⊙ tanh(c_t)

The derivative of c_t by c_{t-1} is 1 for any gates (the constant error carousel).
Nothing is ever removed from c, so on a long stream without resets it grows until tanh
saturates.

Reference:
    Hochreiter and Schmidhuber, "Long short-term memory", 1997,
    https://doi.org/10.1162/neco.1997.9.8.1735
"""

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
    apply_edit,
    cast_like,
)
from jaxlstm.cells.lstm import activate, transition, zero_state
from jaxlstm.cells.products import recurrent
from jaxlstm.construction import cached
from jaxlstm.initializers import (
    CANDIDATE,
    INPUT,
    NO_FORGET_BIAS,
    OUTPUT,
    Preset,
    resolve_preset,
)
from jaxlstm.typing import Key, Projected, exportable


@exportable
class ClassicLSTMParams(NamedTuple):
    """`w_x [D, 3, H]`, `w_h [H, 3, H]`, `b [3, H]`, the gates in the order i, g, o."""

    w_x: Float[Array, "D 3 H"]
    w_h: Float[Array, "H 3 H"]
    b: Float[Array, "3 H"]


@parameters.cell_constructor
def classic_lstm(
    *,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the LSTM of 1997, without a forget gate:

        z = W_x x_t + W_h h_{t-1} + b         i, o = σ(z_i), σ(z_o)       g = tanh(z_g)
        c_t = c_{t-1} + i ⊙ g                 h_t = o ⊙ tanh(c_t)

    `gates.f` is reported as 1. The options are those of `lstm`; the forget bias of a
    preset is not used.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell, xs = jl.classic_lstm(), jnp.ones((7, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
        >>> total = (trace.gates.i * trace.gates.g).sum(0)
        >>> bool(jnp.allclose(state.c, total))
        True
    """
    return _classic_lstm(
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        resolve_preset(init, NO_FORGET_BIAS),
    )


@cached
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
        i, g, o = recurrent(apply_edit(edit.hidden, state.h), params.w_h, z)
        gates = Gates(i=i, f=i, g=g, o=o)
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        gates = gates._replace(f=jnp.ones_like(gates.i))
        after = transition(gates, state.c, output=output, edit=edit.cell)
        return cast_like(state, after), gates

    initial_state = zero_state(ClassicLSTMParams)
    return Cell(draw, initial_state, parameters.affine_project(ClassicLSTMParams), step)
