"""The LSTM with a forget gate.

    z = W_x x_t + W_h h_{t-1} + b         i, f, o = σ(z_i), σ(z_f), σ(z_o)
    g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)

The cell state c changes by two gated terms only, so that its value, and the gradient
through it, are preserved as long as f stays near 1.

Reference:
    Hochreiter and Schmidhuber, "Long short-term memory", 1997,
    https://doi.org/10.1162/neco.1997.9.8.1735

    Gers, Schmidhuber and Cummins, "Learning to forget" (the forget gate), 2000,
    https://doi.org/10.1162/089976600300015015
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxlstm.cells import parameters
from jaxlstm.cells.base import (
    UNEDITED,
    Activation,
    Cell,
    Edit,
    Gates,
    InitialState,
    LSTMParams,
    LSTMState,
    Params,
    Recurrent,
    activation,
    apply_edit,
    as_batch_shape,
    cast_like,
)
from jaxlstm.cells.products import affine, check_projected, product
from jaxlstm.construction import cached
from jaxlstm.initializers import Preset, resolve_preset
from jaxlstm.typing import Hidden, Input, Key, Projected, accumulator_dtype


def project(params: LSTMParams, x: Input) -> Projected:
    """Compute the input's part of the pre-activations: `W_x x_t + b`, `[*b, 4, H]`.

    It does not depend on the state, so a sequence can be projected in one product.

    Args:
        params: `LSTMParams` of any floating dtype.
        x: `[*b, D]`. Operands of the product are cast to its dtype; sums are kept in
            float32 or wider.

    Raises:
        ValueError: x does not have D floating point features.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> params = jl.lstm().init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> jl.cells.lstm.project(params, jnp.ones((7, 3))).shape
        (7, 4, 5)
    """
    parameters.sizes(LSTMParams, params)
    return affine(x, params.w_x, params.b)


def preactivations(params: Recurrent, h: Hidden, z: Projected) -> Gates:
    """Compute `z_t + W_h h_{t-1}` per gate, each `[*b, H]`, in the dtype of z.

    Args:
        params: a record with a field `w_h [H, 4, H]`.
        h: `[*b, H]`, the hidden state before the step.
        z: `[*b, 4, H]`, the result of `project`.

    Raises:
        ValueError: z has another shape.
    """
    check_projected(z, params.w_h)
    z = z + product(h, params.w_h, z.dtype)
    return Gates(i=z[..., 0, :], f=z[..., 1, :], g=z[..., 2, :], o=z[..., 3, :])


def activate(
    gates: Gates,
    *,
    gate: Activation = jax.nn.sigmoid,
    candidate: Activation = jnp.tanh,
    edit: Activation | None = None,
) -> Gates:
    """Compute `i, f, o = σ(z_i), σ(z_f), σ(z_o)` and `g = tanh(z_g)`.

    Args:
        gates: the pre-activations.
        gate: activation of i, f and o.
        candidate: activation of g.
        edit: function applied to g.

    Example:
        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> float(jl.cells.lstm.activate(jl.Gates(*jnp.zeros((4, 1)))).f[0])
        0.5
    """
    gates = Gates(
        i=gate(gates.i), f=gate(gates.f), g=candidate(gates.g), o=gate(gates.o)
    )
    return gates._replace(g=apply_edit(edit, gates.g))


def transition(
    gates: Gates,
    c: Hidden,
    *,
    output: Activation = jnp.tanh,
    edit: Activation | None = None,
) -> LSTMState:
    """Compute `c_t = f ⊙ c_{t-1} + i ⊙ g` and `h_t = o ⊙ tanh(c_t)`.

    Args:
        gates: the activated gates, each `[*b, H]`.
        c: `[*b, H]`, the cell state before the step.
        output: activation of c_t in h_t.
        edit: function applied to c_t before h_t is computed.

    Example:
        With f = 1 and i = 0 the cell state is unchanged, bit for bit:

        >>> import jax.numpy as jnp, jaxlstm as jl
        >>> one, zero = jnp.ones(1), jnp.zeros(1)
        >>> gates = jl.Gates(i=zero, f=one, g=one, o=one)
        >>> float(jl.cells.lstm.transition(gates, jnp.array([0.3])).c[0])
        0.30000001192092896
    """
    c = apply_edit(edit, gates.f * c + gates.i * gates.g)
    return LSTMState(h=gates.o * output(c), c=c)


def zero_state(
    record: type, *, h_size: str = "H", without: tuple[str, ...] = ()
) -> InitialState:
    """Return the `initial_state` of a cell with h and c: zeros, `[*batch_shape, H]`.

    h has the requested dtype (default: that of b), c has float32 or wider. A 16-bit
    cell state cannot accumulate: in bfloat16, 256 + 1 is 256.

    Args:
        record: type of the parameters, as in `parameters.sizes`.
        h_size: the letter of the size of h in the annotations.
        without: fields of the parameters that are None.
    """

    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> LSTMState:
        size = parameters.sizes(record, params, without=without)
        batch = as_batch_shape(batch_shape)
        dtype = jnp.dtype(params.b.dtype if dtype is None else dtype)
        return LSTMState(
            h=jnp.zeros((*batch, size[h_size]), dtype),
            c=jnp.zeros((*batch, size["H"]), accumulator_dtype(dtype)),
        )

    return initial_state


_zeros = zero_state(LSTMParams)


def initial_state(
    params: LSTMParams,
    batch_shape: tuple[int, ...] = (),
    *,
    dtype: DTypeLike | None = None,
) -> LSTMState:
    """Return zeros `[*batch_shape, H]`, see `zero_state`."""
    return _zeros(params, batch_shape, dtype=dtype)


@parameters.cell_constructor
def lstm(
    *,
    forget_bias: ArrayLike = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the LSTM with a forget gate:

        z = W_x x_t + W_h h_{t-1} + b         i, f, o = σ(z_i), σ(z_f), σ(z_o)
        g = tanh(z_g)
        c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)

    The same options return the same object, so that `jit` does not retrace.

    Args:
        forget_bias: initial bias of the forget gate, a number or an array `[H]`, which
            may be traced, as by `vmap`. It is part of `b`.
        candidate_activation: activation of g, a name from
            `jaxlstm.cells.base.ACTIVATIONS` or a function of one array.
        output_activation: activation of c_t in h_t, likewise.
        gate_activation: activation of i, f and o, likewise.
        init: `"default"`, `"torch"`, `"keras"`, `"chrono"` (T_max = 1000; for another
            value, `initializers.chrono(T_max)`), or a `Preset`.

    Raises:
        ValueError: an activation or preset is unknown.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, hs = jl.unroll(cell, params, jnp.ones((7, 2, 3)))
        >>> hs.shape, state.c.shape
        ((7, 2, 5), (2, 5))
    """
    return _lstm(
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        resolve_preset(init, forget_bias),
    )


@cached
def _lstm(
    gate: Activation, candidate: Activation, output: Activation, init: Preset
) -> Cell:
    def draw(
        key: Key,
        input_size: int,
        hidden_size: int,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> LSTMParams:
        return LSTMParams(*parameters.draw(init, key, input_size, hidden_size, dtype))

    def step(
        params: LSTMParams, state: LSTMState, z: Projected, *, edit: Edit = UNEDITED
    ) -> tuple[LSTMState, Gates]:
        gates = preactivations(params, apply_edit(edit.hidden, state.h), z)
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        after = transition(gates, state.c, output=output, edit=edit.cell)
        return cast_like(state, after), gates

    return Cell(draw, initial_state, project, step)
