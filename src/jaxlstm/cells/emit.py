"""Functions `(state, gates) -> pytree` that select what `unroll` stacks over time.

Any function whose results keep the batch axes first can be used:

>>> import jax, jax.numpy as jnp, jaxlstm as jl
>>> cell = jl.lstm()
>>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
>>> mean_f = lambda state, gates: gates.f.mean(-1)
>>> state, f = jl.unroll(cell, params, jnp.ones((7, 2, 3)), emit=mean_f)
>>> f.shape
(7, 2)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlstm.typing import Hidden, Reported, State, exportable

Emit = Callable[[State, Reported], Any]


@exportable
class Trace(NamedTuple):
    """State and gates of every step, stacked over time: `[T, *b, H]`.

    Attributes:
        state: the state after the step, h and c.
        gates: the gates of the step, i, f, g and o.
    """

    state: State
    gates: Reported


def hidden(state: State, gates: Reported) -> Hidden:
    """Return the hidden state h of each step, the output of a layer.

    Raises:
        ValueError: the state has no field h.
    """
    if not hasattr(state, "h"):
        raise ValueError(
            f"emit: got a state {type(state).__name__} without a field h, expected one "
            "with h; add the field or pass another function as emit=."
        )
    return state.h


def states(state: State, gates: Reported) -> State:
    """Return the whole state of each step, h and c."""
    return state


def trace(state: State, gates: Reported) -> Trace:
    """Return the state and the gates of each step.

    h and c are bit-identical to those of `hidden` and `states`. Exceptions, in the last
    bit: `engine="scan"`, zoneout around a GRU, and steps whose h has fewer than eight
    numbers over all rows. For several layers, see `Layer.trace`.
    """
    return Trace(state, gates)


def nothing(state: State, gates: Reported) -> None:
    """Return nothing, for a run of which only the final state is used."""
