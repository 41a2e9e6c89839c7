"""Compile the training steps of a dispatch."""

import functools
import time
from typing import TYPE_CHECKING, Any

import jax

from jaxlstm.lab.parallel import shards
from jaxlstm.lab.tasks.base import Batch, Task
from jaxlstm.lab.training import state as steps
from jaxlstm.lab.training.state import TrainState
from jaxlstm.layers.base import Layer

if TYPE_CHECKING:
    from jaxlstm.lab.training.job import Job


class Programs:
    """Compiled training steps: one program for each shape of the batches."""

    def __init__(self, job: "Job") -> None:
        self._job = job
        self._compiled: dict[tuple[Any, ...], Any] = {}
        parts = (job.task, job.model, job.optimizer)
        self._jitted = jax.jit(
            functools.partial(steps.train_steps, *parts), donate_argnums=0
        )

    def get(self, state: TrainState, batches: Batch) -> Any:
        """Return the program for these batches; report the time of a compilation."""
        # With shards, a program is one step, for any number of steps in a dispatch.
        first = 0 if self._job.shards == 1 else 1
        shapes = tuple(leaf.shape[first:] for leaf in jax.tree.leaves(batches))
        if shapes not in self._compiled:
            start = time.perf_counter()
            self._compiled[shapes] = self._compile(state, batches)
            self._job.listener.compiled(time.perf_counter() - start)
        return self._compiled[shapes]

    def _compile(self, state: TrainState, batches: Batch) -> Any:
        job = self._job
        if job.shards == 1:
            return self._jitted.lower(state, batches).compile()
        return shards.compile_steps(
            step_parts(job.task, job.model, job.optimizer),
            state,
            batches,
            batch_axes=job.dataset.batch_axes,
            shards=job.shards,
        )


def step_parts(task: Task, model: Layer, optimizer: Any) -> shards.StepParts:
    """Return a training step as the gradient of one shard and the update of all."""

    def gradient(state: TrainState, carry: Any, batch: Batch, shard: Any) -> Any:
        key = steps.noise_key(state, shard)
        return steps.shard_gradient(task, model, state.params, carry, batch, key)

    return shards.StepParts(gradient, functools.partial(steps.update, optimizer))
