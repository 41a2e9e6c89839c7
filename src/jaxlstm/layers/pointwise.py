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
    """Return the layer `y = x W + b`, applied at every step, or to a single one `[D]`.

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

    def step(params: Params, state: State, x: Features) -> tuple[State, Features]:
        return (), transform(params, x, None)

    return make_layer(name, init, run, _feature_inputs, begin=no_state, step=step)


def _feature_inputs(xs: ArrayLike) -> tuple[Features, tuple[int, ...]]:
    """Return features `[T, *b, D]`, or `[D]` of a single step, and their frame."""
    xs = masking.features("xs", xs, time_axis=False)
    return xs, xs.shape[:-1]


def no_state(
    params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike | None
) -> tuple[State, DTypeLike | None]:
    """Return the state of a layer that has none, and the dtype; see `Definition`."""
    return (), dtype


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    name: getattr(jax.nn, name)
    for name in (
        "celu", "elu", "gelu", "hard_sigmoid", "hard_swish", "hard_tanh", "identity",
        "leaky_relu", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu",
        "sigmoid", "silu", "soft_sign", "softmax", "softplus", "squareplus", "tanh",
    )
}  # fmt: skip
"""Functions that `serial` takes by name: those of `jax.nn` with one argument."""


def of_function(given: Callable[[Any], Any] | str) -> Layer:
    """Return the layer of a function from one step `[*b, D]` to `[*b, size]`.

    The function may be given by its name in `FUNCTIONS`.

    It is mapped over time, so that no output depends on another step. As the first
    layer it may also read tokens `[*b]`.

    Raises:
        ValueError: the name is unknown, or the function is a module with weights of
            another library; at `init`, it fails for features `[D]`, or returns none;
            when applied, it changes the axes before the features.
    """
    if isinstance(given, str) and given not in FUNCTIONS:
        raise ValueError(
            f"serial: got {given!r}, expected a Layer, a function or one of "
            f"{', '.join(FUNCTIONS)}."
        )
    function: Callable[[Any], Any] = (
        FUNCTIONS[given] if isinstance(given, str) else given
    )
    _refuse_module(function)
    name = getattr(function, "__name__", "function")

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        x = jax.ShapeDtypeStruct((), jnp.int32)
        if input_size is not None:
            x = jax.ShapeDtypeStruct((input_size,), jnp.float32)
        try:
            y = jax.eval_shape(function, x)
        except Exception as error:
            raise ValueError(
                f"{name}: got a function that fails for a step {show(x.shape)}, "
                f"expected one from [*b, D] to [*b, size]: {error}"
            ) from error
        if not getattr(y, "shape", ()):
            raise ValueError(
                f"{name}: got a function from {show(x.shape)} to "
                f"{masking.described(y)}, expected one to features [*b, size]."
            )
        return (), y.shape[-1]

    def run(params: Params, xs: Any, state: State, call: Call) -> Result:
        with masking.error_prefix(name):
            xs, frame = _steps_of_any(xs)
            steps = call.step_mask(frame)
            xs = masking.zero_inactive(xs, steps)
            ys = jax.vmap(function)(xs) if frame else function(xs)
            if ys.shape[:-1] != frame:
                raise ValueError(
                    f"got a function from {show(xs.shape)} to {show(ys.shape)}, "
                    "expected one that keeps the axes before the features."
                )
        return (), masking.mask_outputs(ys, steps), {}

    def step(params: Params, state: State, x: Any) -> tuple[State, Any]:
        return (), function(x)

    return make_layer(name, init, run, _steps_of_any, begin=no_state, step=step)


_MODULES = {
    "flax.nnx": "call it after jl.modules.nnx.Recurrent(...) in an nnx.Module",
    "flax.linen": "call it after jl.modules.linen.Recurrent(...) in a linen module",
    "equinox": "pass its arrays as the params of a jl.Layer(init, apply)",
    "torch.nn": "convert it: params, layer = jl.interop.torch.load(module)",
    "keras": "convert it: params, layer = jl.interop.keras.load(layer)",
}
"""Libraries whose modules hold weights, and what to do with a module instead."""


def _refuse_module(function: Callable[[Any], Any]) -> None:
    """Raise a `ValueError` for a module, or a method of one, that holds weights.

    `jax.grad` would not see them: they are not in the params of the layer. Modules are
    known by the names of their classes, so that no library is imported.
    """
    module: Any = getattr(function, "__self__", function)
    for base in type(module).__mro__:
        if base.__name__ not in ("Module", "Layer"):
            continue
        for library, instead in _MODULES.items():
            if not f"{base.__module__}.".startswith(f"{library}."):
                continue
            if library == "equinox" and not _has_arrays(module):
                return  # a function that `filter_jit` or `Lambda` wraps
            raise ValueError(
                f"serial: got the module {type(module).__name__} of {library}, "
                "expected a Layer or a function without weights: those of the module "
                "would be constants that no gradient reaches. Write jl.linear(size) "
                f"for a linear layer, or {instead}."
            )


def _has_arrays(tree: Any) -> bool:
    return any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree))


def _steps_of_any(xs: ArrayLike) -> tuple[jax.Array, tuple[int, ...]]:
    """Return features `[T, *b, D]` or tokens `[T, *b]`, and the shape of the steps."""
    xs = masking.as_array("xs", xs)
    is_features = jnp.issubdtype(xs.dtype, jnp.inexact)
    return xs, xs.shape[:-1] if is_features else xs.shape


@constructor
def embed(vocabulary: int, size: int, *, dtype: DTypeLike = jnp.float32) -> Layer:
    """Return the layer that maps each token to a row of a table.

    Tokens are integers `[T, *b]`, outputs are `[T, *b, size]`. A single token gives
    `[size]`. A token outside 0..vocabulary-1 is an error if it is concrete; if it is
    traced, its output is NaN. Rows are drawn from N(0, 1).

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

    def rows(params: EmbedParams, tokens: jax.Array) -> Features:
        table = replicate_like(tokens, jnp.asarray(params.table))
        return _lookup(table, tokens).astype(dtype)

    def run(params: EmbedParams, xs: ArrayLike, state: State, call: Call) -> Result:
        with masking.error_prefix("embed"):
            check_params(params, EmbedParams)
            check_shape("params.table", params.table, (vocabulary, size))
            tokens, steps = _checked_tokens(xs, len(params.table), call)
        return (), masking.mask_outputs(rows(params, tokens), steps), {}

    def begin(
        params: EmbedParams, batch_shape: tuple[int, ...], _: DTypeLike | None
    ) -> tuple[State, DTypeLike]:
        return (), dtype

    def step(params: EmbedParams, state: State, x: jax.Array) -> tuple[State, Features]:
        return (), rows(params, x)

    return make_layer("embed", init, run, _token_inputs, begin=begin, step=step)


def _token_inputs(xs: ArrayLike) -> tuple[ArrayLike, tuple[int, ...]]:
    """Return the tokens unchanged, and their shape `[T, *b]`, or `[]` of one token.

    They are not converted here, because 64-bit tokens must be compared with the
    vocabulary before JAX narrows them to 32 bits.
    """
    tokens = masking.as_array("xs", xs)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"xs: got dtype {tokens.dtype}, expected integer tokens.")
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
    if isinstance(tokens, Tracer) or jnp.size(tokens) == 0:
        return  # JAX cannot read an empty array that is sharded
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
