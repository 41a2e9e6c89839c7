"""Times that can be compared: several runs in alternation, and the spread of each.

Whoever is compared takes turns, in an order drawn anew for each round, so that a
machine that is busy for a second is busy for all of them.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Run = Callable[[], object]
Name = TypeVar("Name")


class Spread(NamedTuple):
    """The median of several runs, the quartiles around it, and how many they were."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value or more.

        >>> Spread.of([3.0, 1.0, 2.0, 5.0, 4.0])
        Spread(median=3.0, low=2.0, high=4.0, runs=5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def divided(self, by: float) -> "Spread":
        """Of each of several equal parts of what was measured."""
        return self._replace(
            median=self.median / by, low=self.low / by, high=self.high / by
        )


def alternate(
    runs: Mapping[Name, Run],
    *,
    seconds: float,
    least: int = 3,
    turn: float = 0.02,
    rest: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
    seed: int = 0,
) -> dict[Name, Spread]:
    """The seconds that a run of each takes, all of them measured in alternation.

    Arguments:
        runs: each runs once and waits for its result.
        seconds: for all of them together; at least so many rounds are made, though.
        least: the least number of rounds.
        turn: whose run is shorter than this runs several times in each of its turns,
            and the mean counts as one.
        rest: seconds between two turns, in which the threads of the last one settle.
        clock, sleep: where the time comes from.
        seed: draws the order of each round.

    >>> spreads = alternate({"a": lambda: sum(range(999))}, seconds=0.0, rest=0.0)
    >>> spreads["a"].runs
    3
    """
    times: dict[Name, list[float]] = {name: [] for name in runs}
    count = {name: _repetitions(run, turn, clock) for name, run in runs.items()}
    order, drawn = list(runs), random.Random(seed)
    end, rounds = clock() + seconds, 0
    while runs and (rounds < least or clock() < end):
        drawn.shuffle(order)
        for name in order:
            sleep(rest)
            times[name].append(_mean_time(runs[name], count[name], clock))
        rounds += 1
    return {name: Spread.of(values) for name, values in times.items()}


def _repetitions(run: Run, turn: float, clock: Callable[[], float]) -> int:
    """How many runs fill a turn, by the second run, as the first one is slower."""
    once = _mean_time(run, 1, clock)
    if once > 50 * turn:
        return 1
    once = _mean_time(run, 1, clock)
    return max(1, min(10_000, math.ceil(turn / max(once, 1e-9))))


def _mean_time(run: Run, count: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(count):
        run()
    return (clock() - began) / count
