"""The simple recurrent network, for comparison: no gate and no cell state.

    h_t = tanh(W_x x_t + W_h h_{t-1} + b)

All that it remembers passes through W_h and tanh at every step, so that gradients
vanish or explode with the number of steps: what the LSTM was made for.

Reference: Elman, "Finding structure in time", 1990,
https://doi.org/10.1207/s15516709cog1402_1
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
    HiddenState,
    InitialState,
    Params,
    edited,
    typed_like,
)
from jaxlstm.cells.base import activation as chosen_activation
from jaxlstm.cells.lstm import at_rest
from jaxlstm.cells.products import check_projected, product
from jaxlstm.initializers import CANDIDATE, NO_FORGET_BIAS, Preset, chosen_preset
from jaxlstm.typing import Hidden, Key


class RNNParams(NamedTuple):
    """`w_x [D, H]`, `w_h [H, H]`, `b [H]`."""

    w_x: Float[Array, "D H"]
    w_h: Float[Array, "H H"]
    b: Float[Array, " H"]


class RNNGates(NamedTuple):
    """g, the candidate `[*b, H]`: here it is the new h itself."""

    g: Hidden


def simple_rnn(
    *, activation: str | Activation = "tanh", init: str | Preset = "default"
) -> Cell:
    """The simple recurrent network of Elman.

    The equation is at the head of `jaxlstm.cells.simple`. It has nothing to write
    before h, so that edits of a candidate or of a cell state are refused.

    Arguments:
        activation: in place of tanh; a name as in `lstm`, or a function.
        init: as in `lstm`. Presets that differ in the biases of gates only are one.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.simple_rnn()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> state, hs = jl.unroll(cell, params, jnp.ones((7, 2, 3)))
    >>> hs.shape, bool((state.h == hs[-1]).all())
    ((7, 2, 5), True)
    """
    return _simple_rnn(
        chosen_activation("activation", activation), chosen_preset(init, NO_FORGET_BIAS)
    )


@functools.cache
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
        parameters.refuse("simple_rnn", edit, "candidate", "cell")
        check_projected(z, params.w_h)
        h = edited(edit.hidden, state.h)
        g = activation(z + product(h, params.w_h, z.dtype))
        return typed_like(state, HiddenState(g)), RNNGates(g)

    begin = hidden_at_rest(RNNParams)
    return Cell(draw, begin, parameters.projecting(RNNParams), step)


def hidden_at_rest(record: type, *, without: tuple[str, ...] = ()) -> InitialState:
    """The `initial_state` of a cell without c: the h of `lstm.at_rest`."""
    begin = at_rest(record, without=without)

    def initial_state(
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> HiddenState:
        return HiddenState(begin(params, batch_shape, dtype=dtype).h)

    return initial_state
