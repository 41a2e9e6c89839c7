"""Building blocks of the engines' loops: carry, scans and checkpointed blocks."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.masking import select
from jaxlstm.typing import (
    ActiveSteps,
    Features,
    PerStep,
    State,
    is_explicit,
    is_symbolic,
)

# xs, the output of `prepare`, active steps and resets, each with a leading time axis.
ScanInputs = tuple[Features, PerStep, ActiveSteps | None, ActiveSteps | None]
Block = Callable[[State, Any], tuple[State, Any]]
Materialize = Callable[[Array], Array]
ScanFn = Callable[..., tuple[Any, Any]]

MAX_IN_PLACE_BYTES = 32 * 1024  # XLA computes larger values on several cores
VECTOR_LANES = 16  # float32 values in the widest vector register of a CPU


class Body(Protocol):
    """Step of a scan that calls `materialize` on values which it may also stack.

    `materialize` returns the same numbers, which the compiler does not compute again
    for each use. The step must go on with the returned array.
    """

    def __call__(
        self, state: Any, inputs: Any, materialize: Materialize
    ) -> tuple[Any, Any]:
        """Return the state after the step, and what is stacked over time."""
        ...


def scan_with_barrier(
    body: Body, state: Any, inputs: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """Run `lax.scan` with an optimization barrier as `materialize`."""

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        return body(state, inputs, lax.optimization_barrier)

    return lax.scan(step, state, inputs, reverse=reverse)


def scan_in_place(
    body: Body, state: Any, inputs: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """Return what `scan_with_barrier` returns, writing stacked values only once.

    `lax.scan` computes a step and then copies its results into the stacks. Here a
    materialized value is computed directly in its stack and read from there, which
    saves a third of the cost of the stacks on a CPU. Large values are excluded, as the
    compiler computes them on all cores. This loop must not be differentiated: its
    derivative would read whole stacks at each step.
    """
    struct, first_equal, slots = _stack_slots(body, state, inputs)
    length = jax.tree.leaves(inputs)[0].shape[0]
    in_place = {slot for slot in slots if slot is not None}
    if is_symbolic([length]) or not length or not in_place:
        return scan_with_barrier(body, state, inputs, reverse=reverse)
    structs, tree = jax.tree.flatten(struct)
    # Different fill values: XLA would merge equal arrays into one and then copy it.
    stacks = {
        slot: jnp.full((length, *structs[slot].shape), slot, structs[slot].dtype)
        for slot in in_place
    }

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        state, t, stacks = carry
        stacks, number = dict(stacks), itertools.count()

        def materialize(value: Array) -> Array:
            slot = slots[next(number)]
            if slot is None:
                return lax.optimization_barrier(value)
            stack = lax.dynamic_update_index_in_dim(
                stacks[slot], value, t, 0, allow_negative_indices=False
            )
            stacks[slot] = lax.optimization_barrier(stack)
            return lax.dynamic_index_in_dim(
                stacks[slot], t, 0, keepdims=False, allow_negative_indices=False
            )

        after, results = body(state, inputs, materialize)
        leaves = zip(first_equal, jax.tree.leaves(results), strict=True)
        others = [None if first in in_place else leaf for first, leaf in leaves]
        return (after, t + (-1 if reverse else 1), stacks), others

    first_step = jnp.int32(length - 1 if reverse else 0)
    carry, others = lax.scan(step, (state, first_step, stacks), inputs, reverse=reverse)
    after, _, stacks = carry
    leaves = zip(first_equal, others, strict=True)
    return after, tree.unflatten(stacks.get(first, other) for first, other in leaves)


def _stack_slots(
    body: Body, state: Any, inputs: Any
) -> tuple[Any, list[int], list[int | None]]:
    """Trace one step to find which materialized values it also stacks.

    Returns:
        `(struct, first_equal, slots)`: the types of the results of a step; for each of
        their leaves the index of the first identical leaf; and for each materialized
        value the index of its leaf, or None if it is not stacked, too large, or on a
        mesh, where stacks are split.
    """
    first_equal: list[int] = []
    slots: list[int | None] = []

    def trace_step(state: Any, inputs: Any) -> Any:
        materialized: list[Array] = []

        def materialize(value: Array) -> Array:
            materialized.append(lax.optimization_barrier(value))
            return materialized[-1]

        results = body(state, step_struct(inputs), materialize)[1]
        first: dict[int, int] = {}
        for index, leaf in enumerate(jax.tree.leaves(results)):
            first_equal.append(first.setdefault(id(leaf), index))
        slots.extend(
            first.get(id(value)) if _fits_in_place(value) else None
            for value in materialized
        )
        return results

    return jax.eval_shape(trace_step, state, inputs), first_equal, slots


def _fits_in_place(value: Array) -> bool:
    """Return whether a value is small, on no mesh, and made of whole vectors of units.

    A remainder of units would be rounded differently in a loop of another shape.
    """
    aval = jax.typeof(value)
    axes = aval.manual_axis_type
    if is_symbolic(value.shape):
        return False
    on_mesh = is_explicit(aval.sharding) or (axes and axes.varying)
    whole = value.ndim > 0 and value.shape[-1] % VECTOR_LANES == 0
    size = value.size * value.dtype.itemsize
    return whole and not on_mesh and size <= MAX_IN_PLACE_BYTES


def reset_carry(
    initial: State,
    state: State,
    active: ActiveSteps | None,
    resets: ActiveSteps | None,
) -> State:
    """Return the state that a step starts from.

    It is the initial state at a reset, and also at a masked step: its result is
    discarded, but the initial state is finite, so that no NaN enters the gradient.
    """
    replace = resets
    if active is not None:
        replace = ~active if resets is None else ~active | resets
    return state if replace is None else select(replace, initial, state)


def freeze_inactive(after: State, state: State, active: ActiveSteps | None) -> State:
    """Return the state after a step: unchanged where the step is masked."""
    return after if active is None else select(active, after, state)


def scan_in_blocks(
    block: Block,
    state: State,
    inputs: Any,
    *,
    every: int | Literal["sqrt"],
    reverse: bool,
) -> tuple[State, Any]:
    """Run `block` over k steps at a time, recomputing each block for the gradient.

    The backward pass then stores the T/k states between blocks and, for one block at a
    time, its k steps. A symbolic number of steps is not divided.
    """
    length = jax.tree.leaves(inputs)[0].shape[0]
    if is_symbolic([length]):
        return block(state, inputs)
    size = block_size(length, every)
    whole = length // size * size
    many = jax.tree.map(
        lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), inputs
    )
    # The scan keeps the two computations apart, so no CSE barrier is needed.
    recomputed = jax.checkpoint(block, prevent_cse=False)

    def blocks(state: State) -> tuple[State, Any]:
        state, emitted = lax.scan(recomputed, state, many, reverse=reverse)
        flat = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), emitted)
        return state, flat

    if whole == length:
        return blocks(state)
    remainder = functools.partial(
        jax.checkpoint(block), inputs=jax.tree.map(lambda a: a[whole:], inputs)
    )
    state, first = (remainder if reverse else blocks)(state)
    state, second = (blocks if reverse else remainder)(state)
    head, tail = (second, first) if reverse else (first, second)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)


def block_size(length: int, every: int | Literal["sqrt"]) -> int:
    """Return the steps of a block: k or √T, or a divisor of T near it.

    A divisor is preferred, as a remainder costs a copy of all outputs.
    """
    if every == "sqrt":
        root = max(math.isqrt(length), 1)
        sizes = sorted(range(1, 2 * root + 1), key=lambda size: abs(size - root))
    else:
        root = min(every, max(length, 1))
        sizes = range(root, 0, -1)
    divisors = (size for size in sizes if size > root / 2 and length % size == 0)
    return next(divisors, root)


def step_struct(inputs: ScanInputs) -> ScanInputs:
    """Return arrays of the type of one step's inputs, for `jax.eval_shape` only.

    It works for sequences without steps, too.
    """

    def first(a: Array) -> Array:
        return a.sum(0, dtype=a.dtype) if a.shape[0] == 0 else a[0]

    return jax.tree.map(first, inputs)


def match_carry_type(after: State, state: State) -> State:
    """Return the state with the sharding and mesh axes of the state after a step.

    A scan needs one type of carry. A state made of zeros varies over no mesh axis,
    while the state after a step varies over those of the inputs: under `shard_map` and
    on an explicit mesh they must be matched before the loop.
    """

    def match(after: Any, leaf: Any) -> Any:
        if is_explicit(after.sharding):
            leaf = jax.sharding.reshard(leaf, after.sharding)
        varying = after.manual_axis_type.varying if after.manual_axis_type else set()
        missing = varying - jax.typeof(leaf).manual_axis_type.varying
        return lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(match, after, state)
