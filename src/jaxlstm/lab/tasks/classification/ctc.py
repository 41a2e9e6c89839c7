"""Connectionist temporal classification: a symbol sequence for a longer sequence.

A path has a symbol or the blank at every step. It stands for the sequence that remains
after repeated symbols are merged and blanks are removed: `a a - a b` for `a a b`. The
probability of a sequence is the sum over its paths.

    loss = -log Σ_{paths of y} Π_t p(path_t)

The blank is class 0, as in Optax, which computes the loss.

Reference:
    Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification:
    labelling unsegmented sequence data with recurrent neural networks", 2006.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

BLANK = 0


def loss(logits: Array, lengths: Array, symbols: Array) -> Array:
    """Return `-log p(symbols)` of each sequence in nats, `[B]`.

    Args:
        logits: `[T, B, 1 + K]` of the blank and K symbols; padded steps may be NaN.
        lengths: integers `[B]`, the number of steps.
        symbols: integers `[B, L]` from 0 to K - 1; -1 after the last symbol.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.5, 0.5]], [[0.5, 0.5]]]))
        >>> found = loss(logits, jnp.array([2]), jnp.array([[0]]))
        >>> round(float(jnp.exp(-found[0])), 3)  # a a, a -, - a
        0.75
    """
    padded = jnp.arange(len(logits))[:, None] >= lengths[None]
    logits = jnp.where(padded[..., None], 0.0, logits)
    return optax.ctc_loss(
        logits.swapaxes(0, 1),
        padded.T.astype(logits.dtype),
        jnp.where(symbols < 0, 0, symbols + 1),
        (symbols < 0).astype(logits.dtype),
        blank_id=BLANK,
    )


def steps_needed(symbols: Sequence[int]) -> int:
    """Return the number of steps of the shortest path of a symbol sequence.

    A blank must separate two equal symbols.

    Example:
        >>> steps_needed([4, 4, 2])
        4
    """
    return len(symbols) + sum(a == b for a, b in itertools.pairwise(symbols))


def greedy(log_probabilities: ArrayLike) -> list[int]:
    """Return the symbols of the most probable path.

    Args:
        log_probabilities: `[T, 1 + K]` of one sequence without padding. Logits give
            the same result.

    Example:
        >>> greedy(np.eye(3)[[1, 1, 0, 1, 2, 2]])
        [0, 0, 1]
    """
    path = np.asarray(log_probabilities).argmax(-1)
    begins = np.diff(path, prepend=BLANK) != 0
    return [int(label) - 1 for label in path[begins & (path != BLANK)]]


def prefix_beam(
    log_probabilities: ArrayLike, *, width: int = 16
) -> tuple[list[int], float]:
    """Return the most probable symbol sequence, by a search over prefixes.

    Each of at most `width` prefixes has the summed probability of its paths that end
    with a blank, and of those that end with its last symbol. If no prefix is dropped,
    the result is exact.

    Args:
        log_probabilities: `[T, 1 + K]` of one sequence without padding.
        width: number of prefixes that are kept after each step.

    Returns:
        The symbols, and the logarithm of their probability; a lower bound of it if
        prefixes were dropped.

    Example:
        >>> steps = np.log([[0.6, 0.4], [0.6, 0.4]])
        >>> greedy(steps), prefix_beam(steps)[0]  # p(a) = 0.64, p(no symbol) = 0.36
        ([], [0])

    Reference:
        Hannun, Maas, Jurafsky and Ng, "First-pass large vocabulary continuous speech
        recognition using bi-directional recurrent DNNs", 2014,
        https://arxiv.org/abs/1408.2873
    """
    none = -np.inf
    beam: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, none)}
    for row in np.asarray(log_probabilities, np.float64):
        blank: dict[tuple[int, ...], float] = defaultdict(lambda: none)
        symbol: dict[tuple[int, ...], float] = defaultdict(lambda: none)
        for prefix, (ends_blank, ends_symbol) in beam.items():
            either = np.logaddexp(ends_blank, ends_symbol)
            blank[prefix] = np.logaddexp(blank[prefix], either + row[BLANK])
            if prefix:
                again = ends_symbol + row[prefix[-1] + 1]
                symbol[prefix] = np.logaddexp(symbol[prefix], again)
            for label in range(len(row) - 1):
                # A repeated symbol begins anew only after a blank.
                before = ends_blank if prefix[-1:] == (label,) else either
                longer = (*prefix, label)
                symbol[longer] = np.logaddexp(symbol[longer], before + row[label + 1])
        total = {
            prefix: np.logaddexp(blank[prefix], symbol[prefix])
            for prefix in {**blank, **symbol}
        }
        kept = sorted(total, key=lambda prefix: -total[prefix])[:width]
        beam = {prefix: (blank[prefix], symbol[prefix]) for prefix in kept}
    best = max(beam, key=lambda prefix: np.logaddexp(*beam[prefix]))
    return list(best), float(np.logaddexp(*beam[best]))


def edit_distance(found: Sequence[int], expected: Sequence[int]) -> int:
    """Return the smallest number of insertions, deletions and replacements.

    Example:
        >>> edit_distance("sitting", "kitten")
        3

    Reference:
        Levenshtein, "Binary codes capable of correcting deletions, insertions, and
        reversals", 1966.
    """
    row = list(range(len(expected) + 1))
    for i, symbol in enumerate(found, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(expected, start=1):
            replaced = corner + (symbol != other)
            corner, row[j] = row[j], min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def edit_distances(path: Array, lengths: Array, symbols: Array) -> Array:
    """Return the edit distance between what a path stands for and the symbols, `[B]`.

    The same numbers as `greedy` and `edit_distance`, for a batch inside of a compiled
    program: one row of the table of distances for each symbol that the path begins.

    Args:
        path: integers `[T, B]`, the most probable class of each step.
        lengths: integers `[B]`, the number of steps.
        symbols: integers `[B, L]` from 0 to K - 1; -1 after the last symbol.
    """
    before = jnp.concatenate([jnp.full_like(path[:1], BLANK), path[:-1]])
    inside = jnp.arange(len(path))[:, None] < lengths[None]
    begins = (path != BLANK) & (path != before) & inside
    places = jnp.arange(symbols.shape[1] + 1)[None]

    def step(row: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        label, is_symbol = inputs
        wrong = (symbols != label[:, None] - 1).astype(row.dtype)
        after = jnp.minimum(row[:, :-1] + wrong, row[:, 1:] + 1)
        after = jnp.concatenate([row[:, :1] + 1, after], 1)
        # An insertion costs 1 more than the entry on its left.
        after = jax.lax.cummin(after - places, axis=1) + places
        return jnp.where(is_symbol[:, None], after, row), None

    first = jnp.broadcast_to(places, (symbols.shape[0], places.shape[1]))
    row, _ = jax.lax.scan(step, first, (path, begins))
    count = (symbols >= 0).sum(1, keepdims=True)
    return jnp.take_along_axis(row, count, 1)[:, 0]
