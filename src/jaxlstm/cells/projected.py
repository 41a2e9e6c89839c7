"""The LSTM with a projected hidden state.

    z = W_x x_t + W_h h_{t-1} + b         i, f, o = σ(z_i), σ(z_f), σ(z_o)
    g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = W_p (o ⊙ tanh(c_t))

h has P < H units, so that W_h, the largest parameter, has P rows instead of H: a large
cell state for few parameters.

Reference:
    Sak, Senior and Beaufays, "Long short-term memory based recurrent neural network
    architectures for large vocabulary speech recognition", 2014,
    https://arxiv.org/abs/1402.1128
"""

from typing import NamedTuple

import jax
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
    check_size,
)
from jaxlstm.cells.lstm import activate, preactivations, transition, zero_state
from jaxlstm.cells.products import product
from jaxlstm.construction import cached
from jaxlstm.initializers import Preset, resolve_preset
from jaxlstm.typing import Key, Projected, as_key, exportable


@exportable
class ProjectedLSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [P, 4, H]`, `b [4, H]`, and the projection `w_p [H, P]`."""

    w_x: Float[Array, "D 4 H"]
    w_h: Float[Array, "P 4 H"]
    b: Float[Array, "4 H"]
    w_p: Float[Array, "H P"]


@parameters.cell_constructor
def projected_lstm(
    projection_size: int,
    *,
    forget_bias: ArrayLike = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the LSTM with a projected hidden state, h `[*b, P]` and c `[*b, H]`:

        z = W_x x_t + W_h h_{t-1} + b         i, f, o = σ(z_i), σ(z_f), σ(z_o)
        g = tanh(z_g)
        c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = W_p (o ⊙ tanh(c_t))

    The other options are those of `lstm`. W_p is drawn by the recurrent initializer of
    the preset.

    Args:
        projection_size: P, the size of h.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.projected_lstm(2)
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, hs = jl.unroll(cell, params, jnp.ones((7, 4, 3)))
        >>> hs.shape, state.c.shape
        ((7, 4, 2), (4, 5))
    """
    check_size("projection_size", projection_size)
    return _projected_lstm(
        int(projection_size),
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        resolve_preset(init, forget_bias),
    )


@cached
def _projected_lstm(
    size: int,
    gate: Activation,
    candidate: Activation,
    output: Activation,
    init: Preset,
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> ProjectedLSTMParams:
        gate_key, projection_key = jax.random.split(as_key("init", key))
        w_x, w_h, b = parameters.draw(
            init, gate_key, input_size, hidden_size, dtype, recurrent_size=size
        )
        w_p = init.w_h(projection_key, (size, 1, hidden_size), dtype)
        return ProjectedLSTMParams(w_x, w_h, b, w_p[:, 0].T)

    def step(
        params: ProjectedLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        gates = preactivations(params, apply_edit(edit.hidden, state.h), z)
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        m, c = transition(gates, state.c, output=output, edit=edit.cell)
        h = product(m.astype(state.h.dtype), params.w_p, z.dtype)
        return cast_like(state, LSTMState(h, c)), gates

    initial_state = zero_state(ProjectedLSTMParams, h_size="P")
    return Cell(
        draw, initial_state, parameters.affine_project(ProjectedLSTMParams), step
    )
