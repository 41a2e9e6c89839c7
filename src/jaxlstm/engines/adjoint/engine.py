"""Loops of the adjoint engine: a derivative in three parts, only one of them a loop.

A step s_t = F(s_{t-1}, a_t; θ) maps the state before it, the projected input and the
parameters to the state after it. Its tangent, with a dot over each letter, is

    ṡ_t = F_s ṡ_{t-1} + F_a ȧ_t + F_θ θ̇

Within F, recurrent weights act only through a product y_t = W s_{t-1}, so that

    ẏ_t = W ṡ_{t-1} + Ẇ s_{t-1}

The second term does not depend on other tangents once the states are known:
ω_t = ȧ_t + Ẇ s_{t-1} is one product over all steps. What remains is the loop

    ṡ_t = A_t ṡ_{t-1} + B_t ω_t

with A_t = F_s + F_y W and B_t = F_y at the state before the step and at the
activations, both stored in the forward pass: σ' = σ (1 - σ), tanh' = 1 - tanh². This is
the rule of the `custom_jvp` below.

The gradient is its transpose, which JAX derives from the linear program. With λ_t the
adjoint of s_t and δ_t that of ω_t,

    δ_t = B_tᵀ λ_t              λ_{t-1} = A_tᵀ λ_t + ∂L/∂s_{t-1}

is a loop from the last step to the first that carries λ only, and after it

    Ẇ s_{t-1}   becomes   dL/dW = Σ_t δ_t s_{t-1}ᵀ

is one product over all steps, where automatic differentiation of the loop would add up
T small ones. Since the rule is ordinary JAX code, forward mode, `vmap` and higher
derivatives work as for any program.

Reference:
    The recurrence of λ is backpropagation through time: Werbos, 1990,
    https://doi.org/10.1109/5.58337
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.cells.base import Cell, Params, PerStep, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import matmul
from jaxlstm.engines.adjoint import partition
from jaxlstm.engines.adjoint.partition import Partition, Product
from jaxlstm.engines.adjoint.steps import (
    NonDiffInputs,
    Plan,
    StepInputs,
    make_plan,
    run_step,
    tangents_by_variable,
)
from jaxlstm.engines.adjoint.tangents import (
    Leaves,
    instantiate,
    jvp,
    keep_needed,
    zero_to_none,
)
from jaxlstm.engines.loops import (
    Materialize,
    ScanFn,
    ScanInputs,
    freeze_inactive,
    match_carry_type,
    reset_carry,
    scan_in_blocks,
    scan_in_place,
    scan_with_barrier,
    step_struct,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import ActiveSteps, Features, is_explicit, is_symbolic

Residuals = Literal["activations", "states"]
Operand = Literal["rows", "weights"]


class CompiledScan(Protocol):
    """Loop over time: `lax.scan` of `step(consts, carry, inputs)`."""

    def __call__(
        self,
        step: Callable[..., tuple[Any, Any]],
        consts: Any,
        carry: Any,
        inputs: Any,
        *,
        length: int,
        reverse: bool,
        active: ActiveSteps | None,
    ) -> tuple[Any, Any]:
        """Return the carry after the last step, and what is stacked over time.

        Where `active` is False, the products of a step are 0 or not used.
        """
        ...


class Mode(NamedTuple):
    """Order of computing the derivative; modes differ in time and memory only.

    Attributes:
        residuals: what the forward pass stores for the backward pass: the states and
            the activations, or the states only, and activations are recomputed.
        first: the left operand of each recurrent product.
    """

    residuals: Residuals
    first: tuple[Operand, ...]

    def __str__(self) -> str:
        left = " and ".join(dict.fromkeys(self.first))
        stored = {"activations": "activations and states", "states": "states only"}
        products = f"; products with the {left} first" if left else ""
        return f"stores {stored[self.residuals]}{products}"


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
    residuals: Residuals = "activations",
    first: Operand | None = None,
    scan: CompiledScan | None = None,
) -> tuple[State, Any]:
    """Run the steps with the derivative above; see `Engine` for the other arguments.

    Args:
        residuals: what is stored: the activations and the states, or the states only;
            the activations of a block of √T steps are then recomputed in one batch.
        first: the left operand of the recurrent products; None for the faster one.
        scan: runs the loops in place of `lax.scan`.

    Raises:
        NotImplementedError: the step has side effects or a custom reverse mode only, or
            the state has leaves that are not floating point numbers.
    """
    inputs = (xs, per_step, steps.active, steps.resets)
    parts, tree, initial, state = _partition(cell, params, inputs, state, emit)
    mode = _select_mode(parts, residuals, first)
    params_only = partition.evaluate_params_only(parts, params)
    # The rule of the derivative keeps the partition for as long as the program.
    parts = parts._replace(constants={})

    def block(state: State, inputs: ScanInputs) -> tuple[State, Any]:
        *x, active, resets = inputs
        leaves = map(jax.tree.leaves, (x, initial, state))
        loop = recurrent_loop(parts, mode, reverse=reverse, scan=scan)
        return jax.tree.unflatten(tree, loop(params_only, *leaves, active, resets))

    if checkpoint_every is None:
        return block(state, inputs)
    return scan_in_blocks(block, state, inputs, every=checkpoint_every, reverse=reverse)


def mode(
    cell: Cell,
    params: Params,
    xs: Features,
    per_step: PerStep,
    state: State,
    steps: StepMask,
    *,
    emit: Emit,
    residuals: Residuals = "activations",
    first: Operand | None = None,
) -> Mode:
    """Return the mode that `run` would use for the same arguments."""
    inputs = (xs, per_step, steps.active, steps.resets)
    parts, *_ = _partition(cell, params, inputs, state, emit)
    return _select_mode(parts, residuals, first)


def _partition(
    cell: Cell, params: Params, inputs: ScanInputs, state: State, emit: Emit
) -> tuple[Partition, Any, State, State]:
    """Partition a step, and match the types of the initial and the given state.

    Returns:
        The partition, the tree of what a step returns, the initial state and the state.
    """
    xs = inputs[0]
    initial = cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)

    def step(params: Params, state: State, x: tuple[Features, PerStep]) -> Any:
        after, gates = cell.step(params, state, project(cell, params, *x))
        return after, emit(after, gates)

    def masked_step(state: State, inputs: ScanInputs) -> State:
        xs, per_step, active, resets = inputs
        before = reset_carry(initial, state, active, resets)
        after, _ = step(params, before, (xs, per_step))
        return freeze_inactive(after, state, active)

    after = jax.eval_shape(
        lambda inputs: masked_step(state, step_struct(inputs)), inputs
    )
    state, initial = match_carry_type(after, state), match_carry_type(after, initial)
    x = jax.eval_shape(lambda inputs: step_struct(inputs)[:2], inputs)
    parts = partition.partition_step(step, params, state, x)
    _check_supported(parts, xs, state)
    tree = jax.tree.structure(jax.eval_shape(step, params, state, x))
    return parts, tree, initial, state


def _select_mode(parts: Partition, residuals: Residuals, first: Operand | None) -> Mode:
    """Return the mode, with the faster left operand for each product if None."""

    def left_operand(product: Product) -> Operand:
        x: Any = product.operand.aval
        w: Any = product.weight.aval
        if (
            not partition.is_matmul(product.equation)
            or product.equation.invars[1] is not product.weight
        ):
            return "rows"
        if first is not None:
            return first
        rows = math.prod(x.shape[:-1])
        return "weights" if matmul.prefer_weights_first(rows, w) else "rows"

    left: list[Operand] = [left_operand(product) for product in parts.products]
    return Mode(residuals, tuple(left))


def _check_supported(parts: Partition, xs: Features, state: State) -> None:
    """Raise `NotImplementedError` for states and operations without a rule here."""
    for leaf in jax.tree.leaves(state):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise NotImplementedError(
                f"adjoint: state: got a leaf of dtype {leaf.dtype}, expected floating "
                'point, as it is differentiated; use engine="scan".'
            )
    primitives = {eqn.primitive for eqns in parts.operations for eqn in eqns}
    explicit = is_explicit(jax.typeof(xs).sharding)
    if explicit and lax.conv_general_dilated_p in primitives:
        raise NotImplementedError(
            "adjoint: JAX cannot convolve all steps in one batch on an explicit mesh; "
            'use engine="scan".'
        )


def recurrent_loop(
    parts: Partition, mode: Mode, *, reverse: bool, scan: CompiledScan | None = None
) -> Callable[..., Leaves]:
    """Return the differentiable loop.

    It maps `(params_only, xs, initial, state, active, resets)` to the leaves of the
    last state and of what is emitted.
    """

    @jax.custom_jvp
    def run(*arguments: Any) -> Leaves:
        state, (emitted, _) = forward(
            parts, mode, *arguments, reverse=reverse, scan=scan
        )
        return [*state, *emitted]

    @functools.partial(run.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Leaves, Leaves]:
        tangents = jax.tree.map(zero_to_none, tangents)
        return forward_and_tangent(
            parts, mode, primals, tangents, reverse=reverse, scan=scan
        )

    return run


def forward(
    parts: Partition,
    mode: Mode,
    params_only: Leaves,
    xs: Leaves,
    initial: Leaves,
    state: Leaves,
    active: ActiveSteps | None,
    resets: ActiveSteps | None,
    *,
    reverse: bool,
    scan: CompiledScan | None = None,
    keep: Callable[[Leaves, Leaves], Any] = lambda state, activations: None,
) -> tuple[Leaves, tuple[Leaves, Any]]:
    """Run the loop of the forward pass.

    Returns:
        `(state, (emitted, kept))`: the last state, what is emitted at each step, and
        the stacked results of `keep(state before the step, activations)`.
    """

    def step(
        consts: Any,
        state: Leaves,
        inputs: Any,
        materialize: Materialize = lax.optimization_barrier,
    ) -> tuple[Leaves, Any]:
        params_only, initial, transposed = consts
        x, active, resets = inputs
        input_only = partition.evaluate_input_only(parts, params_only, x)
        at = StepInputs(params_only, input_only, initial, state, [])
        nondiff = NonDiffInputs(active, resets, [], transposed)
        after, emitted, values = run_step(parts, at, nondiff, materialize)
        activations = partition.activation_values(parts, values)
        return after, (emitted, keep(state, activations))

    def loop(
        run: ScanFn,
        params_only: Leaves,
        xs: Leaves,
        initial: Leaves,
        state: Leaves,
        *masks: Any,
    ) -> tuple[Leaves, Any]:
        transposed = _transposed_weights(parts, mode, params_only)
        body = functools.partial(step, (params_only, initial, transposed))
        return run(body, state, (xs, *masks), reverse=reverse)

    @jax.custom_jvp
    def run(*arguments: Any) -> tuple[Leaves, Any]:
        if scan is not None:
            params_only, xs, initial, state, *masks = arguments
            consts = params_only, initial, [None] * len(parts.products)
            return scan(
                step,
                consts,
                state,
                (xs, *masks),
                length=jax.tree.leaves(xs)[0].shape[0],
                reverse=reverse,
                active=masks[0],
            )
        in_place = partition.activations_used_once(parts)
        return loop(scan_in_place if in_place else scan_with_barrier, *arguments)

    @functools.partial(run.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        tangents = jax.tree.map(zero_to_none, tangents)
        differentiable = functools.partial(loop, scan_with_barrier)
        results, tangents = jvp(differentiable, primals, tangents)
        return results, jax.tree.map(instantiate, results, tangents)

    return run(params_only, xs, initial, state, active, resets)


def _transposed_weights(parts: Partition, mode: Mode, params_only: Leaves) -> Leaves:
    """Transpose the weights that multiply from the left, once before the loop."""
    values = dict(zip(parts.params_only, params_only, strict=True))
    return [
        matmul.transposed(values[product.weight]) if first == "weights" else None
        for product, first in zip(parts.products, mode.first, strict=True)
    ]


def forward_and_tangent(
    parts: Partition,
    mode: Mode,
    primals: Any,
    tangents: Any,
    *,
    reverse: bool,
    scan: CompiledScan | None = None,
) -> tuple[Leaves, Leaves]:
    """Return the results of the loop and their tangents; None is a zero tangent."""
    params_only, xs, initial, state, active, resets = primals
    d_params_only, d_xs, d_initial, d_state, *_ = tangents
    d_state = [instantiate(s, d) for s, d in zip(state, d_state, strict=True)]
    steps = StepInputs(params_only, xs, initial, state, [])
    d_steps = StepInputs(d_params_only, d_xs, d_initial, d_state, [])
    transposed = _transposed_weights(parts, mode, params_only)
    nondiff = NonDiffInputs(active, resets, [], transposed)
    recompute = mode.residuals == "states"
    plan = make_plan(parts, steps, nondiff, d_steps, recompute_activations=recompute)
    after, (emitted, (states, activations)) = forward(
        parts, mode, *primals, reverse=reverse, scan=scan, keep=plan.keep
    )

    def block(d_state: Leaves, inputs: Any) -> tuple[Leaves, Leaves]:
        xs, states, active, resets, activations, d_xs = inputs
        of_block = steps._replace(input_only=xs, state=states)
        d_of_block = d_steps._replace(input_only=d_xs, state=d_state)
        nondiff = NonDiffInputs(active, resets, activations, transposed)
        return _tangent_loop(
            parts, plan, of_block, nondiff, d_of_block, reverse=reverse, scan=scan
        )

    inputs = (xs, states, active, resets, activations, d_xs)
    if not recompute:
        d_after, d_emitted = block(d_state, inputs)
    else:
        d_after, d_emitted = scan_in_blocks(
            block, d_state, inputs, every="sqrt", reverse=reverse
        )
    d_emitted = [instantiate(e, d) for e, d in zip(emitted, d_emitted, strict=True)]
    return [*after, *emitted], [*d_after, *d_emitted]


def _tangent_loop(
    parts: Partition,
    plan: Plan,
    steps: StepInputs,
    nondiff: NonDiffInputs,
    tangents: StepInputs,
    *,
    reverse: bool,
    scan: CompiledScan | None = None,
) -> tuple[Leaves, Leaves]:
    """Return the tangents of the last state and of what is emitted.

    Values of `steps` and `nondiff` that change over time have a leading axis [T], and
    `steps.input_only` holds the inputs x that the input-only values are computed from.
    """
    evaluate = jax.vmap(
        functools.partial(partition.evaluate_input_only, parts), in_axes=(None, 0)
    )
    input_only, d_input_only = jvp(
        evaluate,
        (steps.params_only, steps.input_only),
        (tangents.params_only, tangents.input_only),
    )
    tangent_of = tangents_by_variable(parts, tangents.params_only, d_input_only)
    d_params_only, d_input_only = plan.without_tapped(
        tangents.params_only, d_input_only
    )
    active, resets, activations, transposed = nondiff
    length = jax.tree.leaves(steps.input_only)[0].shape[0]

    def at_all_steps(function: Callable[..., Leaves], activations: Leaves) -> Leaves:
        """Apply a function of one step to all steps in one batch, rows first."""

        def at_one_step(
            input_only: Leaves, state: Leaves, nondiff: NonDiffInputs
        ) -> Leaves:
            inputs = steps._replace(input_only=input_only, state=state)
            return function(inputs, nondiff)

        rows_first = NonDiffInputs(
            active, resets, activations, [None] * len(transposed)
        )
        if jax.tree.leaves((input_only, steps.state, rows_first)):
            return jax.vmap(at_one_step)(input_only, steps.state, rows_first)
        constant = at_one_step(input_only, steps.state, rows_first)
        return [jnp.broadcast_to(leaf, (length, *leaf.shape)) for leaf in constant]

    if plan.recompute is not None:
        activations = at_all_steps(plan.recompute, [])
    omegas = [None] * len(parts.products)
    if plan.has_taps:
        operands = at_all_steps(plan.operands, activations)
        pairs = zip(parts.products, operands, strict=True)
        omegas = [_omega(product, operand, tangent_of) for product, operand in pairs]

    def step(consts: Any, d_state: Leaves, inputs: Any) -> tuple[Leaves, Leaves]:
        params_only, initial, transposed, d_params_only, d_initial = consts
        input_only, state, active, resets, activations, d_input_only, omegas = inputs
        at = StepInputs(params_only, input_only, initial, state, [])
        d_at = StepInputs(d_params_only, d_input_only, d_initial, d_state, omegas)
        nondiff = NonDiffInputs(active, resets, activations, transposed)
        return plan.tangent_step(at, nondiff, d_at)

    read = keep_needed(input_only, zip(plan.reads_input, strict=True))
    consts = (
        steps.params_only,
        steps.initial,
        transposed,
        d_params_only,
        tangents.initial,
    )
    inputs = (read, steps.state, active, resets, activations, d_input_only, omegas)
    if scan is not None:
        return scan(
            step,
            consts,
            tangents.state,
            inputs,
            length=length,
            reverse=reverse,
            active=active,
        )
    # Checkpointed, so that the backward pass stores only what the step reads.
    body = jax.checkpoint(functools.partial(step, consts), prevent_cse=False)
    # `lax.scan` reads a symbolic length from the inputs, and does not take it.
    known = None if is_symbolic([length]) else length
    return lax.scan(body, tangents.state, inputs, length=known, reverse=reverse)


def _omega(
    product: Product, operands: Array, tangent_of: dict[Any, Any]
) -> Array | None:
    """Return ω_t = ȧ_t + Ẇ s_{t-1} for all steps."""
    d_weight = tangent_of.get(product.weight)
    d_addend = tangent_of.get(product.addend)
    if d_weight is None:
        return d_addend
    omega = jax.vmap(lambda x: partition.multiply_weight(product, x, d_weight))(
        operands
    )
    return omega if d_addend is None else omega + d_addend
