"""Streaming: a compiled step for inputs that arrive one at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxlstm import masking, validation
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, PerStep, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.engines.adjoint import partition
from jaxlstm.typing import show

Step = Callable[[State, ArrayLike], tuple[State, Any]]


def stream(
    cell: Cell,
    params: Params,
    x: ArrayLike | jax.ShapeDtypeStruct,
    *,
    emit: Emit = emits.hidden,
) -> tuple[Step, State]:
    """Compile a step for inputs like x, and return it with the initial state:

        step, state = jl.stream(cell, params, x)
        for x in arriving:
            state, emitted = step(state, x)

    Values that depend on the parameters only, such as casts to the dtype of x and
    scaled or masked weights, are computed once. The results equal those of `unroll`
    over the same inputs without a key.

    Args:
        cell: the cell.
        params: the parameters that `cell.init` returned.
        x: one input `[*b, D]` or its `jax.ShapeDtypeStruct`, for a batch of parallel
            streams or, without batch axes, a single one. Its values are not read.
        emit: function `(state, gates) -> pytree` of what to return with the state.

    Returns:
        `(step, state)` with `step(state, x) -> (state, emitted)`.

    Raises:
        ValueError: as `unroll`.
        NotImplementedError: the step has side effects or calls that cannot be
            partially evaluated; use `jax.jit(cell.step)`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> step, state = jl.stream(cell, params, jnp.zeros(3))
        >>> for x in jnp.ones((7, 3)):
        ...     state, h = step(state, x)
        >>> bool(jnp.allclose(h, jl.unroll(cell, params, jnp.ones((7, 3)))[1][-1]))
        True
    """
    with masking.error_prefix("stream"):
        x = x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)
        dtype, shape = x.dtype, x.shape
        xs = jnp.zeros((1, *shape), dtype)
        checked = validation.arrays(cell, params, xs, None, None, None, None)
        params, xs, initial_state, _ = checked
        per_step = None
        if cell.prepare is not None:
            params, per_step = cell.prepare(params, xs)
        inputs = jax.tree.map(lambda leaf: leaf[0], (xs, per_step))

        def step(params: Params, state: State, x: tuple[Any, PerStep]) -> Any:
            after, gates = cell.step(params, state, project(cell, params, *x))
            return after, emit(after, gates)

        parts = partition.partition_step(step, params, initial_state, inputs)
        tree = jax.tree.structure(jax.eval_shape(step, params, initial_state, inputs))
        evaluate = functools.partial(partition.evaluate_params_only, parts)
        params_only = jax.jit(evaluate)(params)

    @jax.jit
    def compiled(
        params_only: list, per_step: PerStep, state: State, x: ArrayLike
    ) -> Any:
        leaves = jax.tree.leaves((jnp.asarray(x, dtype), per_step))
        results = partition.evaluate_step(parts, params_only, state, leaves)
        return jax.tree.unflatten(tree, results)

    expected = _signature(initial_state)

    def checked_step(state: State, x: ArrayLike) -> tuple[State, Any]:
        if jnp.shape(x) != shape:
            raise ValueError(
                f"stream: x: got shape {show(jnp.shape(x))}, expected {show(shape)}; "
                "call jl.stream again for another shape."
            )
        if jnp.iscomplexobj(x):
            raise ValueError("stream: x: got complex numbers, expected real features.")
        if _signature(state) != expected:
            raise ValueError(
                f"stream: state: got {_typed(state)}, expected "
                f"{_typed(initial_state)}, as returned by jl.stream."
            )
        return compiled(params_only, inputs[1], state, x)

    return checked_step, initial_state


def _signature(state: Any) -> Any:
    """Return the structure of a state, and shape and dtype of each leaf."""
    leaves, tree = jax.tree.flatten(state)
    return tree, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _typed(state: Any) -> Any:
    """Format the dtype and shape of each leaf, in the same structure."""
    return jax.tree.map(
        lambda leaf: f"{jnp.result_type(leaf)}{show(jnp.shape(leaf))}", state
    )
