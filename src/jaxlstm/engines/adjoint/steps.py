"""One step of the fast engine: its values, its tangent, and what each of them needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlstm.engines.adjoint import partition
from jaxlstm.engines.adjoint.partition import Anatomy, Environment
from jaxlstm.engines.adjoint.tangents import Leaves, jvp, kept, one, trimmed
from jaxlstm.engines.loops import Shown, begun, ended
from jaxlstm.typing import ActiveSteps


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

    active        whether the step is executed
    resets        whether it begins anew
    activations   those of the step, or none, to compute them
    turned        for each site its weight, turned, or None to multiply rows first
    """

    active: ActiveSteps | None
    resets: ActiveSteps | None
    activations: Leaves
    turned: Leaves


def advance(
    parts: Anatomy,
    at: Moment,
    beside: Beside,
    shown: Shown = lax.optimization_barrier,
) -> tuple[Leaves, Leaves, Environment]:
    """(the state after the step, what it emits, the value of each variable)."""
    before = begun(at.initial, at.state, beside.active, beside.resets)
    values = dict(zip(parts.fixed, at.fixed, strict=True))
    values |= dict(zip(parts.given, at.given, strict=True))
    values |= dict(zip(parts.arguments[1], before, strict=True))
    told = (at.taps, beside.activations, beside.turned)
    values = partition.recurrent(parts, values, *told, shown=shown)
    results = [partition.value(values, atom) for atom in parts.outputs]
    after, emitted = results[: len(before)], results[len(before) :]
    return ended(after, at.state, beside.active), emitted, values


class Plan(NamedTuple):
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


def planned(
    parts: Anatomy, steps: Moment, beside: Beside, dots: Moment, *, rebuilt: bool
) -> Plan:
    """The plan for one of the steps, of which what is given is yet to be computed.

    Arguments:
        rebuilt: whether the activations are computed again, and not remembered.
    """
    inputs = (steps.fixed, one(steps.given)), (dots.fixed, one(dots.given))
    given, d_given = jax.eval_shape(
        functools.partial(jvp, functools.partial(partition.input_only, parts)), *inputs
    )
    dots_of = tangents_of(parts, dots.fixed, d_given)
    tapped = {v for site in parts.sites for v in (site.weight, site.beside)}
    moves = [
        any(dots_of.get(v) is not None for v in (site.weight, site.beside))
        for site in parts.sites
    ]

    def untapped(d_fixed: Leaves, d_given: Leaves) -> tuple[Leaves, Leaves]:
        of_fixed = zip((v not in tapped for v in parts.fixed), strict=True)
        of_given = zip((v not in tapped for v in parts.given), strict=True)
        return kept(d_fixed, of_fixed), kept(d_given, of_given)

    at = steps._replace(given=given)
    beside = beside._replace(active=one(beside.active), resets=one(beside.resets))
    activations, taps = jax.eval_shape(functools.partial(_shapes, parts), at, beside)
    d_fixed, d_given = untapped(dots.fixed, d_given)
    taps = kept(taps, zip(moves, strict=True))
    d_at = Moment(d_fixed, d_given, dots.initial, dots.state, taps)

    told = beside._replace(activations=activations)
    linear, *needs = trimmed(functools.partial(_linear, parts), at, told, d_at)
    rows = told._replace(turned=[None] * len(parts.sites))
    operands, *reads = trimmed(functools.partial(_operands, parts), at, rows)
    rebuild, readers = None, [needs[0], reads[0]]
    if rebuilt:
        bare = rows._replace(activations=[])
        rebuild, *asks = trimmed(functools.partial(_activations, parts), at, bare)
        readers.append(asks[0])

    def keep(state: Leaves, activations: Leaves) -> tuple[Leaves, Leaves]:
        states = kept(state, zip(*(reader.state for reader in readers), strict=True))
        if rebuild is not None:
            return states, []
        of_others = zip(needs[1].activations, reads[1].activations, strict=True)
        return states, kept(activations, of_others)

    return Plan(linear, operands, rebuild, keep, untapped, needs[0].given, any(moves))


def _shapes(parts: Anatomy, at: Moment, beside: Beside) -> tuple[Leaves, Leaves]:
    values = advance(parts, at, beside)[2]
    taps = [values[site.tap] for site in parts.sites]
    return partition.activations(parts, values), taps


def _activations(parts: Anatomy, at: Moment, beside: Beside) -> Leaves:
    return partition.activations(parts, advance(parts, at, beside)[2])


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


def tangents_of(parts: Anatomy, d_fixed: Leaves, d_given: Leaves) -> dict[Any, Any]:
    """The tangent of each variable that is fixed or given, None for zero."""
    return dict(zip(parts.fixed + parts.given, [*d_fixed, *d_given], strict=True))
