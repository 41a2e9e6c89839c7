"""Pooling: one vector for a sequence of vectors of any length.

    last        y_T; of two directions, each after its last step
    mean        Σ_t y_t / T
    max         max_t y_t
    attention   Σ_t a_t y_t,   a = softmax(v · tanh(W y_t + b))

Padded steps are never read: they may be NaN.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import initializers

Kind = Literal["last", "mean", "max", "attention"]


class AttentionParams(NamedTuple):
    """`w [H, A]`, `b [A]` and `v [A]` of attention pooling."""

    w: Array
    b: Array
    v: Array


def attention_params(key: Array, features: int, size: int) -> AttentionParams:
    """Return drawn weights, with `v = 0`: training begins with the mean."""
    w = initializers.lecun_normal()(key, (features, size), jnp.float32)
    return AttentionParams(w, jnp.zeros(size), jnp.zeros(size))


def active(xs: Array, lengths: Array) -> Array:
    """Return the mask of the steps `[T, B]` that are not padding.

    Args:
        xs: an array `[T, B, ...]`.
        lengths: integers `[B]`.
    """
    return jnp.arange(len(xs))[:, None] < lengths[None]


def pool(
    kind: Kind,
    ys: Array,
    lengths: Array,
    *,
    params: AttentionParams | None = None,
    bidirectional: bool = False,
) -> Array:
    """Return one vector for each sequence, `[B, H]`.

    Args:
        kind: the kind of pooling.
        ys: `[T, B, H]`.
        lengths: integers `[B]` from 1 to T; later steps are padding.
        params: weights of attention.
        bidirectional: whether the second half of the features ran backwards, so that
            its last step is the first.

    Example:
        >>> ys = jnp.array([[[1.0]], [[5.0]], [[jnp.nan]]])
        >>> [pool(kind, ys, jnp.array([2])).item() for kind in ("last", "mean", "max")]
        [5.0, 3.0, 5.0]
    """
    valid = active(ys, lengths)[..., None]
    ys = jnp.where(valid, ys, 0.0)
    if kind == "max":
        return jnp.where(valid, ys, -jnp.inf).max(0)
    if kind == "mean":
        return ys.sum(0) / lengths[:, None].astype(ys.dtype)
    if kind == "attention" and params is not None:
        weights = attention_weights(params, ys, lengths)
        return (weights[..., None] * ys).sum(0)
    last = jnp.take_along_axis(ys, (lengths - 1)[None, :, None], 0)[0]
    if not bidirectional:
        return last
    half = ys.shape[-1] // 2
    return jnp.concatenate([last[:, :half], ys[0, :, half:]], -1)


def attention_weights(params: AttentionParams, ys: Array, lengths: Array) -> Array:
    """Return the weight of each step, `[T, B]`: 0 at padded steps, with the sum 1."""
    scores = jnp.tanh(ys @ params.w + params.b[None, None]) @ params.v
    return jax.nn.softmax(jnp.where(active(ys, lengths), scores, -jnp.inf), axis=0)
