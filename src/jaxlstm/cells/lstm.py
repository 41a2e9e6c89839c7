"""The LSTM at one instant. No time axis lives in this file.

    z = W_x x_t + W_h h_{t-1} + b         i, f, o = σ(z_i), σ(z_f), σ(z_o)
    g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)

The cell state c is changed by two gated terms only, so that what it holds, and the
gradient that flows back through it, survives for as long as f stays near 1.

References: Hochreiter and Schmidhuber, "Long short-term memory", 1997,
https://doi.org/10.1162/neco.1997.9.8.1735; the forget gate: Gers, Schmidhuber and
Cummins, "Learning to forget", 2000, https://doi.org/10.1162/089976600300015015
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

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
    edited,
    typed_like,
)
from jaxlstm.cells.products import affine, check_projected, product
from jaxlstm.initializers import Preset, chosen_preset
from jaxlstm.typing import Hidden, Input, Key, Projected, accumulator_dtype


def project(params: LSTMParams, x: Input) -> Projected:
    """What the input adds to the pre-activations: `W_x x_t + b`, `[*b, 4, H]`.

    It does not wait for the past, so a whole sequence can be projected in one product.

    Arguments:
        params: `LSTMParams` of any floating dtype.
        x: `[*b, D]`. Products take operands in its dtype; sums are kept in float32 or
            wider.

    Errors: `ValueError` where x has other features than the parameters were made for,
    or no floating point numbers.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> params = jl.lstm().init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> jl.cells.lstm.project(params, jnp.ones((7, 3))).shape
    (7, 4, 5)
    """
    parameters.sizes(LSTMParams, params)
    return affine(x, params.w_x, params.b)


def preactivations(params: Recurrent, h: Hidden, z: Projected) -> Gates:
    """`z_t + W_h h_{t-1}`, gate by gate, each `[*b, H]`, in the dtype of z.

    Arguments:
        params: a record, of which `w_h [H, 4, H]` is read, through a 2-D view.
        h: `[*b, H]`, the hidden state before the step.
        z: `[*b, 4, H]`, what `project` made of the input.

    Errors: `ValueError` for z of another shape, such as the input itself.
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
    """`i, f, o = σ(z_i), σ(z_f), σ(z_o)` and `g = tanh(z_g)`.

    Arguments:
        gates: the pre-activations.
        gate, candidate: other functions in place of σ and tanh.
        edit: a change made to g before it is written.

    >>> import jax.numpy as jnp, jaxlstm as jl
    >>> float(jl.cells.lstm.activate(jl.Gates(*jnp.zeros((4, 1)))).f[0])
    0.5
    """
    gates = Gates(
        i=gate(gates.i), f=gate(gates.f), g=candidate(gates.g), o=gate(gates.o)
    )
    return gates._replace(g=edited(edit, gates.g))


def transition(
    gates: Gates,
    c: Hidden,
    *,
    output: Activation = jnp.tanh,
    edit: Activation | None = None,
) -> LSTMState:
    """`c_t = f ⊙ c_{t-1} + i ⊙ g` and `h_t = o ⊙ tanh(c_t)`.

    Arguments:
        gates: the activated gates, `[*b, H]` each.
        c: `[*b, H]`, the cell state before the step.
        output: another function in place of tanh.
        edit: a change made to c_t before it is shown and carried.

    With f = 1 and i = 0 the cell keeps what it holds, bit for bit:

    >>> import jax.numpy as jnp, jaxlstm as jl
    >>> keep = jl.Gates(i=jnp.zeros(1), f=jnp.ones(1), g=jnp.ones(1), o=jnp.ones(1))
    >>> float(jl.cells.lstm.transition(keep, jnp.array([0.3])).c[0])
    0.30000001192092896
    """
    c = edited(edit, gates.f * c + gates.i * gates.g)
    return LSTMState(h=gates.o * output(c), c=c)


def at_rest(
    record: type, *, shown: str = "H", without: tuple[str, ...] = ()
) -> InitialState:
    """The `initial_state` of a cell with h and c: zeros, `[*batch_shape, H]`.

    h is in the dtype asked for (that of b), c in float32 or wider. A cell state in 16
    bits could not count: in bfloat16, 256 + 1 is 256.

    Arguments:
        record, without: what the parameters must be, as in `parameters.sizes`.
        shown: the letter of the size of h.
    """

    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> LSTMState:
        size = parameters.sizes(record, params, without=without)
        dtype = jnp.dtype(params.b.dtype if dtype is None else dtype)
        return LSTMState(
            h=jnp.zeros((*batch_shape, size[shown]), dtype),
            c=jnp.zeros((*batch_shape, size["H"]), accumulator_dtype(dtype)),
        )

    return initial_state


initial_state = at_rest(LSTMParams)


def lstm(
    *,
    forget_bias: float = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """The LSTM with a forget gate, as a record of four pure functions.

    The equations are at the head of `jaxlstm.cells.lstm`. The same options give the
    same object, so that `jit` does not trace again.

    Arguments:
        forget_bias: the forget gate's bias at initialisation. It is part of `b`.
        candidate_activation, output_activation, gate_activation: names out of
            `jaxlstm.cells.base.ACTIVATIONS`, or functions of one array.
        init: `"default"`, `"torch"`, `"keras"` or `"chrono"` (T_max = 1000; for
            another, `initializers.chrono(T_max)`), or a `Preset`.

    Errors: `ValueError` for an unknown activation or preset.

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
        chosen_preset(init, forget_bias),
    )


@functools.cache
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
        gates = preactivations(params, edited(edit.hidden, state.h), z)
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        after = transition(gates, state.c, output=output, edit=edit.cell)
        return typed_like(state, after), gates

    return Cell(draw, initial_state, project, step)
