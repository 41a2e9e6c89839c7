"""Layers that map each step on its own: dropout, linear and embed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike

from jaxlstm import masking
from jaxlstm.cells.base import Params, State
from jaxlstm.cells.products import affine
from jaxlstm.cells.wrappers.base import check_rate
from jaxlstm.construction import constructor
from jaxlstm.layers.base import (
    Call,
    Layer,
    LayerInit,
    Result,
    check_layer_size,
    check_params,
    check_shape,
    feature_inputs,
    make_layer,
    require_input_size,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import (
    Features,
    Key,
    exportable,
    is_explicit,
    on_mesh_of,
    replicate_like,
    reshard_like,
    show,
)

Transform = Callable[[Any, Features, Key | None], Features]


@exportable
class LinearParams(NamedTuple):
    """`w [D, size]` and `b [size]`."""

    w: jax.Array
    b: jax.Array


@exportable
class EmbedParams(NamedTuple):
    """`table [vocabulary, size]`: one row for each token."""

    table: jax.Array


@constructor
def dropout(rate: float) -> Layer:
    """Return the layer that zeroes each value with probability `rate`.

    The other values are scaled by 1 / (1 - rate). Each step has its own mask. Without a
    key this is the identity.

    Args:
        rate: the probability, 0 <= rate < 1.

    Raises:
        ValueError: the rate is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> _, same = jl.dropout(0.5).apply((), jnp.ones((2, 3)))
        >>> key = jax.random.key(0)
        >>> _, noisy = jl.dropout(0.5).apply((), jnp.ones((2, 3)), key=key)
        >>> bool((same == 1).all()), sorted(set(noisy.ravel().tolist()))
        (True, [0.0, 2.0])

    Reference:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from
        overfitting", 2014. Between layers and not in time, as in Zaremba et al.,
        "Recurrent neural network regularization", 2014,
        https://arxiv.org/abs/1409.2329
    """
    rate = check_rate("dropout", "rate", rate)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        return (), require_input_size("dropout", input_size)

    def transform(params: Params, xs: Features, key: Key | None) -> Features:
        if key is None or rate == 0:
            return xs
        # In float32, so that x64 mode does not change the mask.
        drawn = jax.random.uniform(key, xs.shape, jnp.float32)
        kept = reshard_like(xs, drawn < 1 - rate)
        return jnp.where(kept, xs / (1 - rate), 0.0)

    return _pointwise("dropout", init, transform)


@constructor
def linear(size: int) -> Layer:
    """Return the layer `y = x W + b`, applied at every step.

    W is drawn LeCun normal, b is zero. Parameters are `LinearParams(w [D, size],
    b [size])` in float32; products have the dtype of x.

    Args:
        size: number of output features.

    Raises:
        ValueError: size is not an integer >= 1; when applied, the features of x do not
            match w.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> layer = jl.linear(2)
        >>> params, size = layer.init(jax.random.key(0), 3)
        >>> layer.apply(params, jnp.ones((7, 3)))[1].shape
        (7, 2)
    """
    check_layer_size("linear", "size", size)

    def init(key: Key, input_size: int | None = None) -> tuple[LinearParams, int]:
        shape = (require_input_size("linear", input_size), size)
        w = initializers.lecun_normal()(key, shape, jnp.float32)
        return LinearParams(w, jnp.zeros(size, jnp.float32)), size

    def transform(params: LinearParams, xs: Features, key: Key | None) -> Features:
        check_params(params, LinearParams)
        if xs.shape[-1] != params.w.shape[0]:
            raise ValueError(
                f"xs: got {xs.shape[-1]} features, expected {params.w.shape[0]} "
                f"(w is {show(params.w.shape)})."
            )
        check_shape("params.w", params.w, (xs.shape[-1], size))
        check_shape("params.b", params.b, (size,))
        w, b = replicate_like(xs, (params.w, params.b))
        return affine(xs, w, b).astype(xs.dtype)

    return _pointwise("linear", init, transform)


def _pointwise(name: str, init: LayerInit, transform: Transform) -> Layer:
    """Return a layer without a state that transforms each step on its own."""

    def run(params: Params, xs: Features, state: State, call: Call) -> Result:
        with masking.error_prefix(name):
            steps = call.step_mask(xs.shape[:-1])
            ys = transform(params, masking.zero_inactive(xs, steps), call.key)
        return (), masking.mask_outputs(ys, steps), {}

    return make_layer(name, init, run, feature_inputs)


@constructor
def embed(vocabulary: int, size: int, *, dtype: DTypeLike = jnp.float32) -> Layer:
    """Return the layer that maps each token to a row of a table.

    Tokens are integers `[T, *b]`, outputs are `[T, *b, size]`. A token outside
    0..vocabulary-1 is an error if it is concrete; if it is traced, its output is NaN.
    Rows are drawn from N(0, 1).

    Args:
        vocabulary: number of tokens.
        size: number of output features.
        dtype: dtype of the outputs, in which the layers that follow compute.

    Raises:
        ValueError: vocabulary or size is not an integer >= 1; when applied, tokens that
            are not integers, or a concrete token outside the vocabulary.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> layer = jl.embed(10, 4)
        >>> params, size = layer.init(jax.random.key(0))
        >>> state, xs = layer.apply(params, jnp.array([[3], [9]]))
        >>> xs.shape
        (2, 1, 4)
    """
    check_layer_size("embed", "vocabulary", vocabulary)
    check_layer_size("embed", "size", size)

    def init(key: Key, input_size: int | None = None) -> tuple[EmbedParams, int]:
        table = jax.random.normal(key, (vocabulary, size), jnp.float32)
        return EmbedParams(table), size

    def run(params: EmbedParams, xs: ArrayLike, state: State, call: Call) -> Result:
        with masking.error_prefix("embed"):
            check_params(params, EmbedParams)
            check_shape("params.table", params.table, (vocabulary, size))
            tokens, steps = _checked_tokens(xs, len(params.table), call)
        rows = _lookup(replicate_like(tokens, params.table), tokens).astype(dtype)
        return (), masking.mask_outputs(rows, steps), {}

    return make_layer("embed", init, run, _token_inputs)


def _token_inputs(xs: ArrayLike) -> tuple[ArrayLike, tuple[int, ...]]:
    """Return the tokens unchanged, and their shape `[T, *b]`.

    They are not converted here, because 64-bit tokens must be compared with the
    vocabulary before JAX narrows them to 32 bits.
    """
    tokens = masking.as_array("xs", xs)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"xs: got dtype {tokens.dtype}, expected integer tokens.")
    if tokens.ndim == 0:
        raise ValueError("xs: got one number, expected tokens [T, *b].")
    return xs, tokens.shape


def _checked_tokens(
    xs: ArrayLike, vocabulary: int, call: Call
) -> tuple[jax.Array, StepMask]:
    """Return tokens of at least 32 bits, 0 at inactive steps, and the step mask."""
    tokens = masking.as_array("xs", xs)
    steps = call.step_mask(tokens.shape)
    if steps.active is None:
        _check_range(xs, vocabulary)
    tokens = masking.zero_inactive(tokens, steps)
    tokens = tokens if tokens.dtype.itemsize >= 4 else tokens.astype(jnp.int32)
    _check_range(tokens, vocabulary)
    return tokens, steps


def _check_range(tokens: ArrayLike, vocabulary: int) -> None:
    if isinstance(tokens, Tracer):
        return
    host = np.asarray(tokens)
    wrong = host[(host < 0) | (host >= vocabulary)]
    if wrong.size:
        raise ValueError(
            f"xs: got the token {wrong[0]}, expected 0 to {vocabulary - 1} for a "
            f"vocabulary of {vocabulary}."
        )


def _lookup(table: jax.Array, tokens: jax.Array) -> Features:
    """Return the row of each token, sharded like the tokens; NaN for unknown tokens."""
    last = len(table) - 1
    sharding = jax.typeof(tokens).sharding
    explicit = is_explicit(sharding)
    out_sharding = on_mesh_of(tokens, *sharding.spec, None) if explicit else None
    rows = table.at[jnp.clip(tokens, 0, last)].get(
        mode="promise_in_bounds", out_sharding=out_sharding
    )
    known = (tokens >= 0) & (tokens <= last)
    return jnp.where(known[..., None], rows, jnp.nan)
