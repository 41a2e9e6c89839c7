"""The internals of JAX that this package uses.

The interfaces of `jax.extend` and `jax.interpreters` may change between releases of
JAX, so every other module imports them from here.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.core import eval_jaxpr as eval_jaxpr
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as JaxprEqn
from jax.extend.core import Literal as Literal
from jax.extend.core import Primitive as Primitive
from jax.extend.core import Var as Var
from jax.extend.core import subjaxprs as subjaxprs
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters import mlir as mlir
from jax.interpreters import partial_eval as partial_eval


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the jaxprs among the parameters of an equation, such as a loop's body."""
    yield from _jaxprs_in(tuple(equation.params.values()))


def _jaxprs_in(value: Any) -> Iterator[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs_in(item)


def without_constants(closed: ClosedJaxpr) -> Jaxpr:
    """Return the jaxpr without the arrays that its function closes over."""
    # From jax 0.12 on, `closed.jaxpr` holds them too, until its variables are replaced.
    return closed.jaxpr.replace(constvars=closed.jaxpr.constvars)


def equal(one: Jaxpr, other: Jaxpr) -> bool:
    """Return whether two jaxprs have the same operations on the same types.

    Constants in the operations are compared by their bits, and functions, such as the
    rules of `custom_jvp`, by identity.
    """
    if len(one.eqns) != len(other.eqns):
        return False
    numbers: tuple[dict[Var, int], dict[Var, int]] = {}, {}

    def same(atom: Any, its: Any) -> bool:
        if isinstance(atom, Literal) or isinstance(its, Literal):
            literals = isinstance(atom, Literal) and isinstance(its, Literal)
            return literals and atom.aval == its.aval and _equal(atom.val, its.val)
        place = numbers[0].setdefault(atom, len(numbers[0]))
        return atom.aval == its.aval and place == numbers[1].setdefault(
            its, len(numbers[1])
        )

    def all_same(atoms: Any, theirs: Any) -> bool:
        pairs = zip(atoms, theirs, strict=False)
        return len(atoms) == len(theirs) and all(same(*pair) for pair in pairs)

    return (
        all_same(one.constvars, other.constvars)
        and all_same(one.invars, other.invars)
        and all(
            mine.primitive is its.primitive
            and all_same(mine.invars, its.invars)
            and all_same(mine.outvars, its.outvars)
            and _equal(mine.params, its.params)
            for mine, its in zip(one.eqns, other.eqns, strict=True)
        )
        and all_same(one.outvars, other.outvars)
    )


def _equal(one: Any, other: Any) -> bool:
    """Compare parameters of equations; return False where equality is not certain."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, ClosedJaxpr):  # the same class as Jaxpr from jax 0.12 on
        constants = _equal(list(one.consts), list(other.consts))
        return constants and equal(one.jaxpr, other.jaxpr)
    if isinstance(one, Jaxpr):
        return equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_equal(*pair) for pair in pairs)
    if isinstance(one, float | complex):
        return repr(one) == repr(other)  # distinguishes 0.0 from -0.0
    if isinstance(one, np.ndarray | np.generic):
        same_type = one.dtype == other.dtype and one.shape == other.shape
        return same_type and one.tobytes() == other.tobytes()
    try:
        return bool(one == other)
    except Exception:  # an object of a user may raise anything
        return False
