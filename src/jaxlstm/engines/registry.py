"""What a call of `unroll` asks for: which engine, how, and within how much memory.

The table of the engines is here, and the program that all of them share.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxlstm import masking
from jaxlstm.cells.base import Cell, Params, PerStep, State
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import adjoint, cudnn, loops, memory, native, scan
from jaxlstm.engines.memory import Memory
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Key

Arrays = tuple[Params, Features, State, StepMask]


class Engine(Protocol):
    """Carries a state through the steps of a sequence.

    It may compute what it likes at the steps that do not happen, as long as the state
    passes them untouched: the door silences what is emitted there.

    Errors: `NotImplementedError` with a sentence where it cannot serve.
    """

    def __call__(
        self,
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
    ) -> tuple[State, Any]:
        """The state after the last step, and what was emitted at each."""
        ...


# The modes of the fast engine; all but the first are taken only when asked for by name,
# or to keep within a budget.
MODES: dict[str, dict[str, Any]] = {
    "adjoint": {},
    "adjoint/lean": {"residuals": "states"},
    "adjoint/rows_first": {"first": "rows"},
    "adjoint/weights_first": {"first": "weights"},
}
ENGINES: dict[str, Engine] = {
    **{name: functools.partial(adjoint.run, **mode) for name, mode in MODES.items()},
    "scan": scan.run,
    "cudnn": cudnn.run,
    "native": native.run,
}

# In the order in which they are tried. The kernels have no forward mode, of which they
# learn too late to refuse: they serve by name.
DEFAULT = ("adjoint", "scan")


class Options(NamedTuple):
    """What a program is compiled for, besides the cell and the shapes.

    `budget` is in bytes, and None once the rest keeps within it.
    """

    reverse: bool
    emit: Emit
    checkpoint_every: int | Literal["sqrt"] | None
    budget: float | None = None


@functools.partial(jax.jit, static_argnames=("engine", "cell", "options"))
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
    """What every engine shares: padding goes in as zeros and comes out as zeros."""
    params, xs, each = _prepared(cell, params, xs, steps, key)
    state, emitted = engine(
        cell,
        params,
        xs,
        each,
        state,
        steps,
        reverse=options.reverse,
        emit=options.emit,
        checkpoint_every=options.checkpoint_every,
    )
    emitted = masking.mask_outputs(emitted, steps)
    if steps.invalid_length is not None:
        state = masking.nan_rows(state, steps.invalid_length)
    return state, emitted


def _prepared(
    cell: Cell, params: Params, xs: Features, steps: StepMask, key: Key | None
) -> tuple[Params, Features, PerStep]:
    """What the cell makes of its arguments before the first step."""
    xs, each = masking.zero_inactive(xs, steps), None
    if cell.prepare is not None:
        params, each = cell.prepare(params, xs, key=key)
    return params, xs, each


def described(
    name: str, cell: Cell, options: Options, arrays: Arrays, key: Key | None
) -> str:
    """What the engine remembers for the way back, and how it multiplies, in words."""
    every, words = options.checkpoint_every, []
    if every is not None:
        size = loops.block_size(len(arrays[1]), every)
        words = [f"computes {size} steps at a time again on the way back"]
    if name in ("cudnn", "native"):
        return "remembers what its kernel needs"
    if name not in MODES:
        return "; ".join([*words, "remembers what automatic differentiation needs"])

    def look(params: Params, xs: Features, state: State, steps: StepMask) -> None:
        prepared = _prepared(cell, params, xs, steps, key)
        mode = adjoint.mode(
            cell, *prepared, state, steps, emit=options.emit, **MODES[name]
        )
        words.append(str(mode))

    jax.eval_shape(look, *arrays)
    return "; ".join(words)


# -- within how much memory -----------------------------------------------------------


def gradient_memory(
    engine: Engine, cell: Cell, options: Options, arrays: Arrays, key: Key | None
) -> Memory:
    """What the results and their gradient take, for arrays or their types."""

    program = functools.partial(run, engine, cell, options)

    def forward(inputs: Any, steps: StepMask, key: Key | None) -> tuple[Any, Any]:
        answer = program(*inputs, steps, key)
        leaves = jax.tree.leaves(answer)
        return [leaf for leaf in leaves if _is_real(leaf)], answer

    def both(inputs: Any, steps: StepMask, key: Key | None, dots: Any) -> Any:
        run_forward = functools.partial(forward, steps=steps, key=key)
        _, back, answer = jax.vjp(run_forward, inputs, has_aux=True)
        return answer, back(dots)

    *inputs, steps = arrays
    dots, _ = jax.eval_shape(forward, inputs, steps, key)
    return memory.estimate(both, inputs, steps, key, dots)


def _is_real(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def fitted(
    name: str, cell: Cell, options: Options, arrays: Arrays, key: Key | None
) -> tuple[str, Options]:
    """The engine's mode and the options that keep within the budget, if there is one:
    the fastest of those that do, as far as `estimate` sees. Axes that an outer `vmap`
    adds, and devices that share the rows, it does not see.

    Errors: `ValueError` where nothing does.
    """
    budget = options.budget
    if budget is None:
        return name, options
    types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    least = math.inf
    for mode, every in _modes(name, types):
        wanted = options._replace(checkpoint_every=every, budget=None)
        try:
            found = gradient_memory(ENGINES[mode], cell, wanted, types, key)
        except NotImplementedError:
            if every is None and mode == name:
                raise
            continue  # an engine that computes nothing again
        least = min(least, found.temporaries)
        if found.temporaries <= budget:
            return mode, wanted
    raise ValueError(
        f"checkpoint_every is {memory.show(budget)}, and the gradient takes at "
        f"least {memory.show(least)} besides its arguments and results; give it that "
        "much, or fewer rows."
    )


def _modes(
    name: str, arrays: Arrays
) -> Iterator[tuple[str, int | Literal["sqrt"] | None]]:
    """From the fastest to the leanest: everything remembered, the states, every k-th of
    them with k from large to small.
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
