"""Comparable timings: measure several functions in alternation.

The functions take turns in a new random order each round, so that background load
affects all of them alike.
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
    """Median, quartiles and number of the measurements."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values.

        Example:
            >>> Spread.of([3.0, 1.0, 2.0, 5.0, 4.0])
            Spread(median=3.0, low=2.0, high=4.0, runs=5)
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def divided(self, by: float) -> "Spread":
        """Return the spread with median and quartiles divided by a number."""
        return self._replace(
            median=self.median / by, low=self.low / by, high=self.high / by
        )


def measure_alternately(
    runs: Mapping[Name, Run],
    *,
    seconds: float,
    min_rounds: int = 3,
    turn_seconds: float = 0.02,
    pause: float = 0.005,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
    seed: int = 0,
) -> dict[Name, Spread]:
    """Measure the seconds that each function takes, in alternation.

    Args:
        runs: functions by name; each runs once and waits for its result.
        seconds: total time of the measurement.
        min_rounds: smallest number of rounds, even if they take longer than `seconds`.
        turn_seconds: shortest duration of a turn. A faster function is called several
            times per turn, and the mean counts as one measurement.
        pause: seconds between two turns, for the threads of the last one to finish.
        clock: function that returns the current time.
        sleep: function that waits for a number of seconds.
        seed: seed of the order of the turns.

    Example:
        >>> runs = {"a": lambda: sum(range(999))}
        >>> times = measure_alternately(runs, seconds=0.0, pause=0.0)
        >>> times["a"].runs
        3
    """
    times: dict[Name, list[float]] = {name: [] for name in runs}
    count = {name: _repetitions(run, turn_seconds, clock) for name, run in runs.items()}
    order, generator = list(runs), random.Random(seed)
    end, rounds = clock() + seconds, 0
    while runs and (rounds < min_rounds or clock() < end):
        generator.shuffle(order)
        for name in order:
            sleep(pause)
            times[name].append(_mean_time(runs[name], count[name], clock))
        rounds += 1
    return {name: Spread.of(values) for name, values in times.items()}


def _repetitions(run: Run, turn_seconds: float, clock: Callable[[], float]) -> int:
    """Return how many calls fill a turn; the second call decides, the first is slow."""
    once = _mean_time(run, 1, clock)
    if once > 50 * turn_seconds:
        return 1
    once = _mean_time(run, 1, clock)
    return max(1, min(10_000, math.ceil(turn_seconds / max(once, 1e-9))))


def _mean_time(run: Run, count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count):
        run()
    return (clock() - start) / count
