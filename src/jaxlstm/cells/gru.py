"""The gated recurrent unit, for comparison: two gates, and no cell state.

    z = W_x x_t + b                       u = W_h h_{t-1}
    r, z = σ(z_r + u_r), σ(z_z + u_z)     n = tanh(z_n + r ⊙ (u_n + b_h))
    h_t = z ⊙ h_{t-1} + (1 - z) ⊙ n

This is the reset gate after the product, as cuDNN and torch have it. Before the
product, as in the paper, the candidate is n = tanh(z_n + W_hn (r ⊙ h_{t-1})). z is
the forget gate of this cell, coupled as i = 1 - f is; h is all that it holds, and all
of it is shown.

Reference: Cho et al., "Learning phrase representations using RNN encoder-decoder for
statistical machine translation", 2014, https://arxiv.org/abs/1406.1078
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlstm.cells import parameters
from jaxlstm.cells.base import (
    UNEDITED,
    Activation,
    Cell,
    Edit,
    HiddenState,
    activation,
    edited,
    typed_like,
)
from jaxlstm.cells.products import by_gate, check_projected, product, spread
from jaxlstm.cells.simple import hidden_at_rest
from jaxlstm.initializers import (
    CANDIDATE,
    FORGET,
    INPUT,
    NO_FORGET_BIAS,
    OUTPUT,
    Preset,
    chosen_preset,
)
from jaxlstm.typing import Hidden, Key, Projected, as_key


class GRUParams(NamedTuple):
    """`w_x [D, 3, H]`, `w_h [H, 3, H]`, `b [3, H]`, the gates in the order r, z, n.

    `b_h [H]` stands beside u_n; None where the reset gate acts before the product.
    """

    w_x: Float[Array, "D 3 H"]
    w_h: Float[Array, "H 3 H"]
    b: Float[Array, "3 H"]
    b_h: Float[Array, " H"] | None = None


class GRUGates(NamedTuple):
    """One value for each gate of each unit, `[*b, H]`.

    r  reset gate: how much of the past the candidate reads
    z  update gate: how much of the past is kept
    n  candidate: what takes the place of the rest
    """

    r: Hidden
    z: Hidden
    n: Hidden


def gru(
    *,
    reset_after: bool = True,
    candidate_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """The gated recurrent unit.

    The equations are at the head of `jaxlstm.cells.gru`. There is no cell state, so
    that an edit of one is refused.

    Arguments:
        reset_after: True for the reset gate after the recurrent product (cuDNN,
            torch, Keras), False for before it (the paper).
        candidate_activation, gate_activation: as in `lstm`.
        init: as in `lstm`; biases begin at zero. z takes the place of the forget
            gate in presets with biases of their own, such as `chrono`.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.gru()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> state, trace = jl.unroll(cell, params, jnp.ones((7, 2, 3)), emit=jl.emit.trace)
    >>> trace.gates.z.shape, state._fields
    ((7, 2, 5), ('h',))
    """
    if not isinstance(reset_after, bool):
        raise ValueError(f"reset_after is {reset_after!r}; True or False is needed.")
    return _gru(
        reset_after,
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        chosen_preset(init, NO_FORGET_BIAS),
    )


@functools.cache
def _gru(
    reset_after: bool, gate: Activation, candidate: Activation, init: Preset
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> GRUParams:
        gates = (OUTPUT, FORGET, CANDIDATE)
        ours, beside = jax.random.split(as_key("init", key))
        drawn = parameters.draw(init, ours, input_size, hidden_size, dtype, gates=gates)
        if not reset_after:
            return GRUParams(*drawn)
        w_x, w_h, b = drawn
        alone = init.b if init.b_alone is None else init.b_alone
        b_h = alone(beside, (4, hidden_size), dtype)
        if init.b_alone is not None:  # then the candidate's other bias is no sum either
            b = b.at[2].set(b_h[INPUT])
        return GRUParams(w_x, w_h, b, b_h[CANDIDATE])

    def after_product(
        params: GRUParams, h: Hidden, z: Projected
    ) -> tuple[Hidden, Hidden, Hidden]:
        z_r, z_z, z_n = by_gate(z)
        u_r, u_z, u_n = by_gate(product(h, params.w_h, z.dtype))
        r = gate(z_r + u_r)
        if params.b_h is not None:  # it is there: `project` has seen to it
            u_n = u_n + spread(params.b_h, u_n)
        n = candidate(z_n + r * u_n)
        return r, gate(z_z + u_z), n

    def before_product(
        params: GRUParams, h: Hidden, z: Projected
    ) -> tuple[Hidden, Hidden, Hidden]:
        z_r, z_z, z_n = by_gate(z)
        u_r, u_z = by_gate(product(h, params.w_h[:, :2], z.dtype))
        r = gate(z_r + u_r)
        reset = (r * h.astype(r.dtype)).astype(h.dtype)
        n = candidate(z_n + product(reset, params.w_h[:, 2], z.dtype))
        return r, gate(z_z + u_z), n

    read = after_product if reset_after else before_product

    def step(
        params: GRUParams, state: HiddenState, z: Projected, *, edit: Edit = UNEDITED
    ) -> tuple[HiddenState, GRUGates]:
        parameters.refuse("gru", edit, "cell")
        check_projected(z, params.w_h)
        r, z, n = read(params, edited(edit.hidden, state.h), z)
        n = edited(edit.candidate, n)
        h = z * state.h.astype(z.dtype) + (1 - z) * n
        return typed_like(state, HiddenState(h)), GRUGates(r=r, z=z, n=n)

    without = () if reset_after else ("b_h",)
    begin = hidden_at_rest(GRUParams, without=without)
    project = parameters.projecting(GRUParams, without=without)
    return Cell(draw, begin, project, step)
