"""What to stack over time: functions `(state, gates) -> pytree` for `unroll`.

Any function will do, as long as its results keep the batch axes first:

>>> import jax, jax.numpy as jnp, jaxlstm as jl
>>> cell = jl.lstm()
>>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
>>> openness = lambda state, gates: gates.f.mean(-1)
>>> state, f = jl.unroll(cell, params, jnp.ones((7, 2, 3)), emit=openness)
>>> f.shape
(7, 2)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlstm.cells.base import Reported, State
from jaxlstm.typing import Hidden

Emit = Callable[[State, Reported], Any]


class Trace(NamedTuple):
    """Everything there is to see: each record stacked over time, `[T, *b, H]`.

    state   what the step left behind, h and c
    gates   what led to it, i, f, g and o
    """

    state: State
    gates: Reported


def hidden(state: State, gates: Reported) -> Hidden:
    """The hidden state h of each step: what a layer gives to the next.

    Errors: `ValueError` for a state without a field h.
    """
    if not hasattr(state, "h"):
        raise ValueError(
            f"the state of this cell, a {type(state).__name__}, has no field h; give "
            "it one, or say what to stack with emit=."
        )
    return state.h


def states(state: State, gates: Reported) -> State:
    """The whole state of each step: h and c."""
    return state


def trace(state: State, gates: Reported) -> Trace:
    """The state and the gates of each step.

    The engines show what they compute anyway: h and c are those of `hidden` and
    `states`, in the plain cells to the last bit, as long as a step has eight numbers or
    more; `scan` may round the last bit otherwise. For several layers, see
    `Layer.trace`.
    """
    return Trace(state, gates)


def nothing(state: State, gates: Reported) -> None:
    """No output: only the final state is wanted, and no memory is spent on more."""
