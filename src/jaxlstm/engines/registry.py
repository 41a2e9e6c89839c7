"""Table of engines, the program they share, and modes that fit a memory budget."""

import functools
import importlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxlstm import masking
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, PerStep, State, project
from jaxlstm.cells.emit import Emit
from jaxlstm.construction import memo, shortest_lived
from jaxlstm.engines import functions, loops, memory, scan
from jaxlstm.engines.adjoint import engine as adjoint
from jaxlstm.engines.memory import Memory
from jaxlstm.engines.native import build
from jaxlstm.engines.native import engine as native
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Key, is_symbolic, replicate_like

Arrays = tuple[Params, Features, State, StepMask]


class Engine(Protocol):
    """Function that runs a cell over the steps of a sequence.

    At masked steps it may compute and emit anything, as long as the state is unchanged
    there: `run` replaces what is emitted by zeros.
    """

    def __call__(
        self,
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
    ) -> tuple[State, Any]:
        """Return the state after the last step, and what was emitted at each step.

        Args:
            cell: the cell.
            params: parameters, as returned by `cell.prepare` if there is one.
            xs: `[T, *b, D]`, zero at masked steps.
            per_step: values for each step that `cell.prepare` returned, or None.
            state: the state before the first step.
            steps: masked steps and resets.
            reverse: whether to run from the last step to the first.
            emit: function of the state and the gates; its results are stacked.
            checkpoint_every: steps to recompute at a time in the backward pass.

        Raises:
            NotImplementedError: the engine does not support the call; the message says
                why and what to use.
        """
        ...


def _kernel(module: str) -> Engine:
    """Return the engine of a module that is imported when the engine first runs.

    Kernels are used by name only, so most programs need no import of their bindings.
    """

    def run(*arguments: Any, **options: Any) -> tuple[State, Any]:
        engine: Engine = importlib.import_module(f"jaxlstm.engines.{module}").run
        return engine(*arguments, **options)

    return run


# Modes of the adjoint engine, whose loops "native" runs in a kernel. Those with a slash
# are used by name or to fit a budget.
MODES: dict[str, dict[str, Any]] = {
    "native": {"first": "rows"},
    "native/lean": {"first": "rows", "residuals": "states"},
    "adjoint": {},
    "adjoint/lean": {"residuals": "states"},
    "adjoint/rows_first": {"first": "rows"},
    "adjoint/weights_first": {"first": "weights"},
}
ENGINES: dict[str, Engine] = {
    **{
        name: functools.partial(
            native.run if name.startswith("native") else adjoint.run, **mode
        )
        for name, mode in MODES.items()
    },
    "scan": scan.run,
    "cudnn": _kernel("cudnn"),
}

# Engines to try in order if none is named. cuDNN's kernel has no forward mode, and when
# `jvp` reaches it, it is too late to choose another engine: it is used by name only.
DEFAULT = ("native", "adjoint", "scan")


class AllRefused(NotImplementedError):
    """No engine serves a call; `refusals` has the error of each by name."""

    def __init__(self, refusals: dict[str, NotImplementedError]) -> None:
        super().__init__("; ".join(map(str, refusals.values())))
        self.refusals = refusals


def first_of(names: tuple[str, ...]) -> Engine:
    """Return an engine that runs the first of these engines that serves the call.

    They are tried while the call is traced, so a compiled program has no trace of those
    that refuse. Equal arguments give the same object while the same kernels are built.
    """
    return _first_of(names, build.load_built() is None)


@functools.cache
def _first_of(names: tuple[str, ...], loaded: bool) -> Engine:
    del loaded  # part of the key: a kernel loaded later is used from then on

    def run(*arguments: Any, **options: Any) -> tuple[State, Any]:
        refusals: dict[str, NotImplementedError] = {}
        for name in names:
            try:
                return ENGINES[name](*arguments, **options)
            except NotImplementedError as refusal:
                refusals[name] = refusal
        raise AllRefused(refusals)

    return run


class Options(NamedTuple):
    """Options of a call of `unroll`, besides the engine.

    Attributes:
        reverse: whether to run from the last step to the first.
        emit: what to stack over time.
        checkpoint_every: steps to recompute at a time in the backward pass.
        budget: bytes that the gradient may use; None once the other options fit it.
        burn_in: number of steps at the beginning without outputs and gradient.
    """

    reverse: bool
    emit: Emit
    checkpoint_every: int | Literal["sqrt"] | None
    budget: float | None = None
    burn_in: int = 0


class Program(NamedTuple):
    """Static arguments of a compiled program.

    Attributes:
        engine: the engine.
        cell: the cell.
        emit: a function of `jl.emit`, or the operations of a function of a user.
        reverse: as in `Options`.
        checkpoint_every: as in `Options`.
        burn_in: as in `Options`.
    """

    engine: Engine
    cell: Cell
    emit: Emit | functions.Operations
    reverse: bool
    checkpoint_every: int | Literal["sqrt"] | None
    burn_in: int


BUILT_IN = (emits.hidden, emits.states, emits.trace, emits.nothing)


def run(
    engine: Engine,
    cell: Cell,
    options: Options,
    params: Params,
    xs: Features,
    state: State,
    steps: StepMask,
    key: Key | None,
) -> tuple[State, Any]:
    """Run an engine with padding replaced by zeros in its inputs and its outputs."""
    emit, closed_over = options.emit, []
    if emit not in BUILT_IN:
        step = functools.partial(_first_step, cell)
        types = jax.eval_shape(step, params, xs, state, key)
        emit, closed_over = functions.operations_of(emit, *types)
    every, burn_in = options.checkpoint_every, options.burn_in
    program = Program(engine, cell, emit, options.reverse, every, burn_in)
    return _compiled(program)(params, xs, state, steps, key, closed_over)


def _first_step(
    cell: Cell, params: Params, xs: Features, state: State, key: Key | None
) -> tuple[State, Any]:
    """Return the state and the gates of one step, for their types."""
    per_step = None
    xs = jnp.zeros((1, *xs.shape[1:]), xs.dtype) if xs.shape[0] == 0 else xs
    if cell.prepare is not None:
        params, per_step = cell.prepare(params, xs, key=key)
    x, per_step = jax.tree.map(lambda leaf: leaf[0], (xs, per_step))
    return cell.step(params, state, project(cell, params, x, per_step))


def _compiled(program: Program) -> Callable[..., tuple[State, Any]]:
    """Return the jitted `_run`, which is kept for as long as the cell."""
    programs = memo(shortest_lived(program.cell))
    if program not in programs:
        programs.setdefault(program, jax.jit(functools.partial(_run, program)))
    return programs[program]


def _run(
    program: Program,
    params: Params,
    xs: Features,
    state: State,
    steps: StepMask,
    key: Key | None,
    closed_over: functions.Arrays,
) -> tuple[State, Any]:
    """Run a program.

    Args:
        program: the program.
        params: as for `Engine`, before `cell.prepare`.
        xs: as for `Engine`, with any numbers in the padding.
        state: as for `Engine`.
        steps: as for `Engine`.
        key: random key for `cell.prepare`.
        closed_over: the arrays that `program.emit` closes over.
    """
    emit = program.emit
    if isinstance(emit, functions.Operations):
        emit = emit.with_arrays(closed_over)
    params, xs, per_step = _prepared(program.cell, params, xs, steps, key)
    if program.burn_in:
        xs, per_step, state, steps = _burn_in(
            program, params, xs, per_step, state, steps
        )
    state, emitted = program.engine(
        program.cell,
        params,
        xs,
        per_step,
        state,
        steps,
        reverse=program.reverse,
        emit=emit,
        checkpoint_every=program.checkpoint_every,
    )
    return _masked(state, emitted, steps)


def run_both_directions(
    cell: Cell, options: Options, calls: Sequence[tuple[Arrays, Key | None]]
) -> list[tuple[State, Any]]:
    """Run a cell in both directions over sequences of the same shape, by the kernel.

    The two are a population of two, whose members the kernel runs on separate cores.

    Args:
        cell: the cell.
        options: `reverse` has no effect, `emit` is a function of `jl.emit`, and
            `burn_in` is 0.
        calls: the arrays and the key of the forward and of the backward direction.

    Raises:
        NotImplementedError: the kernel cannot run the cell.
    """
    programs, key = memo(shortest_lived(cell)), (run_both_directions, cell, options)
    if key not in programs:
        run = jax.jit(functools.partial(_run_both_directions, cell, options))
        programs.setdefault(key, run)
    return programs[key](calls)


def _run_both_directions(
    cell: Cell, options: Options, calls: Sequence[tuple[Arrays, Key | None]]
) -> list[tuple[State, Any]]:
    inputs = []
    for (params, xs, state, steps), key in calls:
        prepared, *by_step = _prepared(cell, params, xs, steps, key)
        inputs.append((prepared, state, (*by_step, steps.active, steps.resets)))
    (forward, (params, state, by_step)) = inputs
    backward = params, state, _reverse_time(by_step)

    def run(params: Params, state: State, by_step: Any) -> tuple[State, Any]:
        xs, per_step, active, resets = by_step
        return ENGINES["native"](
            cell,
            params,
            xs,
            per_step,
            state,
            StepMask(active, resets, None),
            reverse=False,
            emit=options.emit,
            checkpoint_every=options.checkpoint_every,
        )

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), forward, backward)
    states, emitted = jax.vmap(run)(*both)
    results = []
    for n, ((*_, steps), _) in enumerate(calls):
        state, of_steps = jax.tree.map(operator.itemgetter(n), (states, emitted))
        of_steps = _reverse_time(of_steps) if n == 1 else of_steps
        results.append(_masked(state, of_steps, steps))
    return results


def _reverse_time(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.flip(leaf, axis=0), tree)


def _masked(state: State, emitted: Any, steps: StepMask) -> tuple[State, Any]:
    """Return the results, with zeros at masked steps and NaN for invalid lengths."""
    emitted = masking.mask_outputs(emitted, steps)
    if steps.invalid_length is not None:
        state = masking.nan_rows(state, steps.invalid_length)
    return state, emitted


def _burn_in(
    program: Program,
    params: Params,
    xs: Features,
    per_step: PerStep,
    state: State,
    steps: StepMask,
) -> tuple[Features, PerStep, State, StepMask]:
    """Run the first steps without a gradient; return what the other steps need."""
    count, length = program.burn_in, xs.shape[0]
    first, rest = slice(count), slice(count, None)
    if program.reverse:
        first, rest = slice(length - count, None), slice(length - count)

    def at(chosen: slice) -> tuple[Features, PerStep, StepMask]:
        arrays = (xs, per_step, steps.active, steps.resets)
        xs_there, values, active, resets = jax.tree.map(
            lambda leaf: leaf[chosen], arrays
        )
        return xs_there, values, StepMask(active, resets, steps.invalid_length)

    own_xs, own_per_step, own_steps = at(first)
    params, own_xs, own_per_step, state = jax.lax.stop_gradient(
        (params, own_xs, own_per_step, state)
    )
    state, _ = program.engine(
        program.cell,
        params,
        own_xs,
        own_per_step,
        state,
        own_steps,
        reverse=program.reverse,
        emit=emits.nothing,
        checkpoint_every=None,
    )
    xs, per_step, steps = at(rest)
    return xs, per_step, jax.lax.stop_gradient(state), steps


def _prepared(
    cell: Cell, params: Params, xs: Features, steps: StepMask, key: Key | None
) -> tuple[Params, Features, PerStep]:
    """Zero the padding and call `cell.prepare`."""
    xs, per_step = masking.zero_inactive(xs, steps), None
    params = replicate_like(xs, params)
    if cell.prepare is not None:
        params, per_step = cell.prepare(params, xs, key=key)
    return params, xs, per_step


def describe(
    name: str, cell: Cell, options: Options, arrays: Arrays, key: Key | None
) -> str:
    """Describe what an engine stores for the backward pass, and how it multiplies."""
    every, parts = options.checkpoint_every, []
    length = arrays[1].shape[0]
    if every is not None and not is_symbolic([length]):
        size = loops.block_size(length - options.burn_in, every)
        parts = [f"recomputes {size} steps at a time in the backward pass"]
    if name == "cudnn":
        return "stores what its kernel needs"
    if name not in MODES:
        return "; ".join([*parts, "stores what automatic differentiation needs"])

    def describe_mode(
        params: Params, xs: Features, state: State, steps: StepMask
    ) -> None:
        prepared = _prepared(cell, params, xs, steps, key)
        mode = adjoint.mode(
            cell, *prepared, state, steps, emit=options.emit, **MODES[name]
        )
        compiled = "loops in a compiled kernel" if name.startswith("native") else ""
        parts.append(
            f"{str(mode).partition(';')[0]}; {compiled}" if compiled else str(mode)
        )

    jax.eval_shape(describe_mode, *arrays)
    return "; ".join(parts)


# -- memory budget ---------------------------------------------------------------------


def gradient_memory(
    engine: Engine, cell: Cell, options: Options, arrays: Arrays, key: Key | None
) -> Memory:
    """Estimate the memory of the results and their gradient.

    Args:
        engine: the engine.
        cell: the cell.
        options: its options.
        arrays: arrays or `jax.ShapeDtypeStruct`s.
        key: one random key, or None.
    """

    def forward(inputs: Any, steps: StepMask, key: Key | None) -> tuple[Any, Any]:
        params, xs, state = inputs
        results = run(engine, cell, options, params, xs, state, steps, key)
        leaves = jax.tree.leaves(results)
        return [leaf for leaf in leaves if _is_inexact(leaf)], results

    def forward_and_backward(
        inputs: Any, steps: StepMask, key: Key | None, cotangents: Any
    ) -> Any:
        run_forward = functools.partial(forward, steps=steps, key=key)
        _, pullback, results = jax.vjp(run_forward, inputs, has_aux=True)
        return results, pullback(cotangents)

    *inputs, steps = arrays
    cotangents, _ = jax.eval_shape(forward, inputs, steps, key)
    return memory.estimate(forward_and_backward, inputs, steps, key, cotangents)


def _is_inexact(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def fit_budget(
    name: str, cell: Cell, options: Options, arrays: Arrays, key: Key | None
) -> tuple[str, Options]:
    """Return the fastest mode of an engine whose gradient fits the budget, if any.

    The memory is estimated without axes added by an outer `vmap`, and in total over
    all devices that share the rows.

    Returns:
        `(name, options)` of the mode, the options without a budget.

    Raises:
        ValueError: no mode fits the budget.
    """
    budget = options.budget
    if budget is None:
        return name, options
    if is_symbolic(arrays[1].shape):  # the memory is not known
        return name, options._replace(budget=None)
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    least = math.inf
    for mode, every in _modes(name, structs):
        candidate = options._replace(checkpoint_every=every, budget=None)
        try:
            found = gradient_memory(ENGINES[mode], cell, candidate, structs, key)
        except NotImplementedError:
            if every is None and mode == name:
                raise
            continue  # the engine does not support checkpoints
        least = min(least, found.temporaries)
        if found.temporaries <= budget:
            return mode, candidate
    raise ValueError(
        f"checkpoint_every: got {memory.show(budget)}, expected at least "
        f"{memory.show(least)} for the temporaries of the gradient; allow more memory "
        "or use fewer rows."
    )


def _modes(
    name: str, arrays: Arrays
) -> Iterator[tuple[str, int | Literal["sqrt"] | None]]:
    """Yield modes from the fastest to the one with the least memory.

    First all residuals are stored, then states only, then every k-th state with k from
    large to small.
    """
    yield name, None
    if f"{name}/lean" in ENGINES:
        yield f"{name}/lean", None
    length = len(arrays[1])
    root = max(math.isqrt(length), 1)
    for power in range((length // root).bit_length(), -3, -1):
        every = loops.block_size(length, max(int(root * 2.0**power), 1))
        if every <= length // 2:
            yield name, every
