"""The LSTM with peepholes, whose gates read the cell state.

    z = W_x x_t + W_h h_{t-1} + b
    i, f = σ(z_i + p_i ⊙ c_{t-1}), σ(z_f + p_f ⊙ c_{t-1})         g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g
    o = σ(z_o + p_o ⊙ c_t)                                        h_t = o ⊙ tanh(c_t)

When the output gate is closed, h does not depend on c. Peepholes let the gates read c
all the same, so that a unit can learn to count and to measure intervals.

Reference:
    Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent
    networks", 2002, https://www.jmlr.org/papers/v3/gers02a.html
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
from jaxlstm.cells.products import broadcast_like, recurrent
from jaxlstm.construction import cached
from jaxlstm.initializers import Preset, resolve_preset
from jaxlstm.typing import Hidden, Key, Projected, exportable


@exportable
class PeepholeLSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [H, 4, H]`, `b [4, H]`, and the peepholes `[H]`."""

    w_x: Float[Array, "D 4 H"]
    w_h: Float[Array, "H 4 H"]
    b: Float[Array, "4 H"]
    p_i: Float[Array, " H"]
    p_f: Float[Array, " H"]
    p_o: Float[Array, " H"]


@parameters.cell_constructor
def peephole_lstm(
    *,
    forget_bias: ArrayLike = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the LSTM with peepholes, from each unit's own cell state:

        z = W_x x_t + W_h h_{t-1} + b
        i, f = σ(z_i + p_i ⊙ c_{t-1}), σ(z_f + p_f ⊙ c_{t-1})        g = tanh(z_g)
        c_t = f ⊙ c_{t-1} + i ⊙ g
        o = σ(z_o + p_o ⊙ c_t)                                       h_t = o ⊙ tanh(c_t)

    The options are those of `lstm`. The peepholes are initialized to zero, so that an
    untrained cell equals the LSTM of the same key.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell, key, xs = jl.peephole_lstm(), jax.random.key(0), jnp.ones((7, 2, 3))
        >>> params = cell.init(key, input_size=3, hidden_size=5)
        >>> state, hs = jl.unroll(cell, params, xs)
        >>> _, plain = jl.unroll(jl.lstm(), jl.lstm().init(key, 3, 5), xs)
        >>> bool(jnp.allclose(hs, plain, atol=1e-6))
        True
    """
    return _peephole_lstm(
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        resolve_preset(init, forget_bias),
    )


def add_peephole(z: Hidden, p: Hidden | None, c: Hidden) -> Hidden:
    """Return the pre-activation `z + p ⊙ c`, or z without a peephole."""
    return z if p is None else z + broadcast_like(c, p) * c


@cached
def _peephole_lstm(
    gate: Activation, candidate: Activation, output: Activation, init: Preset
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> PeepholeLSTMParams:
        drawn = parameters.draw(init, key, input_size, hidden_size, dtype)
        return PeepholeLSTMParams(*drawn, *jnp.zeros((3, hidden_size), dtype))

    def step(
        params: PeepholeLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        z_i, z_f, z_g, z_o = recurrent(apply_edit(edit.hidden, state.h), params.w_h, z)
        i = gate(add_peephole(z_i, params.p_i, state.c))
        f = gate(add_peephole(z_f, params.p_f, state.c))
        g = apply_edit(edit.candidate, candidate(z_g))
        c = apply_edit(edit.cell, f * state.c + i * g)
        o = gate(add_peephole(z_o, params.p_o, c))
        after = LSTMState(h=o * output(c), c=c)
        return cast_like(state, after), Gates(i=i, f=f, g=g, o=o)

    initial_state = zero_state(PeepholeLSTMParams)
    return Cell(
        draw, initial_state, parameters.affine_project(PeepholeLSTMParams), step
    )
