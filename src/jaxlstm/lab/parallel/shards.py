"""A batch split into shards: one gradient for each, then one update.

    params ──┬──> gradient of examples 0 … b     device 0 ──┐
             ├──> gradient of examples b … 2b    device 1 ──┼──> mean ──> update
             └──> …                              …        ──┘           device 0

On a CPU each core then runs a time loop of its own. Every program is compiled for one
device, and arrays are copied between programs, so no program contains a collective. A
collective inside a step that is dispatched ahead can deadlock the few threads of
XLA:CPU; without one, the order of the programs does not matter.

The number of shards decides the bits of a run, as the seed does. The number of devices
does not: shard i is the same program wherever it runs.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlstm.lab.parallel.devices import cycle_devices
from jaxlstm.lab.parallel.means import divide

# Steps in flight: enough to keep the devices busy, few enough that their gradients fit
# into memory.
IN_FLIGHT = 2

State = Any
Batch = Any
Metrics = Any
Part = tuple[Array, Array | None]
Dispatch = Callable[[State, Batch], tuple[State, Metrics]]


class StepParts(NamedTuple):
    """The two parts of a training step.

    gradient   `(state, carry, batch, shard) -> (part, carry, gradient)`; reads neither
               `state.carry` nor `state.opt_state`. `part` is `Losses.part()`, and the
               gradient is that of its first number
    update     `(state, loss, carry, gradient) -> (state, metrics)`
    """

    gradient: Callable[[State, Any, Batch, Array], tuple[Part, Any, Any]]
    update: Callable[[State, Array, Any, Any], tuple[State, Metrics]]


class Carries(NamedTuple):
    """The carry of one shard before and after its newest step.

    The one before is used if the loss of any shard is not finite.
    """

    before: Any
    after: Any


def take_shard(tree: Any, shard: int, shards: int, *, axis: Any) -> Any:
    """Return one shard of arrays that hold the whole batch.

    Args:
        axis: the batch axis, an int for all arrays or a pytree prefix, as in
            `jax.vmap(in_axes=...)`.
    """

    def cut(axis: int, leaf: Any) -> Any:
        size = leaf.shape[axis] // shards
        return leaf[(slice(None),) * axis + (slice(shard * size, (shard + 1) * size),)]

    return jax.tree.map(
        lambda axis, part: jax.tree.map(functools.partial(cut, axis), part), axis, tree
    )


def shard_gradient(
    parts: StepParts, state: State, carries: Carries, batch: Batch, shard: Array
) -> tuple[Part, Carries, Any]:
    """Return `Losses.part`, carries and gradient of one shard.

    Args:
        state: without carry and optimizer state, on which no gradient depends.
        batch: the part of this shard.
    """
    before = _select_carry(state.healthy, carries)
    part, after, gradient = parts.gradient(state, before, batch, shard)
    return part, Carries(before, after), gradient


def mean_update(
    parts: StepParts,
    state: State,
    losses: tuple[Part, ...],
    gradients: tuple[Any, ...],
) -> tuple[State, Metrics]:
    """Update the state by the mean of all gradients, added in the order of shards.

    Weighted losses and their gradients are divided by the weight of the whole batch.
    """
    values = [value for value, _ in losses]
    weights = [weight for _, weight in losses if weight is not None]

    def mean(*each: Array) -> Array:
        total = sum(each[1:], each[0])
        if not weights:
            return total / len(each)
        return divide(total, sum(weights[1:], weights[0]))

    return parts.update(state, mean(*values), (), jax.tree.map(mean, *gradients))


def concatenate_carries(healthy: Array, carries: tuple[Carries, ...]) -> Any:
    """Return the carry of the whole batch."""
    selected = [_select_carry(healthy, each) for each in carries]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *selected)


def _select_carry(healthy: Array, carries: Carries) -> Any:
    """Return the carry after the newest step, or before it if that step failed."""
    return jax.tree.map(
        functools.partial(jnp.where, healthy), carries.after, carries.before
    )


def compile_steps(
    parts: StepParts, state: State, batches: Batch, *, batch_axes: Any, shards: int
) -> Dispatch:
    """Compile `(state, batches) -> (state, metrics)` in shards.

    The state is donated. Batches are stacked along a leading axis of any length K, and
    metrics are K rows.

    Args:
        batch_axes: the batch axis of each field of one batch.
        shards: the number of shards, a divisor of the batch size.
    """
    return ShardedSteps(parts, state, batches, batch_axes, shards).dispatch


class ShardedSteps:
    """Compiled programs: one gradient for each device, and one update.

    Attributes:
        gradients: the gradient program of each device.
        update: the program that updates the state by the mean gradient.
        join: the jitted function that concatenates the carries of the shards.
    """

    def __init__(
        self, parts: StepParts, state: State, batches: Batch, axes: Any, shards: int
    ) -> None:
        self._axes = axes
        (self._main_device,) = state.step.devices()
        self._devices = cycle_devices(self._main_device, shards)
        self._shard_numbers = [
            jax.device_put(np.int32(shard), device)
            for shard, device in enumerate(self._devices)
        ]
        state_without_carry, carries = self.distribute(state)
        gradient = jax.jit(functools.partial(shard_gradient, parts))
        arguments = self._gradient_arguments(
            state_without_carry, carries, jax.tree.map(lambda leaf: leaf[0], batches)
        )
        by_device = dict(zip(self._devices, arguments, strict=True))
        lowered = {
            device: gradient.lower(*values) for device, values in by_device.items()
        }
        with ThreadPoolExecutor(len(lowered)) as pool:
            compiled = pool.map(jax.stages.Lowered.compile, lowered.values())
            self.gradients = dict(zip(lowered, compiled, strict=True))
        part, _, gradient_struct = jax.eval_shape(gradient, *arguments[0])
        update = jax.jit(functools.partial(mean_update, parts), donate_argnums=0)
        self.update = update.lower(
            state_without_carry, (part,) * shards, (gradient_struct,) * shards
        ).compile()
        self.join = jax.jit(concatenate_carries)

    def dispatch(self, state: State, batches: Batch) -> tuple[State, Metrics]:
        """Dispatch a step for each batch, with at most `IN_FLIGHT` unfinished."""
        state, carries = self.distribute(state)
        rows: list[Metrics] = []
        for k in range(len(jax.tree.leaves(batches)[0])):
            if k >= IN_FLIGHT:
                rows[k - IN_FLIGHT].healthy.block_until_ready()
            batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
            state, carries, row = self._step(state, carries, batch)
            rows.append(row)
        carry = self.join(
            state.healthy, jax.device_put(tuple(carries), self._main_device)
        )
        return state._replace(carry=carry), jax.tree.map(lambda *row: row, *rows)

    def _step(
        self, state: State, carries: list[Carries], batch: Batch
    ) -> tuple[State, list[Carries], Metrics]:
        arguments = self._gradient_arguments(state, carries, batch)
        results = [
            self.gradients[device](*values)
            for device, values in zip(self._devices, arguments, strict=True)
        ]
        losses, carries, gradients = map(list, zip(*results, strict=True))
        on_main_device = jax.device_put(
            (tuple(losses), tuple(gradients)), self._main_device
        )
        state, metrics = self.update(state, *on_main_device)
        return state, carries, metrics

    def distribute(self, state: State) -> tuple[State, list[Carries]]:
        """Return the state without its carry, and each shard's carry on its device."""
        state = jax.device_put(state, self._main_device)
        carry_shards = [
            take_shard(state.carry, shard, len(self._devices), axis=0)
            for shard in range(len(self._devices))
        ]
        carries = [
            jax.device_put(Carries(part, part), device)
            for part, device in zip(carry_shards, self._devices, strict=True)
        ]
        return state._replace(carry=()), carries

    def _gradient_arguments(
        self, state: State, carries: list[Carries], batch: Batch
    ) -> list[tuple[Any, ...]]:
        """Return the arguments of each shard's gradient, on its device."""
        without_optimizer = state._replace(opt_state=())
        return [
            (
                jax.device_put(without_optimizer, device),
                carries[shard],
                take_shard(batch, shard, len(self._devices), axis=self._axes),
                self._shard_numbers[shard],
            )
            for shard, device in enumerate(self._devices)
        ]
