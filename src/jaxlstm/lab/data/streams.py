"""Which tokens a step sees: contiguous streams for training, windows for validation.

Both are pure functions of arrays and a step number. Nothing is drawn in one step
and remembered for the next, so the position in the data *is* the step number, and
a resumed run reads on where the first one stopped.

The unit is the pair `j`: input `tokens[j]`, target `tokens[j + 1]`. N tokens hold
N - 1 pairs. Time is axis 0, the stream axis 1, as everywhere in this library.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput


class Batch(NamedTuple):
    """One window of every stream. `resets` marks where a state begins again."""

    inputs: NDArray[np.int32]  # [T, B]
    targets: NDArray[np.int32]  # [T, B], the token after each input
    resets: NDArray[np.bool_]  # [T, B], True: forget the past before this step


class Window(NamedTuple):
    """One window of the validation part; `weights` is False where there is no text."""

    inputs: NDArray[np.int32]  # [T, B]
    targets: NDArray[np.int32]  # [T, B]
    resets: NDArray[np.bool_]  # [T, B]
    weights: NDArray[np.bool_]  # [T, B], True: this target counts


@dataclass(frozen=True, eq=False)
class Streams:
    """B readers of one text, each a stretch ahead of the last, for as long as asked.

    The M = N - 1 pairs lie on a ring. Epoch e begins at a pair o(e) drawn from
    `(seed, e)`; stream b reads the S = (M // (B T)) T pairs from o(e) + b S on, one
    window of T after the other. So within an epoch no target is seen twice, and the
    M - B S < B T targets that do not fill a window are not seen; they lie elsewhere
    in the next epoch.

    The state is to be reset at the first step of an epoch, where the ring closes
    (before token 0), and before every document token.

    Args:
      tokens: the text, `[N]` of any integer dtype; a memmap is read where needed.
      batch_size: B, the number of streams.
      window: T, the steps of one window.
      seed: chooses where the epochs begin, and nothing else.
      document_token: the id that begins a document, None if there is none.

    Raises:
      BadInput: if the text cannot fill one window of every stream.

    Example:
      >>> streams = Streams(np.arange(100), batch_size=2, window=5, seed=0)
      >>> first, second = streams.batch(0), streams.batch(1)
      >>> bool((first.targets[-1] == second.inputs[0]).all())
      True
      >>> streams.steps_per_epoch, streams.remainder
      (9, 9)
    """

    tokens: NDArray[np.integer]
    _: KW_ONLY
    batch_size: int
    window: int
    seed: int = 0
    document_token: int | None = None

    def __post_init__(self) -> None:
        _check_sizes(batch_size=self.batch_size, window=self.window)
        if self.seed < 0:
            raise BadInput(f"data: seed is {self.seed}; 0 or more is needed.")
        wanted = self.batch_size * self.window + 1
        if len(self.tokens) < wanted:
            raise BadInput(
                f"data: the training part has {len(self.tokens):,} tokens, but "
                f"training.batch_size {self.batch_size} times training.window "
                f"{self.window} needs {wanted:,}; lower one of them or give more text."
            )

    @property
    def pairs(self) -> int:
        """M, the inputs that have a target."""
        return len(self.tokens) - 1

    @property
    def steps_per_epoch(self) -> int:
        """The windows that one epoch gives each stream."""
        return self.pairs // (self.batch_size * self.window)

    @property
    def remainder(self) -> int:
        """The targets that one epoch leaves out, fewer than B T."""
        return self.pairs - self.steps_per_epoch * self.batch_size * self.window

    def batch(self, step: int) -> Batch:
        """What step `step` (from 0) sees, each field `[T, B]`."""
        inputs, targets, resets = self.batches(step, 1)
        return Batch(inputs[0], targets[0], resets[0])

    def batches(self, first_step: int, count: int) -> Batch:
        """Steps `first_step` to `first_step + count - 1`, each field `[K, T, B]`."""
        if first_step < 0:
            raise BadInput(f"data: step {first_step} came; steps count from 0.")
        steps = range(first_step, first_step + count)
        epochs = [divmod(step, self.steps_per_epoch) for step in steps]
        begins = np.array(
            [_epoch_begin(self.seed, epoch, self.pairs) for epoch, _ in epochs],
            np.int64,
        )
        windows = np.array([window for _, window in epochs], np.int64)
        stretch = self.steps_per_epoch * self.window
        ahead = np.arange(self.window)[:, None] + stretch * np.arange(self.batch_size)
        at = (begins + windows * self.window)[:, None, None] + ahead
        at %= self.pairs
        inputs, targets, resets = _gather(self.tokens, at, self.document_token)
        resets |= at == 0
        resets[windows == 0, 0] = True
        return Batch(inputs, targets, resets)


def validation_windows(
    tokens: NDArray[np.integer],
    *,
    streams: int,
    window: int,
    limit: int | None = None,
    document_token: int | None = None,
) -> Iterator[Window]:
    """Windows that hold every target of `tokens` exactly once, in `streams` rows.

    Row b reads the S = ceil(M / B) pairs from b S on, so the state is to be carried
    from one window to the next, and only the first step of each row, and each
    document token, begins afresh. The last windows are padded with weight False;
    all have one shape, so that a jitted step is traced once.

    Args:
      tokens: the validation part, `[N]`.
      streams: B, the rows read side by side. More rows, fewer windows, and B
        beginnings without a past.
      window: T, the steps of one window.
      limit: read the first `limit` targets only; None reads all N - 1.
      document_token: the id that begins a document, None if there is none.

    Raises:
      BadInput: at once, if there is no target to predict.

    Example:
      >>> parts = list(validation_windows(np.arange(8), streams=2, window=3))
      >>> np.concatenate([p.targets[p.weights] for p in parts]).tolist()
      [1, 5, 2, 6, 3, 7, 4]
    """
    _check_sizes(streams=streams, window=window)
    pairs = len(tokens) - 1
    if limit is not None:
        pairs = min(pairs, limit)
    if pairs < 1:
        raise BadInput(
            f"data: {len(tokens)} validation tokens and a limit of {limit} leave "
            "nothing to predict; raise data.validation_fraction or "
            "training.validation_tokens."
        )
    return _windows(tokens, pairs, streams, window, document_token)


def _windows(
    tokens: NDArray[np.integer],
    pairs: int,
    streams: int,
    window: int,
    document_token: int | None,
) -> Iterator[Window]:
    stretch = -(-pairs // streams)
    begins = stretch * np.arange(streams)
    ends = np.minimum(begins + stretch, pairs)
    for first in range(0, stretch, window):
        at = begins + np.arange(first, first + window)[:, None]
        weights = at < ends
        inputs, targets, resets = _gather(
            tokens, np.where(weights, at, 0), document_token
        )
        resets |= at == begins
        yield Window(inputs * weights, targets * weights, resets & weights, weights)


def _gather(
    tokens: NDArray[np.integer], at: NDArray[np.int64], document_token: int | None
) -> Batch:
    """The pairs at positions `at`, with a reset before each document token."""
    inputs = np.asarray(tokens[at], np.int32)
    targets = np.asarray(tokens[at + 1], np.int32)
    if document_token is None:
        return Batch(inputs, targets, np.zeros(at.shape, np.bool_))
    return Batch(inputs, targets, inputs == document_token)


@lru_cache(maxsize=64)
def _epoch_begin(seed: int, epoch: int, pairs: int) -> int:
    """o(e), from NumPy's SeedSequence, whose numbers are the same in every release."""
    drawn = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return int(drawn[0]) % pairs


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise BadInput(f"data: {name} is {size}; at least 1 is needed.")
