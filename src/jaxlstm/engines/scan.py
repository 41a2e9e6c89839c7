"""The reference engine: `lax.scan` and automatic differentiation.

Every other engine is judged by this one, so it is the plainest program that keeps
the contract. It serves every cell and every transformation.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.cells.base import Cell, Params, PerStep, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.engines.loops import (
    Block,
    Moments,
    any_moment,
    begun,
    ended,
    in_blocks,
    typed_like,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    each: PerStep,
    state: State,
    steps: StepMask,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
) -> tuple[State, Any]:
    """Carry the state through the steps; stack what `emit` makes of each.

    The input is projected within the step, and a single step runs in a loop all the
    same, so that a step computes the same bits alone as among many, as far as the
    compiler keeps to what it is given.
    """
    batch_shape = xs.shape[1:-1]
    initial = cell.initial_state(params, batch_shape, dtype=xs.dtype)

    def step(initial: State, state: State, moment: Moments) -> tuple[State, Any]:
        x, each, active, resets = moment
        before = begun(initial, state, active, resets)
        after, gates = cell.step(params, before, project(cell, params, x, each))
        emitted = emit(after, gates)
        return ended(after, state, active), emitted

    moments = (xs, each, steps.active, steps.resets)
    after = jax.eval_shape(
        lambda moments: step(initial, state, any_moment(moments))[0], moments
    )
    state, initial = typed_like(after, state), typed_like(after, initial)

    def block(state: State, moments: Moments) -> tuple[State, Any]:
        body = functools.partial(step, initial)
        return lax.scan(body, state, moments, reverse=reverse)

    compiled = not jax.config.values["jax_disable_jit"]
    if len(xs) == 1 and compiled:  # in one step there is nothing to compute again
        return _alone(functools.partial(step, initial), state, moments)
    if checkpoint_every is None:
        return block(state, moments)
    return in_blocks(block, state, moments, every=checkpoint_every, reverse=reverse)


def _alone(body: Block, state: State, moments: Moments) -> tuple[State, Any]:
    """One step, rounded as it is among others.

    A compiler dissolves a loop of one trip, and then rounds products and sums together
    that it keeps apart in a loop. So there are two trips, the second for nothing. The
    derivative is that of one: it shall not meet numbers that nobody asked for.
    """
    step, closed_over = jax.closure_convert(body, state, any_moment(moments))

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
