"""The mean loss of a model over validation batches, and the metrics of the means."""

import functools
import math
from collections.abc import Iterable, Mapping

import jax

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.tasks.base import (
    Batch,
    Carry,
    Params,
    Spec,
    Sums,
    Task,
    zero_carry,
)
from jaxlstm.layers.base import Layer


@functools.partial(jax.jit, static_argnames=("task", "model"))
def _sums(
    task: Task, model: Layer, params: Params, carry: Carry, batch: Batch
) -> tuple[Carry, Sums]:
    losses, carry = task.loss(model, params, carry, batch)
    return carry, losses.sums()


def evaluate(
    task: Task, model: Layer, params: Params, batches: Iterable[Batch]
) -> dict[str, float]:
    """Return the weighted means of the loss and of the task's extra numbers.

    The state is carried from batch to batch.

    Raises:
        BadInput: all weights are 0.
    """
    carry, sums = None, []
    for batch in batches:
        if carry is None:
            carry = zero_carry(task, model, params, batch)
        carry, found = _sums(task, model, params, carry, batch)
        sums.append({"loss": found.loss, "weight": found.weight, **found.extra})
    host = jax.device_get(sums)
    total = {name: math.fsum(float(row[name]) for row in host) for name in host[0]}
    weight = total.pop("weight")
    if weight == 0:
        raise BadInput(
            "validation: got the weight 0 for all losses, expected at least one loss "
            "with a weight; check the weights that the task returns"
        )
    return {name: value / weight for name, value in total.items()}


def metrics(task: Task, spec: Spec, means: Mapping[str, float]) -> dict[str, float]:
    """Return the task's metrics, the primary one first."""
    found = task.metrics(spec, means)
    return dict(sorted(found.items(), key=lambda item: item[0] != task.primary.name))
