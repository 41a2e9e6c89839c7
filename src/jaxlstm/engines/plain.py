"""The plain LSTM, known by its program: what a kernel of one equation can serve."""

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
    engine: str, cell: Cell, params: Params, xs: Features, each: PerStep, state: State
) -> None:
    """Errors: `NotImplementedError` where a step is not that of the LSTM."""

    def program(cell: Cell) -> str:
        def step(params: Params, state: State, x: Array) -> Any:
            return cell.step(params, state, project(cell, params, x, None))

        def begin(params: Params) -> State:
            return cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)

        typed = jax.tree.map(jax.typeof, (params, state))
        x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
        both = jax.make_jaxpr(step)(*typed, x), jax.make_jaxpr(begin)(typed[0])
        return "\n".join(map(str, both))

    records = isinstance(params, LSTMParams) and isinstance(state, LSTMState)
    if not records or each is not None or program(cell) != program(lstm()):
        raise NotImplementedError(
            f"{engine}: the step of this cell is not that of jl.lstm(), or it begins "
            "from another state, and the kernel knows no other; "
            'engine="adjoint" takes any.'
        )
