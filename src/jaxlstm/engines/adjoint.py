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

from jaxlstm.cells.base import Cell, Each, Params, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import anatomy, weights_first
from jaxlstm.engines.anatomy import Anatomy, Environment, Site
from jaxlstm.engines.loops import (
    Moments,
    any_moment,
    begun,
    ended,
    in_blocks,
    typed_like,
)
from jaxlstm.engines.tangents import Leaves, filled, jvp, kept, one, or_none, trimmed
from jaxlstm.sequences import Steps
from jaxlstm.shapes import Features, Happens, is_explicit

Residuals = Literal["activations", "states"]
Operand = Literal["rows", "weights"]


class Moment(NamedTuple):
    """What one step is a function of, in leaves.

    fixed     what follows from the parameters alone
    given     what follows from the input of the step
    initial   the state to begin again from
    state     the state before the step
    taps      what is added where the recurrent products enter, one for each site
    """

    fixed: Leaves
    given: Leaves
    initial: Leaves
    state: Leaves
    taps: Leaves


class Beside(NamedTuple):
    """What has no tangent of its own.

    happens       whether the step happens
    resets        whether it begins anew
    activations   those of the step, or none, to compute them
    turned        for each site its weight, turned, or None to multiply rows first
    """

    happens: Happens | None
    resets: Happens | None
    activations: Leaves
    turned: Leaves


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
    each: Each,
    state: State,
    steps: Steps,
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
    moments = (xs, each, steps.happens, steps.resets)
    parts, tree, initial, state = _apart(cell, params, moments, state, emit)
    how = _mode(parts, residuals, first)
    fixed = anatomy.fixed(parts, params)

    def block(state: State, moments: Moments) -> tuple[State, Any]:
        *x, happens, resets = moments
        leaves = map(jax.tree.leaves, (x, initial, state))
        recurrence = recurrent(parts, how, reverse=reverse)
        return jax.tree.unflatten(tree, recurrence(fixed, *leaves, happens, resets))

    if checkpoint_every is None:
        return block(state, moments)
    return in_blocks(block, state, moments, every=checkpoint_every, reverse=reverse)


def mode(
    cell: Cell,
    params: Params,
    xs: Features,
    each: Each,
    state: State,
    steps: Steps,
    *,
    emit: Emit,
    residuals: Residuals = "activations",
    first: Operand | None = None,
) -> Mode:
    """How `run` would do it."""
    moments = (xs, each, steps.happens, steps.resets)
    return _mode(_apart(cell, params, moments, state, emit)[0], residuals, first)


def _apart(
    cell: Cell, params: Params, moments: Moments, state: State, emit: Emit
) -> tuple[Anatomy, Any, State, State]:
    """The step taken apart; what it returns, as a tree; the initial state and the given
    one, of one type.
    """
    xs = moments[0]
    initial = cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)

    def step(params: Params, state: State, x: tuple[Features, Each]) -> Any:
        after, gates = cell.step(params, state, project(cell, params, *x))
        return after, emit(after, gates)

    def whole(state: State, moment: Moments) -> State:
        xs, each, happens, resets = moment
        after, _ = step(params, begun(initial, state, happens, resets), (xs, each))
        return ended(after, state, happens)

    after = jax.eval_shape(lambda moments: whole(state, any_moment(moments)), moments)
    state, initial = typed_like(after, state), typed_like(after, initial)
    x = jax.eval_shape(lambda moments: any_moment(moments)[:2], moments)
    parts = anatomy.take_apart(step, params, state, x)
    _check(parts, xs, state)
    tree = jax.tree.structure(jax.eval_shape(step, params, state, x))
    return parts, tree, initial, state


def _mode(parts: Anatomy, residuals: Residuals, first: Operand | None) -> Mode:
    """The mode asked for, the left operand of each site by what is faster."""

    def of(site: Site) -> Operand:
        x: Any = site.operand.aval
        w: Any = site.weight.aval
        if not anatomy.is_plain(site) or is_explicit(w.sharding):
            return "rows"
        faster = weights_first.wins(math.prod(x.shape[:-1]), w)
        faster_one: Operand = "weights" if faster else "rows"
        return first or faster_one

    return Mode(residuals, tuple(map(of, parts.sites)))


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


def advance(
    parts: Anatomy, at: Moment, beside: Beside
) -> tuple[Leaves, Leaves, Environment]:
    """(the state after the step, what it emits, the value of each variable)."""
    before = begun(at.initial, at.state, beside.happens, beside.resets)
    values = dict(zip(parts.fixed, at.fixed, strict=True))
    values |= dict(zip(parts.given, at.given, strict=True))
    values |= dict(zip(parts.arguments[1], before, strict=True))
    values = anatomy.past(parts, values, at.taps, beside.activations, beside.turned)
    results = [anatomy.value(values, atom) for atom in parts.outputs]
    after, emitted = results[: len(before)], results[len(before) :]
    return ended(after, at.state, beside.happens), emitted, values


def recurrent(parts: Anatomy, mode: Mode, *, reverse: bool) -> Callable[..., Leaves]:
    """The loop: `(fixed, xs, initial, state, happens, resets) -> state and emitted`."""

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
    happens: Happens | None,
    resets: Happens | None,
    *,
    reverse: bool,
    keep: Callable[[Leaves, Leaves], Any] = lambda state, activations: None,
) -> tuple[Leaves, tuple[Leaves, Any]]:
    """The last state; all that is emitted; what is kept of the states before the steps
    and of their activations.
    """
    turned = _turned(parts, mode, fixed)

    def body(state: Leaves, moment: Any) -> tuple[Leaves, Any]:
        x, happens, resets = moment
        at = Moment(fixed, anatomy.given(parts, fixed, x), initial, state, [])
        after, emitted, values = advance(parts, at, Beside(happens, resets, [], turned))
        return after, (emitted, keep(state, anatomy.activations(parts, values)))

    return lax.scan(body, state, (xs, happens, resets), reverse=reverse)


def _turned(parts: Anatomy, mode: Mode, fixed: Leaves) -> Leaves:
    """The weights that multiply from the left, turned, before the loop."""
    values = dict(zip(parts.fixed, fixed, strict=True))
    return [
        weights_first.turned(values[site.weight]) if first == "weights" else None
        for site, first in zip(parts.sites, mode.first, strict=True)
    ]


def tangent(
    parts: Anatomy, mode: Mode, primals: Any, dots: Any, *, reverse: bool
) -> tuple[Leaves, Leaves]:
    """The results of the loop and their tangents; of the dots, None is zero."""
    fixed, xs, initial, state, happens, resets = primals
    d_fixed, d_xs, d_initial, d_state, *_ = dots
    d_state = [filled(s, d) for s, d in zip(state, d_state, strict=True)]
    steps = Moment(fixed, xs, initial, state, [])
    d_steps = Moment(d_fixed, d_xs, d_initial, d_state, [])
    beside = Beside(happens, resets, [], _turned(parts, mode, fixed))
    plan = _plan(parts, mode, steps, beside, d_steps)
    after, (emitted, (states, activations)) = forward(
        parts, mode, *primals, reverse=reverse, keep=plan.keep
    )

    def block(d_state: Leaves, moments: Any) -> tuple[Leaves, Leaves]:
        xs, states, happens, resets, activations, d_xs = moments
        along = steps._replace(given=xs, state=states)
        dots = d_steps._replace(given=d_xs, state=d_state)
        sides = Beside(happens, resets, activations, beside.turned)
        return _along(parts, plan, along, sides, dots, reverse=reverse)

    moments = (xs, states, happens, resets, activations, d_xs)
    if mode.residuals == "activations":
        d_after, d_emitted = block(d_state, moments)
    else:
        d_after, d_emitted = in_blocks(
            block, d_state, moments, every="sqrt", reverse=reverse
        )
    d_emitted = [filled(e, d) for e, d in zip(emitted, d_emitted, strict=True)]
    return [*after, *emitted], [*d_after, *d_emitted]


def _along(
    parts: Anatomy,
    plan: "_Plan",
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
    given_of = jax.vmap(functools.partial(anatomy.given, parts), in_axes=(None, 0))
    inputs = (steps.fixed, steps.given), (dots.fixed, dots.given)
    given, d_given = jvp(given_of, *inputs)
    dot_of = _dot_of(parts, dots.fixed, d_given)
    d_fixed, d_given = plan.untapped(dots.fixed, d_given)
    happens, resets, activations, turned = beside

    def every(function: Callable[..., Leaves], activations: Leaves) -> Leaves:
        """Of all steps at once, rows first: they are many."""

        def at(given: Leaves, state: Leaves, beside: Beside) -> Leaves:
            return function(steps._replace(given=given, state=state), beside)

        sides = Beside(happens, resets, activations, [None] * len(turned))
        return jax.vmap(at)(given, steps.state, sides)

    if plan.rebuild is not None:
        activations = every(plan.rebuild, [])
    omegas = [None] * len(parts.sites)
    if plan.moves:
        pairs = zip(parts.sites, every(plan.operands, activations), strict=True)
        omegas = [_omega(site, factor, dot_of) for site, factor in pairs]

    @functools.partial(jax.checkpoint, prevent_cse=False)  # remember what it reads only
    def body(d_state: Leaves, moment: Any) -> tuple[Leaves, Leaves]:
        given, state, happens, resets, activations, d_given, omegas = moment
        at = steps._replace(given=given, state=state)
        d_at = Moment(d_fixed, d_given, dots.initial, d_state, omegas)
        return plan.linear(at, Beside(happens, resets, activations, turned), d_at)

    read = kept(given, zip(plan.given_needs, strict=True))
    moments = (read, steps.state, happens, resets, activations, d_given, omegas)
    length = len(jax.tree.leaves(steps.given)[0])
    return lax.scan(body, dots.state, moments, length=length, reverse=reverse)


def _dot_of(parts: Anatomy, d_fixed: Leaves, d_given: Leaves) -> dict[Any, Any]:
    """The tangent of each variable that is fixed or given, None for zero."""
    return dict(zip(parts.fixed + parts.given, [*d_fixed, *d_given], strict=True))


class _Plan(NamedTuple):
    """What the tangents need to know of each step, and nothing else.

    linear        `(at, beside, dots) -> ṡ_t and the tangents of what is emitted`
    operands      `(at, beside) -> what the weights multiply`
    rebuild       `(at, beside) -> activations`, None where they are remembered
    keep          of the state and the activations, what these read
    untapped      of the tangents of what is fixed and given, those that enter the loop
                  elsewhere than at a tap
    given_needs   which of what is given `linear` reads
    moves         whether anything has a tangent that enters at a tap
    """

    linear: Callable[..., tuple[Leaves, Leaves]]
    operands: Callable[..., Leaves]
    rebuild: Callable[..., Leaves] | None
    keep: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]
    untapped: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]
    given_needs: list[bool]
    moves: bool


def _plan(
    parts: Anatomy, mode: Mode, steps: Moment, beside: Beside, dots: Moment
) -> _Plan:
    """The plan for one of the steps, of which what is given is yet to be computed."""
    inputs = (steps.fixed, one(steps.given)), (dots.fixed, one(dots.given))
    given, d_given = jax.eval_shape(
        functools.partial(jvp, functools.partial(anatomy.given, parts)), *inputs
    )
    dot_of = _dot_of(parts, dots.fixed, d_given)
    tapped = {v for site in parts.sites for v in (site.weight, site.beside)}
    moves = [
        any(dot_of.get(v) is not None for v in (site.weight, site.beside))
        for site in parts.sites
    ]

    def untapped(d_fixed: Leaves, d_given: Leaves) -> tuple[Leaves, Leaves]:
        of_fixed = zip((v not in tapped for v in parts.fixed), strict=True)
        of_given = zip((v not in tapped for v in parts.given), strict=True)
        return kept(d_fixed, of_fixed), kept(d_given, of_given)

    at = steps._replace(given=given)
    beside = beside._replace(happens=one(beside.happens), resets=one(beside.resets))
    activations, taps = jax.eval_shape(functools.partial(_shapes, parts), at, beside)
    d_fixed, d_given = untapped(dots.fixed, d_given)
    taps = kept(taps, zip(moves, strict=True))
    d_at = Moment(d_fixed, d_given, dots.initial, dots.state, taps)

    told = beside._replace(activations=activations)
    linear, *needs = trimmed(functools.partial(_linear, parts), at, told, d_at)
    rows = told._replace(turned=[None] * len(parts.sites))
    operands, *reads = trimmed(functools.partial(_operands, parts), at, rows)
    rebuild, readers = None, [needs[0], reads[0]]
    if mode.residuals == "states":
        bare = rows._replace(activations=[])
        rebuild, *asks = trimmed(functools.partial(_activations, parts), at, bare)
        readers.append(asks[0])

    def keep(state: Leaves, activations: Leaves) -> tuple[Leaves, Leaves]:
        states = kept(state, zip(*(reader.state for reader in readers), strict=True))
        if rebuild is not None:
            return states, []
        of_others = zip(needs[1].activations, reads[1].activations, strict=True)
        return states, kept(activations, of_others)

    return _Plan(linear, operands, rebuild, keep, untapped, needs[0].given, any(moves))


def _shapes(parts: Anatomy, at: Moment, beside: Beside) -> tuple[Leaves, Leaves]:
    values = advance(parts, at, beside)[2]
    taps = [values[site.tap] for site in parts.sites]
    return anatomy.activations(parts, values), taps


def _activations(parts: Anatomy, at: Moment, beside: Beside) -> Leaves:
    return anatomy.activations(parts, advance(parts, at, beside)[2])


def _operands(parts: Anatomy, at: Moment, beside: Beside) -> Leaves:
    """What the weights multiply."""
    values = advance(parts, at, beside)[2]
    return [values[site.operand] for site in parts.sites]


def _linear(
    parts: Anatomy, at: Moment, beside: Beside, d_at: Moment
) -> tuple[Leaves, Leaves]:
    """ṡ_t and the tangents of what is emitted; linear in the dots."""

    def along(*at: Leaves) -> tuple[Leaves, Leaves]:
        return advance(parts, Moment(*at), beside)[:2]

    at = at._replace(taps=jax.tree.map(jnp.zeros_like, d_at.taps))
    return jvp(along, tuple(at), tuple(d_at))[1]


def _omega(site: Site, operands: Array, dot_of: dict[Any, Any]) -> Array | None:
    """ω for all steps: `Ẇ s_{t-1} + ȧ_t`."""
    d_weight, d_beside = dot_of.get(site.weight), dot_of.get(site.beside)
    if d_weight is None:
        return d_beside
    omega = jax.vmap(lambda x: anatomy.product(site, x, d_weight))(operands)
    return omega if d_beside is None else omega + d_beside
