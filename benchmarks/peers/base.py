"""What a contender is, and what it hands to those who measure."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.cases import Case, Inputs


class Program(NamedTuple):
    """What is run.

    run           once, to the end: returns when the result is there
    temp_bytes    what lies between arguments and results, by XLA's own analysis
    total_bytes   arguments and results too
    """

    run: Callable[[], Any]
    temp_bytes: int | None = None
    total_bytes: int | None = None


class Prepared(NamedTuple):
    """A contender at a case, its weights loaded and its inputs in place.

    compile     makes the program, afresh each time
    compiled    whether that is work of its own
    time_axis   where time is in the outputs and in the gradient of the inputs
    """

    compile: Callable[[], Program]
    compiled: bool = True
    time_axis: int = 0


class Contender(NamedTuple):
    """A library, or one of our modes.

    name            in tables
    library         the distribution whose version is told
    supports        why it does not take a case; None where it does
    forward         `run` gives the outputs
    training_step   `run` gives the gradients: (of the parameters, of the inputs)
    step            `run` takes one step from the state it left, and gives h; None
                    where the library has no single step
    """

    name: str
    library: str
    supports: Callable[[Case], str | None]
    forward: Callable[[Case, Inputs], Prepared]
    training_step: Callable[[Case, Inputs], Prepared] | None
    step: Callable[[Case, Inputs], Prepared] | None = None


def joined(weight: Any) -> Any:
    """`[..., 4, H]` with the gates side by side, `[..., 4H]`."""
    return weight.reshape(*weight.shape[:-2], -1)
