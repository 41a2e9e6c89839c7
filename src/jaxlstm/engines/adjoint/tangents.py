"""Tangents that may be None, for zero, and functions without what nobody needs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxlstm.engines._jaxpr import eval_jaxpr, partial_eval
from jaxlstm.engines.loops import any_moment

Leaves = list[Any]


def jvp(function: Callable[..., Any], primals: Any, dots: Any) -> tuple[Any, Any]:
    """As `jax.jvp`; tangents of what is no floating point number come back as None."""
    leaves, tree = jax.tree.flatten(primals)
    flat = tree.flatten_up_to(dots)
    moving = [n for n, dot in enumerate(flat) if dot is not None]

    def along(*values: Array) -> Any:
        every = list(leaves)
        for n, value in zip(moving, values, strict=True):
            every[n] = value
        return function(*jax.tree.unflatten(tree, every))

    if not moving:
        results = along()
        return results, jax.tree.map(lambda _: None, results)
    results, dots = jax.jvp(
        along, [leaves[n] for n in moving], [flat[n] for n in moving]
    )
    return results, jax.tree.map(or_none, dots)


def or_none(dot: Any) -> Any:
    """None for a tangent that is zero, or that nothing can have."""
    zero = isinstance(dot, SymbolicZero) or dot.dtype == jax.dtypes.float0
    return None if zero else dot


def filled(primal: Any, dot: Any) -> Any:
    """The tangent, or the zero that None stands for."""
    if dot is not None:
        return dot
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return np.zeros(primal.shape, jax.dtypes.float0)


def one(tree: Any) -> Any:
    """The types of one step of leaves `[T, ...]`."""
    return jax.eval_shape(any_moment, tree)


def kept(leaves: Leaves, needs: Any) -> Leaves:
    """The leaves that somebody needs, None in place of the others."""
    return [
        leaf if any(need) else None for leaf, need in zip(leaves, needs, strict=True)
    ]


def trimmed(function: Callable[..., Any], *example: Any) -> tuple[Any, ...]:
    """The function without what its results do not need; for each argument, which of
    its leaves are needed. The others may be None.
    """
    leaves, tree = jax.tree.flatten(example)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    every = [True] * len(closed.jaxpr.outvars)
    jaxpr, needed = partial_eval.dce_jaxpr(closed.jaxpr, every)

    def run(*arguments: Any) -> Any:
        flat = zip(tree.flatten_up_to(arguments), needed, strict=True)
        read = [leaf for leaf, need in flat if need]
        results = eval_jaxpr(jaxpr, closed.consts, *read)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    assert len(needed) == len(leaves)
    return run, *jax.tree.unflatten(tree, needed)
