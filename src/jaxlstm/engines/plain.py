"""Recognition of the plain LSTM by its jaxpr, for kernels that implement only it."""

from typing import Any

import jax
from jax import Array

from jaxlstm.cells.base import (
    Cell,
    LSTMParams,
    LSTMState,
    Params,
    PerStep,
    State,
    project,
)
from jaxlstm.cells.lstm import lstm
from jaxlstm.typing import Features


def check(
    engine: str,
    cell: Cell,
    params: Params,
    xs: Features,
    per_step: PerStep,
    state: State,
) -> None:
    """Check that a cell computes what `jl.lstm()` computes.

    Raises:
        NotImplementedError: its step or its initial state differs.
    """

    def program(cell: Cell) -> str:
        def step(params: Params, state: State, x: Array) -> Any:
            return cell.step(params, state, project(cell, params, x, None))

        def initial_state(params: Params) -> State:
            return cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)

        typed = jax.tree.map(jax.typeof, (params, state))
        x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        both = jax.make_jaxpr(step)(*typed, x), jax.make_jaxpr(initial_state)(typed[0])
        return "\n".join(map(str, both))

    records = isinstance(params, LSTMParams) and isinstance(state, LSTMState)
    if not records or per_step is not None or program(cell) != program(lstm()):
        raise NotImplementedError(
            f"{engine}: got a cell whose step or whose initial state is not that of "
            'jl.lstm(), the only cell of this kernel; use engine="adjoint".'
        )
