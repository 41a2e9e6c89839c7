"""Matrix products `y = x W` whose derivatives use layouts that are fast on a CPU.

`rows_first` multiplies many rows, all steps at once. The gradient of W is

    W̄ = Σ xᵀ ȳ

written here as one product of x and ȳ over one axis. JAX's own rule contracts the axes
of x one by one with ȳ on the left, and XLA then transposes a copy of ȳ, which is four
times as wide as x.

`weights_first` multiplies the few rows of one step by a W larger than the cache, as
yᵀ = Wᵀ xᵀ. A matrix product packs its right operand in each call: with W on the right
that is all of W at every step, with W on the left it is only the few rows. Both W and
Wᵀ are laid out before the loop, since the backward pass multiplies by the other one:

    x̄ = ȳ Wᵀ, as x̄ᵀ = W ȳᵀ

Optimization barriers keep XLA from restoring the original order of the operands.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.engines._jaxpr import Primitive, ad, batching, mlir

# Measured on 1 and on 4 cores: `weights_first` is faster for weights of at least 4 MB,
# more than the cache of a core, and for few rows, but not for one.
LARGE_WEIGHT = 2**20
FEW_ROWS = range(4, 49)


def rows_first(x: Array, w: Array) -> Array:
    """Return the product of x `[*m, *b, K]` and w `[*m, K, N]`, of one dtype.

    The axes m are those of a population; without one, w is a matrix.
    """
    return _rows_first.bind(*match_varying_axes(x, w))


def product_dimensions(of_x: int, of_w: int) -> Any:
    """Return the `dimension_numbers` of `rows_first` for arrays of these ranks."""
    members = tuple(range(of_w - 2))
    return ((of_x - 1,), (of_w - 2,)), (members, members)


def _product(x: Array, w: Array) -> Array:
    return lax.dot_general(x, w, product_dimensions(x.ndim, w.ndim))


def prefer_weights_first(rows: int, weight: Any) -> bool:
    """Return whether `weights_first` is faster for so many rows; on CPUs only."""
    few_rows, large = rows in FEW_ROWS, weight.size >= LARGE_WEIGHT
    return few_rows and large and jax.default_backend() == "cpu"


def transposed(w: Array) -> Array:
    """Return Wᵀ `[N, K]`, stored in this layout."""
    return lax.optimization_barrier(w.T)


def weights_first(x: Array, w: Array, w_transposed: Array) -> Array:
    """Return the product of x `[*b, K]` and w `[K, N]`, given `transposed(w)`."""
    return _weights_first.bind(*match_varying_axes(x, w, w_transposed))


def match_varying_axes(*arrays: Array) -> list[Array]:
    """Return the arrays, all varying over the union of their manual mesh axes."""
    axis_types = [jax.typeof(array).manual_axis_type for array in arrays]
    varying = [kind.varying if kind else frozenset() for kind in axis_types]
    union = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def _flatten_rows(x: Array, members: int = 0) -> Array:
    """Return x as `[*m, rows, K]`, also if it has no elements."""
    rows = math.prod(x.shape[members:-1])
    return x.reshape(*x.shape[:members], rows, x.shape[-1])


def _multiply_from_left(x: Array, w: Array, w_transposed: Array) -> Array:
    columns = lax.optimization_barrier(_flatten_rows(x).T)
    rows = lax.optimization_barrier(w_transposed @ columns).T
    return rows.reshape(*x.shape[:-1], w.shape[1])


def _product_primitive(name: str, function: Callable[..., Array]) -> Primitive:
    """Return a primitive that computes `function(x, w, ...)`."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))
    lowered = mlir.lower_fun(function, multiple_results=False)
    mlir.register_lowering(primitive, lowered)

    @primitive.def_abstract_eval
    def _(x: Any, w: Any, *_: Any) -> Any:
        return x.update(shape=(*x.shape[:-1], w.shape[-1]), weak_type=False)

    def batch(arguments: Any, axes: Any) -> tuple[Array, int]:
        """Add an axis of rows or, for batched weights, one of a population."""
        x, *weights = arguments
        if all(axis is None for axis in axes[1:]):
            at = weights[0].ndim - 2
            return primitive.bind(jnp.moveaxis(x, axes[0], at), *weights), at
        if axes[0] is None:
            return jax.vmap(_product, axes[:2])(x, weights[0]), 0
        x, w = (jnp.moveaxis(arguments[n], axes[n], 0) for n in range(2))
        return rows_first(x, w), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_rows_first = _product_primitive("rows_first", _product)
_weights_first = _product_primitive("weights_first", _multiply_from_left)


def _transpose_rows_first(ct: Any, x: Any, w: Any) -> tuple[Any, Any]:
    of_x = ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        return (ad.Zero(x.aval), None) if of_x else (None, ad.Zero(w.aval))
    if of_x:
        members = w.ndim - 2
        (of_ct, _), batch = product_dimensions(ct.ndim, w.ndim)
        return lax.dot_general(ct, w, ((of_ct, (members + 1,)), batch)), None
    # On several GPUs or TPUs, a reshape could merge row axes that are sharded.
    members = len(w.aval.shape) - 2
    if jax.default_backend() == "cpu" or jax.device_count() == 1:
        x, ct = _flatten_rows(x, members), _flatten_rows(ct, members)
    rows, batch = tuple(range(members, ct.ndim - 1)), tuple(range(members))
    return None, lax.dot_general(x, ct, ((rows, rows), (batch, batch)))


def _transpose_weights_first(
    ct: Any, x: Any, w: Array, w_transposed: Array
) -> tuple[Any, ...]:
    assert ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        return ad.Zero(x.aval), None, None
    return weights_first(ct, w_transposed, w), None, None


ad.primitive_transposes[_rows_first] = _transpose_rows_first
ad.primitive_transposes[_weights_first] = _transpose_weights_first
ad.defjvp(
    _rows_first,
    lambda dot, x, w: rows_first(dot, w),
    lambda dot, x, w: rows_first(x, dot),
)
ad.defjvp(
    _weights_first,
    lambda dot, x, w, w_transposed: weights_first(dot, w, w_transposed),
    lambda dot, x, w, w_transposed: rows_first(x, dot),
    None,  # the tangent of w already covers w_transposed
)
