"""A batch in shards: a gradient of each on a device of its own, and one update.

    params ──┬──> gradient of columns 0 … b      device 0 ──┐
             ├──> gradient of columns b … 2b     device 1 ──┼──> mean ──> update
             └──> …                              …        ──┘           device 0

On a CPU each core then runs a time loop of its own. Every program here is compiled for
one device and runs on that device alone; what another device needs is copied between
programs. So no program holds a collective, and none can wait for another half-way:
whatever order they run in, each ends. That is why training in shards cannot deadlock.

How many shards there are decides the bits of a run, as the seed does, and how many
devices there are does not: shard i is the same program wherever it runs.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxlstm.lab.data import Batch
from jaxlstm.lab.parallel.devices import siblings
from jaxlstm.lab.training import state as steps
from jaxlstm.lab.training.state import StepMetrics, TrainState
from jaxlstm.layers import Layer

# Steps under way at a time: enough to keep the devices busy, and few enough that their
# gradients do not fill the memory.
AHEAD = 2

Dispatch = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


class Columns(NamedTuple):
    """The state of one shard's columns, before its newest step and after it.

    Whether that step counts is known once the gradients of all shards are.
    """

    before: Any
    after: Any


def of_shard(tree: Any, shard: int, shards: int, *, axis: int) -> Any:
    """The columns of one shard, of arrays that hold the whole batch along `axis`."""

    def cut(leaf: Any) -> Any:
        size = leaf.shape[axis] // shards
        return leaf[(slice(None),) * axis + (slice(shard * size, (shard + 1) * size),)]

    return jax.tree.map(cut, tree)


def shard_gradient(
    model: Layer, state: TrainState, columns: Columns, batch: Batch, shard: Array
) -> tuple[Array, Columns, Any]:
    """Loss, columns and gradient of one shard, whose batch is `[T, B / shards]`.

    Arguments:
        state: with neither carry nor optimizer state, which no gradient depends on.
    """
    before = _chosen(state.healthy, columns)
    key = steps.noise_key(state, shard)
    nats, after, found = steps.gradient(model, state.params, before, batch, key)
    return nats, Columns(before, after), found


def merged_update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    nats: tuple[Array, ...],
    gradients: tuple[Any, ...],
) -> tuple[TrainState, StepMetrics]:
    """The state after the mean of all gradients, which are added in their order."""
    mean = functools.partial(
        jax.tree.map, lambda *each: sum(each[1:], each[0]) / len(each)
    )
    return steps.updated(optimizer, state, mean(*nats), (), mean(*gradients))


def joined(healthy: Array, columns: tuple[Columns, ...]) -> Any:
    """The carry of the whole batch, from the columns of every shard."""
    parts = [_chosen(healthy, each) for each in columns]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _chosen(healthy: Array, columns: Columns) -> Any:
    """The columns after their newest step, or before it if it does not count."""
    return jax.tree.map(
        functools.partial(jnp.where, healthy), columns.after, columns.before
    )


def program(
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batch,
    *,
    shards: int,
) -> Dispatch:
    """`train_steps` in shards, compiled: `(state, batches [K, T, B])` to both.

    The state is given away, as to every program of the loop; its metrics are rows of K
    scalars. Whatever K is, the programs behind it are these.
    """
    return _Sharded(model, optimizer, state, batches, shards).dispatch


class _Sharded:
    """One gradient program for each device and one update, and the order of calls."""

    def __init__(
        self,
        model: Layer,
        optimizer: optax.GradientTransformation,
        state: TrainState,
        batches: Batch,
        shards: int,
    ) -> None:
        (self._home,) = state.step.devices()
        self._places = siblings(self._home, shards)
        self._index = [
            jax.device_put(np.int32(shard), place)
            for shard, place in enumerate(self._places)
        ]
        lean, columns = self._spread(state)
        gradient = jax.jit(functools.partial(shard_gradient, model))
        calls = self._calls(lean, columns, jax.tree.map(lambda leaf: leaf[0], batches))
        each = dict(zip(self._places, calls, strict=True))
        lowered = {place: gradient.lower(*call) for place, call in each.items()}
        with ThreadPoolExecutor(len(lowered)) as pool:
            compiled = pool.map(jax.stages.Lowered.compile, lowered.values())
            self.gradients = dict(zip(lowered, compiled, strict=True))
        nats, _, found = jax.eval_shape(gradient, *calls[0])
        update = jax.jit(functools.partial(merged_update, optimizer), donate_argnums=0)
        self.update = update.lower(lean, (nats,) * shards, (found,) * shards).compile()
        self.join = jax.jit(joined)

    def dispatch(
        self, state: TrainState, batches: Batch
    ) -> tuple[TrainState, StepMetrics]:
        """As many steps as there are batches, none waited for but those long ago."""
        state, columns = self._spread(state)
        rows: list[StepMetrics] = []
        for k in range(len(batches.inputs)):
            if k >= AHEAD:
                rows[k - AHEAD].healthy.block_until_ready()
            batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
            state, columns, row = self._step(state, columns, batch)
            rows.append(row)
        carry = self.join(state.healthy, jax.device_put(tuple(columns), self._home))
        return state._replace(carry=carry), jax.tree.map(lambda *row: row, *rows)

    def _step(
        self, state: TrainState, columns: list[Columns], batch: Batch
    ) -> tuple[TrainState, list[Columns], StepMetrics]:
        calls = self._calls(state, columns, batch)
        done = [
            self.gradients[place](*call)
            for place, call in zip(self._places, calls, strict=True)
        ]
        nats, columns, found = map(list, zip(*done, strict=True))
        here = jax.device_put((tuple(nats), tuple(found)), self._home)
        state, metrics = self.update(state, *here)
        return state, columns, metrics

    def _spread(self, state: TrainState) -> tuple[TrainState, list[Columns]]:
        """The state without its carry, and the carry in columns where they belong."""
        state = jax.device_put(state, self._home)
        parts = [
            of_shard(state.carry, shard, len(self._places), axis=0)
            for shard in range(len(self._places))
        ]
        columns = [
            jax.device_put(Columns(part, part), place)
            for part, place in zip(parts, self._places, strict=True)
        ]
        return state._replace(carry=()), columns

    def _calls(
        self, state: TrainState, columns: list[Columns], batch: Batch
    ) -> list[tuple[Any, ...]]:
        """The arguments of every shard's gradient, on the device that it runs on."""
        seen = state._replace(opt_state=())
        return [
            (
                jax.device_put(seen, place),
                columns[shard],
                of_shard(batch, shard, len(self._places), axis=1),
                self._index[shard],
            )
            for shard, place in enumerate(self._places)
        ]
