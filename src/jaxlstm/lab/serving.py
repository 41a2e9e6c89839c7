"""Models that read sequences as they arrive, many of them in one batch.

    trained.stream(slots=64)  ->  Stream: a state for each slot
    stream.push({3: xs})      ->  outputs of the new steps of slot 3

Any split of a sequence into chunks gives the outputs of the whole, up to rounding.
Slots that read at the same time advance in one call of a compiled program; chunks are
padded to a few lengths and a few numbers of rows, so that new ones compile nothing.
Calls from several threads are collected: the thread that gets the lock runs what the
others have asked for in the same call.
"""

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxlstm.interop.inputs import Inputs, inputs_of, reads_ahead
from jaxlstm.interop.trees import named_leaves
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.layers.base import Layer
from jaxlstm.typing import show

Params = Any
State = Any

SIZES = (1, 4, 16, 64)  # lengths of chunks after padding, and numbers of rows
LARGEST = 1 << 24  # numbers in the outputs of one call
OUTPUT = "output"  # name of the last output among the arrays of a slot


class Rows(NamedTuple):
    """Rows of sequences that have been read.

    Attributes:
        state: state of the model, `[B, ...]` in each leaf.
        output: output of the last step of each row, `[B, ...]`.
    """

    state: State
    output: Array


def begin(model: Layer, params: Params, inputs: Inputs, rows: int) -> Rows:
    """Return rows that have read nothing; `read` resets them first.

    Raises:
        BadInput: the model has no output for each step.
    """
    x = jax.ShapeDtypeStruct((1, rows, *inputs.shape), inputs.dtype)  # pyright: ignore
    state, output = jax.eval_shape(model.apply, params, x)
    if output.shape[:2] != (1, rows):
        raise BadInput(
            f"stream: got a model with the output {show(output.shape)} for inputs "
            f"{show(x.shape)}, expected one output for each step and row"
        )
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return Rows(state, jnp.zeros(output.shape[1:], output.dtype))


def take(rows: Rows, places: Array) -> Rows:
    """Return some of the rows; any row for a place that is out of range."""
    return jax.tree.map(lambda leaf: leaf.at[places].get(mode="clip"), rows)


def put(rows: Rows, changed: Rows, places: Array) -> Rows:
    """Return the rows with some of them changed; places out of range are ignored."""

    def changed_leaf(leaf: Array, new: Array) -> Array:
        return leaf.at[places].set(new, mode="drop")

    return jax.tree.map(changed_leaf, rows, changed)


@functools.partial(
    jax.jit, static_argnames="model", donate_argnames="rows", keep_unused=True
)
def read(
    model: Layer,
    params: Params,
    rows: Rows,
    places: Array,
    xs: Array,
    lengths: Array,
    fresh: Array,
) -> tuple[Rows, Array]:
    """Read xs `[T, K, ...]`; return the rows after it, and the output of each step.

    Args:
        model: the model.
        params: its parameters.
        rows: all rows before.
        places: `[K]`, the rows that read; out of range for padding.
        xs: inputs, padded.
        lengths: `[K]`, the number of steps of each row.
        fresh: `[K]`, True for a row that is reset before its first step.
    """
    before = take(rows, places)
    resets = jnp.zeros(xs.shape[:2], bool).at[0].set(fresh)
    state, outputs = model.apply(
        params, xs, before.state, lengths=lengths, resets=resets
    )
    last = jnp.maximum(lengths - 1, 0)
    output = outputs[last, jnp.arange(len(lengths))]
    return put(rows, Rows(state, output), places), outputs


def padded_size(count: int, sizes: Sequence[int]) -> int:
    """Return the number of steps of the next call, for `count` that are left.

    The next larger size, unless more than half of it would be padding; then the next
    smaller one.

    Example:
        >>> [padded_size(count, SIZES) for count in (1, 3, 18, 40, 500)]
        [1, 4, 16, 64, 64]
    """
    larger = [size for size in sizes if count <= size <= 2 * count]
    return min(larger) if larger else max(size for size in sizes if size <= count)


class Chunk(NamedTuple):
    """Steps `[T, ...]` that a slot reads, and whether their outputs are returned."""

    slot: int
    xs: np.ndarray
    with_outputs: bool = True


class Request:
    """Something that a slot does, and its result or error."""

    def __init__(self, work: Any) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False


class Stream:
    """Slots that read sequences as they arrive.

    The methods may be called from several threads.

    Args:
        model: a causal model.
        params: its parameters.
        slots: S, the number of sequences at a time.
        inputs: one step of the inputs; None to read it from the model.

    Raises:
        BadInput: the model reads later steps, such as a bidirectional one, has no
            output for each step, or its inputs are not known.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl, numpy as np
        >>> model = jl.serial(jl.recurrent(jl.lstm(), 5), jl.linear(2))
        >>> params, _ = model.init(jax.random.key(0), 3)
        >>> stream = Stream(model, params, slots=2)
        >>> xs = np.ones((7, 3), np.float32)
        >>> found = [stream.push({0: xs[:5]})[0], stream.push({0: xs[5:], 1: xs})[0]]
        >>> _, whole = model.apply(params, xs)
        >>> bool(np.allclose(np.concatenate(found), whole, atol=1e-6))
        True
    """

    def __init__(
        self,
        model: Layer,
        params: Params,
        *,
        slots: int = 1,
        inputs: Inputs | None = None,
    ) -> None:
        if not isinstance(slots, int) or slots < 1:
            raise BadInput(f"stream: slots: got {slots!r:.40}, expected at least 1")
        if reads_ahead(model):
            raise BadInput(
                "stream: got a bidirectional or reversed model, whose outputs depend "
                "on later steps, expected a causal one; apply it to whole sequences"
            )
        try:
            self.inputs = inputs_of(model, params) if inputs is None else inputs
        except ValueError as error:
            raise BadInput(f"stream: {error}") from None
        if None in self.inputs.shape:
            raise BadInput(
                "stream: got a model of images of any size, expected "
                "inputs=Inputs(shape, dtype) with the size of an image"
            )
        self.model, self.params, self.slots = model, params, slots
        self._rows = begin(model, params, self.inputs, slots)
        self._fresh = np.ones(slots, bool)
        size = self._rows.output.size
        self._lengths = [n for n in SIZES if n == 1 or n * size <= LARGEST]
        self._counts = sorted({*(n for n in SIZES if n < slots), slots})
        self._lock, self._queue_lock = threading.Lock(), threading.Lock()
        self._queue: list[Request] = []

    def push(self, chunks: Mapping[int, ArrayLike]) -> dict[int, np.ndarray]:
        """Read the next steps of some slots, and return the output of each step.

        Args:
            chunks: the steps `[T, ...]` of each slot; T may differ.

        Raises:
            BadInput: a slot, or the shape or dtype of a chunk, is wrong.
        """
        work = [Chunk(self._slot(s), self._steps(s, xs)) for s, xs in chunks.items()]
        return dict(zip(chunks, self._run(work), strict=True))

    def step(self, xs: ArrayLike, slots: Sequence[int] | None = None) -> np.ndarray:
        """Read one step of some slots, and return their outputs `[n, ...]`.

        Args:
            xs: a step `[n, ...]` for each of the slots.
            slots: n different slots; None for all.

        Raises:
            BadInput: as `push`.
        """
        named = range(self.slots) if slots is None else slots
        given = np.asarray(xs)
        if given.ndim == 0 or len(given) != len(named) or len({*named}) != len(named):
            raise BadInput(
                f"stream: got steps {show(given.shape)} for {len({*named})} different "
                f"slots, expected one for each of {len(named)}"
            )
        found = self.push({s: x[None] for s, x in zip(named, given, strict=True)})
        return np.concatenate([found[slot] for slot in named])

    def reset(self, *slots: int) -> None:
        """Begin new sequences in these slots."""
        checked = [self._slot(slot) for slot in slots]
        with self._lock:
            self._fresh[checked] = True

    def state(self, slot: int) -> dict[str, np.ndarray]:
        """Return the state of a slot as arrays by name, to be saved for `restore`.

        A slot that has read nothing has no arrays.
        """
        slot = self._slot(slot)
        with self._lock:
            if self._fresh[slot]:
                return {}
            return {name: np.asarray(x[slot]) for name, x in self._leaves().items()}

    def restore(self, slot: int, state: Mapping[str, ArrayLike]) -> None:
        """Go on in a slot from a state, as `state` of any slot returned it.

        Raises:
            BadInput: the state is that of another model.
        """
        slot = self._slot(slot)
        with self._lock:
            leaves = self._leaves() if state else {}
            expected = {
                n: f"{n} {x.dtype}{show(x.shape[1:])}" for n, x in leaves.items()
            }
            given = {name: np.asarray(x) for name, x in state.items()}
            got = {n: f"{n} {x.dtype}{show(x.shape)}" for n, x in given.items()}
            if got != expected:
                raise BadInput(
                    f"stream: state: got {', '.join(got.values())}, expected "
                    f"{', '.join(expected.values())}; is it of another model?"
                )
            changed = [x.at[slot].set(given[name]) for name, x in leaves.items()]
            if changed:
                *state_leaves, output = changed
                tree = jax.tree.structure(self._rows.state)
                self._rows = Rows(jax.tree.unflatten(tree, state_leaves), output)
            self._fresh[slot] = not state

    def warm_up(self) -> None:
        """Compile all programs, which otherwise the first calls wait for."""
        with self._lock:
            for count in self._counts:
                for time in self._lengths:
                    self._read_rows({}, np.full(count, self.slots, np.int32), time)

    def _leaves(self) -> dict[str, Array]:
        return {**named_leaves(self._rows.state), OUTPUT: self._rows.output}

    def _slot(self, slot: int) -> int:
        is_whole = isinstance(slot, int | np.integer) and not isinstance(slot, bool)
        if not is_whole or not 0 <= slot < self.slots:
            raise BadInput(
                f"stream: slot: got {slot!r:.40}, expected 0 to {self.slots - 1}"
            )
        return int(slot)

    def _steps(self, slot: int, xs: ArrayLike) -> np.ndarray:
        given, (shape, dtype, vocabulary) = np.asarray(xs), self.inputs
        fits = given.ndim == 1 + len(shape) and all(
            size in (None, got)
            for size, got in zip(shape, given.shape[1:], strict=True)
        )
        kinds = "iu" if vocabulary is not None else "fiu"
        if not fits or (given.dtype.kind not in kinds and given.size):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            expected = "tokens [T]" if vocabulary is not None else f"[T, {sizes}]"
            raise BadInput(
                f"stream: slot {slot}: got {given.dtype}{show(given.shape)}, expected "
                f"{expected}"
            )
        if vocabulary is not None and given.size:
            wrong = given[(given < 0) | (given >= vocabulary)]
            if wrong.size:
                raise BadInput(
                    f"stream: slot {slot}: got the token {wrong[0]}, expected 0 to "
                    f"{vocabulary - 1}"
                )
        return given.astype(dtype)

    def _run(self, work: Iterable[Any]) -> list[Any]:
        """Return the result of each piece of work, together with that of others."""
        requests = [Request(each) for each in work]
        with self._queue_lock:
            self._queue += requests
        with self._lock:
            if not all(request.is_done for request in requests):
                with self._queue_lock:
                    waiting, self._queue = self._queue, []
                self._complete(waiting)
        for request in requests:
            if request.error is not None:
                raise request.error
        return [request.result for request in requests]

    def _complete(self, requests: list[Request]) -> None:
        """Run requests, of each slot in their order."""
        try:
            while requests:
                taken: dict[int, Request] = {}
                for request in requests:
                    taken.setdefault(request.work.slot, request)
                now = list(taken.values())
                self._execute(now)
                for request in now:
                    request.is_done = True
                requests = [request for request in requests if not request.is_done]
        except Exception as error:
            for request in requests:
                request.error, request.is_done = error, True

    def _execute(self, requests: list[Request]) -> None:
        """Run one request of each of several slots."""
        left = {request.work.slot: request.work.xs for request in requests}
        with_outputs = any(request.work.with_outputs for request in requests)
        found: dict[int, list[np.ndarray]] = {slot: [] for slot in left}
        while left := {slot: xs for slot, xs in left.items() if len(xs)}:
            time = padded_size(max(map(len, left.values())), self._lengths)
            parts = {slot: xs[:time] for slot, xs in left.items()}
            outputs = self._read(parts, time)
            left = {slot: xs[time:] for slot, xs in left.items()}
            if not with_outputs:
                continue
            outputs = np.asarray(outputs)
            for n, (slot, part) in enumerate(parts.items()):
                found[slot].append(outputs[: len(part), n])
        empty = np.zeros((0, *self._rows.output.shape[1:]), self._rows.output.dtype)
        for request in requests:
            request.result = np.concatenate([empty, *found[request.work.slot]])

    def _read(self, parts: Mapping[int, np.ndarray], time: int) -> Array:
        """Read at most `time` steps in some slots; return their padded outputs."""
        return self._read_rows(parts, self._places(parts), time)

    def _read_rows(
        self, parts: Mapping[int, np.ndarray], places: np.ndarray, time: int
    ) -> Array:
        shape: Any = (time, len(places), *self.inputs.shape)
        xs = np.zeros(shape, self.inputs.dtype)
        lengths, fresh = np.zeros(len(places), np.int32), np.zeros(len(places), bool)
        for n, (slot, part) in enumerate(parts.items()):
            xs[: len(part), n] = part
            lengths[n], fresh[n] = len(part), self._fresh[slot]
        self._rows, outputs = read(
            self.model, self.params, self._rows, places, xs, lengths, fresh
        )
        self._fresh[list(parts)] = False
        return outputs

    def _places(self, slots: Iterable[int]) -> np.ndarray:
        """Return the slots as places of rows, padded to one of a few sizes."""
        named = [*slots]
        size = next(n for n in self._counts if n >= len(named))
        return np.array(named + [self.slots] * (size - len(named)), np.int32)
