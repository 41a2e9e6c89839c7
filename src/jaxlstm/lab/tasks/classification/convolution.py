"""Convolutions over time: a front end or a parallel branch of a recurrent model.

    y = relu(norm(W * x))      in each layer, W a kernel over k steps

`norm` is layer normalization over the channels of one step. The batch normalization of
the LSTM-FCN would make a prediction in training depend on the padding and on the other
sequences of the batch.

Padded steps are zeroed before every convolution. They have then the effect of the zeros
beyond the end of the longest sequence: none.

Reference:
    Karim, Majumdar, Darabi and Chen, "LSTM fully convolutional networks for time series
    classification", 2017, https://arxiv.org/abs/1709.05206
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import initializers

from jaxlstm.lab.tasks.classification.pooling import active


class ConvolutionParams(NamedTuple):
    """`w [k, D, C]`, and gain and bias `[C]` of the normalization."""

    w: Array
    gain: Array
    bias: Array


def init(
    key: Array, input_size: int, channels: Sequence[int], kernels: Sequence[int]
) -> tuple[ConvolutionParams, ...]:
    """Return the parameters of a stack of convolutions, drawn He normal.

    Args:
        key: a random key.
        input_size: number of input features.
        channels: output channels of each layer.
        kernels: steps of the kernel of each layer.
    """
    layers = []
    sizes = zip(kernels, (input_size, *channels[:-1]), channels, strict=True)
    for layer_key, shape in zip(
        jax.random.split(key, len(channels)), sizes, strict=True
    ):
        w = initializers.he_normal(in_axis=(0, 1))(layer_key, shape, jnp.float32)
        layers.append(ConvolutionParams(w, jnp.ones(shape[-1]), jnp.zeros(shape[-1])))
    return tuple(layers)


def apply(
    params: Sequence[ConvolutionParams], xs: Array, lengths: Array, *, stride: int = 1
) -> tuple[Array, Array]:
    """Return the outputs `[T', B, C]` and their lengths.

    Args:
        params: the parameters of each layer.
        xs: `[T, B, D]`.
        lengths: integers `[B]` from 1 to T; later steps are padding.
        stride: steps between two outputs of each layer; `T' = ceil(T / stride)` after
            one layer.
    """
    for w, gain, bias in params:
        size = len(w)
        inside = jnp.where(active(xs, lengths)[..., None], xs, 0.0)
        ys = _windows(inside, size, stride) @ w.astype(xs.dtype).reshape(-1, w.shape[2])
        lengths = -(-lengths // stride)
        xs = jax.nn.relu(_normalize(ys) * gain[None, None] + bias[None, None])
    return xs, lengths


def _windows(xs: Array, size: int, stride: int) -> Array:
    """Return the `size` steps around each `stride`-th step, `[T', B, size * D]`.

    The product with these is a convolution. On CPU, XLA runs a convolution inside a
    loop such as `lax.scan` over training steps 5 to 70 times slower than the product.
    """
    steps = -(-len(xs) // stride)
    padded = jnp.pad(xs, (((size - 1) // 2, size // 2), (0, 0), (0, 0)))
    last = stride * (steps - 1) + 1
    return jnp.concatenate(
        [padded[k : k + last : stride] for k in range(size)], axis=-1
    )


def _normalize(xs: Array) -> Array:
    centred = xs - xs.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
