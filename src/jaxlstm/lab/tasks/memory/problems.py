"""Generators of the memory problems: batches as pure functions of a random generator.

Each follows its source, with lengths drawn from T to T + T/10. Shorter sequences are
padded at their end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LONG_SHORT_TERM_MEMORY = "Hochreiter and Schmidhuber 1997"


class Batch(NamedTuple):
    """Sequences of one batch.

    Attributes:
        inputs: float32 `[T, B, D]`.
        targets: float32 `[T, B]`: a number, or the index of a class.
        active: bool `[T, B]`, False in the padding.
        weights: float32 `[T, B]`: 1 at the steps that have a target.
    """

    inputs: Any
    targets: Any
    active: Any
    weights: Any


class Problem(NamedTuple):
    """A memory problem.

    Attributes:
        draw: `(generator, length, batch_size) -> Batch`.
        inputs: D, the number of input features.
        classes: the number of classes of the targets; None for a number.
        tolerance: largest error of a number that counts as solved.
        published: sequences until success as published, by length.
    """

    draw: Callable[[np.random.Generator, int, int], Batch]
    inputs: int
    classes: int | None
    tolerance: float
    published: dict[int, int]


def adding(draw: np.random.Generator, length: int, size: int) -> Batch:
    """Draw sequences of the adding problem (experiment 4):

        x_t = (value in [-1, 1], marker)     target = 0.5 + (X1 + X2) / 4

    The marker is 1 at two steps, whose values are X1 and X2: one of the first ten, and
    one of the first T/2. It is -1 at the first and the last step, and 0 elsewhere. If
    the first step is marked, X1 counts as 0.
    """
    steps, active, last = _lengths(draw, length, size)
    values = draw.uniform(-1, 1, (steps, size)).astype(np.float32)
    rows = np.arange(size)
    first = draw.integers(0, 10, size)
    second = draw.integers(0, length // 2 - 2, size)
    second += second >= first  # another step than the first
    markers = np.zeros((steps, size), np.float32)
    markers[0], markers[last, rows] = -1, -1
    markers[first, rows], markers[second, rows] = 1, 1
    marked = np.where(np.arange(steps)[:, None] == 0, 0, values) * (markers == 1)
    # If the first step is marked, its marker stays -1 and its value counts as 0.
    markers[0] = -1
    inputs = np.stack([values, markers], axis=-1) * active[..., None]
    total = (0.5 + marked.sum(0) / 4).astype(np.float32)
    return _at_the_end(inputs, total, active, last)


def temporal_order(draw: np.random.Generator, length: int, size: int) -> Batch:
    """Draw sequences of the temporal order problem (experiment 6a).

    Symbols a, b, c, d are drawn at random, except X or Y at two steps, one in the
    second tenth and one in the sixth tenth; E begins and B ends a sequence. The class
    is the order of the two: XX, XY, YX or YY.
    """
    steps, active, last = _lengths(draw, length, size)
    rows, tenth = np.arange(size), length // 10
    symbols = draw.integers(0, 4, (steps, size))
    order = draw.integers(0, 2, (2, size))
    for k, begin in enumerate((tenth, 5 * tenth)):
        symbols[begin + draw.integers(0, tenth + 1, size), rows] = 4 + order[k]
    symbols[0], symbols[last, rows] = 6, 7
    inputs = np.eye(8, dtype=np.float32)[symbols] * active[..., None]
    classes = (2 * order[0] + order[1]).astype(np.float32)
    return _at_the_end(inputs, classes, active, last)


def copying(draw: np.random.Generator, length: int, size: int) -> Batch:
    """Draw sequences of the copying problem.

    Ten of eight symbols are shown first, then T - 1 blanks and a recall symbol. The
    target of the last ten steps is the ten symbols in their order.
    """
    shown = 10
    steps = length + 2 * shown
    symbols = np.full((steps, size), 8)
    symbols[:shown] = draw.integers(0, 8, (shown, size))
    symbols[-shown - 1] = 9
    targets = np.zeros((steps, size), np.float32)
    targets[-shown:] = symbols[:shown]
    weights = np.zeros((steps, size), np.float32)
    weights[-shown:] = 1
    inputs = np.eye(10, dtype=np.float32)[symbols]
    return Batch(inputs, targets, np.ones((steps, size), bool), weights)


PROBLEMS = {
    "adding": Problem(
        adding, 2, None, 0.04, {100: 74_000, 500: 209_000, 1000: 853_000}
    ),
    "temporal_order": Problem(temporal_order, 8, 4, 0.0, {100: 31_390}),
    "copying": Problem(copying, 10, 8, 0.0, {}),
}


def _lengths(
    draw: np.random.Generator, length: int, size: int
) -> tuple[int, NDArray[np.bool_], NDArray[np.int64]]:
    """Return the number of steps, the steps that exist, and each last step."""
    steps = length + length // 10
    last = draw.integers(length, steps + 1, size) - 1
    return steps, np.arange(steps)[:, None] <= last, last


def _at_the_end(
    inputs: NDArray[np.float32],
    target: NDArray[np.float32],
    active: NDArray[np.bool_],
    last: NDArray[np.int64],
) -> Batch:
    """Return a batch whose sequences have one target each, at their last step."""
    weights = (np.arange(len(inputs))[:, None] == last).astype(np.float32)
    return Batch(inputs, weights * target, active, weights)
