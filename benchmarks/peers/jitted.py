"""Shared by all contenders on JAX: compiled functions, and composed layers."""

import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Inputs, Weights
from benchmarks.peers.base import Contender, Prepared, Program

Array = jax.Array


class Model(NamedTuple):
    """A whole model in a library's own layout.

    apply       `(params, xs, *extra) -> hs`
    params, xs, d_hs, extra     its arguments; extra has no gradient
    time_axis   the time axis of xs and hs
    """

    apply: Callable[..., Array]
    params: Any
    xs: Array
    d_hs: Array
    extra: tuple[Any, ...]
    time_axis: int = 0


class Layers(NamedTuple):
    """Functions of a library that run one layer in one direction, and one step.

    load        `(case, weights) -> params`
    run         `(case, params, xs, lengths or None, reverse) -> hs`; each output is at
                the time of its input, also in reverse
    start       `case -> state` before the first step
    step        `(case, params, state, x [B, D]) -> state, h`
    time_axis   1 for libraries that put the batch first
    """

    load: Callable[[Case, Weights], Any]
    run: Callable[[Case, Any, Array, Array | None, bool], Array]
    start: Callable[[Case], Any]
    step: Callable[[Case, Any, Any, Array], tuple[Any, Array]]
    time_axis: int


def contender(
    name: str, library: str, supports: Callable[[Case], str | None], layers: Layers
) -> Contender:
    """Return the contender that stacks these layers, also in both directions."""
    return Contender(
        name,
        library,
        supports,
        lambda case, inputs: forward(layered_model(case, inputs, layers)),
        lambda case, inputs: training(layered_model(case, inputs, layers)),
        lambda case, inputs: single_step(case, inputs, layers),
    )


def layered_model(case: Case, inputs: Inputs, layers: Layers) -> Model:
    """Return the model of a case; outputs of both directions are concatenated."""
    params = [
        [layers.load(case, direction) for direction in directions]
        for directions in inputs.layers
    ]
    params = jax.tree.map(jnp.asarray, params)

    def apply(params: Any, hs: Array, *lengths: Array) -> Array:
        counts = lengths[0] if lengths else None
        for directions in params:
            both = (
                layers.run(case, direction, hs, counts, bool(n))
                for n, direction in enumerate(directions)
            )
            hs = jnp.concatenate(list(both), axis=-1)
        return hs

    xs, d_hs = (
        jnp.asarray(array.swapaxes(0, layers.time_axis))
        for array in (inputs.xs, inputs.d_hs)
    )
    extra = () if inputs.lengths is None else (jnp.asarray(inputs.lengths),)
    return Model(apply, params, xs, d_hs, extra, layers.time_axis)


def forward(model: Model) -> Prepared:
    """Return the program of the outputs."""
    arguments = (model.params, model.xs, *model.extra)
    return Prepared(lambda: program(model.apply, *arguments), time_axis=model.time_axis)


def training(model: Model) -> Prepared:
    """Return the program of the gradients of parameters and inputs."""

    arguments = (model.params, model.xs, model.d_hs, *model.extra)
    return Prepared(
        lambda: program(_gradients(model), *arguments), time_axis=model.time_axis
    )


def training_in_turn(model: Model) -> Prepared:
    """Return the program of the gradients of each member, one after another.

    Args:
        model: the model of one member, with arrays that have a leading axis of members.
    """
    stacked = (model.params, model.xs, model.d_hs)
    each = [jax.tree.map(operator.itemgetter(n), stacked) for n in range(len(model.xs))]

    def compiled() -> Program:
        found, seconds = _compiled(_gradients(model), *each[0])

        def run() -> Any:
            return [jax.block_until_ready(found(*arguments)) for arguments in each]

        return Program(run, trace_seconds=seconds)

    return Prepared(compiled)


def _gradients(model: Model) -> Callable[..., Any]:
    def gradients(params: Any, xs: Array, d_hs: Array, *extra: Any) -> Any:
        _, pull = jax.vjp(
            lambda params, xs: model.apply(params, xs, *extra), params, xs
        )
        return pull(d_hs)

    return gradients


def single_step(case: Case, inputs: Inputs, layers: Layers) -> Prepared:
    """Return the program of one step from the last state; it waits for the result."""
    params = jax.tree.map(jnp.asarray, layers.load(case, inputs.layers[0][0]))
    x = jnp.asarray(inputs.xs[0])

    def one(params: Any, state: Any, x: Array) -> tuple[Any, Array]:
        return layers.step(case, params, state, x)

    def compiled() -> Program:
        state = layers.start(case)
        found = jax.jit(lambda *a: one(*a)).lower(params, state, x).compile()

        def run() -> Array:
            nonlocal state
            state, h = found(params, state, x)
            return h.block_until_ready()

        return Program(run)

    return Prepared(compiled)


def program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compile a function for these arguments, without any cache."""
    compiled, seconds = _compiled(function, *arguments)

    def run() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    found = compiled.memory_analysis()
    if found is None:
        return Program(run, trace_seconds=seconds)
    total = found.argument_size_in_bytes + found.output_size_in_bytes
    total += found.temp_size_in_bytes - found.alias_size_in_bytes
    return Program(run, found.temp_size_in_bytes, total, seconds)


def _compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return the compiled function and the seconds that its tracing took."""
    start = time.perf_counter()
    traced = jax.jit(lambda *a: function(*a)).trace(*arguments)
    seconds = time.perf_counter() - start
    return traced.lower().compile(), seconds


def supports_plain_cells(
    library: str, *, lengths: bool
) -> Callable[[Case], str | None]:
    """Return `supports` for a library that has only the plain LSTM and the GRU."""
    names = {"layer_norm": "layer-normalised LSTM", "zoneout": "zoneout"}

    def supports(case: Case) -> str | None:
        if case.cell in names:
            return f"{library} has no {names[case.cell]}"
        if case.ragged and not lengths:
            return f"{library} takes no lengths"
        return None

    return supports
