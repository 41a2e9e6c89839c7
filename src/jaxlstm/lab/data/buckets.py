"""Batches of sequences of unequal length, in few shapes.

Sequences of similar length form a bucket and are padded to its longest. All batches of
one dispatch come from one bucket, since a compiled program has one shape:

    dispatch   0        1        2        3        4
    bucket     long     short    short    long     short
    batches    0 … 19   0 … 19   20 … 39  20 … 39  40 … 59      of their bucket

The buckets take turns in proportion to their numbers of sequences. The order depends on
nothing but these numbers: runs that differ in their seed alone have the same shapes at
every step. Which sequences are in a batch depends on the seed and the step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST = 4
"""Largest number of buckets that `choose` returns."""

ENOUGH = 0.85
"""`choose` adds no bucket once this share of the padded steps is not padding."""


class Bucket(NamedTuple):
    """Sequences that are padded to one length.

    Attributes:
        members: indices of the sequences.
        length: the number of steps of the longest.
    """

    members: np.ndarray
    length: int


def choose(
    lengths: np.ndarray, *, smallest: int, count: int | None = None
) -> tuple[Bucket, ...]:
    """Return buckets with little padding, by increasing length.

    Args:
        lengths: the length of each sequence.
        smallest: the least number of sequences in a bucket, unless there are fewer in
            all: with fewer, the batches of one dispatch would repeat them.
        count: the number of buckets; None for the smallest one of at most 4 with which
            padding is below 15 %.

    Example:
        >>> lengths = np.array([9, 2, 10, 3, 2, 10])
        >>> [bucket.length for bucket in choose(lengths, smallest=3)]
        [3, 10]
        >>> [bucket.length for bucket in choose(lengths, smallest=4)]
        [10]
    """
    order = np.argsort(lengths, kind="stable")
    most = max(1, min(count or MOST, len(lengths) // smallest))
    counts = [most] if count else range(1, most + 1)
    found: tuple[Bucket, ...] = ()
    for number in counts:
        edges = _edges(lengths[order], number, smallest)
        found = tuple(
            Bucket(np.sort(part), int(lengths[part].max()))
            for part in np.split(order, edges)
        )
        if 1 - padding(lengths, found) >= ENOUGH:
            break
    return found


def _edges(ordered: np.ndarray, count: int, smallest: int) -> list[int]:
    """Return the positions that cut ordered lengths with the least padding.

    The cost of a bucket is its number of sequences times its longest; the best cut of
    each prefix into k buckets follows from those into k - 1. Candidates for a cut are
    at most 200 positions at which the length changes.
    """
    total = len(ordered)
    changes = np.flatnonzero(np.diff(ordered)) + 1
    spread = np.unique(np.linspace(0, len(changes) - 1, 200).astype(int))
    ends = [*(changes[spread] if len(changes) else []), total]
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        end: (end * int(ordered[end - 1]), ()) for end in ends if end >= smallest
    } or {total: (total * int(ordered[-1]), ())}
    for _ in range(count - 1):
        longer = dict(best)
        for end in ends:
            for cut, (cost, cuts) in best.items():
                if end - cut >= smallest:
                    sum_ = cost + (end - cut) * int(ordered[end - 1])
                    if sum_ < longer.get(end, (np.inf,))[0]:
                        longer[end] = (sum_, (*cuts, int(cut)))
        best = longer
    return list(best[total][1])


def padding(lengths: np.ndarray, buckets: Sequence[Bucket]) -> float:
    """Return the share of steps that are padding, from 0 to 1.

    Example:
        >>> padding(np.array([1, 3]), [Bucket(np.array([0, 1]), 3)])
        0.333...
    """
    padded = sum(len(bucket.members) * bucket.length for bucket in buckets)
    return 1 - float(lengths.sum()) / padded


class Order:
    """The sequences of each training batch, as a function of the seed and the step.

    Args:
        buckets: the buckets.
        batch_size: sequences of a batch.
        steps_per_dispatch: consecutive batches of one bucket.
        seed: seed of the order within a bucket.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        *,
        batch_size: int,
        steps_per_dispatch: int,
        seed: int,
    ) -> None:
        self._buckets, self._seed = buckets, seed
        self._batch_size, self._steps = batch_size, steps_per_dispatch
        self._turns: list[tuple[int, int]] = []
        self._taken = np.zeros(len(buckets), int)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Return the indices of the sequences of a batch, and their padded length.

        A bucket is a stream of its sequences in a new random order in each epoch, cut
        into batches. Each of its sequences is there once an epoch.
        """
        number, turn = self._turn(step // self._steps)
        members = self._buckets[number].members
        first = (turn * self._steps + step % self._steps) * self._batch_size
        places = np.arange(first, first + self._batch_size)
        epochs, within = np.divmod(places, len(members))
        rows = np.concatenate(
            [
                self._permuted(number, int(epoch))[within[epochs == epoch]]
                for epoch in np.unique(epochs)
            ]
        )
        return rows, self._buckets[number].length

    def _permuted(self, number: int, epoch: int) -> np.ndarray:
        """Return the order of a bucket in an epoch; the newest few are kept."""
        if (number, epoch) not in self._orders:
            while len(self._orders) >= 2 * len(self._buckets):
                del self._orders[next(iter(self._orders))]
            draw = np.random.default_rng((self._seed, number, epoch))
            order = draw.permutation(self._buckets[number].members)
            self._orders[number, epoch] = order
        return self._orders[number, epoch]

    def _turn(self, dispatch: int) -> tuple[int, int]:
        """Return the bucket of a dispatch, and its number of earlier dispatches.

        The next bucket is the one that is furthest behind its share.
        """
        sizes = np.array([len(bucket.members) for bucket in self._buckets])
        while len(self._turns) <= dispatch:
            due = (len(self._turns) + 1) * sizes - self._taken * sizes.sum()
            number = int(due.argmax())
            self._turns.append((number, int(self._taken[number])))
            self._taken[number] += 1
        return self._turns[dispatch]
