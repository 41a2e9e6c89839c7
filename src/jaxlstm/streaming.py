"""Streaming: a compiled step for inputs that arrive one at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxlstm import masking, validation
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, State, step_once
from jaxlstm.cells.emit import Emit
from jaxlstm.construction import readable
from jaxlstm.engines.adjoint import partition
from jaxlstm.engines.native.build import load_built
from jaxlstm.engines.native.session import Session
from jaxlstm.engines.native.values import Unsupported
from jaxlstm.layers.base import Layer, begin_layer, step_of
from jaxlstm.typing import show

LARGEST_STEP = 1 << 24  # multiplications; XLA runs larger steps on all cores

Step = Callable[[State, ArrayLike], tuple[State, Any]]
SingleStep = Callable[[Params, State, Array], tuple[State, Any]]


@readable
def stream(
    cell: Cell | Layer,
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
    scaled or masked weights, are computed once. The results equal those of `unroll`, or
    of `apply` for a layer, over the same inputs without a key.

    With NumPy arrays on a CPU, a step is one call of the compiled kernel, without the
    dispatch of JAX, which takes longer than the step of a few rows. States and results
    are NumPy arrays then. The kernel serves float32 and float64; for other dtypes and
    large batches XLA runs the step.

    Args:
        cell: the cell; or a layer whose outputs do not depend on later steps, whose
            step returns the output `y`.
        params: the parameters that `init` returned.
        x: one input `[*b, D]`, or tokens `[*b]`, or their `jax.ShapeDtypeStruct`, for a
            batch of parallel streams or, without batch axes, a single one. Its values
            are not read. A NumPy array selects steps on NumPy arrays, on a CPU.
        emit: function `(state, gates) -> pytree` of what the step of a cell returns
            with the state.

    Returns:
        `(step, state)` with `step(state, x) -> (state, emitted)`.

    Raises:
        ValueError: as `unroll`; or a layer reads later steps, or has no initial state.
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
        >>> model = jl.serial(jl.embed(9, 4), jl.recurrent(cell, 5), jl.linear(9))
        >>> params, _ = model.init(jax.random.key(0))
        >>> step, state = jl.stream(model, params, 0)
        >>> state, logits = step(state, 7)
        >>> logits.shape
        (9,)
    """
    is_numpy = isinstance(x, np.ndarray) and jax.default_backend() == "cpu"
    with masking.error_prefix("stream"):
        masking.check_leaves("params", params)
        x = x if isinstance(x, jax.ShapeDtypeStruct) else masking.as_array("x", x)
        dtype, shape = x.dtype, x.shape
        x = jnp.zeros(shape, dtype)
        if isinstance(cell, Layer):
            step, params, initial_state = _layer_step(cell, params, x, emit)
        else:
            step, params, initial_state = _cell_step(cell, params, x, emit)
        parts = partition.partition_step(step, params, initial_state, x)
        tree = jax.tree.structure(jax.eval_shape(step, params, initial_state, x))
        evaluate = functools.partial(partition.evaluate_params_only, parts)
        params_only = jax.jit(evaluate)(params)

    def run(params_only: list, state: State, x: Any) -> list[Array]:
        return partition.evaluate_step(parts, params_only, state, [x])

    @jax.jit
    def compiled(params_only: list, state: State, x: Any) -> Any:
        results = run(params_only, state, jnp.asarray(x, dtype))
        return jax.tree.unflatten(tree, results)

    def check(state: State, x: Any) -> None:
        if jnp.shape(x) != shape:
            raise ValueError(
                f"stream: x: got shape {show(jnp.shape(x))}, expected {show(shape)}; "
                "call jl.stream again for another shape."
            )
        if jnp.iscomplexobj(x):
            raise ValueError("stream: x: got complex numbers, expected real features.")
        if is_token and not jnp.issubdtype(jnp.result_type(x), jnp.integer):
            raise ValueError(
                f"stream: x: got dtype {jnp.result_type(x)}, expected integer tokens."
            )
        if _signature(state) != expected:
            raise ValueError(
                f"stream: state: got {_typed(state)}, expected "
                f"{_typed(initial_state)}, as returned by jl.stream."
            )

    def step_by_xla(state: State, x: ArrayLike) -> tuple[State, Any]:
        check(state, x)
        results = compiled(params_only, state, x)
        return jax.tree.map(np.asarray, results) if is_numpy else results

    expected, is_token = _signature(initial_state), jnp.issubdtype(dtype, jnp.integer)
    if not is_numpy:
        return step_by_xla, initial_state
    initial_state = jax.tree.map(np.asarray, initial_state)
    session = None if is_token else _open_session(run, params_only, initial_state, x)
    if session is None:
        return step_by_xla, initial_state
    size = len(expected[1])
    is_record = isinstance(initial_state, tuple) and len(initial_state) == size
    last: tuple[State, list] = None, []  # a state that was checked, and its leaves

    def step_by_kernel(state: State, x: ArrayLike) -> tuple[State, Any]:
        nonlocal last
        if isinstance(x, Tracer):
            return compiled(params_only, state, x)
        x = np.asarray(x)
        checked, leaves = last
        if state is not checked or not is_record:
            leaves, structure = jax.tree.flatten(state)
            given = [(np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves]
            if (structure, given) != expected:
                check(state, x)
        if x.shape != shape or x.dtype.kind == "c":
            check(state, x)
        leaves = session(leaves, x)
        results = tree.unflatten(leaves)
        last = results[0], leaves[:size]
        return results

    return step_by_kernel, initial_state


def _cell_step(
    cell: Cell, params: Params, x: Array, emit: Emit
) -> tuple[SingleStep, Params, State]:
    """Return the step of a cell, its parameters and its initial state."""
    checked = validation.arrays(cell, params, x[None], None, None, None, None)
    params, _, initial_state, _ = checked

    def step(params: Params, state: State, x: Array) -> tuple[State, Any]:
        after, gates = step_once(cell, params, state, x)
        return after, emit(after, gates)

    return step, params, initial_state


def _layer_step(
    layer: Layer, params: Params, x: Array, emit: Emit
) -> tuple[SingleStep, Params, State]:
    """Return the step of a layer, its parameters and its initial state."""
    if emit is not emits.hidden:
        raise ValueError(
            "emit: got a function with a Layer, whose step returns its outputs; "
            "expected a Cell, or no emit."
        )
    is_token = jnp.issubdtype(x.dtype, jnp.integer)
    rows, dtype = (x.shape, None) if is_token else (x.shape[:-1], x.dtype)
    initial_state, _ = begin_layer(layer, params, rows, dtype)
    jax.eval_shape(layer.apply, params, x[None], initial_state)  # checks its arguments
    return step_of(layer), params, initial_state


def _open_session(
    run: Callable[..., Any], params_only: Any, state: State, x: Array
) -> Session | None:
    """Open a session of the kernel; None if it is not loaded or would be slower."""
    if load_built() is not None:
        return None
    size = len(jax.tree.leaves(state))

    def step(consts: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        results = run(consts, carry, inputs)
        return results[:size], results[size:]

    try:
        session = Session(
            step, params_only, jax.tree.leaves(state), x[None], row_axes=x.ndim - 1
        )
    except Unsupported:
        return None
    return session if session.work <= LARGEST_STEP else None


def _signature(state: Any) -> Any:
    """Return the structure of a state, and shape and dtype of each leaf."""
    leaves, tree = jax.tree.flatten(state)
    return tree, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _typed(state: Any) -> Any:
    """Format the dtype and shape of each leaf, in the same structure."""
    return jax.tree.map(
        lambda leaf: f"{jnp.result_type(leaf)}{show(jnp.shape(leaf))}", state
    )
