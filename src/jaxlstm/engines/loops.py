"""What the engines' loops have in common: their moments, their carry, their blocks."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.cells.base import PerStep, State
from jaxlstm.masking import select
from jaxlstm.typing import ActiveSteps, Features, is_explicit

Moments = tuple[Features, PerStep, ActiveSteps | None, ActiveSteps | None]
Block = Callable[[State, Any], tuple[State, Any]]
Shown = Callable[[Array], Array]
Walk = Callable[..., tuple[Any, Any]]

SMALL = 32 * 1024  # bytes, up to which a value is computed on one core
LANES = 16  # numbers in the widest vector of a CPU


class Body(Protocol):
    """A step that calls `shown` on what its results may be, and goes on with what
    that returns: the same numbers, which the compiler does not compute anew.
    """

    def __call__(self, state: Any, moment: Any, shown: Shown) -> tuple[Any, Any]:
        """The state after the step, and what is stacked over time."""
        ...


def walked(body: Body, state: Any, moments: Any, *, reverse: bool) -> tuple[Any, Any]:
    """`lax.scan`, what is shown behind a barrier."""

    def step(state: Any, moment: Any) -> tuple[Any, Any]:
        return body(state, moment, lax.optimization_barrier)

    return lax.scan(step, state, moments, reverse=reverse)


def written_once(
    body: Body, state: Any, moments: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """As `walked` does, and what is shown and stacked is written once.

    `lax.scan` computes a step and then copies its results to their stacks. Here they
    are computed where they are to lie and read from there, which saves a third of what
    the stacks cost on a CPU; not so the large ones, which the compiler would compute on
    all cores. Not to be differentiated: the derivative would read whole stacks.
    """
    like, owners, places = _places(body, state, moments)
    length = len(jax.tree.leaves(moments)[0])
    written = {place for place in places if place is not None}
    if not length or not written:
        return walked(body, state, moments, reverse=reverse)
    whole, tree = jax.tree.flatten(like)
    # Of equal arrays the compiler would make one, and copies.
    stacks = {
        place: jnp.full((length, *whole[place].shape), place, whole[place].dtype)
        for place in written
    }

    def step(carry: Any, moment: Any) -> tuple[Any, Any]:
        state, t, stacks = carry
        stacks, number = dict(stacks), itertools.count()

        def shown(value: Array) -> Array:
            place = places[next(number)]
            if place is None:
                return lax.optimization_barrier(value)
            stack = lax.dynamic_update_index_in_dim(
                stacks[place], value, t, 0, allow_negative_indices=False
            )
            stacks[place] = lax.optimization_barrier(stack)
            return lax.dynamic_index_in_dim(
                stacks[place], t, 0, keepdims=False, allow_negative_indices=False
            )

        after, results = body(state, moment, shown)
        leaves = zip(owners, jax.tree.leaves(results), strict=True)
        others = [None if owner in written else leaf for owner, leaf in leaves]
        return (after, t + (-1 if reverse else 1), stacks), others

    first = jnp.int32(length - 1 if reverse else 0)
    carry, others = lax.scan(step, (state, first, stacks), moments, reverse=reverse)
    after, _, stacks = carry
    leaves = zip(owners, others, strict=True)
    return after, tree.unflatten(stacks.get(owner, other) for owner, other in leaves)


def _places(
    body: Body, state: Any, moments: Any
) -> tuple[Any, list[int], list[int | None]]:
    """(the types of a step's results; for each of their leaves the first one that is
    the same; for each value that is shown which leaf it is, or None: of none, too
    large, or on a mesh, where stacks are split).
    """
    owners: list[int] = []
    places: list[int | None] = []

    def watched(state: Any, moments: Any) -> Any:
        seen: list[Array] = []

        def shown(value: Array) -> Array:
            seen.append(lax.optimization_barrier(value))
            return seen[-1]

        results = body(state, any_moment(moments), shown)[1]
        first: dict[int, int] = {}
        for place, leaf in enumerate(jax.tree.leaves(results)):
            owners.append(first.setdefault(id(leaf), place))
        places.extend(first.get(id(v)) if _is_small(v) else None for v in seen)
        return results

    return jax.eval_shape(watched, state, moments), owners, places


def _is_small(value: Array) -> bool:
    """Whether a value, of a type that does not say where it lies, fits one core, and
    its units whole vectors: what is left over is rounded otherwise in another loop.
    """
    kind = jax.typeof(value)
    axes = kind.manual_axis_type
    placed = is_explicit(kind.sharding) or (axes and axes.varying)
    whole = value.ndim > 0 and value.shape[-1] % LANES == 0
    return whole and not placed and value.size * value.dtype.itemsize <= SMALL


def begun(
    initial: State,
    state: State,
    active: ActiveSteps | None,
    resets: ActiveSteps | None,
) -> State:
    """The state that a step begins from.

    A step that does not happen begins from the initial state, which is always finite.
    """
    afresh = resets
    if active is not None:
        afresh = ~active if resets is None else ~active | resets
    return state if afresh is None else select(afresh, initial, state)


def ended(after: State, state: State, active: ActiveSteps | None) -> State:
    """The state that a step ends with: untouched where it does not happen."""
    return after if active is None else select(active, after, state)


def in_blocks(
    block: Block,
    state: State,
    moments: Any,
    *,
    every: int | Literal["sqrt"],
    reverse: bool,
) -> tuple[State, Any]:
    """`block` over k moments at a time, each computed again on the way back.

    The backward pass then remembers the T/k states between the blocks and, while it
    is in one of them, the k steps of that block.
    """
    length = len(jax.tree.leaves(moments)[0])
    size = block_size(length, every)
    whole = length // size * size
    many = jax.tree.map(
        lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), moments
    )
    again = jax.checkpoint(block, prevent_cse=False)  # a scan keeps them apart

    def blocks(state: State) -> tuple[State, Any]:
        state, emitted = lax.scan(again, state, many, reverse=reverse)
        flat = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), emitted)
        return state, flat

    if whole == length:
        return blocks(state)
    rest = functools.partial(
        jax.checkpoint(block), moments=jax.tree.map(lambda a: a[whole:], moments)
    )
    state, one = (rest if reverse else blocks)(state)
    state, other = (blocks if reverse else rest)(state)
    head, tail = (other, one) if reverse else (one, other)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), head, tail)


def block_size(length: int, every: int | Literal["sqrt"]) -> int:
    """The steps of a block: k or √T, or a divisor of T that is near it.

    A rest costs a copy of the whole.
    """
    if every == "sqrt":
        root = max(math.isqrt(length), 1)
        sizes = sorted(range(1, 2 * root + 1), key=lambda size: abs(size - root))
    else:
        root = min(every, max(length, 1))
        sizes = range(root, 0, -1)
    divisors = (size for size in sizes if size > root / 2 and length % size == 0)
    return next(divisors, root)


def any_moment(moments: Moments) -> Moments:
    """Something of the type of one moment, even where there is none; not computed."""
    return jax.tree.map(lambda a: a[0] if len(a) else a.sum(0, dtype=a.dtype), moments)


def typed_like(after: State, state: State) -> State:
    """The state with the sharding and the mesh axes that a step will give it.

    A loop's carry has one type. Zeros made from nothing belong to no mesh axis, while
    the state after a step varies over those of the inputs: under `shard_map` and on
    an explicit mesh the two must be made alike before the loop.
    """

    def one(after: Any, leaf: Any) -> Any:
        if is_explicit(after.sharding):
            leaf = jax.sharding.reshard(leaf, after.sharding)
        varying = after.manual_axis_type.varying if after.manual_axis_type else set()
        missing = varying - jax.typeof(leaf).manual_axis_type.varying
        return lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(one, after, state)
