"""The training loop: several steps in one dispatch, callbacks between dispatches.

    batches ──> program ──> state, metrics
                               │
                     read one dispatch later, so that
                     reading never delays the device

Everything that decides the next bit is in `TrainState`; everything that decides the
next line of the log is in `LoopState`. A checkpoint holds both, so that a run that was
killed continues to the same bits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlstm.lab._util.errors import Diverged
from jaxlstm.lab.config import schema
from jaxlstm.lab.parallel import splits
from jaxlstm.lab.tasks.base import Dataset, Task
from jaxlstm.lab.training import diagnosis, policies
from jaxlstm.lab.training.clock import Clock
from jaxlstm.lab.training.evaluation import evaluate as evaluate
from jaxlstm.lab.training.policies import LoopState as LoopState
from jaxlstm.lab.training.programs import Programs
from jaxlstm.lab.training.state import StepMetrics, TrainState
from jaxlstm.layers.base import Layer


class Callback(NamedTuple):
    """A function that the loop calls between two dispatches.

    function    `(state, loop_state) -> loop_state`
    every       it is called at steps that are a multiple of one of these, and at the
                last step
    on_stop     it is also called where the run is asked to stop
    """

    function: Callable[[TrainState, LoopState], LoopState]
    every: tuple[int, ...]
    on_stop: bool = False

    def due(self, step: int, *, last: bool, stopping: bool) -> bool:
        """Return whether it is to be called after a step."""
        at_step = any(step % every == 0 for every in self.every)
        return last or at_step or (stopping and self.on_stop)


class Listener(NamedTuple):
    """The functions that the loop reports to.

    log        `(step, loss, numbers, pace)`: means since the last call, and speed
    compiled   the seconds that a compilation took
    stopping   returns True once the run is asked to stop
    """

    log: Callable[[int, float, dict[str, Any], dict[str, Any]], None]
    compiled: Callable[[float], None]
    stopping: Callable[[], bool]


class Job(NamedTuple):
    """A training run as the loop sees it."""

    task: Task
    model: Layer
    optimizer: optax.GradientTransformation
    dataset: Dataset
    training: schema.Training
    learning_rate: Callable[[int], float] | None
    listener: Listener
    callbacks: Sequence[Callback]
    save: Callable[[TrainState, LoopState], None]

    @property
    def shards(self) -> int:
        """The number of shards of a batch."""
        return splits.shard_count(self.training)


def fit(job: Job, state: TrainState, loop: LoopState) -> bool:
    """Train from a state to the last step, or until the run is asked to stop.

    Dispatches begin and end at multiples of `steps_per_dispatch`, wherever the run was
    interrupted, so that a resumed run computes the same programs on the same data.

    Args:
        job: the parts of the run.
        state: where to begin.
        loop: the numbers that belong to it.

    Returns:
        True when training is complete, False when it was asked to stop before.

    Raises:
        Diverged: a loss or a gradient is not finite. The state before that step has
            been saved.
    """
    training = job.training
    programs, clock = Programs(job), Clock(int(state.step))
    step, in_flight = int(state.step), None
    done = step >= training.steps or _stops_early(job, loop)
    while not done:
        with clock.waiting():
            batches = job.dataset.batches(step, _until_boundary(training, step))
        with clock.paused():
            program = programs.get(state, batches)
        state, metrics = program(state, batches)
        if in_flight is not None:
            loop = _read(job, state, loop, clock, *in_flight)
        in_flight, step = (step, metrics), step + len(metrics.loss)

        last, stopping = step == training.steps, job.listener.stopping()
        due = [c for c in job.callbacks if c.due(step, last=last, stopping=stopping)]
        if not (due or last or stopping):
            continue
        loop, in_flight = _read(job, state, loop, clock, *in_flight), None
        with clock.paused():
            for callback in due:
                loop = callback.function(state, loop)
        done = last or _stops_early(job, loop)
        if stopping:
            break
    return done


def _stops_early(job: Job, loop: LoopState) -> bool:
    return policies.out_of_patience(loop, job.training.early_stopping)


def _until_boundary(training: schema.Training, step: int) -> int:
    size = training.steps_per_dispatch
    return min(size - step % size, training.steps - step)


def _read(
    job: Job,
    state: TrainState,
    loop: LoopState,
    clock: Clock,
    first: int,
    metrics: StepMetrics,
) -> LoopState:
    """Wait for the metrics of a dispatch that began at step `first`, and log them."""
    for step, row in enumerate(_rows(metrics), start=first + 1):
        if not row.healthy:
            job.save(state._replace(healthy=jnp.ones((), bool)), loop)
            raise Diverged(diagnosis.diagnose(job, state))
        seen = (*loop.unlogged, (float(row.loss), float(row.gradient_norm)))
        loop = loop._replace(unlogged=seen)
        if step % job.training.log_every == 0 or step == job.training.steps:
            _log(job, loop, clock, step)
            loop = loop._replace(unlogged=())
    return loop


def _rows(metrics: StepMetrics) -> Iterator[StepMetrics]:
    host = jax.device_get(metrics)
    return (StepMetrics(*row) for row in zip(*host, strict=True))


def _log(job: Job, loop: LoopState, clock: Clock, step: int) -> None:
    losses, norms = zip(*loop.unlogged, strict=True)
    numbers: dict[str, Any] = {"gradient_norm": math.fsum(norms) / len(norms)}
    if job.learning_rate is not None:
        numbers["learning_rate"] = job.learning_rate(step - 1)
    tokens = job.training.batch_size * job.training.window
    pace = clock.pace(step, left=job.training.steps - step, tokens=tokens)
    job.listener.log(step, math.fsum(losses) / len(losses), numbers, pace)
