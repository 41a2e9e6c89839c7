"""The layer that runs a cell over time."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxlstm import masking, unrolling
from jaxlstm.cells import emit
from jaxlstm.cells.base import Cell, Params, State, step_once
from jaxlstm.construction import constructor, memo, shortest_lived
from jaxlstm.layers.base import (
    Call,
    Layer,
    Recurrence,
    Result,
    check_layer_size,
    feature_inputs,
    make_layer,
    require_input_size,
)
from jaxlstm.typing import Key


@constructor
def recurrent(
    cell: Cell,
    hidden_size: int,
    *,
    reverse: bool = False,
    checkpoint_every: int | str | None = None,
    engine: str | Sequence[str] | None = None,
) -> Layer:
    """Return the layer that runs a cell over time with `unroll`.

    Parameters and state are those of the cell.

    Args:
        cell: the cell.
        hidden_size: number of hidden units.
        reverse: run from the last step to the first; outputs stay at their own t.
        checkpoint_every: see `unroll`.
        engine: see `unroll`.

    Raises:
        ValueError: cell is not a `Cell`, or hidden_size is not an integer >= 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> layer = jl.recurrent(jl.lstm(), 5)
        >>> params, size = layer.init(jax.random.key(0), 3)
        >>> state, ys = layer.apply(params, jnp.ones((7, 2, 3)))
        >>> ys.shape
        (7, 2, 5)
    """
    if not isinstance(cell, Cell):
        raise ValueError(
            f"recurrent: cell: got {cell!r:.60}, expected a Cell; pass for example "
            "jl.lstm() or Cell(init, initial_state, project, step)."
        )
    check_layer_size("recurrent", "hidden_size", hidden_size)

    def init(key: Key, input_size: int | None = None) -> tuple[Params, int]:
        with masking.error_prefix("recurrent"):
            input_size = require_input_size("recurrent", input_size)
            params = cell.init(key, input_size, hidden_size)
            state = jax.eval_shape(cell.initial_state, params)
            return params, emit.hidden(state, None).shape[-1]

    recurrence = Recurrence(cell, hidden_size, reverse, checkpoint_every, engine)

    def run(params: Params, xs: ArrayLike, state: State, call: Call) -> Result:
        checked = checked_unroll(recurrence, params, xs, state, call)
        with masking.error_prefix("unroll"):
            results = unrolling.run_call("unroll", checked)
        return result_of(results, call)

    def begin(
        params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike | None
    ) -> tuple[State, DTypeLike]:
        _check_sizes(cell, params, hidden_size)
        state = cell.initial_state(params, batch_shape, dtype=dtype)
        return state, emit.hidden(state, None).dtype

    def step(params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
        after, gates = step_once(cell, params, state, x)
        return after, emit.hidden(after, gates)

    check_inputs = functools.partial(feature_inputs, spatial_axes=cell.spatial_axes)
    one_step = None if reverse else step
    return make_layer(
        "recurrent",
        init,
        run,
        check_inputs,
        begin=begin,
        step=one_step,
        recurrence=recurrence,
    )


def checked_unroll(
    recurrence: Recurrence, params: Params, xs: ArrayLike, state: State, call: Call
) -> unrolling.Call:
    """Return the checked call of `unroll` for a layer of this recurrence."""
    cell, hidden_size, reverse, checkpoint_every, engine = recurrence
    with masking.error_prefix("recurrent"):
        _check_sizes(cell, params, hidden_size)
    options: unrolling.UnrollOptions = {
        "mask": call.steps,
        "reset_state": call.reset_state,
        "reverse": reverse,
        "emit": emit.trace if call.with_trace else emit.hidden,
        "key": call.key,
        "checkpoint_every": checkpoint_every,
        "engine": engine,
    }
    with masking.error_prefix("unroll"):
        return unrolling.checked_call("unroll", cell, (params, xs, state), options)


def result_of(results: tuple[State, Any], call: Call) -> Result:
    """Return the result of a layer from those of `unroll`."""
    state, emitted = results
    if not call.with_trace:
        return state, emitted, {}
    return state, emit.hidden(*emitted), {"": emitted}


def _check_sizes(cell: Cell, params: Params, hidden_size: int) -> None:
    """Raise a `ValueError` if the parameters are those of another number of units."""
    shapes = tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(params))
    checked, key = memo(shortest_lived(cell)), (_check_sizes, cell, hidden_size, shapes)
    if key in checked:
        return
    try:
        drawn = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1, hidden_size))
        like = jax.eval_shape(cell.initial_state, drawn)
        state = jax.eval_shape(cell.initial_state, params)
    except Exception:  # `unroll` reports what is wrong with the cell or the parameters
        return
    for expected, got in zip(*map(jax.tree.leaves, (like, state)), strict=False):
        if got.shape != expected.shape:
            raise ValueError(
                f"params: got parameters of {got.shape[-1]} units, expected "
                f"{expected.shape[-1]} (hidden_size {hidden_size} of this layer)."
            )
    checked[key] = True
