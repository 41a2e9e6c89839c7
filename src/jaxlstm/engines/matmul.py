"""Products `y = x W` of many rows x, or of few, with derivatives laid out as they are
fast on a CPU.

Rows first, for all steps at once. The gradient of W is a sum over all rows,

    W̄ = Σ xᵀ ȳ

which is written here as one product of x and ȳ over one axis. JAX's own rule sums over
the axes of x one by one, with ȳ on the left, and a compiler then copies ȳ, four times
as wide as x, into another order.

Weights first, for a step's few rows and a W that outgrows a cache: yᵀ = Wᵀ xᵀ. A matrix
product packs its right operand anew at every call. With W on the right that is all of W
at every step; with W on the left it is the few rows. Both W and Wᵀ are laid out before
the loop, since the way back multiplies by the other one:

    x̄ = ȳ Wᵀ, as x̄ᵀ = W ȳᵀ

Without the barriers the compiler puts the operands back in the order they came in.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.engines._jaxpr import Primitive, ad, batching, mlir

# Measured on 1 and on 4 cores: from 4 MB of weights on, which is what a core's cache
# holds and more, and for rows that are few, but not one.
LARGE = 2**20
FEW = range(4, 49)


def rows_first(x: Array, w: Array) -> Array:
    """`x [*b, K]` times `w [K, N]`, of one dtype."""
    return _rows_first.bind(*match_varying_axes(x, w))


def weights_win(rows: int, weight: Any) -> bool:
    """Whether this product is the faster one for so many rows on a CPU."""
    return rows in FEW and weight.size >= LARGE and jax.default_backend() == "cpu"


def turned(w: Array) -> Array:
    """Wᵀ `[N, K]`, laid out as such."""
    return lax.optimization_barrier(w.T)


def weights_first(x: Array, w: Array, w_turned: Array) -> Array:
    """`x [*b, K]` times `w [K, N]`, of one dtype; `w_turned` is `turned(w)`."""
    return _weights_first.bind(*match_varying_axes(x, w, w_turned))


def match_varying_axes(*arrays: Array) -> list[Array]:
    """The arrays, each varying over all the mesh axes that one of them varies over."""
    every = [jax.typeof(array).manual_axis_type for array in arrays]
    varying = [kind.varying if kind else frozenset() for kind in every]
    union = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def _table(x: Array) -> Array:
    """All rows along one axis, also of rows that are empty."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _from_the_left(x: Array, w: Array, w_turned: Array) -> Array:
    columns = lax.optimization_barrier(_table(x).T)
    rows = lax.optimization_barrier(w_turned @ columns).T
    return rows.reshape(*x.shape[:-1], w.shape[1])


def _made(name: str, function: Callable[..., Array]) -> Primitive:
    """A primitive that is this function, of the rows and of what multiplies them."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))
    lowered = mlir.lower_fun(function, multiple_results=False)
    mlir.register_lowering(primitive, lowered)

    @primitive.def_abstract_eval
    def _(x: Any, w: Any, *_: Any) -> Any:
        return x.update(shape=(*x.shape[:-1], w.shape[1]), weak_type=False)

    def batched(arguments: Any, axes: Any) -> tuple[Array, int]:
        """More rows, or, where the weights are many too, an ordinary product."""
        x, *weights = arguments
        if all(axis is None for axis in axes[1:]):
            return primitive.bind(jnp.moveaxis(x, axes[0], 0), *weights), 0
        return jax.vmap(jnp.matmul, axes[:2])(x, weights[0]), 0

    batching.primitive_batchers[primitive] = batched
    return primitive


_rows_first = _made("rows_first", jnp.matmul)
_weights_first = _made("weights_first", _from_the_left)


def _rows_transposed(ct: Any, x: Any, w: Any) -> tuple[Any, Any]:
    of_x = ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        return (ad.Zero(x.aval), None) if of_x else (None, ad.Zero(w.aval))
    if of_x:
        return lax.dot_general(ct, w, (((ct.ndim - 1,), (1,)), ((), ()))), None
    if jax.default_backend() == "cpu" or jax.device_count() == 1:
        x, ct = _table(x), _table(ct)
    rows = tuple(range(ct.ndim - 1))  # one axis, unless it could mix split ones
    return None, lax.dot_general(x, ct, ((rows, rows), ((), ())))


def _weights_transposed(ct: Any, x: Any, w: Array, w_turned: Array) -> tuple[Any, ...]:
    assert ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        return ad.Zero(x.aval), None, None
    return weights_first(ct, w_turned, w), None, None


ad.primitive_transposes[_rows_first] = _rows_transposed
ad.primitive_transposes[_weights_first] = _weights_transposed
ad.defjvp(
    _rows_first,
    lambda dot, x, w: rows_first(dot, w),
    lambda dot, x, w: rows_first(x, dot),
)
ad.defjvp(
    _weights_first,
    lambda dot, x, w, w_turned: weights_first(dot, w, w_turned),
    lambda dot, x, w, w_turned: rows_first(x, dot),
    None,  # what w_turned does, w does
)
