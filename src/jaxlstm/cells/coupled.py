"""The LSTM with coupled input and forget gates, i = 1 - f.

    z = W_x x_t + W_h h_{t-1} + b         f, o = σ(z_f), σ(z_o)       g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + (1 - f) ⊙ g       h_t = o ⊙ tanh(c_t)

c is a weighted average of candidates and stays within their range. With peepholes,
p_f ⊙ c_{t-1} is added to z_f and p_o ⊙ c_t to z_o.

Reference:
    Greff et al., "LSTM: a search space odyssey", 2017 (CIFG),
    https://arxiv.org/abs/1503.04069
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
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
from jaxlstm.cells.lstm import zero_state
from jaxlstm.cells.peephole import add_peephole
from jaxlstm.cells.products import recurrent
from jaxlstm.construction import cached
from jaxlstm.initializers import CANDIDATE, FORGET, OUTPUT, Preset, resolve_preset
from jaxlstm.typing import Key, Projected, exportable


@exportable
class CoupledLSTMParams(NamedTuple):
    """`w_x [D, 3, H]`, `w_h [H, 3, H]`, `b [3, H]`, the gates in the order f, g, o.

    The peepholes `p_f`, `p_o` are `[H]`, or None without peepholes.
    """

    w_x: Float[Array, "D 3 H"]
    w_h: Float[Array, "H 3 H"]
    b: Float[Array, "3 H"]
    p_f: Float[Array, " H"] | None = None
    p_o: Float[Array, " H"] | None = None


@parameters.cell_constructor
def coupled_lstm(
    *,
    forget_bias: ArrayLike = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    peepholes: bool = False,
    init: str | Preset = "default",
) -> Cell:
    """Return the LSTM with coupled input and forget gates:

        z = W_x x_t + W_h h_{t-1} + b         f, o = σ(z_f), σ(z_o)       g = tanh(z_g)
        c_t = f ⊙ c_{t-1} + (1 - f) ⊙ g       h_t = o ⊙ tanh(c_t)

    `gates.i` is reported as 1 - f. The other options are those of `lstm`.

    Args:
        peepholes: whether f and o read the cell state; the weights are zero initially.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell, xs = jl.coupled_lstm(), jnp.ones((7, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
        >>> bool((trace.gates.i == 1 - trace.gates.f).all())
        True
    """
    if not isinstance(peepholes, bool):
        raise ValueError(f"peepholes: got {peepholes!r}, expected True or False.")
    return _coupled_lstm(
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        peepholes,
        resolve_preset(init, forget_bias),
    )


@cached
def _coupled_lstm(
    gate: Activation,
    candidate: Activation,
    output: Activation,
    peepholes: bool,
    init: Preset,
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> CoupledLSTMParams:
        gates = (FORGET, CANDIDATE, OUTPUT)
        drawn = parameters.draw(init, key, input_size, hidden_size, dtype, gates=gates)
        weights = jnp.zeros((2, hidden_size), dtype) if peepholes else ()
        return CoupledLSTMParams(*drawn, *weights)

    def step(
        params: CoupledLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        z_f, z_g, z_o = recurrent(apply_edit(edit.hidden, state.h), params.w_h, z)
        f = gate(add_peephole(z_f, params.p_f, state.c))
        g = apply_edit(edit.candidate, candidate(z_g))
        c = apply_edit(edit.cell, f * state.c + (1 - f) * g)
        o = gate(add_peephole(z_o, params.p_o, c))
        after = LSTMState(h=o * output(c), c=c)
        return cast_like(state, after), Gates(i=1 - f, f=f, g=g, o=o)

    without = () if peepholes else ("p_f", "p_o")
    initial_state = zero_state(CoupledLSTMParams, without=without)
    project = parameters.affine_project(CoupledLSTMParams, without=without)
    return Cell(draw, initial_state, project, step)
