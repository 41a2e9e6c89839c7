"""Batches of token ids: contiguous streams for training, windows for validation.

A batch is a pure function of the tokens and the step number. There is no iterator
state: a resumed run continues from its step number.

Pair `j` is the input `tokens[j]` with the target `tokens[j + 1]`; N tokens have N - 1
pairs. Time is axis 0 and the stream axis 1.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput


class Batch(NamedTuple):
    """One window of every stream."""

    inputs: NDArray[np.int32]  # [T, B]
    targets: NDArray[np.int32]  # [T, B], the token after each input
    resets: NDArray[np.bool_]  # [T, B], True: reset the state before this step


class Window(NamedTuple):
    """One window of the validation tokens, possibly padded."""

    inputs: NDArray[np.int32]  # [T, B]
    targets: NDArray[np.int32]  # [T, B]
    resets: NDArray[np.bool_]  # [T, B]
    weights: NDArray[np.bool_]  # [T, B], False: padding


@dataclass(frozen=True, eq=False)
class Streams:
    """B contiguous streams through one text, for any number of epochs.

    The M = N - 1 pairs are read as a ring. Epoch e begins at pair o(e), drawn from
    `(seed, e)`. Stream b reads the S = (M // (B T)) T pairs from o(e) + b S on, in
    windows of T. Within an epoch each target occurs at most once; the
    M - B S < B T targets that do not fill a window are skipped, and are different ones
    in each epoch.

    `resets` is True at the first step of an epoch, at pair 0, where the ring closes,
    and at every document token.

    Args:
        tokens: token ids `[N]` of any integer dtype; a memmap is read on demand.
        batch_size: B, the number of streams.
        window: T, the steps of one window.
        seed: determines where the epochs begin.
        document_token: id that begins a document, None if there is none.

    Raises:
        BadInput: the text cannot fill one window of every stream.

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
            raise BadInput(f"data: seed: got {self.seed}, expected at least 0.")
        needed = self.batch_size * self.window + 1
        if len(self.tokens) < needed:
            raise BadInput(
                f"data: got {len(self.tokens):,} training tokens, expected at least "
                f"{needed:,} (training.batch_size {self.batch_size} x training.window "
                f"{self.window} + 1); lower one of them or provide more text."
            )

    @property
    def pairs(self) -> int:
        """M, the number of pairs of input and target."""
        return len(self.tokens) - 1

    @property
    def steps_per_epoch(self) -> int:
        """Number of windows per stream and epoch."""
        return self.pairs // (self.batch_size * self.window)

    @property
    def remainder(self) -> int:
        """Number of targets that an epoch skips, less than B T."""
        return self.pairs - self.steps_per_epoch * self.batch_size * self.window

    def batch(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0; each field is `[T, B]`."""
        inputs, targets, resets = self.batches(step, 1)
        return Batch(inputs[0], targets[0], resets[0])

    def batches(self, first_step: int, count: int) -> Batch:
        """Return the batches of `count` steps; each field is `[count, T, B]`."""
        if first_step < 0:
            raise BadInput(f"data: step: got {first_step}, expected at least 0.")
        steps = range(first_step, first_step + count)
        epochs = [divmod(step, self.steps_per_epoch) for step in steps]
        begins = np.array(
            [_epoch_begin(self.seed, epoch, self.pairs) for epoch, _ in epochs],
            np.int64,
        )
        windows = np.array([window for _, window in epochs], np.int64)
        length = self.steps_per_epoch * self.window
        ahead = np.arange(self.window)[:, None] + length * np.arange(self.batch_size)
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
    """Iterate over windows that contain every target exactly once.

    Stream b reads the S = ceil(M / B) pairs from b S on; carry the state from one
    window to the next. `resets` is True at the first step of each stream and at every
    document token. Padding has weight False; all windows have the same shape, so a
    jitted step is traced once.

    Args:
        tokens: validation ids `[N]`.
        streams: B, the number of parallel streams. More streams need fewer windows,
            but B of the targets are predicted without context.
        window: T, the steps of one window.
        limit: read only the first `limit` targets; None reads all N - 1.
        document_token: id that begins a document, None if there is none.

    Raises:
        BadInput: there is no target to predict; raised before iteration.

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
            f"data: got {len(tokens)} validation tokens and a limit of {limit}, "
            "expected at least 2 tokens and a limit of 1; raise "
            "data.validation_fraction or training.validation_tokens."
        )
    return _windows(tokens, pairs, streams, window, document_token)


def _windows(
    tokens: NDArray[np.integer],
    pairs: int,
    streams: int,
    window: int,
    document_token: int | None,
) -> Iterator[Window]:
    length = -(-pairs // streams)
    begins = length * np.arange(streams)
    ends = np.minimum(begins + length, pairs)
    for first in range(0, length, window):
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
    """Gather the pairs at positions `at`, with a reset at each document token."""
    inputs = np.asarray(tokens[at], np.int32)
    targets = np.asarray(tokens[at + 1], np.int32)
    if document_token is None:
        return Batch(inputs, targets, np.zeros(at.shape, np.bool_))
    return Batch(inputs, targets, inputs == document_token)


@lru_cache(maxsize=64)
def _epoch_begin(seed: int, epoch: int, pairs: int) -> int:
    """Return o(e), drawn from SeedSequence, which is stable across NumPy releases."""
    drawn = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return int(drawn[0]) % pairs


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise BadInput(f"data: {name}: got {size}, expected at least 1.")
