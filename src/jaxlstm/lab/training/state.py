"""The state of training, and one step of it.

    batch, carry ──> gradient ──> update ──> state
                     per shard    once

A step is a pure function of one `TrainState` and one batch. `jax.vmap` of it over a
leading axis of states trains a population: each member has its own parameters, data,
noise and `healthy` flag, and a member that diverges keeps its state while the others
continue.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlstm.lab.tasks.base import Batch, Carry, Params, Task, zero_carry
from jaxlstm.layers.base import Layer


class TrainState(NamedTuple):
    """Everything that the next step depends on. `step` is the position in the data.

    `healthy` becomes False at the first step whose loss or gradient is not finite.
    The other fields keep their values from before that step, also in later steps.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    carry: Carry
    key: Array
    healthy: Array


class StepMetrics(NamedTuple):
    """Numbers of one step.

    Attributes:
        loss: the mean loss of the batch.
        gradient_norm: the norm of the gradient before clipping.
        healthy: `TrainState.healthy` after the step.
        skipped: whether the loss or the gradient was not finite and the optimizer
            skipped the update.
    """

    loss: Array
    gradient_norm: Array
    healthy: Array
    skipped: Array


def initial_state(
    task: Task,
    model: Layer,
    optimizer: optax.GradientTransformation,
    batch_like: Batch,
    *,
    seed: int | Array,
) -> TrainState:
    """Return the state before the first step.

    Args:
        task: the task.
        model: its model.
        optimizer: the optimizer.
        batch_like: a training batch or its types; the carry has a row for each of its
            examples.
        seed: seed of the parameters and of all noise; for a population, traced under
            `vmap`.
    """
    key, init_key = jax.random.split(jax.random.key(seed))
    params, _ = model.init(init_key)
    params = jax.tree.map(jnp.copy, params)  # Donated buffers must not be shared.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=zero_carry(task, model, params, batch_like),
        key=key,
        healthy=jnp.ones((), bool),
    )


def noise_key(state: TrainState, shard: Any = None) -> Array:
    """Return the key of the next step's noise, or of one shard's part of it."""
    key = jax.random.fold_in(state.key, state.step)
    return key if shard is None else jax.random.fold_in(key, shard)


def gradient(
    task: Task, model: Layer, params: Params, carry: Carry, batch: Batch, key: Array
) -> tuple[Array, Carry, Params]:
    """Return the mean loss, the carry after the batch, and the gradient."""

    def loss(params: Params) -> tuple[Array, Carry]:
        losses, after = task.loss(model, params, carry, batch, key=key)
        return losses.mean(), after

    (mean, after), found = jax.value_and_grad(loss, has_aux=True)(params)
    return mean, _if_finite(after, carry), found


def shard_gradient(
    task: Task, model: Layer, params: Params, carry: Carry, batch: Batch, key: Array
) -> tuple[tuple[Array, Array | None], Carry, Params]:
    """Return `Losses.part` of one shard, its carry, and the gradient of its value."""

    def loss(params: Params) -> tuple[Array, tuple[Array | None, Carry]]:
        losses, after = task.loss(model, params, carry, batch, key=key)
        value, weight = losses.part()
        return value, (weight, after)

    (value, (weight, after)), found = jax.value_and_grad(loss, has_aux=True)(params)
    return (value, weight), _if_finite(after, carry), found


def _if_finite(after: Carry, before: Carry) -> Carry:
    """Return the carry after a batch, or the one before if it is not finite.

    Without this, a step that the optimizer skips would spoil all later ones.
    """
    numbers = [
        leaf
        for leaf in jax.tree.leaves(after)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    if not numbers:
        return after
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in numbers]).all()
    return jax.tree.map(functools.partial(jnp.where, finite), after, before)


def update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    loss: Array,
    carry: Carry,
    gradient: Params,
) -> tuple[TrainState, StepMetrics]:
    """Apply a gradient; keep the state where loss or gradient is not finite.

    An optimizer with `optax.apply_if_finite` or `optax.zero_nans` decides itself what
    to do with such a gradient; the state is then kept only if parameters are not finite
    afterwards.
    """
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    skipped = jnp.zeros((), bool)
    if _accepts_nonfinite(opt_state):
        leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
        skipped = ~finite & jnp.stack(leaves).all()
    healthy = state.healthy & (finite | skipped)
    after = TrainState(state.step + 1, params, opt_state, carry, state.key, healthy)
    before = state._replace(healthy=healthy)
    state = jax.tree.map(functools.partial(jnp.where, healthy), after, before)
    return state, StepMetrics(loss, norm, healthy, skipped & healthy)


def _accepts_nonfinite(opt_state: optax.OptState) -> bool:
    """Return whether an optimizer has a rule for gradients that are not finite."""
    kinds = (optax.ApplyIfFiniteState, optax.ZeroNansState)
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, kinds) for node in nodes)


def train_step(
    task: Task,
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, StepMetrics]:
    """Return the state after one update, and the metrics of the step."""
    key = noise_key(state)
    loss, carry, found = gradient(task, model, state.params, state.carry, batch, key)
    return update(optimizer, state, loss, carry, found)


def train_steps(
    task: Task,
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batch,
) -> tuple[TrainState, StepMetrics]:
    """Scan `train_step` over batches stacked along a leading axis."""
    step = functools.partial(train_step, task, model, optimizer)
    return jax.lax.scan(step, state, batches)


def current_names(task: Task, state: TrainState) -> Callable[[str], str]:
    """Return a function from stored paths of leaves to those of `state`.

    Checkpoints written before layers had names contain `2/0/w_x` instead of
    `rnn/0/w_x`. Other paths are returned unchanged.

    Args:
        task: the task; its optional `positions` has the names of its layers by
            position.
        state: a state of the task, or its types.
    """
    names, positions = {}, list(getattr(task, "positions", ()))
    for tree in (state.params, state.carry):
        for path, _ in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            layer, _, rest = name.partition("/")
            if layer in positions:
                names[f"{positions.index(layer)}/{rest}"] = name

    def current(path: str) -> str:
        parts = path.split("/")
        for k in range(len(parts)):
            if (old := "/".join(parts[k:])) in names:
                return "/".join([*parts[:k], names[old]])
        return path

    return current
