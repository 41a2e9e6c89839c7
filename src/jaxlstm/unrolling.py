"""`unroll`, and `explain` and `estimate_memory`, which describe what it would do.

All engines have one signature. An engine that cannot serve a call raises
`NotImplementedError` with a reason, and `unroll` tries the next one.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxlstm import masking, validation
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.emit import Emit
from jaxlstm.construction import readable
from jaxlstm.engines import registry
from jaxlstm.engines.given_resets import GivenResets, with_given_resets
from jaxlstm.engines.memory import Memory
from jaxlstm.engines.registry import DEFAULT, ENGINES, Options
from jaxlstm.masking import StepMask
from jaxlstm.typing import Key, as_key_or_none, check_options, is_symbolic, show


class UnrollOptions(TypedDict, total=False):
    """Options of `unroll`, `explain` and `estimate_memory`; `unroll` documents them."""

    lengths: ArrayLike | None
    mask: ArrayLike | StepMask | None
    resets: ArrayLike | None
    reset_state: State | None
    burn_in: int
    reverse: bool
    emit: Emit
    key: Key | None
    checkpoint_every: int | str | None
    engine: str | Sequence[str] | None


DEFAULTS: dict[str, Any] = {
    "lengths": None,
    "mask": None,
    "resets": None,
    "reset_state": None,
    "burn_in": 0,
    "reverse": False,
    "emit": emits.hidden,
    "key": None,
    "checkpoint_every": None,
    "engine": None,
}


_with_signature = functools.partial(readable, options=DEFAULTS)


@_with_signature
def unroll(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    **options: Unpack[UnrollOptions],
) -> tuple[State, Any]:
    """Run a cell over a sequence, compiled, for any number of rows:

        for t in range(T):
            state, gates = cell.step(params, state, cell.project(params, xs[t]))
            emitted[t] = emit(state, gates)

    A masked or padded step keeps the state and emits zeros; the values of xs there,
    including NaN, have no effect. Splitting a sequence anywhere and carrying the state
    gives the result of the whole sequence.

    Args:
        cell: the cell.
        params: the parameters that `cell.init` returned.
        xs: `[T, *b, D]`, time first. Its dtype is the dtype of the products and of the
            outputs; sums over time are kept in float32 or wider. See `jaxlstm.typing`
            for a table of all dtypes.
            T and *b can be symbols of `jax.export`; `checkpoint_every` then has no
            effect, and the engines `"native"` and `"cudnn"` refuse.
        state: the state before the first step; None for the cell's initial state. A
            number stands for an array of that value, as in `LSTMState(0.0, 0.0)`.
        lengths: integers `[*b]`; row b has lengths[b] steps, the rest is padding.
        mask: booleans `[T, *b]`, False where the step is not executed; or a `StepMask`
            in place of lengths, mask and resets.
        resets: booleans `[T, *b]`, True to reset to the cell's initial state before
            the step.
        reset_state: the state to reset to instead: one for all steps, with leaves
            `[*b, H]` or `[H]`, or one for each step, `[T, *b, H]`. It is read where
            resets are True, and gets a gradient.
        burn_in: number of steps, in the order of the run, that update the state but
            emit nothing and have no gradient; outputs are `[T - burn_in, *b, H]`.
        reverse: run from the last step to the first; outputs stay at their own t.
        emit: function `(state, gates) -> pytree` of what to stack over time; see
            `jl.emit`.
        key: random key for cells that draw noise. No key, no noise; the same key, the
            same noise.
        checkpoint_every: keep every k-th state for the gradient and recompute the
            others; a divisor of T near k is preferred. `"sqrt"` sets k = √T. A memory
            budget such as `"2 GB"` selects the fastest mode whose gradient fits into
            it besides its arguments and results, as `estimate_memory` estimates them
            for this call: without axes added by an outer `vmap`, and in total over all
            devices that share the rows.
        engine: None for the first engine that accepts the call, a name, or several
            names to try in order. `"native"` runs the loops in a compiled CPU kernel,
            if it is built. `"adjoint"` computes each weight gradient as one product
            over all steps. `"scan"` is the reference, whose single steps have
            the bits of the whole sequence. `"adjoint/lean"` keeps states only,
            less than a third of the memory for long sequences. `"adjoint/rows_first"`
            and `"adjoint/weights_first"` fix the order of the recurrent products, which
            `"adjoint"` selects by size. `"cudnn"` is NVIDIA's kernel for the plain
            LSTM.

    Returns:
        `(state, emitted)`, the carry first as in `lax.scan`.

    Raises:
        ValueError: the arguments do not fit together; raised before compilation.
        TypeError: an option is unknown, or the key is not one random key.
        NotImplementedError: the requested engine cannot serve the call. If several
            engines refuse for different reasons, an `ExceptionGroup` of these errors.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> xs = jnp.ones((7, 2, 3))
        >>> state, hs = jl.unroll(cell, params, xs, lengths=jnp.array([7, 4]))
        >>> hs.shape, bool((hs[4:, 1] == 0).all()), bool((state.h[1] == hs[3, 1]).all())
        ((7, 2, 5), True, True)
    """
    with masking.error_prefix("unroll"):
        call = checked_call("unroll", cell, (params, xs, state), options)
        return run_call("unroll", call)


def run_call(caller: str, call: "Call") -> tuple[State, Any]:
    """Run a checked call by the first of its engines that serves it.

    Raises:
        NotImplementedError: no engine serves it.
    """
    refusals: dict[str, NotImplementedError] = {}
    if call.engines == DEFAULT and call.options.budget is None:
        run = registry.first_of(call.engines)
        try:
            with validation.translate_jax_errors(call.cell, call.arrays):
                return registry.run(
                    run, call.cell, call.options, *call.arrays, call.key
                )
        except registry.AllRefused as refused:
            raise _all_refused(caller, refused.refusals) from None
    for name in call.engines:
        try:
            with validation.translate_jax_errors(call.cell, call.arrays):
                mode, chosen = call.fit(name)
                run = ENGINES[mode]
                return registry.run(run, call.cell, chosen, *call.arrays, call.key)
        except NotImplementedError as refusal:
            refusals[name] = refusal
    raise _all_refused(caller, refusals)


# Both directions at once are faster than one after the other if a direction alone has
# too few rows for the cores, if the weights of each fit into the cache of its core, and
# if the steps take longer than the stacking of the two. Measured for LSTM and GRU on 2
# cores, 200 and 1,000 steps, 1 to 32 rows, 32 to 512 units.
MOST_ROWS_AT_ONCE = 8
MOST_WEIGHTS_AT_ONCE = 2**20  # bytes of the largest array
LEAST_READS_AT_ONCE = 10**7  # bytes of it that all rows read in all steps


def run_both_directions(
    caller: str, forward: "Call", backward: "Call"
) -> list[tuple[State, Any]]:
    """Run two checked calls of one cell, which differ in arrays, key and direction."""
    calls = [forward, backward]
    if _is_faster_at_once(forward) and _is_faster_at_once(backward):
        pairs = [(call.arrays, call.key) for call in calls]
        try:
            with validation.translate_jax_errors(forward.cell, forward.arrays):
                return registry.run_both_directions(
                    forward.cell, forward.options, pairs
                )
        except NotImplementedError:
            pass  # `run_call` says why, or another engine serves
    return [run_call(caller, call) for call in calls]


def _is_faster_at_once(call: "Call") -> bool:
    params, xs, *_ = call.arrays
    if call.engines[0] != "native" or is_symbolic(xs.shape) or call.cell.spatial_axes:
        return False
    if call.options.budget is not None or call.options.burn_in:
        return False
    weights = max((leaf.nbytes for leaf in jax.tree.leaves(params)), default=0)
    length, *rows = xs.shape[:-1]
    return (
        math.prod(rows) <= MOST_ROWS_AT_ONCE
        and weights <= MOST_WEIGHTS_AT_ONCE
        and length * math.prod(rows) * weights >= LEAST_READS_AT_ONCE
    )


class Explanation(NamedTuple):
    """The engine that serves a call, and the reasons of the others for not serving.

    Attributes:
        engine: the engine that serves; None if none does.
        reasons: a sentence for each engine.
        how: what the engine keeps for the gradient, and how it multiplies.
    """

    engine: str | None
    reasons: dict[str, str]
    how: str = ""

    def __str__(self) -> str:
        width = max(len(name) for name in self.reasons)
        lines = [
            f"{'->' if name == self.engine else '  '} {name:{width}}  {reason}"
            for name, reason in self.reasons.items()
        ]
        return "\n".join([*lines, *([f"{self.engine} {self.how}"] if self.how else [])])


@_with_signature
def explain(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    **options: Unpack[UnrollOptions],
) -> Explanation:
    """Explain which engine `unroll` would use for the same arguments.

    Engines are traced only; nothing is compiled or run.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> print(jl.explain(cell, params, jnp.ones((7, 2, 3)), engine="scan"))
        -> scan     serves
           native   would serve, but was not asked for
           adjoint  would serve, but was not asked for
        scan stores what automatic differentiation needs
    """
    chosen, how, reasons = None, "", {}
    with masking.error_prefix("explain"):
        call = checked_call("explain", cell, (params, xs, state), options)
        without_budget = call.options._replace(budget=None)
        for name in dict.fromkeys([*call.engines, *DEFAULT]):
            run = functools.partial(
                registry.run, ENGINES[name], call.cell, without_budget
            )
            try:
                with validation.translate_jax_errors(call.cell, call.arrays):
                    jax.eval_shape(run, *call.arrays, call.key)
            except NotImplementedError as refusal:
                reasons[name] = str(refusal)
                continue
            if name not in call.engines:
                reasons[name] = "would serve, but was not asked for"
            elif chosen is None:
                chosen, reasons[name] = name, "serves"
                mode, fitted = call.fit(name)
                how = registry.describe(mode, call.cell, fitted, call.arrays, call.key)
            else:
                reasons[name] = f"would serve, but {chosen} comes first"
    return Explanation(chosen, reasons, how)


@_with_signature
def estimate_memory(
    cell: Cell,
    params: Params,
    xs: ArrayLike | jax.ShapeDtypeStruct,
    state: State | None = None,
    **options: Unpack[UnrollOptions],
) -> Memory:
    """Estimate the memory of `unroll` and its gradient for the same arguments.

    The program computes the state, all that is emitted, and their gradients with
    respect to params, xs and state. It is neither compiled nor run, so arguments can
    be arrays or `jax.ShapeDtypeStruct`.

    For most programs, results plus temporaries are within 15 % of XLA's own analysis.
    Temporaries alone can be underestimated: by a third if noise is drawn, and by a
    factor of up to two if few states are kept and rows are ragged or T is not a
    multiple of k.

    For a whole program, such as a training step, compile it and ask XLA:
    `jax.jit(f).lower(*arguments).compile().memory_analysis()`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=64, hidden_size=256)
        >>> xs = jax.ShapeDtypeStruct((100_000, 8, 64), jnp.float32)
        >>> print(jl.estimate_memory(cell, params, xs, engine="adjoint"))
        10.9 GB: arguments 1.03 GB, results 1.03 GB, temporaries 8.81 GB
        >>> print(jl.estimate_memory(
        ...     cell, params, xs, engine="adjoint", checkpoint_every="sqrt"
        ... ))
        2.08 GB: arguments 1.03 GB, results 1.03 GB, temporaries 31.9 MB
    """
    with masking.error_prefix("estimate_memory"):
        inputs = (params, xs, state)
        call = checked_call("estimate_memory", cell, inputs, options, abstract=True)
        if is_symbolic(shape := call.arrays[1].shape):
            raise ValueError(
                f"xs: got the symbolic shape {show(shape)}, expected integers."
            )
        refusals: dict[str, NotImplementedError] = {}
        for name in call.engines:
            try:
                mode, fitted = call.fit(name)
                run = ENGINES[mode]
                return registry.gradient_memory(
                    run, call.cell, fitted, call.arrays, call.key
                )
            except NotImplementedError as refusal:
                refusals[name] = refusal
    raise _all_refused("estimate_memory", refusals)


# -- from options to a checked call ----------------------------------------------


class Call(NamedTuple):
    """A call of `unroll` whose arguments have been checked.

    Attributes:
        cell: the cell.
        engines: names of the engines to try, in order.
        options: what the engines are asked for.
        arrays: parameters, features, first state and step mask.
        key: one random key, or None.
    """

    cell: Cell
    engines: tuple[str, ...]
    options: Options
    arrays: validation.Arrays
    key: Key | None

    def fit(self, engine: str) -> tuple[str, Options]:
        """Return the mode of the engine and the options that fit the memory budget."""
        return registry.fit_budget(
            engine, self.cell, self.options, self.arrays, self.key
        )


def checked_call(
    caller: str,
    cell: Cell,
    inputs: tuple[Params, Any, State | None],
    options: UnrollOptions,
    *,
    abstract: bool = False,
) -> Call:
    """Check the arguments of `unroll`, `explain` or `estimate_memory`.

    Args:
        caller: name of the function, for messages.
        cell: the cell.
        inputs: params, xs and state.
        options: the caller's keyword arguments.
        abstract: whether arrays may be given as `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: an option is unknown, or the key is not one random key.
        ValueError: the arguments do not fit together.
    """
    check_options(caller, options, DEFAULTS)
    given: dict[str, Any] = {**DEFAULTS, **options}
    key = as_key_or_none(caller, given["key"])
    engines = _engine_names(given["engine"])
    asked = _engine_options(given["reverse"], given["emit"], given["checkpoint_every"])
    steps = (given["lengths"], given["mask"], given["resets"])
    check = _abstract_arrays if abstract else _arrays
    arrays = check(cell, *inputs, *steps, reset_state=given["reset_state"])
    asked = asked._replace(burn_in=_burn_in(given["burn_in"], arrays[1].shape[0]))
    if given["reset_state"] is not None:
        cell = with_given_resets(cell)
    return Call(cell, engines, asked, arrays, key)


def _arrays(cell: Cell, *inputs: Any, reset_state: State | None) -> validation.Arrays:
    """Return the checked arrays; with a `reset_state`, it is part of the params."""
    params, xs, state, steps = validation.arrays(cell, *inputs)
    if reset_state is None:
        return params, xs, state, steps
    params = _given_resets(reset_state, state, steps, params)
    return params, xs, state, steps._replace(resets=None)


def _given_resets(
    reset_state: State, state: State, steps: StepMask, params: Params
) -> GivenResets:
    """Return the params with the state to reset to, in the shape and dtype of a state.

    Raises:
        ValueError: there are no resets, or the state has another structure or shape.
    """
    if steps.resets is None:
        raise ValueError(
            "reset_state: got a state without resets, expected both; pass resets, "
            "booleans [T, *b], True before the steps that start from the state."
        )
    resets, time = steps.resets, steps.resets.shape[:1]
    rows = resets.ndim - 1

    def shapes(like: Any) -> tuple[tuple[int, ...], ...]:
        return like.shape, like.shape[rows:], (*time, *like.shape)

    given = validation.cast_state(reset_state, state, name="reset_state", shapes=shapes)
    leaves = zip(jax.tree.leaves(given), jax.tree.leaves(state), strict=True)
    per_step = any(leaf.ndim > like.ndim for leaf, like in leaves)

    def broadcast(leaf: jax.Array, like: jax.Array) -> jax.Array:
        shape = (*time, *like.shape) if per_step else like.shape
        return jnp.broadcast_to(leaf, shape)

    given = jax.tree.map(broadcast, given, state)
    resets = resets if steps.active is None else resets & steps.active
    one, each = (None, given) if per_step else (given, None)
    return GivenResets(params, resets, one, each)


def _burn_in(count: Any, time: Any) -> int:
    is_integer = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not is_integer or count < 0 or (not is_symbolic([time]) and count > time):
        raise ValueError(
            f"burn_in: got {count!r:.60}, expected an integer from 0 to {time}, the "
            "number of steps of xs."
        )
    return int(count)


def _engine_options(
    reverse: bool, emit: Emit, checkpoint_every: int | str | None
) -> Options:
    validation.check_flag("reverse", reverse)
    examples = "jl.emit.hidden, states, trace or nothing"
    validation.check_function("emit", emit, "state", "gates", such_as=examples)
    validation.check_hashable("emit", emit)
    if isinstance(checkpoint_every, str) and checkpoint_every != "sqrt":
        return Options(bool(reverse), emit, None, _bytes(checkpoint_every))
    return Options(bool(reverse), emit, _block(checkpoint_every))


def _block(every: Any) -> int | Literal["sqrt"] | None:
    if every is None or every == "sqrt":
        return every
    if not isinstance(every, int | np.integer) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"checkpoint_every: got {every!r}, expected an integer >= 1, "
            '"sqrt", a size such as "2 GB", or None.'
        )
    return int(every)


UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
UNITS |= {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def _bytes(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2] not in UNITS:
        raise ValueError(
            f'checkpoint_every: got {text!r}, expected an integer >= 1, "sqrt", a size '
            f'such as "2 GB" (in {", ".join(UNITS)}), or None.'
        )
    return float(found[1]) * UNITS[found[2]]


def _engine_names(engine: str | Sequence[str] | None) -> tuple[str, ...]:
    names = DEFAULT if engine is None else engine
    if isinstance(names, str) or not isinstance(names, Sequence):
        names = (names,)
    if not names:
        raise ValueError(
            "engine: got an empty sequence, expected at least one name; leave it out "
            "for the default."
        )
    for name in names:
        if name not in tuple(ENGINES):
            raise ValueError(
                f"engine: got {name!r}, expected one of {', '.join(ENGINES)}."
            )
    return tuple(names)


def _abstract_arrays(cell: Cell, *inputs: Any, reset_state: State | None) -> Any:
    """Return the shapes and dtypes of `_arrays`, without computing values."""
    leaves, tree = jax.tree.flatten((inputs, reset_state))
    is_struct = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    def check(arrays: list[Any]) -> Any:
        given: Iterator[Any] = iter(arrays)
        pairs = zip(leaves, is_struct, strict=True)
        filled = [next(given) if struct else leaf for leaf, struct in pairs]
        inputs, reset_state = jax.tree.unflatten(tree, filled)
        return _arrays(cell, *inputs, reset_state=reset_state)

    pairs = zip(leaves, is_struct, strict=True)
    return jax.eval_shape(check, [leaf for leaf, struct in pairs if struct])


def _all_refused(caller: str, refusals: dict[str, NotImplementedError]) -> Exception:
    """Return the common refusal of all engines, or a group of different ones."""
    if len({str(refusal) for refusal in refusals.values()}) == 1:
        return next(iter(refusals.values()))
    return ExceptionGroup(f"{caller}: every engine refuses", list(refusals.values()))
