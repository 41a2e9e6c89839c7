"""Partition of the operations of a step by what they depend on.

    params_only   the parameters alone: the same at every step
    input_only    the input of the step: known for all steps in advance
    recurrent     the state before the step

`partition_step` traces a step once and sorts its operations. Operations on parameters
run once, operations on inputs run in one batch over time, and only the recurrent ones
run in the loop. A recurrent product with a weight that depends on parameters alone is
a `Product`: the tangent of its weight is applied to all steps at once, and the gradient
of its weight is one product over all steps.
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

CONSTANT, PARAMS_ONLY, INPUT_ONLY, RECURRENT = range(4)

BILINEAR = {lax.dot_general_p, lax.conv_general_dilated_p}
LINEAR = {lax.reshape_p, lax.squeeze_p, lax.convert_element_type_p}

CALLBACKS = {"pure_callback", "io_callback", "ffi_call"}

# The derivatives of activations as functions of their value.
DERIVATIVES: dict[Any, Callable[[Array], Array]] = {
    lax.tanh_p: lambda y: (1 - y) * (1 + y),
    lax.logistic_p: lambda y: y * (1 - y),
    lax.exp_p: lambda y: y,
}


class Product(NamedTuple):
    """A product of a recurrent value and a weight that depends on parameters alone.

    Attributes:
        equation: the operation.
        weight: the variable of the weight.
        operand: the variable that the weight multiplies.
        chain: successive operations that only reshape or convert the result.
        tap: where the tangent of the product enters the rest of the step: the end of
            the chain, or its sum with `addend`.
        addend: a variable that depends on the input alone and is used only in that
            sum, or None.
    """

    equation: JaxprEqn
    weight: Var
    operand: Var
    chain: tuple[JaxprEqn, ...]
    tap: Var
    addend: Var | None


class Partition(NamedTuple):
    """The sorted operations of a step, and the variables that connect the parts.

    Attributes:
        operations: constant, params-only, input-only and recurrent operations, each in
            the order of the step.
        constants: the arrays that the step closes over, by variable.
        arguments: the variables of params, state and x.
        params_only: params-only variables that later parts read.
        input_only: input-only variables that recurrent operations read.
        outputs: what the step returns.
        products: the recurrent products with a params-only weight.
        activations: the recurrent operations whose derivative follows from their value.
    """

    operations: tuple[tuple[JaxprEqn, ...], ...]
    constants: Environment
    arguments: tuple[tuple[Var, ...], ...]
    params_only: tuple[Var, ...]
    input_only: tuple[Var, ...]
    outputs: tuple[Atom, ...]
    products: tuple[Product, ...]
    activations: tuple[JaxprEqn, ...]


def partition_step(step: Callable[..., Any], *arguments: Any) -> Partition:
    """Partition `step(params, state, x)` for arguments of these types.

    Raises:
        NotImplementedError: the step has side effects, or operations that only the
            reference engine can differentiate.
    """
    traced = jax.make_jaxpr(step)(*arguments)
    _check_supported(traced)
    closed = jax.make_jaxpr(inline_calls(traced))(*jax.tree.leaves(arguments))
    every = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, every, instantiate=True)
    variables = iter(jaxpr.invars)
    params, state, x = (
        tuple(next(variables) for _ in jax.tree.leaves(argument))
        for argument in arguments
    )
    level = dict.fromkeys(jaxpr.constvars + list(params), PARAMS_ONLY)
    level |= dict.fromkeys(x, INPUT_ONLY) | dict.fromkeys(state, RECURRENT)
    operations = [[], [], [], []]
    for eqn in jaxpr.eqns:
        kind = max(
            (level[v] for v in eqn.invars if not isinstance(v, Literal)), default=0
        )
        level |= dict.fromkeys(eqn.outvars, kind)
        operations[kind].append(eqn)

    uses = {}
    for eqn in [*operations[RECURRENT], None]:  # None stands for the outputs
        for atom in jaxpr.outvars if eqn is None else eqn.invars:
            if not isinstance(atom, Literal):
                uses.setdefault(atom, []).append(eqn)
    read = [
        atom
        for eqn in operations[INPUT_ONLY]
        for atom in eqn.invars
        if not isinstance(atom, Literal)
    ]
    reads = dict.fromkeys([*uses, *read])
    return Partition(
        operations=tuple(map(tuple, operations)),
        constants=dict(zip(jaxpr.constvars, closed.consts, strict=True)),
        arguments=(params, state, x),
        params_only=tuple(v for v in reads if level[v] == PARAMS_ONLY),
        input_only=tuple(v for v in uses if level[v] == INPUT_ONLY),
        outputs=tuple(jaxpr.outvars),
        products=tuple(_recurrent_products(operations[RECURRENT], level, uses)),
        activations=tuple(
            e for e in operations[RECURRENT] if e.primitive in DERIVATIVES
        ),
    )


def _check_supported(traced: ClosedJaxpr) -> None:
    """Raise `NotImplementedError` for what only the reference can differentiate."""
    if any(type(effect).__name__ != "NamedAxisEffect" for effect in traced.effects):
        raise NotImplementedError(
            "adjoint: the step, or emit, has side effects, such as jax.debug.print, "
            'which this engine would reorder; use engine="scan".'
        )
    if traced.effects:
        raise NotImplementedError(
            "adjoint: the step, or emit, uses collectives, such as psum, which this "
            'engine does not support; use engine="scan".'
        )
    remaining = [traced.jaxpr]
    while remaining:
        jaxpr = remaining.pop()
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name.startswith("custom_vjp"):
                raise NotImplementedError(
                    "adjoint: the step, or emit, calls a custom_vjp function, which "
                    'has no forward mode; use custom_jvp, or engine="scan".'
                )
            if name in CALLBACKS:
                raise NotImplementedError(
                    f"adjoint: the step, or emit, calls {name}, which may not support "
                    'all steps in one batch; use engine="scan".'
                )
        remaining.extend(subjaxprs(jaxpr))


def _recurrent_products(
    eqns: Sequence[JaxprEqn], level: dict[Var, int], uses: dict[Var, list]
) -> Iterator[Product]:
    """Yield the products whose weight is used in such products only."""
    weights = {}
    for eqn in eqns:
        if eqn.primitive in BILINEAR:
            kinds = [None if isinstance(v, Literal) else level[v] for v in eqn.invars]
            positions = [n for n, kind in enumerate(kinds) if kind == PARAMS_ONLY]
            weights |= {id(eqn): positions[0]} if len(positions) == 1 else {}
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
            *_find_tap(eqn.outvars[0], level, uses),
        )


def is_matmul(eqn: JaxprEqn) -> bool:
    """Return whether it is `x W` in one dtype, x `[*b, K]`, W `[K, N]`, on no mesh."""
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


def _find_tap(
    result: Var, level: dict[Var, int], uses: dict[Var, list]
) -> tuple[tuple[JaxprEqn, ...], Var, Var | None]:
    """Return the chain, the tap and the addend of the result of a product."""
    chain = []
    while len(uses.get(result, ())) == 1 and uses[result][0] is not None:
        (user,) = uses[result]
        if user.primitive in LINEAR and _is_inexact(user.outvars[0]):
            chain.append(user)
            (result,) = user.outvars
            continue
        if user.primitive is lax.add_p:
            (other,) = (atom for atom in user.invars if atom is not result)
            if isinstance(other, Literal) or level[other] != INPUT_ONLY:
                break
            if len(uses[other]) == 1:
                return tuple(chain), user.outvars[0], other
        break
    return tuple(chain), result, None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def residual_activation(
    derivative: Callable[[Array], Array], x: Array, y: Array
) -> Array:
    """Return y, the stored activation of x, with `derivative(y)` as its derivative."""
    return y


@residual_activation.defjvp
def _(derivative: Callable[[Array], Array], primals: Any, tangents: Any) -> Any:
    return primals[1], tangents[0] * derivative(primals[1])


def evaluate_params_only(parts: Partition, params: Any) -> list[Any]:
    """Return the values of `parts.params_only`."""
    known = dict(zip(parts.arguments[0], jax.tree.leaves(params), strict=True))
    operations = [*parts.operations[CONSTANT], *parts.operations[PARAMS_ONLY]]
    known = evaluate(operations, parts.constants | known)
    return [known[v] for v in parts.params_only]


def evaluate_input_only(
    parts: Partition, params_only: Sequence[Any], x: Sequence[Any]
) -> list[Any]:
    """Return the values of `parts.input_only` for the leaves of one step's input."""
    known = dict(zip(parts.params_only, params_only, strict=True))
    known |= dict(zip(parts.arguments[2], x, strict=True))
    operations = [*parts.operations[CONSTANT], *parts.operations[INPUT_ONLY]]
    known = evaluate(operations, known, _use_rows_first)
    return [known[v] for v in parts.input_only]


def _use_rows_first(eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
    return [matmul.rows_first(*values)] if is_matmul(eqn) else None


def evaluate_step(
    parts: Partition, params_only: Sequence[Any], state: Any, x: Sequence[Any]
) -> list:
    """Return the leaves of one step's results, for the leaves of its input."""
    input_only = evaluate_input_only(parts, params_only, x)
    known = dict(zip(parts.params_only, params_only, strict=True))
    known |= dict(zip(parts.input_only, input_only, strict=True))
    known |= dict(zip(parts.arguments[1], jax.tree.leaves(state), strict=True))
    known = evaluate_recurrent(parts, known, [], [], [None] * len(parts.products))
    return [read(known, atom) for atom in parts.outputs]


def activation_values(parts: Partition, values: Environment) -> list[Any]:
    """Return the values of `parts.activations`."""
    return [values[eqn.outvars[0]] for eqn in parts.activations]


def evaluate_recurrent(
    parts: Partition,
    environment: Environment,
    taps: Sequence[Array | None],
    activations: Sequence[Array],
    transposed_weights: Sequence[Array | None],
    *,
    materialize: Callable[[Array], Array] = lax.optimization_barrier,
) -> Environment:
    """Evaluate the recurrent operations of a step and return all its values.

    Args:
        parts: the partition of the step.
        environment: values of params-only, input-only and state variables.
        taps: terms to add at the taps of the products, one each; empty for none.
        activations: residual activations, one for each of `parts.activations`; empty to
            compute them.
        transposed_weights: for each product its transposed weight, to multiply weights
            first, or None to multiply rows first.
        materialize: applied to each computed activation. It must be a barrier at least:
            values derived from an activation then have the same bits whether or not
            the activation is also stacked, as the gates are by `emit.trace`.
    """
    residuals = {
        id(eqn): y
        for eqn, y in zip(parts.activations, activations, strict=bool(activations))
    }
    added = {
        product.tap: tap
        for product, tap in zip(parts.products, taps, strict=bool(taps))
    }
    transposed = {
        id(product.equation): w
        for product, w in zip(parts.products, transposed_weights, strict=True)
    }

    def multiply(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
        w_transposed = transposed.get(id(eqn))
        if w_transposed is None:
            return bind(eqn, values)
        x, w = values
        return [matmul.weights_first(x, w, w_transposed)]

    def replace(eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
        if id(eqn) in residuals:
            derivative = DERIVATIVES[eqn.primitive]
            return [residual_activation(derivative, values[0], residuals[id(eqn)])]
        if eqn.primitive in DERIVATIVES:
            return [materialize(y) for y in bind(eqn, values)]
        if added.get(eqn.outvars[0]) is not None:
            (result,) = multiply(eqn, values)
            return [result + added[eqn.outvars[0]]]
        return multiply(eqn, values) if id(eqn) in transposed else None

    operations = [*parts.operations[CONSTANT], *parts.operations[RECURRENT]]
    return evaluate(operations, environment, replace)


def activations_used_once(parts: Partition) -> bool:
    """Return whether each value computed from activations is read once, or returned.

    A value that is read several times may be fused into each of its readers, and each
    copy rounds in its own way, which depends on the rest of the program.
    """
    derived: set[Any] = set()
    uses: Counter[Any] = Counter()
    for eqn in parts.operations[RECURRENT]:
        variables = {atom for atom in eqn.invars if isinstance(atom, Var)}
        uses.update(variables & derived)
        if eqn.primitive in DERIVATIVES or variables & derived:
            derived.update(eqn.outvars)
    activations = {eqn.outvars[0] for eqn in parts.activations}
    stored = activations.union(a for a in parts.outputs if isinstance(a, Var))
    return all(v in stored for v, number in uses.items() if number > 1)


def multiply_weight(product: Product, operand: Array, weight: Array) -> Array:
    """Return the product of operand and weight, in the shape of the tap."""
    values = [operand, weight]
    if product.equation.invars[0] is product.weight:
        values = [weight, operand]
    (result,) = _use_rows_first(product.equation, values) or bind(
        product.equation, values
    )
    for eqn in product.chain:
        (result,) = bind(eqn, [result])
    return result


def evaluate(
    eqns: Sequence[JaxprEqn],
    known: Environment,
    replace: Callable[[JaxprEqn, list[Any]], list[Any] | None] = lambda *_: None,
) -> Environment:
    """Return the values of all variables.

    Args:
        eqns: the operations, in order.
        known: the values of the variables that they read.
        replace: returns the results of an operation, or None to evaluate it as it is.
    """
    known = dict(known)
    for eqn in eqns:
        values = [read(known, atom) for atom in eqn.invars]
        results = replace(eqn, values)
        results = bind(eqn, values) if results is None else results
        known.update(zip(eqn.outvars, results, strict=True))
    return known


def read(known: Environment, atom: Atom) -> Any:
    """Return the value of a variable or a literal."""
    return atom.val if isinstance(atom, Literal) else known[atom]


def bind(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Return the results of one operation."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params)
        results = eqn.primitive.bind(*values, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def inline_calls(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    """Return the function of a jaxpr, with the functions that it calls inlined."""

    def run(*args: Any) -> list[Any]:
        known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        known |= dict(zip(closed.jaxpr.invars, args, strict=True))

        def inline(eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
            if eqn.primitive.name not in ("jit", "pjit", "closed_call"):
                return None
            called = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
            return inline_calls(called)(*values)

        known = evaluate(closed.jaxpr.eqns, known, inline)
        return [read(known, atom) for atom in closed.jaxpr.outvars]

    return run
