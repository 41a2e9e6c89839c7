"""The convolutional LSTM: matrix products are replaced by convolutions.

    z = W_x ∗ x_t + W_h ∗ h_{t-1} + b     i, f, o = σ(z_i), σ(z_f), σ(z_o)
    g = tanh(z_g)
    c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)

x, h and c have 1 to 3 spatial axes before their features. ∗ is a cross-correlation
with stride 1 and zero padding that preserves the spatial shape.

Reference:
    Shi et al., "Convolutional LSTM network", 2015, here without peepholes,
    https://arxiv.org/abs/1506.04214
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
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
from jaxlstm.cells.lstm import activate, transition, zero_state
from jaxlstm.cells.products import (
    broadcast_like,
    by_gate,
    check_features,
    may_be_sharded,
    merge_axes,
    split_axis,
)
from jaxlstm.construction import cached, constructor
from jaxlstm.initializers import Preset, resolve_preset
from jaxlstm.typing import (
    Input,
    Key,
    Projected,
    accumulator_dtype,
    exportable,
    is_explicit,
    on_mesh_of,
    show,
)


@exportable
class ConvLSTMParams(NamedTuple):
    """`w_x [*k, D, 4, H]`, `w_h [*k, H, 4, H]`, `b [4, H]`, gates as in `Gates`.

    *k is the shape of the kernel, D and H are numbers of channels.
    """

    w_x: Float[Array, "*k D 4 H"]
    w_h: Float[Array, "*k H 4 H"]
    b: Float[Array, "4 H"]


def _canonical_options(options: dict[str, Any]) -> dict[str, Any]:
    kernel = _check_kernel(options["kernel_shape"])
    return parameters.canonical_options(options | {"kernel_shape": kernel})


@functools.partial(constructor, canonical=_canonical_options)
def conv_lstm(
    kernel_shape: int | Sequence[int],
    *,
    forget_bias: ArrayLike = 1.0,
    candidate_activation: str | Activation = "tanh",
    output_activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    init: str | Preset = "default",
) -> Cell:
    """Return the convolutional LSTM, for xs `[T, *b, *space, D]`:

        z = W_x ∗ x_t + W_h ∗ h_{t-1} + b     i, f, o = σ(z_i), σ(z_f), σ(z_o)
        g = tanh(z_g)
        c_t = f ⊙ c_{t-1} + i ⊙ g             h_t = o ⊙ tanh(c_t)

    h and c are `[*b, *space, H]`; `*space` is part of the `batch_shape` of
    `cell.initial_state`. The other options are those of `lstm`; the fan-in of the
    initializers is the kernel size times the number of channels.

    Args:
        kernel_shape: one size for each of 1 to 3 spatial axes; an integer for one
            spatial axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.conv_lstm((3, 3))
        >>> params = cell.init(jax.random.key(0), input_size=1, hidden_size=4)
        >>> videos = jnp.ones((7, 2, 16, 12, 1))
        >>> state, hs = jl.unroll(cell, params, videos, lengths=jnp.array([7, 5]))
        >>> hs.shape
        (7, 2, 16, 12, 4)
    """
    return _conv_lstm(
        _check_kernel(kernel_shape),
        activation("gate_activation", gate_activation),
        activation("candidate_activation", candidate_activation),
        activation("output_activation", output_activation),
        resolve_preset(init, forget_bias),
    )


def convolution(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """Compute `w ∗ x` for x `[..., *space, K]` and w `[*k, K, 4, H]`.

    Operands are cast to the dtype of x, sums are kept in `dtype`. On an explicit mesh
    with H sharded, every device gathers x and computes the four gates of its own units.

    Returns:
        An array `[..., *space, 4, H]`.
    """
    space, w = w.ndim - 3, w.astype(x.dtype)
    lead = x.ndim - 1 - space
    rows = merge_axes(x, lead)
    if is_explicit(jax.typeof(w).sharding) and may_be_sharded(w):
        axes = jax.typeof(rows).sharding.spec[:-1]
        rows = jax.sharding.reshard(rows, on_mesh_of(w, *axes, None))
        gates = [_convolve(rows, w[..., k, :], dtype) for k in range(w.shape[-2])]
        return split_axis(jnp.stack(gates, axis=-2), x, lead)
    z = _convolve(rows, w.reshape(*w.shape[:-2], -1), dtype)
    return split_axis(z.reshape(*z.shape[:-1], *w.shape[-2:]), x, lead)


def _convolve(x: Array, w: Array, dtype: DTypeLike) -> Array:
    """Convolve x `[N, *space, K]` with w `[*k, K, L]` to `[N, *space, L]`."""
    letters, sharding = "DHW"[: x.ndim - 2], None
    if is_explicit(jax.typeof(w).sharding):
        rows, units = jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec
        sharding = on_mesh_of(w, *rows[:-1], units[-1])
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(1,) * len(letters),
        padding="SAME",
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        preferred_element_type=dtype,
        out_sharding=sharding,
    )


@cached
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
        kernel_size = math.prod(kernel)
        w_x, w_h, b = parameters.draw(
            init,
            key,
            kernel_size * input_size,
            hidden_size,
            dtype,
            recurrent_size=kernel_size * hidden_size,
        )
        return ConvLSTMParams(
            w_x=w_x.reshape(*kernel, input_size, 4, hidden_size),
            w_h=w_h.reshape(*kernel, hidden_size, 4, hidden_size),
            b=b,
        )

    def project(params: ConvLSTMParams, x: Input) -> Projected:
        """Compute `W_x ∗ x_t + b`, `[..., *space, 4, H]`."""
        size = parameters.sizes(ConvLSTMParams, params)
        if params.w_x.shape[:-3] != kernel:
            raise ValueError(
                f"params: got kernel shape {show(params.w_x.shape[:-3])}, expected "
                f"{show(kernel)}; use the cell that drew them."
            )
        check_features(x, params.w_x, size["D"])
        z = convolution(x, params.w_x, accumulator_dtype(x.dtype))
        return z + broadcast_like(z, params.b)

    def step(
        params: ConvLSTMParams,
        state: LSTMState,
        z: Projected,
        *,
        edit: Edit = UNEDITED,
    ) -> tuple[LSTMState, Gates]:
        h = apply_edit(edit.hidden, state.h)
        gates = Gates(*by_gate(z + convolution(h, params.w_h, z.dtype)))
        gates = activate(gates, gate=gate, candidate=candidate, edit=edit.candidate)
        after = transition(gates, state.c, output=output, edit=edit.cell)
        return cast_like(state, after), gates

    initial_state = zero_state(ConvLSTMParams)
    return Cell(draw, initial_state, project, step, spatial_axes=len(kernel))


def _check_kernel(shape: int | Sequence[int]) -> tuple[int, ...]:
    kernel = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not 1 <= len(kernel) <= 3 or isinstance(shape, str):
        raise ValueError(
            f"kernel_shape: got {shape!r}, expected one size for each of 1 to 3 axes."
        )
    for size in kernel:
        check_size("kernel_shape", size)
    return tuple(map(int, kernel))
