"""The LSTM over space: every matrix is a convolution.

    z = W_x ∗ x_t + W_h ∗ h_{t-1} + b     i, f, o = σ(z_i), σ(z_f), σ(z_o)
    g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)

x, h and c have 1 to 3 axes of space before their features: a line, an image, a
volume. ∗ slides the kernel over all of them by steps of one, as if zeros stood
outside, so that space keeps its size. As in every library, the kernel is not flipped.

Reference: Shi et al., "Convolutional LSTM network", 2015, without its peepholes,
https://arxiv.org/abs/1506.04214
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
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
    check_size,
    edited,
    typed_like,
)
from jaxlstm.cells.lstm import activate, at_rest, transition
from jaxlstm.cells.products import (
    by_gate,
    check_features,
    fold,
    may_be_split,
    spread,
    unfold,
)
from jaxlstm.initializers import Preset, chosen_preset
from jaxlstm.typing import Input, Key, Projected, accumulator_dtype, is_explicit, show


class ConvLSTMParams(NamedTuple):
    """`w_x [*k, D, 4, H]`, `w_h [*k, H, 4, H]`, `b [4, H]`, gates as in `Gates`.

    *k is the shape of the kernel, D and H are the channels.
    """

    w_x: Float[Array, "*k D 4 H"]
    w_h: Float[Array, "*k H 4 H"]
    b: Float[Array, "4 H"]


def conv_lstm(
    kernel_shape: int | Sequence[int],
    *,
    forget_bias: float = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """The convolutional LSTM: xs is `[T, *b, *space, D]`, h and c `[*b, *space, H]`.

    The equations are at the head of `jaxlstm.cells.convolutional`.

    Arguments:
        kernel_shape: one size for each axis of space, 1 to 3 of them; a number is the
            size on a single axis.
        others: as in `lstm`. What a unit reads, kernel times channels, counts as the
            inputs of its matrix.

    Space is part of the `batch_shape` of `cell.initial_state`.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.conv_lstm((3, 3))
    >>> params = cell.init(jax.random.key(0), input_size=1, hidden_size=4)
    >>> films = jnp.ones((7, 2, 16, 12, 1))
    >>> state, hs = jl.unroll(cell, params, films, lengths=jnp.array([7, 5]))
    >>> hs.shape
    (7, 2, 16, 12, 4)
    """
    return _conv_lstm(
        _kernel(kernel_shape),
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        chosen_preset(init, forget_bias),
    )


def convolution(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """`w ∗ x`, `[..., *space, 4, H]`, for x `[..., *space, K]`, w `[*k, K, 4, H]`.

    Operands are taken in the dtype of x, sums are kept in `dtype`. On an explicit mesh
    with H split, every device gathers x and makes the four gates of its own units.
    """
    space, w = w.ndim - 3, w.astype(x.dtype)
    lead = x.ndim - 1 - space
    rows = fold(x, lead)
    if is_explicit(jax.typeof(w).sharding) and may_be_split(w):
        rows = jax.sharding.reshard(rows, P(*jax.typeof(rows).sharding.spec[:-1], None))
        gates = [_slide(rows, w[..., k, :], dtype) for k in range(w.shape[-2])]
        return unfold(jnp.stack(gates, axis=-2), x, lead)
    z = _slide(rows, w.reshape(*w.shape[:-2], -1), dtype)
    return unfold(z.reshape(*z.shape[:-1], *w.shape[-2:]), x, lead)


def _slide(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """x `[N, *space, K]`, w `[*k, K, L]`: `[N, *space, L]`."""
    letters, placed = "DHW"[: x.ndim - 2], None
    if is_explicit(jax.typeof(w).sharding):
        placed = P(*jax.typeof(x).sharding.spec[:-1], jax.typeof(w).sharding.spec[-1])
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(1,) * len(letters),
        padding="SAME",
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        preferred_element_type=dtype,
        out_sharding=placed,
    )


@functools.cache
def _conv_lstm(
    kernel: tuple[int, ...],
    gate: Activation,
    candidate: Activation,
    output: Activation,
    init: Preset,
) -> Cell:
    def draw(
        key: Key, input_size: int, hidden_size: int, *, dtype: DTypeLike = jnp.float32
    ) -> ConvLSTMParams:
        check_size("input_size", input_size)
        check_size("hidden_size", hidden_size)
        seen = math.prod(kernel)
        w_x, w_h, b = parameters.draw(
            init,
            key,
            seen * input_size,
            hidden_size,
            dtype,
            recurrent_size=seen * hidden_size,
        )
        return ConvLSTMParams(
            w_x=w_x.reshape(*kernel, input_size, 4, hidden_size),
            w_h=w_h.reshape(*kernel, hidden_size, 4, hidden_size),
            b=b,
        )

    def project(params: ConvLSTMParams, x: Input) -> Projected:
        """`W_x ∗ x_t + b`, `[..., *space, 4, H]`."""
        size = parameters.sizes(ConvLSTMParams, params)
        if params.w_x.shape[:-3] != kernel:
            raise ValueError(
                f"params have a kernel of shape {show(params.w_x.shape[:-3])}, but "
                f"this is conv_lstm({kernel}); take the cell that drew them."
            )
        check_features(x, params.w_x, size["D"])
        z = convolution(x, params.w_x, accumulator_dtype(x.dtype))
        return z + spread(params.b, z)

    def step(
        params: ConvLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        h = edited(edit.hidden, state.h)
        gates = Gates(*by_gate(z + convolution(h, params.w_h, z.dtype)))
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        after = transition(gates, state.c, output=output, edit=edit.cell)
        return typed_like(state, after), gates

    begin = at_rest(ConvLSTMParams)
    return Cell(draw, begin, project, step, spatial_axes=len(kernel))


def _kernel(shape: int | Sequence[int]) -> tuple[int, ...]:
    kernel = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not 1 <= len(kernel) <= 3 or isinstance(shape, str):
        raise ValueError(
            f"kernel_shape is {shape!r}; one size for each of 1 to 3 axes is needed."
        )
    for size in kernel:
        check_size("kernel_shape", size)
    return tuple(map(int, kernel))
