"""The speed of training, without the time of compilation, validation and saving."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Measures the time between two calls of `pace`."""

    def __init__(self, step: int) -> None:
        self._start, self._step = time.perf_counter(), step
        self._paused = self._waited = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, such as compilation, validation or saving."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def pace(self, step: int, *, left: int, count: int, unit: str) -> dict[str, float]:
        """Return the speed since the last call.

        Args:
            step: the current step.
            left: the number of steps that remain.
            count: the number of tokens or sequences per step.
            unit: "tokens" or "sequences".
        """
        now = time.perf_counter()
        seconds = max(now - self._start - self._paused, 1e-9)
        each = seconds / max(step - self._step, 1)
        share = self._waited / seconds
        self._start, self._paused, self._waited, self._step = now, 0.0, 0.0, step
        return {
            f"{unit}_per_second": count / each,
            "milliseconds_per_step": 1e3 * each,
            "data_wait_share": share,
            "eta_seconds": left * each,
        }
