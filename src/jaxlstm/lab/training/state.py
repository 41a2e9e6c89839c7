"""One update of the parameters: a gradient, then an optimizer, in two halves.

    batch, carry ──> gradient ──> updated ──> state
                     per shard     once

Nothing here knows how many steps there are, or how many devices.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlstm.lab.data import Batch
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.layers import Layer


class TrainState(NamedTuple):
    """All that the next update depends on; the position in the data is `step`.

    `healthy` turns False at the first step whose loss or gradient is not finite. From
    there on the state stands still, as it was before that step.
    """

    step: Array
    params: Any
    opt_state: optax.OptState
    carry: Any
    key: Array
    healthy: Array


class StepMetrics(NamedTuple):
    """What a step reports: loss in nats per token, gradient norm before clipping."""

    loss: Array
    gradient_norm: Array
    healthy: Array


def initial_state(
    model: Layer,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    seed: int,
) -> TrainState:
    """The state before the first step, drawn from the seed."""
    key, init_key = jax.random.split(jax.random.key(seed))
    params, _ = model.init(init_key)
    params = jax.tree.map(jnp.copy, params)  # to be donated, each leaf once
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=zero_carry(model, params, batch_size),
        key=key,
        healthy=jnp.ones((), bool),
    )


def zero_carry(model: Layer, params: Any, batch_size: int) -> Any:
    """A state of the model to be reset before it is used."""
    tokens = jnp.zeros((1, batch_size), jnp.int32)
    carry = jax.eval_shape(lambda params: model.apply(params, tokens)[0], params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)


def noise_key(state: TrainState, shard: Any = None) -> Array:
    """What the noise of the next step follows from, and that of one shard of it."""
    key = jax.random.fold_in(state.key, state.step)
    return key if shard is None else jax.random.fold_in(key, shard)


def gradient(
    model: Layer, params: Any, carry: Any, batch: Batch, key: Array
) -> tuple[Array, Any, Any]:
    """Mean loss in nats per token, the carry after the batch, and the gradient."""

    def loss(params: Any) -> tuple[Array, Any]:
        return task.loss(model, params, carry, batch, key=key)

    (nats, carry), found = jax.value_and_grad(loss, has_aux=True)(params)
    return nats, carry, found


def updated(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    nats: Array,
    carry: Any,
    gradient: Any,
) -> tuple[TrainState, StepMetrics]:
    """The state after a gradient, or as it was if loss or gradient is not finite."""
    norm = optax.tree.norm(gradient)
    healthy = state.healthy & jnp.isfinite(nats) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.step + 1, params, opt_state, carry, state.key, healthy)
    before = state._replace(healthy=healthy)
    state = jax.tree.map(functools.partial(jnp.where, healthy), after, before)
    return state, StepMetrics(nats, norm, healthy)


def train_step(
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, StepMetrics]:
    """One update of the parameters, or none if the loss or gradient is not finite."""
    key = noise_key(state)
    nats, carry, found = gradient(model, state.params, state.carry, batch, key)
    return updated(optimizer, state, nats, carry, found)


def train_steps(
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batch,
) -> tuple[TrainState, StepMetrics]:
    """As many steps as there are batches `[K, T, B]`, in one dispatch."""
    return jax.lax.scan(functools.partial(train_step, model, optimizer), state, batches)
