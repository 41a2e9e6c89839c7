"""Tangents that may be None for zero, and functions without their unused inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxlstm.engines._jaxpr import eval_jaxpr, partial_eval

Leaves = list[Any]


def jvp(function: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Return `jax.jvp`, with None for tangents that are zero or cannot exist."""
    leaves, tree = jax.tree.flatten(primals)
    flat = tree.flatten_up_to(tangents)
    nonzero = [n for n, tangent in enumerate(flat) if tangent is not None]

    def of_nonzero(*values: Array) -> Any:
        every = list(leaves)
        for n, value in zip(nonzero, values, strict=True):
            every[n] = value
        return function(*jax.tree.unflatten(tree, every))

    if not nonzero:
        results = of_nonzero()
        return results, jax.tree.map(lambda _: None, results)
    results, tangents = jax.jvp(
        of_nonzero, [leaves[n] for n in nonzero], [flat[n] for n in nonzero]
    )
    return results, jax.tree.map(zero_to_none, tangents)


def zero_to_none(tangent: Any) -> Any:
    """Return None for a symbolic zero and for a tangent of dtype float0."""
    zero = isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0
    return None if zero else tangent


def instantiate(primal: Any, tangent: Any) -> Any:
    """Return the tangent, or an array of zeros in place of None."""
    if tangent is not None:
        return tangent
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return np.zeros(primal.shape, jax.dtypes.float0)


def keep_needed(leaves: Leaves, needs: Any) -> Leaves:
    """Return the leaves that any of their needs is true of, and None for others."""
    return [
        leaf if any(need) else None for leaf, need in zip(leaves, needs, strict=True)
    ]


def prune(function: Callable[..., Any], *example: Any) -> tuple[Any, ...]:
    """Remove the operations and inputs that the results of a function do not need.

    Returns:
        The pruned function, and for each argument a tree of booleans that tells which
        of its leaves are needed. The others may be None.
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
