"""What to stack over time: functions `(state, gates) -> pytree` for `unroll`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlstm.cells.base import Reported, State
from jaxlstm.shapes import Hidden

Emit = Callable[[State, Reported], Any]


class Trace(NamedTuple):
    """Everything there is to see: each record stacked over time."""

    state: State
    gates: Reported


def hidden(state: State, gates: Reported) -> Hidden:
    """The hidden state h of each step."""
    return state.h


def states(state: State, gates: Reported) -> State:
    """The whole state of each step: h and c."""
    return state


def trace(state: State, gates: Reported) -> Trace:
    """The state and the gates of each step."""
    return Trace(state, gates)


def nothing(state: State, gates: Reported) -> None:
    """No output: only the final state is wanted."""
