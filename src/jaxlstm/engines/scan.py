"""The reference engine: `lax.scan` and automatic differentiation.

Every other engine is judged by this one, so it is the plainest program that keeps
the contract. It serves every cell and every transformation.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.cells.base import Cell, Each, Params, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.sequences import Steps, select
from jaxlstm.shapes import Features, Happens, is_explicit

Moments = tuple[Features, Each, Happens | None, Happens | None]
Block = Callable[[State, Moments], tuple[State, Any]]


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    each: Each,
    state: State,
    steps: Steps,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
) -> tuple[State, Any]:
    """Carry the state through the steps; stack what `emit` makes of each.

    The input is projected within the step, and a single step runs in a loop all the
    same, so that a step computes the same bits alone as among many, as far as the
    compiler keeps to what it is given. A step that does not happen begins from the
    initial state, which is always finite.
    """
    batch_shape = xs.shape[1:-1]
    initial = cell.initial_state(params, batch_shape, dtype=xs.dtype)

    def step(initial: State, state: State, moment: Moments) -> tuple[State, Any]:
        x, each, happens, resets = moment
        afresh = _either(resets, None if happens is None else ~happens)
        before = state if afresh is None else select(afresh, initial, state)
        after, gates = cell.step(params, before, project(cell, params, x, each))
        emitted = emit(after, gates)
        return (after if happens is None else select(happens, after, state)), emitted

    moments = (xs, each, steps.happens, steps.resets)
    after = jax.eval_shape(
        lambda moments: step(initial, state, _any_moment(moments))[0], moments
    )
    state, initial = _typed_like(after, state), _typed_like(after, initial)

    def block(state: State, moments: Moments) -> tuple[State, Any]:
        body = functools.partial(step, initial)
        return lax.scan(body, state, moments, reverse=reverse)

    compiled = not jax.config.values["jax_disable_jit"]
    if len(xs) == 1 and compiled:  # in one step there is nothing to compute again
        return _alone(functools.partial(step, initial), state, moments)
    if checkpoint_every is None:
        return block(state, moments)
    size = math.isqrt(len(xs)) if checkpoint_every == "sqrt" else checkpoint_every
    return _in_blocks(block, state, moments, size=max(size, 1), reverse=reverse)


def _alone(body: Block, state: State, moments: Moments) -> tuple[State, Any]:
    """One step, rounded as it is among others.

    A compiler dissolves a loop of one trip, and then rounds products and sums together
    that it keeps apart in a loop. So there are two trips, the second for nothing. The
    derivative is that of one: it shall not meet numbers that nobody asked for.
    """
    step, closed_over = jax.closure_convert(body, state, _any_moment(moments))

    def once(state: State, moments: Moments, *closed_over: Any) -> tuple[State, Any]:
        return lax.scan(lambda *carry: step(*carry, *closed_over), state, moments)

    @jax.custom_jvp
    def alone(state: State, moments: Moments, *closed_over: Any) -> tuple[State, Any]:
        def trip(state: State, moment: Moments) -> tuple[State, Any]:
            after, emitted = step(state, moment, *closed_over)
            return after, (after, emitted)

        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), moments)
        _, (after, emitted) = lax.scan(trip, state, twice)
        first = jax.tree.map(lambda a: a[0], after)
        return first, jax.tree.map(lambda a: a[:1], emitted)

    alone.defjvp(lambda primals, tangents: jax.jvp(once, primals, tangents))
    return alone(state, moments, *closed_over)


def _either(one: Happens | None, other: Happens | None) -> Happens | None:
    """True where either is; None says False everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _in_blocks(
    block: Block, state: State, moments: Moments, *, size: int, reverse: bool
) -> tuple[State, Any]:
    """`block` over `size` steps at a time, each computed again on the way back.

    The backward pass then remembers the T/k states between the blocks and, while it
    is in one of them, the k steps of that block.
    """
    whole = len(moments[0]) // size * size
    many = jax.tree.map(
        lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), moments
    )
    rest = jax.tree.map(lambda a: a[whole:], moments)
    again = jax.checkpoint(block, prevent_cse=False)  # a scan keeps them apart
    if reverse:
        state, tail = jax.checkpoint(block)(state, rest)
        state, head = lax.scan(again, state, many, reverse=True)
    else:
        state, head = lax.scan(again, state, many)
        state, tail = jax.checkpoint(block)(state, rest)
    flat = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), head)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), flat, tail)


def _any_moment(moments: Moments) -> Moments:
    """Something of the type of one moment, even where there is none; not computed."""
    return jax.tree.map(lambda a: a[0] if len(a) else a.sum(0, dtype=a.dtype), moments)


def _typed_like(after: State, state: State) -> State:
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
