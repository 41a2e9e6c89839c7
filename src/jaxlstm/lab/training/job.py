"""The parts of a training run, and the functions that its loop calls."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optax

from jaxlstm.lab.config import base
from jaxlstm.lab.tasks.base import Dataset, Losses, Task
from jaxlstm.lab.training.policies import LoopState
from jaxlstm.lab.training.state import TrainState
from jaxlstm.layers.base import Layer


class Callback(NamedTuple):
    """A function that the loop calls between two dispatches.

    Attributes:
        function: `(state, loop_state) -> loop_state`.
        every: intervals in steps. The function is called at the multiples of each, and
            at the last step.
        on_stop: whether it is also called when a stop has been requested.
    """

    function: Callable[[TrainState, LoopState], LoopState]
    every: tuple[int, ...]
    on_stop: bool = False

    def due(self, step: int, *, last: bool, stopping: bool) -> bool:
        """Return whether the function is called after a step."""
        at_step = any(step % every == 0 for every in self.every)
        return last or at_step or (stopping and self.on_stop)


class Listener(NamedTuple):
    """The functions that the loop reports to.

    Attributes:
        log: `(step, loss, numbers, pace)`: means since the last call, and speed.
        compiled: receives the seconds that a compilation took.
        stopping: returns True once a stop has been requested.
        skipped: `(step, count)`: the optimizer skipped the update of a step, and so
            many of the run so far.
    """

    log: Callable[[int, float, dict[str, Any], dict[str, Any]], None]
    compiled: Callable[[float], None]
    stopping: Callable[[], bool]
    skipped: Callable[[int, int], None] = lambda step, count: None


class Job(NamedTuple):
    """The parts of a training run that the loop uses.

    `losses_like` has the shapes of the losses of a batch. Their number is the work of a
    step: `[T, B]` are losses of tokens, `[B]` of sequences.
    """

    task: Task
    model: Layer
    optimizer: optax.GradientTransformation
    dataset: Dataset
    training: base.Training
    learning_rate: Callable[[int], float] | None
    listener: Listener
    callbacks: Sequence[Callback]
    save: Callable[[TrainState, LoopState], None]
    losses_like: Losses

    @property
    def shards(self) -> int:
        """The number of shards of a batch."""
        shards = self.training.shards
        return 1 if shards == "auto" else shards
