"""What the engines' loops have in common: their moments, their carry, their blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.cells.base import Each, State
from jaxlstm.sequences import select
from jaxlstm.shapes import Features, Happens, is_explicit

Moments = tuple[Features, Each, Happens | None, Happens | None]
Block = Callable[[State, Any], tuple[State, Any]]


def begun(
    initial: State, state: State, happens: Happens | None, resets: Happens | None
) -> State:
    """The state that a step begins from.

    A step that does not happen begins from the initial state, which is always finite.
    """
    afresh = resets
    if happens is not None:
        afresh = ~happens if resets is None else ~happens | resets
    return state if afresh is None else select(afresh, initial, state)


def ended(after: State, state: State, happens: Happens | None) -> State:
    """The state that a step ends with: untouched where it does not happen."""
    return after if happens is None else select(happens, after, state)


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
