"""A batch split into shards: one gradient for each, then one update.

    params ──┬──> gradient of examples 0 … b     device 0 ──┐
             ├──> gradient of examples b … 2b    device 1 ──┼──> mean ──> update
             └──> …                              …        ──┘           device 0

On a CPU each core then runs a time loop of its own. Every program is compiled for one
device, and arrays are copied between programs, so no program contains a collective. A
collective inside a step that is dispatched ahead can deadlock the few threads of
XLA:CPU; without one, the programs end in whatever order they run.

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

# Steps in flight at a time: enough to keep the devices busy, few enough that their
# gradients do not fill the memory.
IN_FLIGHT = 2

State = Any
Batch = Any
Metrics = Any
Dispatch = Callable[[State, Batch], tuple[State, Metrics]]


class Halves(NamedTuple):
    """The two halves of a training step.

    gradient   `(state, carry, batch, shard) -> (loss, carry, gradient)`; reads neither
               `state.carry` nor `state.opt_state`
    update     `(state, loss, carry, gradient) -> (state, metrics)`
    """

    gradient: Callable[[State, Any, Batch, Array], tuple[Array, Any, Any]]
    update: Callable[[State, Array, Any, Any], tuple[State, Metrics]]


class Carries(NamedTuple):
    """The carry of one shard before its newest step and after it.

    Which of the two holds is known once the losses of all shards are.
    """

    before: Any
    after: Any


def of_shard(tree: Any, shard: int, shards: int, *, axis: Any) -> Any:
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
    halves: Halves, state: State, carries: Carries, batch: Batch, shard: Array
) -> tuple[Array, Carries, Any]:
    """Return loss, carries and gradient of one shard.

    Args:
        state: without carry and optimizer state, on which no gradient depends.
        batch: the part of this shard.
    """
    before = _chosen(state.healthy, carries)
    loss, after, found = halves.gradient(state, before, batch, shard)
    return loss, Carries(before, after), found


def merged_update(
    halves: Halves, state: State, losses: tuple[Array, ...], gradients: tuple[Any, ...]
) -> tuple[State, Metrics]:
    """Update the state by the mean of all gradients, added in the order of shards."""
    mean = functools.partial(
        jax.tree.map, lambda *each: sum(each[1:], each[0]) / len(each)
    )
    return halves.update(state, mean(*losses), (), mean(*gradients))


def joined(healthy: Array, carries: tuple[Carries, ...]) -> Any:
    """Return the carry of the whole batch."""
    parts = [_chosen(healthy, each) for each in carries]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _chosen(healthy: Array, carries: Carries) -> Any:
    """Return the carry after the newest step, or before it if it does not count."""
    return jax.tree.map(
        functools.partial(jnp.where, healthy), carries.after, carries.before
    )


def program(
    halves: Halves, state: State, batches: Batch, *, batch_axes: Any, shards: int
) -> Dispatch:
    """Compile `(state, batches) -> (state, metrics)` in shards.

    The state is donated. Batches are stacked along a leading axis of any length K, and
    metrics are K rows.

    Args:
        batch_axes: the batch axis of each field of one batch.
        shards: their number, a divisor of the batch size.
    """
    return _Sharded(halves, state, batches, batch_axes, shards).dispatch


class _Sharded:
    """One gradient program for each device, one update, and the order of calls."""

    def __init__(
        self, halves: Halves, state: State, batches: Batch, axes: Any, shards: int
    ) -> None:
        self._axes = axes
        (self._home,) = state.step.devices()
        self._places = cycle_devices(self._home, shards)
        self._index = [
            jax.device_put(np.int32(shard), place)
            for shard, place in enumerate(self._places)
        ]
        lean, carries = self._spread(state)
        gradient = jax.jit(functools.partial(shard_gradient, halves))
        calls = self._calls(lean, carries, jax.tree.map(lambda leaf: leaf[0], batches))
        each = dict(zip(self._places, calls, strict=True))
        lowered = {place: gradient.lower(*call) for place, call in each.items()}
        with ThreadPoolExecutor(len(lowered)) as pool:
            compiled = pool.map(jax.stages.Lowered.compile, lowered.values())
            self.gradients = dict(zip(lowered, compiled, strict=True))
        losses, _, found = jax.eval_shape(gradient, *calls[0])
        update = jax.jit(functools.partial(merged_update, halves), donate_argnums=0)
        self.update = update.lower(
            lean, (losses,) * shards, (found,) * shards
        ).compile()
        self.join = jax.jit(joined)

    def dispatch(self, state: State, batches: Batch) -> tuple[State, Metrics]:
        """Dispatch a step for each batch, with at most `IN_FLIGHT` unfinished."""
        state, carries = self._spread(state)
        rows: list[Metrics] = []
        for k in range(len(jax.tree.leaves(batches)[0])):
            if k >= IN_FLIGHT:
                rows[k - IN_FLIGHT].healthy.block_until_ready()
            batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
            state, carries, row = self._step(state, carries, batch)
            rows.append(row)
        carry = self.join(state.healthy, jax.device_put(tuple(carries), self._home))
        return state._replace(carry=carry), jax.tree.map(lambda *row: row, *rows)

    def _step(
        self, state: State, carries: list[Carries], batch: Batch
    ) -> tuple[State, list[Carries], Metrics]:
        calls = self._calls(state, carries, batch)
        done = [
            self.gradients[place](*call)
            for place, call in zip(self._places, calls, strict=True)
        ]
        losses, carries, found = map(list, zip(*done, strict=True))
        here = jax.device_put((tuple(losses), tuple(found)), self._home)
        state, metrics = self.update(state, *here)
        return state, carries, metrics

    def _spread(self, state: State) -> tuple[State, list[Carries]]:
        """Return the state without its carry, and each shard's carry on its device."""
        state = jax.device_put(state, self._home)
        parts = [
            of_shard(state.carry, shard, len(self._places), axis=0)
            for shard in range(len(self._places))
        ]
        carries = [
            jax.device_put(Carries(part, part), place)
            for part, place in zip(parts, self._places, strict=True)
        ]
        return state._replace(carry=()), carries

    def _calls(
        self, state: State, carries: list[Carries], batch: Batch
    ) -> list[tuple[Any, ...]]:
        """Return the arguments of each shard's gradient, on its device."""
        seen = state._replace(opt_state=())
        return [
            (
                jax.device_put(seen, place),
                carries[shard],
                of_shard(batch, shard, len(self._places), axis=self._axes),
                self._index[shard],
            )
            for shard, place in enumerate(self._places)
        ]
