"""Checkpoints written by a thread while training goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from jaxlstm.lab._util.errors import LabError


class BackgroundSaves:
    """Saves that run one after another in a thread, in a `with` block.

    An error of a save is raised by the next `check`, `start` or `wait`. The block waits
    for the last save; if it ends by an exception, an error of that save is a message.

    Args:
        report: receives the messages of saves, in the thread of the block.

    Example:
        >>> with BackgroundSaves(print) as saves:
        ...     saves.start(lambda: saves.message("saved"))
        saved
    """

    def __init__(self, report: Callable[[str], object]) -> None:
        self._report = report
        self._messages: deque[str] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def start(self, save: Callable[[], None]) -> None:
        """Begin a save when the one before has ended."""
        self.wait()
        self._running = self._pool.submit(save)

    def message(self, text: str) -> None:
        """Pass a message from a save to `report` at the next call of the block."""
        self._messages.append(text)

    def check(self) -> None:
        """Raise the error of a save that has ended, and pass its messages."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the running save; raise its error, and pass its messages."""
        running, self._running = self._running, None
        try:
            if running is not None:
                running.result()
        finally:
            while self._messages:
                self._report(self._messages.popleft())

    def __enter__(self) -> "BackgroundSaves":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except LabError as failed:
            if error is None:
                raise
            self._report(str(failed))
        finally:
            self._pool.shutdown()
