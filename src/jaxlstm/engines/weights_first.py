"""A product that multiplies from the left, for weights that outgrow a cache.

    y = x W, with few rows x and a large W, as yᵀ = Wᵀ xᵀ

A matrix product packs its right operand anew at every call. With W on the right that
is all of W at every step; with W on the left it is the few rows. Both W and Wᵀ are
laid out before the loop, since the way back multiplies by the other one:

    x̄ = ȳ Wᵀ, as x̄ᵀ = W ȳᵀ

Without the barriers the compiler puts the operands back in the order they came in.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Measured on 1 and on 4 cores: from 4 MB of weights on, which is what a core's cache
# holds and more, and for rows that are few, but not one.
LARGE = 2**20
FEW = range(4, 129)


def wins(rows: int, weight: Any) -> bool:
    """Whether this product is the faster one for so many rows on a CPU."""
    return rows in FEW and weight.size >= LARGE and jax.default_backend() == "cpu"


def turned(w: Array) -> Array:
    """Wᵀ `[N, K]`, laid out as such."""
    return lax.optimization_barrier(w.T)


def product(x: Array, w: Array, w_turned: Array) -> Array:
    """`x [*b, K]` times `w [K, N]`, of one dtype; `w_turned` is `turned(w)`."""
    return _p.bind(*_alike(x, w, w_turned))


def _alike(*arrays: Array) -> list[Array]:
    """The arrays, each varying over all the mesh axes that one of them varies over."""
    every = [jax.typeof(array).manual_axis_type for array in arrays]
    varying = [kind.varying if kind else frozenset() for kind in every]
    union = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(union - own), to="varying") if union - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def _from_the_left(x: Array, w: Array, w_turned: Array) -> Array:
    columns = lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    rows = lax.optimization_barrier(w_turned @ columns).T
    return rows.reshape(*x.shape[:-1], w.shape[1])


_p = Primitive("weights_first")
_p.def_impl(jax.jit(_from_the_left))
mlir.register_lowering(_p, mlir.lower_fun(_from_the_left, multiple_results=False))


@_p.def_abstract_eval
def _(x: Any, w: Any, w_turned: Any) -> Any:
    return x.update(shape=(*x.shape[:-1], w.shape[1]), weak_type=False)


def _transposed(ct: Any, x: Any, w: Array, w_turned: Array) -> tuple[Any, None, None]:
    assert ad.is_undefined_primal(x)
    if type(ct) is ad.Zero:
        return ad.Zero(x.aval), None, None
    return product(ct, w_turned, w), None, None


ad.primitive_transposes[_p] = _transposed
ad.defjvp(
    _p,
    lambda dot, x, w, w_turned: product(dot, w, w_turned),
    lambda dot, x, w, w_turned: jnp.matmul(x, dot),
    None,  # what w_turned does, w does
)


def _batched(arguments: Any, axes: Any) -> tuple[Array, int]:
    """More rows, or, where the weights are many too, an ordinary product."""
    x, w, w_turned = arguments
    if axes[1] is None and axes[2] is None:
        return product(jnp.moveaxis(x, axes[0], 0), w, w_turned), 0
    matmul = functools.partial(jnp.matmul, preferred_element_type=x.dtype)
    flat = jax.vmap(lambda x, w: matmul(x.reshape(-1, x.shape[-1]), w), axes[:2])(x, w)
    size = len(flat)
    inner = [n for axis, n in enumerate(x.shape) if axis != axes[0]][:-1]
    return flat.reshape(size, *inner, flat.shape[-1]), 0


batching.primitive_batchers[_p] = _batched
