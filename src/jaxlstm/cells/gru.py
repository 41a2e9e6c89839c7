"""The gated recurrent unit: two gates and no cell state.

    z = W_x x_t + b                       u = W_h h_{t-1}
    r, z = σ(z_r + u_r), σ(z_z + u_z)     n = tanh(z_n + r ⊙ (u_n + b_h))
    h_t = z ⊙ h_{t-1} + (1 - z) ⊙ n

Here the reset gate is applied after the recurrent product, as in cuDNN and torch. In
the paper it is applied before: n = tanh(z_n + W_hn (r ⊙ h_{t-1})). The update gate z
corresponds to the forget gate of an LSTM with i = 1 - f.

Reference:
    Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation", 2014, https://arxiv.org/abs/1406.1078
"""

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
    apply_edit,
    cast_like,
)
from jaxlstm.cells.products import broadcast_like, by_gate, check_projected, product
from jaxlstm.cells.simple import zero_hidden_state
from jaxlstm.construction import cached
from jaxlstm.initializers import (
    CANDIDATE,
    FORGET,
    INPUT,
    NO_FORGET_BIAS,
    OUTPUT,
    Preset,
    resolve_preset,
)
from jaxlstm.typing import Hidden, Key, Projected, as_key, exportable


@exportable
class GRUParams(NamedTuple):
    """`w_x [D, 3, H]`, `w_h [H, 3, H]`, `b [3, H]`, the gates in the order r, z, n.

    `b_h [H]` is added to u_n; None if the reset gate is applied before the product.
    """

    w_x: Float[Array, "D 3 H"]
    w_h: Float[Array, "H 3 H"]
    b: Float[Array, "3 H"]
    b_h: Float[Array, " H"] | None = None


@exportable
class GRUGates(NamedTuple):
    """Activations of the gates, each `[*b, H]`.

    Attributes:
        r: reset gate, the factor of the previous state in the candidate.
        z: update gate, the factor of the previous state in the new one.
        n: candidate, weighted by 1 - z in the new state.
    """

    r: Hidden
    z: Hidden
    n: Hidden


@parameters.cell_constructor
def gru(
    *,
    reset_after: bool = True,
    candidate_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the gated recurrent unit:

        z = W_x x_t + b                       u = W_h h_{t-1}
        r, z = σ(z_r + u_r), σ(z_z + u_z)     n = tanh(z_n + r ⊙ (u_n + b_h))
        h_t = z ⊙ h_{t-1} + (1 - z) ⊙ n

    Wrappers that edit a cell state do not apply to it.

    Args:
        reset_after: True to apply the reset gate after the recurrent product (cuDNN,
            torch, Keras), False to apply it before (the paper).
        candidate_activation: as in `lstm`.
        gate_activation: as in `lstm`.
        init: as in `lstm`; biases are initialized to zero. Presets that draw biases,
            such as `chrono`, treat z as the forget gate.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell, xs = jl.gru(), jnp.ones((7, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
        >>> trace.gates.z.shape, state._fields
        ((7, 2, 5), ('h',))
    """
    if not isinstance(reset_after, bool):
        raise ValueError(f"reset_after: got {reset_after!r}, expected True or False.")
    return _gru(
        reset_after,
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        resolve_preset(init, NO_FORGET_BIAS),
    )


@cached
def _gru(
    reset_after: bool, gate: Activation, candidate: Activation, init: Preset
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> GRUParams:
        gates = (OUTPUT, FORGET, CANDIDATE)
        gate_key, b_h_key = jax.random.split(as_key("init", key))
        drawn = parameters.draw(
            init, gate_key, input_size, hidden_size, dtype, gates=gates
        )
        if not reset_after:
            return GRUParams(*drawn)
        w_x, w_h, b = drawn
        draw_b_h = init.b if init.b_single is None else init.b_single
        b_h = draw_b_h(b_h_key, (4, hidden_size), dtype)
        if init.b_single is not None:  # then b of the candidate is not a sum either
            b = b.at[2].set(b_h[INPUT])
        return GRUParams(w_x, w_h, b, b_h[CANDIDATE])

    def after_product(
        params: GRUParams, h: Hidden, z: Projected
    ) -> tuple[Hidden, Hidden, Hidden]:
        z_r, z_z, z_n = by_gate(z)
        u_r, u_z, u_n = by_gate(product(h, params.w_h, z.dtype))
        r = gate(z_r + u_r)
        if params.b_h is not None:  # `project` has checked that it is not None
            u_n = u_n + broadcast_like(u_n, params.b_h)
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

    compute_gates = after_product if reset_after else before_product

    def step(
        params: GRUParams, state: HiddenState, z: Projected, *, edit: Edit = UNEDITED
    ) -> tuple[HiddenState, GRUGates]:
        parameters.reject_edits("gru", edit, "cell")
        check_projected(z, params.w_h)
        r, z, n = compute_gates(params, apply_edit(edit.hidden, state.h), z)
        n = apply_edit(edit.candidate, n)
        h = z * state.h.astype(z.dtype) + (1 - z) * n
        return cast_like(state, HiddenState(h)), GRUGates(r=r, z=z, n=n)

    without = () if reset_after else ("b_h",)
    initial_state = zero_hidden_state(GRUParams, without=without)
    project = parameters.affine_project(GRUParams, without=without)
    return Cell(draw, initial_state, project, step)
