"""The loop over time as a JAX primitive: `lax.scan` that a CPU kernel runs.

`compiled_scan` returns what `lax.scan` returns. Its primitive has the rules of a JAX
operation, each written with another loop of the same kind:

    lowering    on a CPU the kernel; on other platforms, for export, and for steps that
                the kernel cannot run, `lax.scan`
    transpose   the loop of the transposed step, in the other direction
    batching    the loop of the batched step
    jvp         that of `lax.scan`

so that `grad`, `jvp`, `vmap`, `jit`, `checkpoint`, `shard_map` and their compositions
work. Engines use it for the recurrence and for its linear tangent; a gradient runs the
transpose of the latter in the kernel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlstm.engines._jaxpr import (
    ClosedJaxpr,
    Primitive,
    ad,
    batching,
    eval_jaxpr,
    mlir,
    partial_eval,
)
from jaxlstm.engines.adjoint.tangents import instantiate, jvp, zero_to_none
from jaxlstm.engines.matmul import match_varying_axes
from jaxlstm.engines.native import program as programs
from jaxlstm.engines.native.kernel import FUNCTIONS, TARGETS
from jaxlstm.engines.native.values import Layout, Unsupported

Step = Callable[..., tuple[Any, Any]]


def compiled_scan(
    step: Step,
    consts: Any,
    carry: Any,
    inputs: Any,
    *,
    length: int,
    reverse: bool,
    row_axes: int,
    active: Array | None = None,
) -> tuple[Any, Any]:
    """Return `lax.scan(partial(step, consts), carry, inputs)`, run by the kernel.

    Args:
        step: `(consts, carry, inputs of a step) -> (carry, results)`. It must not close
            over traced values.
        consts: arrays that are the same at all steps.
        carry: arrays whose first axes are the rows of the batch.
        inputs: arrays with a leading axis [T].
        length: T.
        reverse: whether to run from the last step to the first.
        row_axes: the number of axes of rows.
        active: `[T, *rows]`, False where the products of a step can be taken as 0,
            because they are 0 or not used; None for nowhere.

    Raises:
        Unsupported: the kernel cannot run the step.
    """
    arguments = jax.tree.map(jnp.asarray, (consts, carry, inputs))
    run = functools.partial(
        _bind_loop, active=active, length=length, reverse=reverse, row_axes=row_axes
    )
    is_half = [leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(arguments)]
    if not any(is_half):
        return run(step, arguments, is_half)
    of_step = (*arguments[:2], jax.tree.map(_drop_time, arguments[2]))
    shapes = jax.eval_shape(step, *of_step)
    pairs = zip(*map(jax.tree.leaves, (shapes[0], arguments[1])), strict=True)
    if any(after.dtype != before.dtype for after, before in pairs):
        raise Unsupported("a state that changes its dtype")
    results = run(
        _in_float32(step, of_step), jax.tree.map(_widened, arguments), is_half
    )
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), results, shapes)


def _in_float32(step: Step, structs: Any) -> Step:
    """Return a step on bfloat16 as a step on float32, which rounds as the step does.

    The kernel has registers of float32. Numbers of bfloat16 are numbers of float32, so
    arguments and results change their dtype without rounding.
    """

    def run(*arguments: Any) -> Any:
        given = jax.tree.map(lambda a, like: a.astype(like.dtype), arguments, structs)
        return jax.tree.map(_widened, step(*given))

    return run


def _widened(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf


def _bind_loop(
    step: Step,
    arguments: tuple[Any, Any, Any],
    is_exact: Sequence[bool],
    *,
    active: Array | None,
    length: int,
    reverse: bool,
    row_axes: int,
    member_axes: int = 0,
) -> tuple[Any, Any]:
    """Return the results of a loop; see `compiled_scan` and `Options`."""
    leaves, tree = jax.tree.flatten((arguments, active))
    arguments, active = jax.tree.unflatten(tree, match_varying_axes(*leaves))
    options, used, shapes = trace_loop(
        step, *arguments, length=length, reverse=reverse, row_axes=row_axes
    )
    leaves = jax.tree.leaves(arguments)
    kept = [leaf for leaf, use in zip(leaves, used, strict=True) if use]
    exact = [known for known, use in zip(is_exact, used, strict=True) if use]
    options = options._replace(
        exact=tuple(n for n, known in enumerate(exact) if known),
        member_axes=member_axes,
        masked=active is not None,
    )
    kept += [] if active is None else [active]
    write_program(options, [jax.typeof(leaf) for leaf in kept])
    results = loop.bind(*kept, **options._asdict())
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def trace_loop(
    step: Step,
    consts: Any,
    carry: Any,
    inputs: Any,
    *,
    length: int,
    reverse: bool,
    row_axes: int,
) -> tuple["Options", list[bool], Any]:
    """Trace the step of a loop; see `compiled_scan` for the arguments.

    Returns:
        The parameters of the primitive, which of the leaves of consts, carry and inputs
        are its arguments, and `(carry, results)` of a step as structs.
    """
    of_step = jax.tree.map(_drop_time, inputs)
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(consts, carry, of_step)
    number = len(jax.tree.leaves(consts))
    size = len(jax.tree.leaves(carry))
    closed, used = _prune(closed, range(number, number + size))
    given = sum(used[:number])
    return Options(closed, given, size, length, reverse, row_axes), used, shapes


def _drop_time(leaf: Any) -> Any:
    return jax.eval_shape(lambda a: lax.index_in_dim(a, 0, keepdims=False), leaf)


def _prune(closed: ClosedJaxpr, kept: range) -> tuple[ClosedJaxpr, list[bool]]:
    """Remove operations that nothing depends on, and unused inputs but those kept."""
    jaxpr = closed.jaxpr
    needed = [n in kept for n in range(len(jaxpr.invars))]
    every = [True] * len(jaxpr.outvars)
    jaxpr, used = partial_eval.dce_jaxpr(jaxpr, every, instantiate=needed)
    return ClosedJaxpr(jaxpr, closed.consts), list(used)


class Options(NamedTuple):
    """Parameters of the primitive.

    Attributes:
        jaxpr: the step, `[*consts, *carry, *inputs] -> [*carry, *results]`.
        consts: the number of consts.
        carry: the number of carried arrays.
        length: the number of steps.
        reverse: whether they are run from the last to the first.
        row_axes: the number of axes of rows.
        member_axes: how many of these, the first ones, the consts have too.
        masked: whether the last argument tells which rows have a step.
        exact: numbers of float32 arguments whose conversion to bfloat16 is exact.
    """

    jaxpr: ClosedJaxpr
    consts: int
    carry: int
    length: int
    reverse: bool
    row_axes: int
    member_axes: int = 0
    masked: bool = False
    exact: tuple[int, ...] = ()


def _scan(options: Options, *arguments: Any) -> list[Any]:
    """Return the results of the loop by `lax.scan`."""
    consts, carry, inputs = _split(options, arguments)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        results = eval_jaxpr(
            options.jaxpr.jaxpr, options.jaxpr.consts, *consts, *carry, *inputs
        )
        return results[: options.carry], results[options.carry :]

    carry, results = lax.scan(
        step, carry, inputs, length=options.length, reverse=options.reverse
    )
    return [*carry, *results]


def _split(options: Options, arguments: Sequence[Any]) -> tuple[Any, Any, Any]:
    first, second = options.consts, options.consts + options.carry
    every = list(arguments)[: len(options.jaxpr.jaxpr.invars)]
    return every[:first], every[first:second], every[second:]


# -- the call of the kernel ------------------------------------------------------------


def write_program(options: Options, avals: Sequence[Any]) -> programs.Program:
    """Return the program of a loop."""
    carry = avals[options.consts : options.consts + options.carry]
    if not carry or not options.length:
        raise Unsupported("a loop without steps")
    rows = carry[0].shape[: options.row_axes]
    if any(aval.shape[: options.row_axes] != rows for aval in carry):
        raise Unsupported("states with different rows")
    if any(0 in aval.shape for aval in avals):
        raise Unsupported("an empty array")
    results = options.jaxpr.out_avals
    kinds = [(a.shape, a.dtype) for a in carry]
    if [(a.shape, a.dtype) for a in results[: options.carry]] != kinds:
        raise Unsupported("a state that changes its shape or dtype")
    dtypes = {a.dtype for a in avals} - {jnp.dtype(bool)} | {a.dtype for a in results}
    if len(dtypes) > 1 or next(iter(dtypes)).name not in FUNCTIONS:
        names = ", ".join(sorted(dtype.name for dtype in dtypes))
        raise Unsupported(f"arrays of {names}")
    layout = Layout(tuple(rows), options.consts, options.carry, options.exact)
    return programs.write(
        options.jaxpr,
        layout,
        length=options.length,
        reverse=options.reverse,
        active=len(avals) - 1 if options.masked else None,
    )


def _call(options: Options, *arguments: Array) -> list[Array]:
    """Return the results of the loop by the kernel."""
    avals = [jax.typeof(argument) for argument in arguments]
    program = write_program(options, avals)
    carry = avals[options.consts : options.consts + options.carry]
    rows = carry[0].shape[: options.row_axes]
    arrays = list(arguments)
    for n, own in program.broadcast:
        is_input = n >= options.consts + options.carry
        arrays[n] = broadcast_rows(arrays[n], own, rows, first=int(is_input))
    for n in program.members_first:
        arrays[n] = jnp.moveaxis(arrays[n], 0, program.member_axes)
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in carry]
    for aval in options.jaxpr.out_avals[options.carry :]:
        shape = list(aval.shape)
        shape.insert(program.member_axes, options.length)
        structs.append(jax.ShapeDtypeStruct(shape, aval.dtype))
    results = jax.ffi.ffi_call(TARGETS[carry[0].dtype.name], structs)(
        *arrays, program=program.integers, constants=program.constants
    )
    results = match_varying_axes(*arguments[:1], *results)[1:]
    by_step = results[options.carry :]
    by_step = [jnp.moveaxis(result, program.member_axes, 0) for result in by_step]
    return [*results[: options.carry], *by_step]


def broadcast_rows(
    array: Array, own: Sequence[int], rows: Sequence[int], *, first: int
) -> Array:
    """Return an array with all axes of rows, from position `first` on."""
    missing = [first + n for n in range(len(rows)) if n not in own]
    array = jnp.expand_dims(array, missing)
    last = first + len(rows)
    shape = *array.shape[:first], *rows, *array.shape[last:]
    return jnp.broadcast_to(array, shape)


# -- the primitive -----------------------------------------------------------------


def _results(*avals: Any, **parameters: Any) -> list[Any]:
    options = Options(**parameters)
    like = avals[options.consts]  # all vary over the same axes of a mesh
    found = []
    for n, aval in enumerate(options.jaxpr.out_avals):
        shape = aval.shape if n < options.carry else (options.length, *aval.shape)
        found.append(like.update(shape=shape, dtype=aval.dtype, weak_type=False))
    return found


loop = Primitive("compiled_scan")
loop.multiple_results = True
loop.def_abstract_eval(_results)


@functools.partial(jax.jit, static_argnames=Options._fields)
def _run(*arguments: Any, **parameters: Any) -> list[Any]:
    return loop.bind(*arguments, **parameters)


loop.def_impl(_run)


def _lower(ctx: Any, *arguments: Any, **parameters: Any) -> Any:
    options = Options(**parameters)
    is_export = ctx.module_context.lowering_parameters.for_export
    symbolic = any(not isinstance(n, int) for a in ctx.avals_in for n in a.shape)
    # XLA cannot partition the call over the devices of an automatic mesh.
    devices = getattr(ctx.module_context.axis_context, "num_devices", None) or 1
    function = _call
    if is_export or symbolic or devices > 1:
        function = _scan
    else:
        try:
            write_program(options, ctx.avals_in)
        except Unsupported:
            function = _scan
    return mlir.lower_fun(functools.partial(function, options), multiple_results=True)(
        ctx, *arguments
    )


def _lower_as_scan(ctx: Any, *arguments: Any, **parameters: Any) -> Any:
    function = functools.partial(_scan, Options(**parameters))
    return mlir.lower_fun(function, multiple_results=True)(ctx, *arguments)


mlir.register_lowering(loop, _lower_as_scan)
mlir.register_lowering(loop, _lower, platform="cpu")


def _jvp(primals: Any, tangents: Any, **parameters: Any) -> tuple[Any, Any]:
    tangents = [None if type(t) is ad.Zero else zero_to_none(t) for t in tangents]
    function = functools.partial(_scan, Options(**parameters))
    results, found = jvp(lambda *a: function(*a), tuple(primals), tuple(tangents))
    return results, [instantiate(r, t) for r, t in zip(results, found, strict=True)]


ad.primitive_jvps[loop] = _jvp


def _transpose(cotangents: Any, *arguments: Any, **parameters: Any) -> list[Any]:
    """Run the transposed step in the other direction.

    The cotangents of the consts are sums over the steps, and are carried as well.
    """
    options = Options(**parameters)
    linear = [ad.is_undefined_primal(a) for a in arguments]
    of_const, in_carry, of_input = _split(options, linear)
    of_carry = [True] * len(in_carry)  # a known tangent, such as zero, is one of them
    avals = [a.aval if ad.is_undefined_primal(a) else jax.typeof(a) for a in arguments]
    const_avals, carry_avals, input_avals = _split(options, avals)
    active = arguments[-1] if options.masked else None
    outputs = _results(*avals, **parameters)
    cts = [
        jnp.zeros(out.shape, out.dtype) if type(ct) is ad.Zero else ct
        for ct, out in zip(cotangents, outputs, strict=True)
    ]
    ct_carry, ct_results = cts[: options.carry], cts[options.carry :]
    given_consts, _, given_inputs = _split(options, arguments)
    known_consts = _unchosen(of_const, given_consts)
    known_inputs = _unchosen(of_input, given_inputs)

    def structs(avals: Any, chosen: Any, drop: bool) -> list[Any]:
        found = [a for a, is_linear in zip(avals, chosen, strict=True) if is_linear]
        return [
            jax.ShapeDtypeStruct(a.shape[1:] if drop else a.shape, a.dtype)
            for a in found
        ]

    linear_structs = (
        structs(const_avals, of_const, False),
        structs(carry_avals, of_carry, False),
        structs(input_avals, of_input, True),
    )

    def step(consts: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        ct_carry, sums = carry
        ct_results, known = inputs

        def linear_step(d_consts: Any, d_carry: Any, d_inputs: Any) -> Any:
            return eval_jaxpr(
                options.jaxpr.jaxpr,
                options.jaxpr.consts,
                *_merge(of_const, d_consts, consts),
                *d_carry,
                *_merge(of_input, d_inputs, known),
            )

        # A linear function has the same transpose everywhere, also at zero.
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), linear_structs)
        leaves, tree = jax.tree.flatten(zeros)
        varying = match_varying_axes(ct_carry[0], *leaves)[1:]
        _, transposed = jax.vjp(linear_step, *jax.tree.unflatten(tree, varying))
        d_consts, d_carry, d_inputs = transposed([*ct_carry, *ct_results])
        return (d_carry, [s + d for s, d in zip(sums, d_consts, strict=True)]), d_inputs

    zeros = [jnp.zeros(a.shape, a.dtype) for a in linear_structs[0]]
    sums = match_varying_axes(ct_carry[0], *zeros)[1:]
    arguments = known_consts, (list(ct_carry), sums), (list(ct_results), known_inputs)
    is_exact = [n in options.exact for n in range(len(linear))]
    exact_consts, _, exact_inputs = _split(options, is_exact)
    try:
        (d_carry, d_consts), d_inputs = _bind_loop(
            step,
            arguments,
            [
                *_unchosen(of_const, exact_consts),
                *[False] * (len(ct_carry) + len(sums) + len(ct_results)),
                *_unchosen(of_input, exact_inputs),
            ],
            active=active,
            length=options.length,
            reverse=not options.reverse,
            row_axes=options.row_axes,
            member_axes=options.member_axes,
        )
    except Unsupported:
        (d_carry, d_consts), d_inputs = _plain_scan(
            step, *arguments, length=options.length, reverse=not options.reverse
        )
    return [
        *_merge(of_const, d_consts, [None] * len(known_consts)),
        *(d if linear else None for d, linear in zip(d_carry, in_carry, strict=True)),
        *_merge(of_input, d_inputs, [None] * len(known_inputs)),
        *([None] * options.masked),
    ]


def _plain_scan(
    step: Step,
    consts: Any,
    carry: Any,
    inputs: Any,
    *,
    length: int,
    reverse: bool,
) -> Any:
    return lax.scan(
        functools.partial(step, consts), carry, inputs, length=length, reverse=reverse
    )


def _unchosen(chosen: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    return [v for v, is_chosen in zip(values, chosen, strict=True) if not is_chosen]


def _merge(chosen: Sequence[bool], ones: Sequence[Any], others: Sequence[Any]) -> list:
    first, second = iter(ones), iter(others)
    return [next(first) if is_chosen else next(second) for is_chosen in chosen]


ad.primitive_transposes[loop] = _transpose


def _batch(arguments: Any, axes: Any, **parameters: Any) -> tuple[Any, Any]:
    """Add an axis of rows: in front, of members, if consts have it, or after these."""
    options = Options(**parameters)
    size = next(
        argument.shape[axis]
        for argument, axis in zip(arguments, axes, strict=True)
        if axis is not None
    )
    last = len(arguments) - 1
    shares = any(axes[n] is not None for n in range(options.consts))
    first = 0 if shares else options.member_axes
    arrays, at = [], []
    for n, (argument, axis) in enumerate(zip(arguments, axes, strict=True)):
        is_carry = 0 <= n - options.consts < options.carry
        is_input = n >= options.consts + options.carry
        is_mask = options.masked and n == last
        # Members of a population read the same data.
        needs_axis = is_carry or is_mask or (is_input and shares)
        position = first + is_input if is_carry or is_input else 0
        if axis is not None:
            argument = jnp.moveaxis(argument, axis, position)
        elif needs_axis:
            argument = jnp.expand_dims(argument, position)
            shape = list(argument.shape)
            shape[position] = size
            argument = jnp.broadcast_to(argument, shape)
        at.append(position - is_input if axis is not None or needs_axis else None)
        arrays.append(argument)
    function = functools.partial(eval_jaxpr, options.jaxpr.jaxpr, options.jaxpr.consts)
    structs = [
        jax.ShapeDtypeStruct(
            a.shape[1:] if n >= options.consts + options.carry else a.shape, a.dtype
        )
        for n, a in enumerate(arrays)
    ]
    number = len(options.jaxpr.jaxpr.invars)
    batched = jax.vmap(lambda *a: function(*a), in_axes=at[:number], out_axes=first)
    closed = jax.make_jaxpr(batched)(*structs[:number])
    changed = options._replace(
        jaxpr=closed,
        row_axes=options.row_axes + 1,
        member_axes=options.member_axes + shares,
    )
    results = loop.bind(*arrays, **changed._asdict())
    carry, by_step = results[: options.carry], results[options.carry :]
    if shares:  # the order in which the kernel writes the results of a population
        by_step = [jnp.moveaxis(result, 1, 0) for result in by_step]
    position = 0 if shares else first + 1
    return [*carry, *by_step], [first] * len(carry) + [position] * len(by_step)


batching.primitive_batchers[loop] = _batch
