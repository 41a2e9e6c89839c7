"""Reference engine: `lax.scan` and automatic differentiation.

It is the simplest program that keeps the contract of `Engine`, and all other engines
are tested against it. It supports every cell and every transformation.
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
    ScanInputs,
    freeze_inactive,
    match_carry_type,
    reset_carry,
    scan_in_blocks,
    step_struct,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features


def run(
    cell: Cell,
    params: Params,
    xs: Features,
    per_step: PerStep,
    state: State,
    steps: StepMask,
    *,
    reverse: bool,
    emit: Emit,
    checkpoint_every: int | Literal["sqrt"] | None,
) -> tuple[State, Any]:
    """Run the steps in a `lax.scan`; see `Engine` for the arguments.

    Inputs are projected within the step, and a sequence of one step runs in a loop as
    well, so that a step alone gives the bits of the same step in a longer sequence.
    """
    batch_shape = xs.shape[1:-1]
    initial = cell.initial_state(params, batch_shape, dtype=xs.dtype)

    def step(initial: State, state: State, inputs: ScanInputs) -> tuple[State, Any]:
        x, per_step, active, resets = inputs
        before = reset_carry(initial, state, active, resets)
        after, gates = cell.step(params, before, project(cell, params, x, per_step))
        emitted = emit(after, gates)
        return freeze_inactive(after, state, active), emitted

    inputs = (xs, per_step, steps.active, steps.resets)
    after = jax.eval_shape(
        lambda inputs: step(initial, state, step_struct(inputs))[0], inputs
    )
    state, initial = match_carry_type(after, state), match_carry_type(after, initial)

    def block(state: State, inputs: ScanInputs) -> tuple[State, Any]:
        body = functools.partial(step, initial)
        return lax.scan(body, state, inputs, reverse=reverse)

    compiled = not jax.config.values["jax_disable_jit"]
    if xs.shape[0] == 1 and compiled:  # one step leaves nothing to checkpoint
        return single_step_scan(functools.partial(step, initial), state, inputs)
    if checkpoint_every is None:
        return block(state, inputs)
    return scan_in_blocks(block, state, inputs, every=checkpoint_every, reverse=reverse)


def single_step_scan(
    body: Block, state: State, inputs: ScanInputs
) -> tuple[State, Any]:
    """Scan over one step, padded to two steps of which the second is discarded.

    XLA inlines a loop of one iteration and then rounds differently, as it fuses
    products and sums that it keeps apart in a loop. The derivative is that of the
    single step, so that values of the discarded step cannot enter it.
    """
    step, closed_over = jax.closure_convert(body, state, step_struct(inputs))

    def unpadded(
        state: State, inputs: ScanInputs, *closed_over: Any
    ) -> tuple[State, Any]:
        return lax.scan(lambda *carry: step(*carry, *closed_over), state, inputs)

    @jax.custom_jvp
    def padded(
        state: State, inputs: ScanInputs, *closed_over: Any
    ) -> tuple[State, Any]:
        def stack_state(state: State, inputs: ScanInputs) -> tuple[State, Any]:
            after, emitted = step(state, inputs, *closed_over)
            return after, (after, emitted)

        twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), inputs)
        _, (after, emitted) = lax.scan(stack_state, state, twice)
        first = jax.tree.map(lambda a: a[0], after)
        return first, jax.tree.map(lambda a: a[:1], emitted)

    padded.defjvp(lambda primals, tangents: jax.jvp(unpadded, primals, tangents))
    return padded(state, inputs, *closed_over)
