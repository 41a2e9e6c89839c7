"""The front door to a whole sequence: `unroll`, and `explain`, which says how.

One door, many engines, one signature. An engine that cannot serve refuses with
`NotImplementedError` and a sentence; the door tries the next one.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxlstm import arguments, sequences
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Each, Params, State
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import adjoint, scan
from jaxlstm.sequences import Steps
from jaxlstm.shapes import Features, Key


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
        each: Each,
        state: State,
        steps: Steps,
        *,
        reverse: bool,
        emit: Emit,
        checkpoint_every: int | Literal["sqrt"] | None,
    ) -> tuple[State, Any]:
        """The state after the last step, and what was emitted at each."""
        ...


# In the order in which they are tried.
ENGINES: dict[str, Engine] = {"adjoint": adjoint.run, "scan": scan.run}


def unroll(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    emit: Emit = emits.hidden,
    key: Key | None = None,
    checkpoint_every: int | Literal["sqrt"] | None = None,
    engine: str | Sequence[str] | None = None,
) -> tuple[State, Any]:
    """Run a cell over a sequence: the loop

        for t in range(T):
            state, gates = cell.step(params, state, cell.project(params, xs[t]))
            emitted[t] = emit(state, gates)

    compiled, for any number of sequences at a time. A step that does not happen
    leaves the state untouched and emits zeros, and what stands in its place in xs
    never matters, NaN included. Splitting a sequence anywhere and carrying the state
    on gives the result of the whole.

    Arguments:
        cell, params: the cell, and the parameters that its `init` drew.
        xs: `[T, *b, D]`, time first. Its dtype is the dtype of the products and of the
            outputs; sums over time are kept in float32 or wider. All dtypes are in
            the table at the head of `jaxlstm.shapes`.
        state: where to begin; None for the cell's initial state. A number stands for
            an array of it, as in `LSTMState(0.0, 0.0)`.
        lengths: integers `[*b]`: row b has lengths[b] steps, the rest is padding.
        mask: booleans `[T, *b]`: False where the step does not happen.
        resets: booleans `[T, *b]`: True to begin again from the cell's initial state
            before the step.
        reverse: run from the last step to the first; outputs stay at their own t.
        emit: what to stack over time, `(state, gates) -> pytree`; see `jl.emit`.
        key: noise for stochastic cells; no key, no noise, and the same key, the same
            noise.
        checkpoint_every: remember every k-th state and compute the rest again on the
            way back; `"sqrt"` chooses k = √T. For what does not fit into memory.
        engine: None for the first that accepts, a name, or several names to try:
            `"adjoint"`, whose gradients take each weight in one product over all
            steps, or `"scan"`, the reference, whose single steps have the bits of the
            whole sequence.

    Returns: `(state, emitted)`, the carry first as in `lax.scan`.

    Errors: `ValueError` for what does not fit together, before anything is compiled;
    `TypeError` for a key that is none; `NotImplementedError` where the engine asked
    for refuses, and an `ExceptionGroup` of them where several do.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> xs = jnp.ones((7, 2, 3))
    >>> state, hs = jl.unroll(cell, params, xs, lengths=jnp.array([7, 4]))
    >>> hs.shape, bool((hs[4:, 1] == 0).all()), bool((state.h[1] == hs[3, 1]).all())
    ((7, 2, 5), True, True)
    """
    key = sequences.as_key("unroll", key)
    refusals: dict[str, NotImplementedError] = {}
    with sequences.speaking("unroll"):
        names, options = _names(engine), _options(reverse, emit, checkpoint_every)
        found = arguments.arrays(cell, params, xs, state, lengths, mask, resets)
        for name in names:
            try:
                with arguments.in_words(cell, found):
                    return _run(ENGINES[name], cell, options, *found, key)
            except NotImplementedError as refusal:
                refusals[name] = refusal
    raise _all_refused(refusals)


class Explanation(NamedTuple):
    """Which engine would serve a call, and why each other one would not.

    engine    the engine that serves, None if none does
    reasons   a sentence for each engine that was asked or would be
    """

    engine: str | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        width = max(len(name) for name in self.reasons)
        return "\n".join(
            f"{'->' if name == self.engine else '  '} {name:{width}}  {reason}"
            for name, reason in self.reasons.items()
        )


def explain(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    emit: Emit = emits.hidden,
    key: Key | None = None,
    checkpoint_every: int | Literal["sqrt"] | None = None,
    engine: str | Sequence[str] | None = None,
) -> Explanation:
    """Which engine `unroll` would take for the same arguments; nothing is unrolled.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> print(jl.explain(cell, params, jnp.ones((7, 2, 3))))
    -> adjoint  serves
       scan     would serve, but adjoint comes first
    """
    key = sequences.as_key("explain", key)
    chosen, reasons = None, {}
    with sequences.speaking("explain"):
        asked, options = _names(engine), _options(reverse, emit, checkpoint_every)
        found = arguments.arrays(cell, params, xs, state, lengths, mask, resets)
        for name in [*asked, *(name for name in ENGINES if name not in asked)]:
            run = functools.partial(_run, ENGINES[name], cell, options)
            try:
                with arguments.in_words(cell, found):
                    jax.eval_shape(run, *found, key)
            except NotImplementedError as refusal:
                reasons[name] = str(refusal)
                continue
            if name not in asked:
                reasons[name] = "would serve, but was not asked for"
            elif chosen is None:
                chosen, reasons[name] = name, "serves"
            else:
                reasons[name] = f"would serve, but {chosen} comes first"
    return Explanation(chosen, reasons)


class _Options(NamedTuple):
    """What a program is compiled for, besides the cell and the shapes."""

    reverse: bool
    emit: Emit
    checkpoint_every: int | Literal["sqrt"] | None


@functools.partial(jax.jit, static_argnames=("engine", "cell", "options"))
def _run(
    engine: Engine,
    cell: Cell,
    options: _Options,
    params: Params,
    xs: Features,
    state: State,
    steps: Steps,
    key: Key | None,
) -> tuple[State, Any]:
    """What every engine shares: padding goes in as zeros and comes out as zeros."""
    xs, each = sequences.silence(xs, steps), None
    if cell.prepare is not None:
        params, each = cell.prepare(params, xs, key=key)
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
    emitted = sequences.settle(emitted, steps)
    if steps.lost is not None:
        state = sequences.poison(state, steps.lost)
    return state, emitted


# -- everything that a caller can get wrong, found before an engine is entered ---


def _options(
    reverse: bool, emit: Emit, checkpoint_every: int | Literal["sqrt"] | None
) -> _Options:
    if not isinstance(reverse, bool | np.bool_):
        raise ValueError(f"reverse is {reverse!r}; True or False is needed.")
    if not callable(emit):
        raise ValueError(
            f"emit is {emit!r}; a function (state, gates) -> pytree is needed, "
            "such as jl.emit.hidden, states, trace or nothing."
        )
    arguments.check_hashable("emit", emit)
    return _Options(bool(reverse), emit, _block(checkpoint_every))


def _block(
    checkpoint_every: int | Literal["sqrt"] | None,
) -> int | Literal["sqrt"] | None:
    if checkpoint_every is None or checkpoint_every == "sqrt":
        return checkpoint_every
    whole = isinstance(checkpoint_every, int | np.integer)
    if not whole or isinstance(checkpoint_every, bool) or checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every is {checkpoint_every!r}; a number of steps from "
            '1, "sqrt" or None is needed.'
        )
    return int(checkpoint_every)


def _names(engine: str | Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(ENGINES) if engine is None else engine
    if isinstance(names, str) or not isinstance(names, Sequence):
        names = (names,)
    if not names:
        raise ValueError("engine is empty; name one, or leave it out.")
    for name in names:
        if name not in tuple(ENGINES):
            raise ValueError(
                f"engine={name!r} is unknown; the engines are {', '.join(ENGINES)}."
            )
    return tuple(names)


def _all_refused(refusals: dict[str, NotImplementedError]) -> Exception:
    if len({str(refusal) for refusal in refusals.values()}) == 1:
        return next(iter(refusals.values()))  # such as one out of the caller's step
    return ExceptionGroup("unroll: every engine refuses", list(refusals.values()))
