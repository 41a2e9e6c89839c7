"""The LSTM with layer normalization.

    z = LN(W_x x_t; s_x) + LN(W_h h_{t-1}; s_h) + b
    i, f, o = σ(z_i), σ(z_f), σ(z_o)      g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(LN(c_t; s_c) + b_c)

    LN(a; s) = s ⊙ (a - mean(a)) / √(var(a) + ε)                    ε = 10⁻⁵

The mean and the variance of W_x x and W_h h are taken over all 4H numbers of a row,
those of c over its H numbers; rows and steps are normalized independently. The shifts
that the paper gives to the first two are merged into b.

Reference:
    Ba, Kiros and Hinton, "Layer normalization", 2016, equations 20 to 22,
    https://arxiv.org/abs/1607.06450
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
)
from jaxlstm.cells.lstm import activate, transition, zero_state
from jaxlstm.cells.products import broadcast_like, by_gate, linear, product
from jaxlstm.construction import cached
from jaxlstm.initializers import Preset, resolve_preset
from jaxlstm.typing import Hidden, Input, Key, Projected, exportable

EPSILON = 1e-5


@exportable
class LayerNormLSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [H, 4, H]`, `b [4, H]`, gates in the order of `Gates`.

    The scales are `s_x [4, H]`, `s_h [4, H]` and `s_c [H]`, the shift is `b_c [H]`.
    """

    w_x: Float[Array, "D 4 H"]
    w_h: Float[Array, "H 4 H"]
    b: Float[Array, "4 H"]
    s_x: Float[Array, "4 H"]
    s_h: Float[Array, "4 H"]
    s_c: Float[Array, " H"]
    b_c: Float[Array, " H"]


@parameters.cell_constructor
def layer_norm_lstm(
    *,
    forget_bias: ArrayLike = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the LSTM with layer normalization:

        z = LN(W_x x_t; s_x) + LN(W_h h_{t-1}; s_h) + b
        i, f, o = σ(z_i), σ(z_f), σ(z_o)      g = tanh(z_g)
        c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(LN(c_t; s_c) + b_c)

        LN(a; s) = s ⊙ (a - mean(a)) / √(var(a) + ε)                    ε = 10⁻⁵

    The options are those of `lstm`. Scales are initialized to one, b_c to zero.

    Example:
        The output does not depend on the scale of the inputs:

        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.layer_norm_lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> xs = jax.random.normal(jax.random.key(1), (7, 2, 3))
        >>> state, hs = jl.unroll(cell, params, xs)
        >>> _, scaled = jl.unroll(cell, params, 10 * xs)
        >>> bool(jnp.allclose(hs, scaled, atol=1e-3))
        True
    """
    return _layer_norm_lstm(
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        resolve_preset(init, forget_bias),
    )


def project(params: LayerNormLSTMParams, x: Input) -> Projected:
    """Compute `LN(W_x x_t; s_x) + b`, `[*b, 4, H]`."""
    parameters.sizes(LayerNormLSTMParams, params)
    z = layer_norm(linear(x, params.w_x), params.s_x)
    return z + broadcast_like(z, params.b)


def layer_norm(a: Array, s: Array) -> Array:
    """Compute `s ⊙ (a - mean(a)) / √(var(a) + ε)` over the axes of s."""
    axes = tuple(range(-s.ndim, 0))
    centred = a - a.mean(axes, keepdims=True)
    variance = (centred**2).mean(axes, keepdims=True)
    return broadcast_like(a, s) * centred * jax.lax.rsqrt(variance + EPSILON)


@cached
def _layer_norm_lstm(
    gate: Activation, candidate: Activation, output: Activation, init: Preset
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> LayerNormLSTMParams:
        w_x, w_h, b = parameters.draw(init, key, input_size, hidden_size, dtype)
        one, zero = jnp.ones_like(b), jnp.zeros_like(b[0])
        return LayerNormLSTMParams(w_x, w_h, b, one, jnp.copy(one), one[0], zero)

    def step(
        params: LayerNormLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        def normalized(c: Hidden) -> Hidden:
            c = layer_norm(c, params.s_c) + broadcast_like(c, params.b_c)
            return output(c)

        read = product(apply_edit(edit.hidden, state.h), params.w_h, z.dtype)
        gates = Gates(*by_gate(z + layer_norm(read, params.s_h)))
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        after = transition(gates, state.c, output=normalized, edit=edit.cell)
        return cast_like(state, after), gates

    return Cell(draw, zero_state(LayerNormLSTMParams), project, step)
