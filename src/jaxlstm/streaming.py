"""One input after the other, as they come: a step with its parameters prepared."""

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
from jaxlstm.engines import anatomy
from jaxlstm.typing import show

Step = Callable[[State, ArrayLike], tuple[State, Any]]


def stream(
    cell: Cell,
    params: Params,
    x: ArrayLike | jax.ShapeDtypeStruct,
    *,
    emit: Emit = emits.hidden,
) -> tuple[Step, State]:
    """A compiled step for inputs like x, and the state to begin from:

        step, state = jl.stream(cell, params, x)
        for x in arriving:
            state, emitted = step(state, x)

    What follows from the parameters alone, such as casts to the dtype of x and scaled
    or masked weights, is computed here and not at every step. The numbers are those of
    `unroll` over the same inputs, without noise.

    Arguments:
        cell, params: as for `unroll`.
        x: one input `[*b, D]`, or its `jax.ShapeDtypeStruct`: a batch of streams that
            go on together, or a single one, without an axis for it. Its values do not
            matter.
        emit: what comes back beside the state, `(state, gates) -> pytree`.

    Returns: `(step, state)`, the step `(state, x) -> (state, emitted)`.

    Errors: `ValueError` as `unroll`; `NotImplementedError` for a step with side
    effects or calls that cannot be taken apart: `jax.jit(cell.step)` runs those.

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
        one = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
        xs = jnp.zeros(one.shape, one.dtype)
        found = validation.arrays(cell, params, xs, None, None, None, None)
        params, xs, state, _ = found
        each = None
        if cell.prepare is not None:
            params, each = cell.prepare(params, xs)
        moment = jax.tree.map(lambda leaf: leaf[0], (xs, each))

        def step(params: Params, state: State, x: tuple[Any, PerStep]) -> Any:
            after, gates = cell.step(params, state, project(cell, params, *x))
            return after, emit(after, gates)

        parts = anatomy.take_apart(step, params, state, moment)
        tree = jax.tree.structure(jax.eval_shape(step, params, state, moment))
        fixed = jax.jit(functools.partial(anatomy.fixed, parts))(params)

    @jax.jit
    def prepared(fixed: list, each: PerStep, state: State, x: ArrayLike) -> Any:
        leaves = jax.tree.leaves((jnp.asarray(x, one.dtype), each))
        return jax.tree.unflatten(tree, anatomy.one(parts, fixed, state, leaves))

    begin, wanted = state, _kinds(state)

    def advance(state: State, x: ArrayLike) -> tuple[State, Any]:
        if jnp.shape(x) != one.shape[1:]:
            raise ValueError(
                f"stream: x is {show(jnp.shape(x))}, and the step was made for "
                f"{show(one.shape[1:])}; make another with jl.stream."
            )
        if jnp.iscomplexobj(x):
            raise ValueError("stream: x is complex; real features are needed.")
        if _kinds(state) != wanted:
            raise ValueError(
                f"stream: state is {_typed(state)}, and {_typed(begin)} is needed, as "
                "jl.stream gave it to begin from."
            )
        return prepared(fixed, moment[1], state, x)

    return advance, state


def _kinds(state: Any) -> Any:
    """What tells states apart that a step cannot take for one another."""
    leaves, tree = jax.tree.flatten(state)
    return tree, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _typed(state: Any) -> Any:
    """The dtype and shape of each leaf, in the same record."""
    return jax.tree.map(
        lambda leaf: f"{jnp.result_type(leaf)}{show(jnp.shape(leaf))}", state
    )
