"""The training loop: several steps in one dispatch, callbacks between dispatches.

    batches ──> program ──> state, metrics
                               │
                     read one dispatch later, so that
                     reading never delays the device

`TrainState` contains everything that the next step depends on, and `LoopState`
everything else that the next line of the log depends on. A checkpoint contains both, so
that a killed run resumes to the same bits.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxlstm.lab._util.errors import Diverged
from jaxlstm.lab.config import base
from jaxlstm.lab.training import diagnosis, policies
from jaxlstm.lab.training.clock import Clock
from jaxlstm.lab.training.evaluation import evaluate as evaluate
from jaxlstm.lab.training.job import Callback as Callback
from jaxlstm.lab.training.job import Job as Job
from jaxlstm.lab.training.job import Listener as Listener
from jaxlstm.lab.training.policies import LoopState as LoopState
from jaxlstm.lab.training.programs import Programs
from jaxlstm.lab.training.state import StepMetrics, TrainState


def fit(job: Job, state: TrainState, loop: LoopState) -> bool:
    """Train from a state to the last step, or until a stop is requested.

    Dispatches begin and end at multiples of `steps_per_dispatch`, wherever the run was
    interrupted, so that a resumed run executes the same programs on the same data.

    Args:
        job: the parts of the run.
        state: the state to start from.
        loop: the loop state that belongs to it.

    Returns:
        True if training is complete, False if it was stopped before.

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


def _until_boundary(training: base.Training, step: int) -> int:
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
        loop = policies.stepped(
            loop, float(row.loss), float(row.gradient_norm), skipped=bool(row.skipped)
        )
        if row.skipped:
            job.listener.skipped(step, loop.skipped)
        if step % job.training.log_every == 0 or step == job.training.steps:
            loop, means = policies.logged(loop)
            if means is not None:
                _log(job, means, clock, step)
    return loop


def _rows(metrics: StepMetrics) -> Iterator[StepMetrics]:
    host = jax.device_get(metrics)
    return (StepMetrics(*row) for row in zip(*host, strict=True))


def _log(job: Job, means: dict[str, float], clock: Clock, step: int) -> None:
    numbers: dict[str, Any] = dict(means)
    loss = numbers.pop("loss")
    if job.learning_rate is not None:
        numbers["learning_rate"] = job.learning_rate(step - 1)
    values, left = job.losses_like.values, job.training.steps - step
    unit = "tokens" if values.ndim > 1 else "sequences"
    pace = clock.pace(step, left=left, count=values.size, unit=unit)
    job.listener.log(step, loss, numbers, pace)
