"""The LSTM whose gates look at the cell state.

    z = W_x x_t + W_h h_{t-1} + b
    i, f = σ(z_i + p_i ⊙ c_{t-1}), σ(z_f + p_f ⊙ c_{t-1})         g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g
    o = σ(z_o + p_o ⊙ c_t)                                        h_t = o ⊙ tanh(c_t)

While the output gate is shut, h says nothing of what the cell holds; through its
peepholes the unit sees it all the same, and can learn to count and to time.

Reference: Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM
recurrent networks", 2002, https://www.jmlr.org/papers/v3/gers02a.html
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
from jaxlstm.cells.lstm import at_rest
from jaxlstm.cells.products import recurrent, spread
from jaxlstm.initializers import Preset, chosen_preset
from jaxlstm.typing import Hidden, Key, Projected


class PeepholeLSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [H, 4, H]`, `b [4, H]`, and the peepholes `[H]`."""

    w_x: Float[Array, "D 4 H"]
    w_h: Float[Array, "H 4 H"]
    b: Float[Array, "4 H"]
    p_i: Float[Array, " H"]
    p_f: Float[Array, " H"]
    p_o: Float[Array, " H"]


def peephole_lstm(
    *,
    forget_bias: float = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """The LSTM with peepholes, each unit's from its own cell state only.

    The equations are at the head of `jaxlstm.cells.peephole`; the options are those
    of `lstm`. The peepholes begin at zero: before training, this is the LSTM that the
    same key draws.

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
        chosen_preset(init, forget_bias),
    )


def looked(z: Hidden, p: Hidden | None, c: Hidden) -> Hidden:
    """`z + p ⊙ c`: a gate's pre-activation, with its look at c if it has one."""
    return z if p is None else z + spread(p, c) * c


@functools.cache
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
        z_i, z_f, z_g, z_o = recurrent(edited(edit.hidden, state.h), params.w_h, z)
        i = gate(looked(z_i, params.p_i, state.c))
        f = gate(looked(z_f, params.p_f, state.c))
        g = edited(edit.candidate, candidate(z_g))
        c = edited(edit.cell, f * state.c + i * g)
        o = gate(looked(z_o, params.p_o, c))
        after = LSTMState(h=o * output(c), c=c)
        return typed_like(state, after), Gates(i=i, f=f, g=g, o=o)

    begin = at_rest(PeepholeLSTMParams)
    return Cell(draw, begin, parameters.projecting(PeepholeLSTMParams), step)
