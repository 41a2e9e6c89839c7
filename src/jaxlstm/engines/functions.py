"""Functions of a user as data: the operations, apart from the arrays they close over.

A compiled program keeps its static arguments for as long as JAX keeps the program. A
function that is such an argument would keep its closure with it, arrays and tracers
included, and a new function of the same source would compile a program of its own.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxlstm.engines import _jaxpr

Arrays = list[jax.Array]


class Operations:
    """Operations of a function, hashable; equal operations on equal types are equal."""

    def __init__(self, jaxpr: _jaxpr.Jaxpr, inputs: Any, outputs: Any) -> None:
        self._jaxpr, self._inputs, self._outputs = jaxpr, inputs, outputs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Operations):
            return NotImplemented
        trees = self._inputs == other._inputs and self._outputs == other._outputs
        return trees and _jaxpr.equal(self._jaxpr, other._jaxpr)

    def __hash__(self) -> int:
        primitives = tuple(equation.primitive.name for equation in self._jaxpr.eqns)
        return hash((self._inputs, self._outputs, primitives))

    def with_arrays(self, arrays: Arrays) -> Callable[..., Any]:
        """Return a function of these operations and the arrays they close over."""

        def function(*args: Any) -> Any:
            leaves, tree = jax.tree.flatten(args)
            if tree != self._inputs:
                raise ValueError(f"got arguments {tree}, expected {self._inputs}")
            results = _jaxpr.eval_jaxpr(self._jaxpr, arrays, *leaves)
            return self._outputs.unflatten(results)

        return function


def operations_of(
    function: Callable[..., Any], *args: Any
) -> tuple[Operations, Arrays]:
    """Trace a function, and return its operations and the arrays it closes over.

    Args:
        function: the function.
        args: arrays or `jax.ShapeDtypeStruct`s like those of later calls.

    Example:
        >>> import jax.numpy as jnp
        >>> def scaled_by(w):
        ...     return operations_of(lambda x: x * w, jnp.ones(3))
        >>> one, arrays = scaled_by(jnp.array([1.0, 2.0, 3.0]))
        >>> one == scaled_by(jnp.arange(3.0))[0], one == scaled_by(2.0)[0]
        (True, False)
        >>> one.with_arrays(arrays)(jnp.arange(3.0)).tolist()
        [0.0, 2.0, 6.0]
    """
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(*args)
    trees = jax.tree.structure(args), jax.tree.structure(outputs)
    return Operations(_jaxpr.without_constants(closed), *trees), list(closed.consts)
