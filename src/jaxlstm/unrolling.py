"""The front door to a whole sequence: `unroll`, and what it would do.

One door, many engines, one signature. An engine that cannot serve refuses with
`NotImplementedError` and a sentence; the door tries the next one.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxlstm import masking, validation
from jaxlstm.cells import emit as emits
from jaxlstm.cells.base import Cell, Params, State
from jaxlstm.cells.emit import Emit
from jaxlstm.engines import planning
from jaxlstm.engines.planning import DEFAULT, ENGINES, Options
from jaxlstm.memory import Memory
from jaxlstm.typing import Key, as_key_or_none

# A number of steps, √T, everything (None), or as many bytes as "2 GB".
Every = int | str | None


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
    checkpoint_every: Every = None,
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
            the table at the head of `jaxlstm.typing`.
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
            way back, with a k near it that divides T if there is one; `"sqrt"` chooses
            k = √T, and a size such as `"2 GB"` what is fastest among all that keep the
            gradient within it, besides its arguments and results, as far as
            `estimate_memory` can tell of this call: without axes that an outer `vmap`
            adds, and of all devices that share the rows together.
        engine: None for the first that accepts, a name, or several names to try:
            `"adjoint"`, whose gradients take each weight in one product over all
            steps, or `"scan"`, the reference, whose single steps have the bits of the
            whole sequence. `"adjoint/lean"` remembers states only, a quarter of the
            memory; `"adjoint/rows_first"` and `"adjoint/weights_first"` fix how the
            recurrent products are taken, which `"adjoint"` chooses by their size.
            `"cudnn"` is the vendor's kernel for the plain LSTM on an NVIDIA GPU, and
            `"native"` one for a CPU, which `jl.lab.native.load()` compiles.

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
    key = as_key_or_none("unroll", key)
    refusals: dict[str, NotImplementedError] = {}
    with masking.error_prefix("unroll"):
        names = _names(engine)
        options = _options(reverse, emit, checkpoint_every)
        found = validation.arrays(cell, params, xs, state, lengths, mask, resets)
        for name in names:
            try:
                with validation.translate_jax_errors(cell, found):
                    mode, chosen = planning.fitted(name, cell, options, found, key)
                    return planning.run(ENGINES[mode], cell, chosen, *found, key)
            except NotImplementedError as refusal:
                refusals[name] = refusal
    raise _all_refused(refusals)


class Explanation(NamedTuple):
    """Which engine would serve a call, and why each other one would not.

    engine    the engine that serves, None if none does
    reasons   a sentence for each engine that was asked or would be
    how       what that engine remembers for the way back, and how it multiplies
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
    checkpoint_every: Every = None,
    engine: str | Sequence[str] | None = None,
) -> Explanation:
    """Which engine `unroll` would take for the same arguments; nothing is unrolled.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> print(jl.explain(cell, params, jnp.ones((7, 2, 3))))
    -> adjoint  serves
       scan     would serve, but adjoint comes first
    adjoint remembers activations and states; products with the rows first
    """
    key = as_key_or_none("explain", key)
    chosen, how, reasons = None, "", {}
    with masking.error_prefix("explain"):
        asked = _names(engine)
        options = _options(reverse, emit, checkpoint_every)
        found = validation.arrays(cell, params, xs, state, lengths, mask, resets)
        free = options._replace(budget=None)
        for name in dict.fromkeys([*asked, *DEFAULT]):
            run = functools.partial(planning.run, ENGINES[name], cell, free)
            try:
                with validation.translate_jax_errors(cell, found):
                    jax.eval_shape(run, *found, key)
            except NotImplementedError as refusal:
                reasons[name] = str(refusal)
                continue
            if name not in asked:
                reasons[name] = "would serve, but was not asked for"
            elif chosen is None:
                chosen, reasons[name] = name, "serves"
                mode, options = planning.fitted(name, cell, options, found, key)
                how = planning.described(mode, cell, options, found, key)
            else:
                reasons[name] = f"would serve, but {chosen} comes first"
    return Explanation(chosen, reasons, how)


def estimate_memory(
    cell: Cell,
    params: Params,
    xs: ArrayLike | jax.ShapeDtypeStruct,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    emit: Emit = emits.hidden,
    key: Key | None = None,
    checkpoint_every: Every = None,
    engine: str | Sequence[str] | None = None,
) -> Memory:
    """Bytes that `unroll` and its gradient take, for the same arguments; nothing is
    computed or compiled.

    The program is that of the state and of all that is emitted, and of their gradients
    for params, xs and state. Arguments may be arrays or, as nothing is computed,
    `jax.ShapeDtypeStruct`. With what is returned this is within 15 % of XLA's own
    analysis for most programs. The temporaries alone can be told too low: by a third
    where noise is drawn, and by up to two where little is remembered, of ragged rows
    or in blocks that leave a rest.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=64, hidden_size=256)
    >>> xs = jax.ShapeDtypeStruct((100_000, 8, 64), jnp.float32)
    >>> print(jl.estimate_memory(cell, params, xs))
    10.9 GB: arguments 1.03 GB, results 1.03 GB, temporaries 8.81 GB
    >>> print(jl.estimate_memory(cell, params, xs, checkpoint_every="sqrt"))
    2.08 GB: arguments 1.03 GB, results 1.03 GB, temporaries 31.9 MB
    """
    key = as_key_or_none("estimate_memory", key)
    with masking.error_prefix("estimate_memory"):
        names = _names(engine)
        options = _options(reverse, emit, checkpoint_every)
        found = _types(cell, (params, xs, state, lengths, mask, resets))
        refusals: dict[str, NotImplementedError] = {}
        for name in names:
            try:
                mode, chosen = planning.fitted(name, cell, options, found, key)
                engine_ = ENGINES[mode]
                return planning.gradient_memory(engine_, cell, chosen, found, key)
            except NotImplementedError as refusal:
                refusals[name] = refusal
    raise _all_refused(refusals, "estimate_memory")


# -- everything that a caller can get wrong, found before an engine is entered ---


def _options(reverse: bool, emit: Emit, checkpoint_every: Every) -> Options:
    validation.check_flag("reverse", reverse)
    kinds = "jl.emit.hidden, states, trace or nothing"
    validation.check_function("emit", emit, "state", "gates", such_as=kinds)
    validation.check_hashable("emit", emit)
    if isinstance(checkpoint_every, str) and checkpoint_every != "sqrt":
        return Options(bool(reverse), emit, None, _bytes(checkpoint_every))
    return Options(bool(reverse), emit, _block(checkpoint_every))


def _block(every: Any) -> int | Literal["sqrt"] | None:
    if every is None or every == "sqrt":
        return every
    if not isinstance(every, int | np.integer) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"checkpoint_every is {every!r}; a number of steps from 1, "
            '"sqrt", a size such as "2 GB", or None is needed.'
        )
    return int(every)


UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
UNITS |= {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def _bytes(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2] not in UNITS:
        raise ValueError(
            f'checkpoint_every is {text!r}; a number of steps from 1, "sqrt", a size '
            f'such as "2 GB" (in {", ".join(UNITS)}), or None is needed.'
        )
    return float(found[1]) * UNITS[found[2]]


def _names(engine: str | Sequence[str] | None) -> tuple[str, ...]:
    names = DEFAULT if engine is None else engine
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


def _types(cell: Cell, inputs: Any) -> Any:
    """What `validation.arrays` makes of them; types may stand for arrays."""
    leaves, tree = jax.tree.flatten(inputs)
    typed = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    def found(arrays: list[Any]) -> Any:
        given = iter(arrays)
        pairs = zip(leaves, typed, strict=True)
        filled = [next(given) if is_type else leaf for leaf, is_type in pairs]
        return validation.arrays(cell, *jax.tree.unflatten(tree, filled))

    pairs = zip(leaves, typed, strict=True)
    return jax.eval_shape(found, [leaf for leaf, is_type in pairs if is_type])


def _all_refused(
    refusals: dict[str, NotImplementedError], door: str = "unroll"
) -> Exception:
    if len({str(refusal) for refusal in refusals.values()}) == 1:
        return next(iter(refusals.values()))  # such as one out of the caller's step
    return ExceptionGroup(f"{door}: every engine refuses", list(refusals.values()))
