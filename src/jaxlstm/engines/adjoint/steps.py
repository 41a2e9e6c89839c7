"""One step of the adjoint engine: its values, its tangent, and what each needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.engines.adjoint import partition
from jaxlstm.engines.adjoint.partition import Environment, Partition
from jaxlstm.engines.adjoint.tangents import (
    Leaves,
    jvp,
    keep_needed,
    prune,
)
from jaxlstm.engines.loops import (
    Materialize,
    freeze_inactive,
    reset_carry,
    step_struct,
)
from jaxlstm.typing import ActiveSteps


class StepInputs(NamedTuple):
    """Differentiable inputs of one step, as leaves.

    Attributes:
        params_only: values that depend on the parameters alone.
        input_only: values that depend on the input of the step.
        initial: the state after a reset.
        state: the state before the step.
        taps: terms added at the taps of the recurrent products, one each.
    """

    params_only: Leaves
    input_only: Leaves
    initial: Leaves
    state: Leaves
    taps: Leaves


class NonDiffInputs(NamedTuple):
    """Inputs of one step without a tangent of their own.

    Attributes:
        active: whether the step is executed.
        resets: whether the state is reset before the step.
        activations: residual activations; empty to compute them.
        transposed_weights: for each recurrent product its transposed weight, or None
            to multiply rows first.
    """

    active: ActiveSteps | None
    resets: ActiveSteps | None
    activations: Leaves
    transposed_weights: Leaves


def run_step(
    parts: Partition,
    inputs: StepInputs,
    nondiff: NonDiffInputs,
    materialize: Materialize = lax.optimization_barrier,
) -> tuple[Leaves, Leaves, Environment]:
    """Return the state after a step, what it emits, and the values of all variables."""
    before = reset_carry(inputs.initial, inputs.state, nondiff.active, nondiff.resets)
    values = dict(zip(parts.params_only, inputs.params_only, strict=True))
    values |= dict(zip(parts.input_only, inputs.input_only, strict=True))
    values |= dict(zip(parts.arguments[1], before, strict=True))
    values = partition.evaluate_recurrent(
        parts,
        values,
        inputs.taps,
        nondiff.activations,
        nondiff.transposed_weights,
        materialize=materialize,
    )
    results = [partition.read(values, atom) for atom in parts.outputs]
    after, emitted = results[: len(before)], results[len(before) :]
    return freeze_inactive(after, inputs.state, nondiff.active), emitted, values


class Plan(NamedTuple):
    """Functions of one step that the tangents of the loop need, and what they read.

    Attributes:
        tangent_step: `(inputs, nondiff, tangents)` -> ṡ_t and the tangents of what is
            emitted.
        operands: `(inputs, nondiff)` -> the operands of the recurrent products.
        recompute: `(inputs, nondiff)` -> activations; None if they are stored.
        keep: selects of the state and the activations what these functions read.
        without_tapped: selects of the params-only and input-only tangents those that
            enter the loop elsewhere than at a tap.
        reads_input: which input-only values `tangent_step` reads.
        has_taps: whether any tangent enters the loop at a tap.
    """

    tangent_step: Callable[..., tuple[Leaves, Leaves]]
    operands: Callable[..., Leaves]
    recompute: Callable[..., Leaves] | None
    keep: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]
    without_tapped: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]
    reads_input: list[bool]
    has_taps: bool


def make_plan(
    parts: Partition,
    steps: StepInputs,
    nondiff: NonDiffInputs,
    tangents: StepInputs,
    *,
    recompute_activations: bool,
) -> Plan:
    """Plan the tangents of a loop by tracing one of its steps.

    Args:
        parts: the partition of the step.
        steps: inputs of all steps; `input_only` holds the inputs x that the input-only
            values are computed from.
        nondiff: their inputs without tangents.
        tangents: tangents of `steps`, None for zero.
        recompute_activations: whether activations are recomputed instead of stored.
    """
    one_step = (
        (steps.params_only, _drop_time(steps.input_only)),
        (tangents.params_only, _drop_time(tangents.input_only)),
    )
    evaluate = functools.partial(partition.evaluate_input_only, parts)
    input_only, d_input_only = jax.eval_shape(
        functools.partial(jvp, evaluate), *one_step
    )
    tangent_of = tangents_by_variable(parts, tangents.params_only, d_input_only)
    tapped = {v for product in parts.products for v in (product.weight, product.addend)}
    nonzero_taps = [
        any(tangent_of.get(v) is not None for v in (product.weight, product.addend))
        for product in parts.products
    ]

    def without_tapped(
        d_params_only: Leaves, d_input_only: Leaves
    ) -> tuple[Leaves, Leaves]:
        of_params = zip((v not in tapped for v in parts.params_only), strict=True)
        of_input = zip((v not in tapped for v in parts.input_only), strict=True)
        return (
            keep_needed(d_params_only, of_params),
            keep_needed(d_input_only, of_input),
        )

    inputs = steps._replace(input_only=input_only)
    nondiff = nondiff._replace(
        active=_drop_time(nondiff.active), resets=_drop_time(nondiff.resets)
    )
    activations, taps = jax.eval_shape(
        functools.partial(_activations_and_taps, parts), inputs, nondiff
    )
    d_params_only, d_input_only = without_tapped(tangents.params_only, d_input_only)
    taps = keep_needed(taps, zip(nonzero_taps, strict=True))
    d_inputs = StepInputs(
        d_params_only, d_input_only, tangents.initial, tangents.state, taps
    )

    stored = nondiff._replace(activations=activations)
    tangent_step, *tangent_needs = prune(
        functools.partial(_tangent_step, parts), inputs, stored, d_inputs
    )
    rows_first = stored._replace(transposed_weights=[None] * len(parts.products))
    operands, *operand_needs = prune(
        functools.partial(_operands, parts), inputs, rows_first
    )
    recompute, readers = None, [tangent_needs[0], operand_needs[0]]
    if recompute_activations:
        not_stored = rows_first._replace(activations=[])
        recompute, *recompute_needs = prune(
            functools.partial(_activations, parts), inputs, not_stored
        )
        readers.append(recompute_needs[0])

    def keep(state: Leaves, activations: Leaves) -> tuple[Leaves, Leaves]:
        states = keep_needed(
            state, zip(*(reader.state for reader in readers), strict=True)
        )
        if recompute is not None:
            return states, []
        needs = zip(
            tangent_needs[1].activations, operand_needs[1].activations, strict=True
        )
        return states, keep_needed(activations, needs)

    return Plan(
        tangent_step,
        operands,
        recompute,
        keep,
        without_tapped,
        tangent_needs[0].input_only,
        any(nonzero_taps),
    )


def _activations_and_taps(
    parts: Partition, inputs: StepInputs, nondiff: NonDiffInputs
) -> tuple[Leaves, Leaves]:
    values = run_step(parts, inputs, nondiff)[2]
    taps = [values[product.tap] for product in parts.products]
    return partition.activation_values(parts, values), taps


def _activations(
    parts: Partition, inputs: StepInputs, nondiff: NonDiffInputs
) -> Leaves:
    return partition.activation_values(parts, run_step(parts, inputs, nondiff)[2])


def _operands(parts: Partition, inputs: StepInputs, nondiff: NonDiffInputs) -> Leaves:
    """Return the operands of the recurrent products."""
    values = run_step(parts, inputs, nondiff)[2]
    return [values[product.operand] for product in parts.products]


def _tangent_step(
    parts: Partition, inputs: StepInputs, nondiff: NonDiffInputs, d_inputs: StepInputs
) -> tuple[Leaves, Leaves]:
    """Return ṡ_t and the tangents of what is emitted, linear in `d_inputs`."""

    def step(*inputs: Leaves) -> tuple[Leaves, Leaves]:
        return run_step(parts, StepInputs(*inputs), nondiff)[:2]

    inputs = inputs._replace(taps=jax.tree.map(jnp.zeros_like, d_inputs.taps))
    return jvp(step, tuple(inputs), tuple(d_inputs))[1]


def tangents_by_variable(
    parts: Partition, d_params_only: Leaves, d_input_only: Leaves
) -> dict[Any, Any]:
    """Return the tangents of params-only and input-only variables, None for zero."""
    variables = parts.params_only + parts.input_only
    return dict(zip(variables, [*d_params_only, *d_input_only], strict=True))


def _drop_time(tree: Any) -> Any:
    """Return the types of one step of leaves `[T, ...]`."""
    return jax.eval_shape(step_struct, tree)
