"""The record of a contender and of its programs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.cases import Case, Inputs


class Program(NamedTuple):
    """A compiled computation.

    run             runs once and returns when the result is computed
    temp_bytes      temporary memory by XLA's analysis
    total_bytes     the same with arguments and results
    trace_seconds   the time to trace it, without compiling
    """

    run: Callable[[], Any]
    temp_bytes: int | None = None
    total_bytes: int | None = None
    trace_seconds: float | None = None


class Prepared(NamedTuple):
    """A contender with the weights and inputs of a case loaded.

    compile     compiles the program, without any cache
    compiled    whether compiling takes time worth measuring
    time_axis   the time axis of the outputs and of the gradient of the inputs
    """

    compile: Callable[[], Program]
    compiled: bool = True
    time_axis: int = 0


class Contender(NamedTuple):
    """A library, or one mode of jaxlstm.

    name            name in the tables
    library         distribution whose version is reported
    supports        returns None, or the reason why a case is not supported
    forward         prepares a program that returns the outputs; None if the library
                    has single steps only
    training_step   prepares a program that returns the gradients of the parameters and
                    of the inputs; None if the library computes no gradients
    step            prepares a program that takes one step from the state of the step
                    before and returns h; None if the library has no single step
    """

    name: str
    library: str
    supports: Callable[[Case], str | None]
    forward: Callable[[Case, Inputs], Prepared] | None
    training_step: Callable[[Case, Inputs], Prepared] | None
    step: Callable[[Case, Inputs], Prepared] | None = None


def merge_gate_axis(weight: Any) -> Any:
    """Reshape `[..., 4, H]` to `[..., 4H]`."""
    return weight.reshape(*weight.shape[:-2], -1)
