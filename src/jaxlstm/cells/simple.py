"""The simple recurrent network of Elman, without gates or cell state.

    h_t = tanh(W_x x_t + W_h h_{t-1} + b)

The state passes through W_h and tanh at every step, so that gradients vanish or explode
with the number of steps. It serves as a baseline for the LSTM.

Reference:
    Elman, "Finding structure in time", 1990,
    https://doi.org/10.1207/s15516709cog1402_1
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
    HiddenState,
    InitialState,
    Params,
    apply_edit,
    cast_like,
)
from jaxlstm.cells.base import activation as chosen_activation
from jaxlstm.cells.lstm import zero_state
from jaxlstm.cells.products import check_projected, product
from jaxlstm.construction import cached
from jaxlstm.initializers import CANDIDATE, NO_FORGET_BIAS, Preset, resolve_preset
from jaxlstm.typing import Hidden, Key, exportable


@exportable
class RNNParams(NamedTuple):
    """`w_x [D, H]`, `w_h [H, H]`, `b [H]`."""

    w_x: Float[Array, "D H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, " H"]


@exportable
class RNNGates(NamedTuple):
    """The candidate g `[*b, H]`, which equals the new h."""

    g: Hidden


@parameters.cell_constructor
def simple_rnn(
    *, activation: str | Activation = "tanh", init: str | Preset = "default"
) -> Cell:
    """Return the simple recurrent network of Elman:

        h_t = tanh(W_x x_t + W_h h_{t-1} + b)

    Wrappers that edit a candidate or a cell state do not apply to it.

    Args:
        activation: a name as in `lstm`, or a function.
        init: as in `lstm`; biases are initialized to zero.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.simple_rnn()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, hs = jl.unroll(cell, params, jnp.ones((7, 2, 3)))
        >>> hs.shape, bool((state.h == hs[-1]).all())
        ((7, 2, 5), True)
    """
    return _simple_rnn(
        chosen_activation("activation", activation),
        resolve_preset(init, NO_FORGET_BIAS),
    )


@cached
def _simple_rnn(activation: Activation, init: Preset) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> RNNParams:
        w_x, w_h, b = parameters.draw(
            init, key, input_size, hidden_size, dtype, gates=(CANDIDATE,)
        )
        return RNNParams(w_x[:, 0], w_h[:, 0], b[0])

    def step(
        params: RNNParams, state: HiddenState, z: Hidden, *, edit: Edit = UNEDITED
    ) -> tuple[HiddenState, RNNGates]:
        parameters.reject_edits("simple_rnn", edit, "candidate", "cell")
        check_projected(z, params.w_h)
        h = apply_edit(edit.hidden, state.h)
        g = activation(z + product(h, params.w_h, z.dtype))
        return cast_like(state, HiddenState(g)), RNNGates(g)

    initial_state = zero_hidden_state(RNNParams)
    return Cell(draw, initial_state, parameters.affine_project(RNNParams), step)


def zero_hidden_state(record: type, *, without: tuple[str, ...] = ()) -> InitialState:
    """Return the `initial_state` of a cell without c: the h of `lstm.zero_state`."""
    zeros = zero_state(record, without=without)

    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> HiddenState:
        return HiddenState(zeros(params, batch_shape, dtype=dtype).h)

    return initial_state
