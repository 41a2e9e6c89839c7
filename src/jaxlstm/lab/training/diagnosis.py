"""Find the leaf and the examples whose gradient or loss is not finite."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlstm.lab.parallel import shards
from jaxlstm.lab.tasks.base import Batch, Losses, Task
from jaxlstm.lab.training.state import TrainState, noise_key
from jaxlstm.layers.base import Layer

if TYPE_CHECKING:
    from jaxlstm.lab.training.job import Job


def diagnose(job: "Job", state: TrainState) -> str:
    """Return a message about the step that follows the state.

    It names the first leaf of the gradient that is not finite, and the rows of the
    batch whose loss is not finite and has a weight.
    """
    step = int(state.step)
    batch = job.dataset.batch(step)
    static = (job.task, job.model, job.shards)
    losses, gradient = _examine(static, job.dataset.batch_axes, state, batch)
    finite = jnp.isfinite(losses).reshape(-1, losses.shape[-1]).all(0)
    rows = jnp.flatnonzero(~finite).tolist()
    leaves = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not jnp.isfinite(leaf).all()
    ]
    what = "loss" if rows else "gradient"
    first = f"; first bad gradient params/{leaves[0]}" if leaves else ""
    where = f", batch rows {', '.join(map(str, rows))}" if rows else ""
    return (
        f"step {step + 1}: the {what} is not finite{first}{where}. The state before it "
        f"is kept as checkpoint {step:06d}. Try a lower learning rate, or "
        "clip_by_global_norm as the first entry of optimizer."
    )


def skipped(step: int, count: int) -> str:
    """Return a message about a step whose update the optimizer skipped.

    Args:
        step: the step.
        count: the number of updates skipped so far.
    """
    return (
        f"step {step}: the loss or the gradient is not finite; the optimizer skipped "
        f"the update ({count} so far)"
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _examine(
    static: tuple[Task, Layer, int], axes: Any, state: TrainState, batch: Batch
) -> tuple[Array, Any]:
    """Return the loss of each example `[..., B]`, and the gradient of their mean.

    A loss of weight 0 is returned as 0.
    """
    task, model, count = static

    def losses(params: Any, shard: int) -> Losses:
        found, _ = task.loss(
            model,
            params,
            shards.take_shard(state.carry, shard, count, axis=0),
            shards.take_shard(batch, shard, count, axis=axes),
            key=noise_key(state, None if count == 1 else shard),
        )
        return Losses(found.values, found.weights)

    def mean(params: Any) -> tuple[Array, Losses]:
        parts = [losses(params, shard) for shard in range(count)]
        each = jax.tree.map(lambda *part: jnp.concatenate(part, axis=-1), *parts)
        return each.mean(), each

    gradient, each = jax.grad(mean, has_aux=True)(state.params)
    if each.weights is None:
        return each.values, gradient
    weights = each.weights.astype(each.values.dtype)
    return jnp.where(weights == 0, 0.0, each.values * weights), gradient
