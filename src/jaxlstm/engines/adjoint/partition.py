"""Partition of the operations of a step by what each of them depends on.

    params_only   the parameters alone: the same at every step
    input_only    the input of the step: known for all steps at once
    recurrent     the state before the step

`take_apart` traces a step once and sorts its operations. Operations on parameters run
once, operations on inputs run in one batch over time, and the rest run in the loop. A
recurrent product with a weight that depends on parameters alone is a `Product`: the
tangent of its weight is applied to all steps at once, and the gradient of its weight is
one product over all of them.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.engines import matmul
from jaxlstm.engines._jaxpr import (
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    Var,
    partial_eval,
    subjaxprs,
)
from jaxlstm.typing import is_explicit

Atom = Var | Literal
Environment = dict[Var, Any]

CONSTANT, FIXED, GIVEN, PAST = range(4)

BILINEAR = {lax.dot_general_p, lax.conv_general_dilated_p}
LINEAR = {lax.reshape_p, lax.squeeze_p, lax.convert_element_type_p}

FOREIGN = {"pure_callback", "io_callback", "ffi_call"}

# The derivative of an activation, told by its value.
SLOPES: dict[Any, Callable[[Array], Array]] = {
    lax.tanh_p: lambda y: (1 - y) * (1 + y),
    lax.logistic_p: lambda y: y * (1 - y),
    lax.exp_p: lambda y: y,
}


class Product(NamedTuple):
    """A product of what waits for the past with a fixed weight.

    product   the operation
    weight    the variable of the weight
    operand   the variable of what it multiplies
    chain     what only reshapes or converts its result, one after the other
    tap       where its tangent enters the rest of the step: the end of the chain, or
              the sum of that with `beside`
    beside    something given that is used in that sum and nowhere else, or None
    """

    product: JaxprEqn
    weight: Var
    operand: Var
    chain: tuple[JaxprEqn, ...]
    tap: Var
    beside: Var | None


class Anatomy(NamedTuple):
    """The operations of a step in their order, and the values that pass between them.

    operations   those that are constant, fixed, given and past
    constants    the arrays that the step closes over, with their variables
    arguments    the variables of params, state and x
    fixed, given the variables of that kind that operations of the past read
    outputs      what the step returns
    sites        the products of the past with a fixed weight
    recalled     the activations, in their order
    """

    operations: tuple[tuple[JaxprEqn, ...], ...]
    constants: Environment
    arguments: tuple[tuple[Var, ...], ...]
    fixed: tuple[Var, ...]
    given: tuple[Var, ...]
    outputs: tuple[Atom, ...]
    sites: tuple[Product, ...]
    recalled: tuple[JaxprEqn, ...]


def take_apart(step: Callable[..., Any], *arguments: Any) -> Anatomy:
    """The anatomy of `step(params, state, x)`, for arguments of these types.

    Errors: `NotImplementedError` for a step that cannot be taken apart.
    """
    traced = jax.make_jaxpr(step)(*arguments)
    _check(traced)
    closed = jax.make_jaxpr(flat(traced))(*jax.tree.leaves(arguments))
    every = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, every, instantiate=True)
    variables = iter(jaxpr.invars)
    params, state, x = (
        tuple(next(variables) for _ in jax.tree.leaves(argument))
        for argument in arguments
    )
    level = dict.fromkeys(jaxpr.constvars + list(params), FIXED)
    level |= dict.fromkeys(x, GIVEN) | dict.fromkeys(state, PAST)
    operations = [[], [], [], []]
    for eqn in jaxpr.eqns:
        kind = max(
            (level[v] for v in eqn.invars if not isinstance(v, Literal)), default=0
        )
        level |= dict.fromkeys(eqn.outvars, kind)
        operations[kind].append(eqn)

    uses = {}
    for eqn in [*operations[PAST], None]:  # None: what is returned
        for atom in jaxpr.outvars if eqn is None else eqn.invars:
            if not isinstance(atom, Literal):
                uses.setdefault(atom, []).append(eqn)
    read = [
        atom
        for eqn in operations[GIVEN]
        for atom in eqn.invars
        if not isinstance(atom, Literal)
    ]
    return Anatomy(
        operations=tuple(map(tuple, operations)),
        constants=dict(zip(jaxpr.constvars, closed.consts, strict=True)),
        arguments=(params, state, x),
        fixed=tuple(v for v in dict.fromkeys([*uses, *read]) if level[v] == FIXED),
        given=tuple(v for v in uses if level[v] == GIVEN),
        outputs=tuple(jaxpr.outvars),
        sites=tuple(_sites(operations[PAST], level, uses)),
        recalled=tuple(e for e in operations[PAST] if e.primitive in SLOPES),
    )


def _check(traced: ClosedJaxpr) -> None:
    """Errors: `NotImplementedError` for what only the reference can differentiate."""
    if any(type(effect).__name__ != "NamedAxisEffect" for effect in traced.effects):
        raise NotImplementedError(
            "adjoint: the step, or emit, has side effects, such as jax.debug.print, "
            'which this engine would run elsewhere; engine="scan" runs them in order.'
        )
    if traced.effects:
        raise NotImplementedError(
            "adjoint: the step, or emit, talks to other devices, as psum does, which "
            'was not tried here; engine="scan" differentiates it.'
        )
    waiting = [traced.jaxpr]
    while waiting:
        jaxpr = waiting.pop()
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name.startswith("custom_vjp"):
                raise NotImplementedError(
                    "adjoint: the step, or emit, calls a custom_vjp function, which "
                    'has no tangents; write it with custom_jvp, or take engine="scan".'
                )
            if name in FOREIGN:
                raise NotImplementedError(
                    f"adjoint: the step, or emit, calls {name}, which cannot be relied "
                    'on for all steps at once; engine="scan" takes one after the other.'
                )
        waiting.extend(subjaxprs(jaxpr))


def _sites(
    eqns: Sequence[JaxprEqn], level: dict[Var, int], uses: dict[Var, list]
) -> Iterator[Product]:
    """The products with a weight of which there is nothing but products."""
    weights = {}
    for eqn in eqns:
        if eqn.primitive in BILINEAR:
            kinds = [None if isinstance(v, Literal) else level[v] for v in eqn.invars]
            fixed = [n for n, kind in enumerate(kinds) if kind == FIXED]
            weights |= {id(eqn): fixed[0]} if len(fixed) == 1 else {}
    for eqn in eqns:
        weight = weights.get(id(eqn))
        if weight is None:
            continue
        if any(id(user) not in weights for user in uses[eqn.invars[weight]]):
            continue
        yield Product(
            eqn,
            eqn.invars[weight],
            eqn.invars[1 - weight],
            *_entry(eqn.outvars[0], level, uses),
        )


def is_plain(eqn: JaxprEqn) -> bool:
    """Whether it is `x W` of one dtype, x `[*b, K]` and W `[K, N]`, on no mesh."""
    if eqn.primitive is not lax.dot_general_p:
        return False
    avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    return (
        len({aval.dtype for aval in avals}) == 1
        and avals[1].ndim == 2
        and eqn.params["dimension_numbers"] == (((avals[0].ndim - 1,), (0,)), ((), ()))
        and eqn.params["precision"] is None
        and not is_explicit(avals[0].sharding)
        and not is_explicit(avals[1].sharding)
    )


def _is_inexact(variable: Var) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _entry(
    result: Var, level: dict[Var, int], uses: dict[Var, list]
) -> tuple[tuple[JaxprEqn, ...], Var, Var | None]:
    """The chain, tap and beside of a product's result."""
    chain = []
    while len(uses.get(result, ())) == 1 and uses[result][0] is not None:
        (user,) = uses[result]
        if user.primitive in LINEAR and _is_inexact(user.outvars[0]):
            chain.append(user)
            (result,) = user.outvars
            continue
        if user.primitive is lax.add_p:
            (other,) = (atom for atom in user.invars if atom is not result)
            if isinstance(other, Literal) or level[other] != GIVEN:
                break
            if len(uses[other]) == 1:
                return tuple(chain), user.outvars[0], other
        break
    return tuple(chain), result, None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def recalled(slope: Callable[[Array], Array], x: Array, y: Array) -> Array:
    """y, an activation of x that is remembered, with the slope that it tells."""
    return y


@recalled.defjvp
def _(slope: Callable[[Array], Array], primals: Any, tangents: Any) -> Any:
    return primals[1], tangents[0] * slope(primals[1])


def params_only(parts: Anatomy, params: Any) -> list[Any]:
    """The values of what is fixed."""
    known = dict(zip(parts.arguments[0], jax.tree.leaves(params), strict=True))
    operations = [*parts.operations[CONSTANT], *parts.operations[FIXED]]
    known = evaluate(operations, parts.constants | known)
    return [known[v] for v in parts.fixed]


def input_only(parts: Anatomy, fixed: Sequence[Any], x: Sequence[Any]) -> list[Any]:
    """The values of what is given at one step, from the leaves of its input."""
    known = dict(zip(parts.fixed, fixed, strict=True))
    known |= dict(zip(parts.arguments[2], x, strict=True))
    operations = [*parts.operations[CONSTANT], *parts.operations[GIVEN]]
    known = evaluate(operations, known, _rows_first)
    return [known[v] for v in parts.given]


def _rows_first(eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
    return [matmul.rows_first(*values)] if is_plain(eqn) else None


def one(parts: Anatomy, fixed: Sequence[Any], state: Any, x: Sequence[Any]) -> list:
    """What one step returns, from what is fixed and the leaves of its input."""
    known = dict(zip(parts.fixed, fixed, strict=True))
    known |= dict(zip(parts.given, input_only(parts, fixed, x), strict=True))
    known |= dict(zip(parts.arguments[1], jax.tree.leaves(state), strict=True))
    known = recurrent(parts, known, [], [], [None] * len(parts.sites))
    return [value(known, atom) for atom in parts.outputs]


def activations(parts: Anatomy, values: Environment) -> list[Any]:
    """Those of a step, in their order."""
    return [values[eqn.outvars[0]] for eqn in parts.recalled]


def recurrent(
    parts: Anatomy,
    environment: Environment,
    taps: Sequence[Array | None],
    activations: Sequence[Array],
    turned: Sequence[Array | None],
    *,
    shown: Callable[[Array], Array] = lax.optimization_barrier,
) -> Environment:
    """All values of a step, from those that are constant, fixed, given and the state.

    Arguments:
        taps: what is added where the products enter, one for each site; or none.
        activations: those remembered, one for each of `recalled`; none to compute them.
        turned: for each site its weight turned, to multiply with the weights first, or
            None.
        shown: what becomes of an activation that is computed. It stands behind a
            barrier at least: what is made of it is then the same bits whether or not it
            is also stacked, as the gates are by `emit.trace`.
    """
    remembered = {
        id(e): y for e, y in zip(parts.recalled, activations, strict=bool(activations))
    }
    added = {site.tap: tap for site, tap in zip(parts.sites, taps, strict=bool(taps))}
    turned_of = {
        id(site.product): w for site, w in zip(parts.sites, turned, strict=True)
    }

    def multiplied(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
        w_turned = turned_of.get(id(eqn))
        if w_turned is None:
            return bound(eqn, values)
        x, w = values
        return [matmul.weights_first(x, w, w_turned)]

    def instead(eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
        if id(eqn) in remembered:
            slope = SLOPES[eqn.primitive]
            return [recalled(slope, values[0], remembered[id(eqn)])]
        if eqn.primitive in SLOPES:
            return [shown(y) for y in bound(eqn, values)]
        if added.get(eqn.outvars[0]) is not None:
            (result,) = multiplied(eqn, values)
            return [result + added[eqn.outvars[0]]]
        return multiplied(eqn, values) if id(eqn) in turned_of else None

    operations = [*parts.operations[CONSTANT], *parts.operations[PAST]]
    return evaluate(operations, environment, instead)


def used_once(parts: Anatomy) -> bool:
    """Whether what a step makes of its activations is used once, or returned.

    What is used several times a compiler may compute in several places, each rounded
    in its own way, and other places in another program.
    """
    made: set[Any] = set()
    uses: Counter[Any] = Counter()
    for eqn in parts.operations[PAST]:
        variables = {atom for atom in eqn.invars if isinstance(atom, Var)}
        uses.update(variables & made)
        if eqn.primitive in SLOPES or variables & made:
            made.update(eqn.outvars)
    activations = {eqn.outvars[0] for eqn in parts.recalled}
    settled = activations.union(a for a in parts.outputs if isinstance(a, Var))
    return all(v in settled for v, number in uses.items() if number > 1)


def product(site: Product, operand: Array, weight: Array) -> Array:
    """What the operand times the weight brings to the site's tap."""
    values = [operand, weight]
    if site.product.invars[0] is site.weight:
        values = [weight, operand]
    (result,) = _rows_first(site.product, values) or bound(site.product, values)
    for eqn in site.chain:
        (result,) = bound(eqn, [result])
    return result


def evaluate(
    eqns: Sequence[JaxprEqn],
    known: Environment,
    instead: Callable[[JaxprEqn, list[Any]], list[Any] | None] = lambda *_: None,
) -> Environment:
    """The values of all variables, `instead` taking the place of some operations."""
    known = dict(known)
    for eqn in eqns:
        values = [value(known, atom) for atom in eqn.invars]
        results = instead(eqn, values)
        results = bound(eqn, values) if results is None else results
        known.update(zip(eqn.outvars, results, strict=True))
    return known


def value(known: Environment, atom: Atom) -> Any:
    """What the atom stands for."""
    return atom.val if isinstance(atom, Literal) else known[atom]


def bound(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The results of one operation."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params)
        results = eqn.primitive.bind(*values, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def flat(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The function, with the functions that it calls written out."""

    def run(*args: Any) -> list[Any]:
        known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        known |= dict(zip(closed.jaxpr.invars, args, strict=True))

        def inline(eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
            if eqn.primitive.name not in ("jit", "pjit", "closed_call"):
                return None
            return flat(eqn.params.get("jaxpr") or eqn.params["call_jaxpr"])(*values)

        known = evaluate(closed.jaxpr.eqns, known, inline)
        return [value(known, atom) for atom in closed.jaxpr.outvars]

    return run
