"""The fast engine: a derivative in three parts, of which only one is a loop.

A step makes s_t = F(s_{t-1}, a_t; θ) of the state before, of what the input projects to
and of the parameters. Its tangent, a dot over a letter, is

    ṡ_t = F_s ṡ_{t-1} + F_a ȧ_t + F_θ θ̇

The recurrent weights act within F through a product y_t = W s_{t-1} only, so that

    ẏ_t = W ṡ_{t-1} + Ẇ s_{t-1}

whose second term waits for nothing once the states are known: ω_t = ȧ_t + Ẇ s_{t-1} is
one product over all steps. What is left is the loop

    ṡ_t = A_t ṡ_{t-1} + B_t ω_t

with A_t = F_s + F_y W and B_t = F_y taken at the state before and at the activations,
both remembered from the way forward: σ' = σ (1 - σ), tanh' = 1 - tanh². This is what
is written below, as the rule of a `custom_jvp`.

The gradient is its transpose, which JAX makes of a linear program: with λ_t the adjoint
of s_t and δ_t that of ω_t,

    δ_t = B_tᵀ λ_t              λ_{t-1} = A_tᵀ λ_t + ∂L/∂s_{t-1}

is a loop from the last step to the first that carries λ alone, and after it

    Ẇ s_{t-1}   becomes   dL/dW = Σ_t δ_t s_{t-1}ᵀ

one product over all steps, where automatic differentiation of the loop would add up T
small ones. As the rule is a program like any other, forward mode, `vmap` and higher
derivatives are what JAX makes of it.

Reference: the recurrence of λ is that of backpropagation through time: Werbos, 1990,
https://doi.org/10.1109/5.58337
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.cells.base import Cell, Params, PerStep, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import matmul
from jaxlstm.engines.adjoint import partition
from jaxlstm.engines.adjoint.partition import Anatomy, Product
from jaxlstm.engines.adjoint.steps import (
    Beside,
    Moment,
    Plan,
    advance,
    planned,
    tangents_of,
)
from jaxlstm.engines.adjoint.tangents import Leaves, filled, jvp, kept, or_none
from jaxlstm.engines.loops import (
    Moments,
    Shown,
    Walk,
    any_moment,
    begun,
    ended,
    in_blocks,
    typed_like,
    walked,
    written_once,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import ActiveSteps, Features, is_explicit

Residuals = Literal["activations", "states"]
Operand = Literal["rows", "weights"]


class Mode(NamedTuple):
    """How the derivative is computed: the same numbers in other time and memory.

    residuals   what the way forward leaves for the way back: the states, and either
                the activations or nothing, and they are computed again
    first       what the recurrent products take for their left operand, by site
    """

    residuals: Residuals
    first: tuple[Operand, ...]

    def __str__(self) -> str:
        left = " and ".join(dict.fromkeys(self.first))
        kept = {"activations": "activations and states", "states": "states only"}
        products = f"; products with the {left} first" if left else ""
        return f"remembers {kept[self.residuals]}{products}"


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
    residuals: Residuals = "activations",
    first: Operand | None = None,
) -> tuple[State, Any]:
    """As the reference does, with the derivative told above.

    Arguments:
        residuals: what is remembered: the activations too, or the states only, of
            which the activations of a block of √T steps are then one batched product.
        first: the left operand of the recurrent products; None for what is faster.

    Errors: `NotImplementedError` for a step with side effects, one that has a reverse
    mode of its own only, and a state that is not of floating point numbers.
    """
    moments = (xs, each, steps.active, steps.resets)
    parts, tree, initial, state = _apart(cell, params, moments, state, emit)
    how = _mode(parts, residuals, first)
    fixed = partition.params_only(parts, params)

    def block(state: State, moments: Moments) -> tuple[State, Any]:
        *x, active, resets = moments
        leaves = map(jax.tree.leaves, (x, initial, state))
        recurrence = recurrent(parts, how, reverse=reverse)
        return jax.tree.unflatten(tree, recurrence(fixed, *leaves, active, resets))

    if checkpoint_every is None:
        return block(state, moments)
    return in_blocks(block, state, moments, every=checkpoint_every, reverse=reverse)


def mode(
    cell: Cell,
    params: Params,
    xs: Features,
    each: PerStep,
    state: State,
    steps: StepMask,
    *,
    emit: Emit,
    residuals: Residuals = "activations",
    first: Operand | None = None,
) -> Mode:
    """How `run` would do it."""
    moments = (xs, each, steps.active, steps.resets)
    return _mode(_apart(cell, params, moments, state, emit)[0], residuals, first)


def _apart(
    cell: Cell, params: Params, moments: Moments, state: State, emit: Emit
) -> tuple[Anatomy, Any, State, State]:
    """The step taken apart; what it returns, as a tree; the initial state and the given
    one, of one type.
    """
    xs = moments[0]
    initial = cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)

    def step(params: Params, state: State, x: tuple[Features, PerStep]) -> Any:
        after, gates = cell.step(params, state, project(cell, params, *x))
        return after, emit(after, gates)

    def whole(state: State, moment: Moments) -> State:
        xs, each, active, resets = moment
        after, _ = step(params, begun(initial, state, active, resets), (xs, each))
        return ended(after, state, active)

    after = jax.eval_shape(lambda moments: whole(state, any_moment(moments)), moments)
    state, initial = typed_like(after, state), typed_like(after, initial)
    x = jax.eval_shape(lambda moments: any_moment(moments)[:2], moments)
    parts = partition.take_apart(step, params, state, x)
    _check(parts, xs, state)
    tree = jax.tree.structure(jax.eval_shape(step, params, state, x))
    return parts, tree, initial, state


def _mode(parts: Anatomy, residuals: Residuals, first: Operand | None) -> Mode:
    """The mode asked for, the left operand of each site by what is faster."""

    def of(site: Product) -> Operand:
        x: Any = site.operand.aval
        w: Any = site.weight.aval
        if (
            not partition.is_plain(site.product)
            or site.product.invars[1] is not site.weight
        ):
            return "rows"
        faster = matmul.weights_win(math.prod(x.shape[:-1]), w)
        faster_one: Operand = "weights" if faster else "rows"
        return first or faster_one

    left: tuple[Operand, ...] = tuple(of(site) for site in parts.sites)
    return Mode(residuals, left)


def _check(parts: Anatomy, xs: Features, state: State) -> None:
    """Errors: `NotImplementedError` for what has no rule here."""
    for leaf in jax.tree.leaves(state):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise NotImplementedError(
                f"adjoint: the state has a leaf of dtype {leaf.dtype}, which has no "
                'derivative; engine="scan" carries it.'
            )
    kinds = {eqn.primitive for eqns in parts.operations for eqn in eqns}
    explicit = is_explicit(jax.typeof(xs).sharding)
    if explicit and lax.conv_general_dilated_p in kinds:
        raise NotImplementedError(
            "adjoint: on an explicit mesh JAX cannot convolve all steps at once; "
            'engine="scan" takes one after the other.'
        )


def recurrent(parts: Anatomy, mode: Mode, *, reverse: bool) -> Callable[..., Leaves]:
    """The loop: `(fixed, xs, initial, state, active, resets) -> state and emitted`."""

    @jax.custom_jvp
    def run(*arguments: Any) -> Leaves:
        state, (emitted, _) = forward(parts, mode, *arguments, reverse=reverse)
        return [*state, *emitted]

    @functools.partial(run.defjvp, symbolic_zeros=True)
    def rule(primals: Any, dots: Any) -> tuple[Leaves, Leaves]:
        dots = jax.tree.map(or_none, dots)
        return tangent(parts, mode, primals, dots, reverse=reverse)

    return run


def forward(
    parts: Anatomy,
    mode: Mode,
    fixed: Leaves,
    xs: Leaves,
    initial: Leaves,
    state: Leaves,
    active: ActiveSteps | None,
    resets: ActiveSteps | None,
    *,
    reverse: bool,
    keep: Callable[[Leaves, Leaves], Any] = lambda state, activations: None,
) -> tuple[Leaves, tuple[Leaves, Any]]:
    """The last state; all that is emitted; what is kept of the states before the steps
    and of their activations.
    """

    def loop(
        walk: Walk, fixed: Leaves, xs: Leaves, initial: Leaves, state: Leaves, *flags
    ) -> tuple[Leaves, Any]:
        turned = _reverse_resets(parts, mode, fixed)

        def body(state: Leaves, moment: Any, shown: Shown) -> tuple[Leaves, Any]:
            x, active, resets = moment
            at = Moment(
                fixed, partition.input_only(parts, fixed, x), initial, state, []
            )
            beside = Beside(active, resets, [], turned)
            after, emitted, values = advance(parts, at, beside, shown)
            return after, (emitted, keep(state, partition.activations(parts, values)))

        return walk(body, state, (xs, *flags), reverse=reverse)

    @jax.custom_jvp
    def run(*arguments: Any) -> tuple[Leaves, Any]:
        walk = written_once if partition.used_once(parts) else walked
        return loop(walk, *arguments)

    @functools.partial(run.defjvp, symbolic_zeros=True)
    def rule(primals: Any, dots: Any) -> tuple[Any, Any]:
        dots = jax.tree.map(or_none, dots)
        results, dots = jvp(functools.partial(loop, walked), primals, dots)
        return results, jax.tree.map(filled, results, dots)

    return run(fixed, xs, initial, state, active, resets)


def _reverse_resets(parts: Anatomy, mode: Mode, fixed: Leaves) -> Leaves:
    """The weights that multiply from the left, turned, before the loop."""
    values = dict(zip(parts.fixed, fixed, strict=True))
    return [
        matmul.turned(values[site.weight]) if first == "weights" else None
        for site, first in zip(parts.sites, mode.first, strict=True)
    ]


def tangent(
    parts: Anatomy, mode: Mode, primals: Any, dots: Any, *, reverse: bool
) -> tuple[Leaves, Leaves]:
    """The results of the loop and their tangents; of the dots, None is zero."""
    fixed, xs, initial, state, active, resets = primals
    d_fixed, d_xs, d_initial, d_state, *_ = dots
    d_state = [filled(s, d) for s, d in zip(state, d_state, strict=True)]
    steps = Moment(fixed, xs, initial, state, [])
    d_steps = Moment(d_fixed, d_xs, d_initial, d_state, [])
    beside = Beside(active, resets, [], _reverse_resets(parts, mode, fixed))
    rebuilt = mode.residuals == "states"
    plan = planned(parts, steps, beside, d_steps, rebuilt=rebuilt)
    after, (emitted, (states, activations)) = forward(
        parts, mode, *primals, reverse=reverse, keep=plan.keep
    )

    def block(d_state: Leaves, moments: Any) -> tuple[Leaves, Leaves]:
        xs, states, active, resets, activations, d_xs = moments
        along = steps._replace(given=xs, state=states)
        dots = d_steps._replace(given=d_xs, state=d_state)
        sides = Beside(active, resets, activations, beside.turned)
        return _along(parts, plan, along, sides, dots, reverse=reverse)

    moments = (xs, states, active, resets, activations, d_xs)
    if not rebuilt:
        d_after, d_emitted = block(d_state, moments)
    else:
        d_after, d_emitted = in_blocks(
            block, d_state, moments, every="sqrt", reverse=reverse
        )
    d_emitted = [filled(e, d) for e, d in zip(emitted, d_emitted, strict=True)]
    return [*after, *emitted], [*d_after, *d_emitted]


def _along(
    parts: Anatomy,
    plan: Plan,
    steps: Moment,
    beside: Beside,
    dots: Moment,
    *,
    reverse: bool,
) -> tuple[Leaves, Leaves]:
    """The tangents of the last state and of what is emitted.

    Of `steps` and `beside`, what changes from step to step has a leading axis [T], and
    in the place of what is given stands the input that it follows from.
    """
    given_of = jax.vmap(
        functools.partial(partition.input_only, parts), in_axes=(None, 0)
    )
    inputs = (steps.fixed, steps.given), (dots.fixed, dots.given)
    given, d_given = jvp(given_of, *inputs)
    dot_of = tangents_of(parts, dots.fixed, d_given)
    d_fixed, d_given = plan.untapped(dots.fixed, d_given)
    active, resets, activations, turned = beside
    length = len(jax.tree.leaves(steps.given)[0])

    def every(function: Callable[..., Leaves], activations: Leaves) -> Leaves:
        """Of all steps at once, rows first: they are many."""

        def at(given: Leaves, state: Leaves, beside: Beside) -> Leaves:
            return function(steps._replace(given=given, state=state), beside)

        sides = Beside(active, resets, activations, [None] * len(turned))
        if jax.tree.leaves((given, steps.state, sides)):
            return jax.vmap(at)(given, steps.state, sides)
        once = at(given, steps.state, sides)  # the same at every step
        return [jnp.broadcast_to(leaf, (length, *leaf.shape)) for leaf in once]

    if plan.rebuild is not None:
        activations = every(plan.rebuild, [])
    omegas = [None] * len(parts.sites)
    if plan.moves:
        pairs = zip(parts.sites, every(plan.operands, activations), strict=True)
        omegas = [_omega(site, factor, dot_of) for site, factor in pairs]

    @functools.partial(jax.checkpoint, prevent_cse=False)  # remember what it reads only
    def body(d_state: Leaves, moment: Any) -> tuple[Leaves, Leaves]:
        given, state, active, resets, activations, d_given, omegas = moment
        at = steps._replace(given=given, state=state)
        d_at = Moment(d_fixed, d_given, dots.initial, d_state, omegas)
        return plan.linear(at, Beside(active, resets, activations, turned), d_at)

    read = kept(given, zip(plan.given_needs, strict=True))
    moments = (read, steps.state, active, resets, activations, d_given, omegas)
    return lax.scan(body, dots.state, moments, length=length, reverse=reverse)


def _omega(site: Product, operands: Array, dot_of: dict[Any, Any]) -> Array | None:
    """ω for all steps: `Ẇ s_{t-1} + ȧ_t`."""
    d_weight, d_beside = dot_of.get(site.weight), dot_of.get(site.beside)
    if d_weight is None:
        return d_beside
    omega = jax.vmap(lambda x: partition.product(site, x, d_weight))(operands)
    return omega if d_beside is None else omega + d_beside
