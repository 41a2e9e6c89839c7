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
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import eval_jaxpr
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import partial_eval

from jaxlstm.cells.base import Cell, Each, Params, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import anatomy
from jaxlstm.engines.anatomy import Anatomy, Environment, Site
from jaxlstm.engines.loops import (
    Moments,
    any_moment,
    begun,
    ended,
    in_blocks,
    typed_like,
)
from jaxlstm.sequences import Steps
from jaxlstm.shapes import Features, Happens, is_explicit

Leaves = list[Any]


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
    """What has no tangent of its own: when the step happens, and its activations."""

    happens: Happens | None
    resets: Happens | None
    activations: Leaves


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
    """As the reference does, with the derivative told above.

    Errors: `NotImplementedError` for a step with side effects, one that has a reverse
    mode of its own only, and a state that is not of floating point numbers.
    """
    initial = cell.initial_state(params, xs.shape[1:-1], dtype=xs.dtype)
    moments = (xs, each, steps.happens, steps.resets)

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
    fixed = anatomy.fixed(parts, params)

    def block(state: State, moments: Moments) -> tuple[State, Any]:
        *x, happens, resets = moments
        leaves = map(jax.tree.leaves, (x, initial, state))
        recurrence = recurrent(parts, reverse=reverse)
        return jax.tree.unflatten(tree, recurrence(fixed, *leaves, happens, resets))

    if checkpoint_every is None:
        return block(state, moments)
    return in_blocks(block, state, moments, every=checkpoint_every, reverse=reverse)


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
    values = anatomy.past(parts, values, at.taps, beside.activations)
    results = [anatomy.value(values, atom) for atom in parts.outputs]
    after, emitted = results[: len(before)], results[len(before) :]
    return ended(after, at.state, beside.happens), emitted, values


def recurrent(parts: Anatomy, *, reverse: bool) -> Callable[..., Leaves]:
    """The loop: `(fixed, xs, initial, state, happens, resets) -> state and emitted`."""

    @jax.custom_jvp
    def run(*arguments: Any) -> Leaves:
        state, (emitted, _) = forward(parts, *arguments, reverse=reverse)
        return [*state, *emitted]

    @functools.partial(run.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Leaves, Leaves]:
        return tangent(
            parts, primals, jax.tree.map(_or_none, tangents), reverse=reverse
        )

    return run


def forward(
    parts: Anatomy,
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

    def body(state: Leaves, moment: Any) -> tuple[Leaves, Any]:
        x, happens, resets = moment
        at = Moment(fixed, anatomy.given(parts, fixed, x), initial, state, [])
        after, emitted, values = advance(parts, at, Beside(happens, resets, []))
        return after, (emitted, keep(state, anatomy.activations(parts, values)))

    return lax.scan(body, state, (xs, happens, resets), reverse=reverse)


def tangent(
    parts: Anatomy, primals: Any, dots: Any, *, reverse: bool
) -> tuple[Leaves, Leaves]:
    """The results of the loop and their tangents; of the dots, None is zero."""
    fixed, xs, initial, state, happens, resets = primals
    d_fixed, d_xs, d_initial, d_state, *_ = dots
    given_of = jax.vmap(functools.partial(anatomy.given, parts), in_axes=(None, 0))
    given, d_given = _jvp(given_of, (fixed, xs), (d_fixed, d_xs))
    dot_of = dict(zip(parts.fixed + parts.given, [*d_fixed, *d_given], strict=True))
    by_tap = {v for site in parts.sites for v in (site.weight, site.beside)}
    d_fixed, d_given = (
        [None if v in by_tap else dot_of[v] for v in variables]
        for variables in (parts.fixed, parts.given)
    )
    d_state = [_filled(s, d) for s, d in zip(state, d_state, strict=True)]

    at = Moment(fixed, _one(given), initial, state, [])
    d_at = Moment(d_fixed, _one(d_given), d_initial, d_state, [])
    plan = _plan(parts, at, Beside(_one(happens), _one(resets), []), d_at, dot_of)
    after, (emitted, (states, activations)) = forward(
        parts, *primals, reverse=reverse, keep=plan.keep
    )
    beside = Beside(happens, resets, activations)

    def operands(given: Leaves, state: Leaves, beside: Beside) -> Leaves:
        return plan.operands(Moment(fixed, given, initial, state, []), beside)

    omegas = [None] * len(parts.sites)
    if plan.moves:
        factors = jax.vmap(operands)(given, states, beside)
        pairs = zip(parts.sites, factors, strict=True)
        omegas = [_omega(site, factor, dot_of) for site, factor in pairs]

    @functools.partial(jax.checkpoint, prevent_cse=False)  # remember what it reads only
    def body(d_state: Leaves, moment: Any) -> tuple[Leaves, Leaves]:
        given, state, beside, d_given, omegas = moment
        at = Moment(fixed, given, initial, state, [])
        return plan.linear(
            at, beside, Moment(d_fixed, d_given, d_initial, d_state, omegas)
        )

    given = _kept(given, zip(plan.given_needs, strict=True))
    moments = (given, states, beside, d_given, omegas)
    d_after, d_emitted = lax.scan(
        body, d_state, moments, length=len(xs[0]), reverse=reverse
    )
    d_emitted = [_filled(e, d) for e, d in zip(emitted, d_emitted, strict=True)]
    return [*after, *emitted], [*d_after, *d_emitted]


class _Plan(NamedTuple):
    """What the tangents need to know of each step, and nothing else.

    linear        `(at, beside, dots) -> ṡ_t and the tangents of what is emitted`
    operands      `(at, beside) -> what the weights multiply`
    keep          of the state and the activations, what the two of them read
    given_needs   which of what is given `linear` reads
    moves         whether anything has a tangent that enters at a tap
    """

    linear: Callable[..., tuple[Leaves, Leaves]]
    operands: Callable[..., Leaves]
    keep: Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]
    given_needs: list[bool]
    moves: bool


def _plan(
    parts: Anatomy, at: Moment, beside: Beside, d_at: Moment, dot_of: dict[Any, Any]
) -> _Plan:
    """The plan for one step of these types."""
    activations, taps = jax.eval_shape(functools.partial(_shapes, parts), at, beside)
    beside = beside._replace(activations=activations)
    moves = [
        any(dot_of.get(v) is not None for v in (site.weight, site.beside))
        for site in parts.sites
    ]
    d_at = d_at._replace(taps=_kept(taps, zip(moves, strict=True)))
    linear, *needs = _trimmed(functools.partial(_linear, parts), at, beside, d_at)
    operands, *reads = _trimmed(functools.partial(_operands, parts), at, beside)

    def keep(state: Leaves, activations: Leaves) -> tuple[Leaves, Leaves]:
        of_state = zip(needs[0].state, reads[0].state, strict=True)
        of_others = zip(needs[1].activations, reads[1].activations, strict=True)
        return _kept(state, of_state), _kept(activations, of_others)

    return _Plan(linear, operands, keep, needs[0].given, any(moves))


def _shapes(parts: Anatomy, at: Moment, beside: Beside) -> tuple[Leaves, Leaves]:
    values = advance(parts, at, beside)[2]
    taps = [values[site.tap] for site in parts.sites]
    return anatomy.activations(parts, values), taps


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
    return _jvp(along, tuple(at), tuple(d_at))[1]


def _omega(site: Site, operands: Array, dot_of: dict[Any, Any]) -> Array | None:
    """ω for all steps: `Ẇ s_{t-1} + ȧ_t`."""
    d_weight, d_beside = dot_of.get(site.weight), dot_of.get(site.beside)
    if d_weight is None:
        return d_beside
    omega = jax.vmap(lambda x: anatomy.product(site, x, d_weight))(operands)
    return omega if d_beside is None else omega + d_beside


# -- tangents that may be None, for zero ---------------------------------------------


def _jvp(function: Callable[..., Any], primals: Any, dots: Any) -> tuple[Any, Any]:
    """As `jax.jvp`; tangents of what is no floating point number come back as None."""
    leaves, tree = jax.tree.flatten(primals)
    flat = tree.flatten_up_to(dots)
    moving = [n for n, dot in enumerate(flat) if dot is not None]

    def along(*values: Array) -> Any:
        every = list(leaves)
        for n, value in zip(moving, values, strict=True):
            every[n] = value
        return function(*jax.tree.unflatten(tree, every))

    if not moving:
        results = along()
        return results, jax.tree.map(lambda _: None, results)
    results, dots = jax.jvp(
        along, [leaves[n] for n in moving], [flat[n] for n in moving]
    )
    return results, jax.tree.map(_or_none, dots)


def _or_none(dot: Any) -> Any:
    """None for a tangent that is zero, or that nothing can have."""
    zero = isinstance(dot, SymbolicZero) or dot.dtype == jax.dtypes.float0
    return None if zero else dot


def _filled(primal: Any, dot: Any) -> Any:
    """The tangent, or the zero that None stands for."""
    if dot is not None:
        return dot
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return np.zeros(primal.shape, jax.dtypes.float0)


# -- what is needed, and nothing else -------------------------------------------------


def _one(tree: Any) -> Any:
    """The types of one step of leaves `[T, ...]`."""
    return jax.eval_shape(any_moment, tree)


def _kept(leaves: Leaves, needs: Any) -> Leaves:
    """The leaves that somebody needs, None in place of the others."""
    return [
        leaf if any(need) else None for leaf, need in zip(leaves, needs, strict=True)
    ]


def _trimmed(function: Callable[..., Any], *example: Any) -> tuple[Any, ...]:
    """The function without what its results do not need; for each argument, which of
    its leaves are needed. The others may be None.
    """
    leaves, tree = jax.tree.flatten(example)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*example)
    every = [True] * len(closed.jaxpr.outvars)
    jaxpr, needed = partial_eval.dce_jaxpr(closed.jaxpr, every)

    def run(*arguments: Any) -> Any:
        flat = zip(tree.flatten_up_to(arguments), needed, strict=True)
        read = [leaf for leaf, need in flat if need]
        results = eval_jaxpr(jaxpr, closed.consts, *read)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    assert len(needed) == len(leaves)
    return run, *jax.tree.unflatten(tree, needed)
