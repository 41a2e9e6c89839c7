"""Handle SIGINT and SIGTERM: the first stops a run gracefully, the second exits."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from jaxlstm.lab._util.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal requested a stop.

    Each signal is confirmed on standard error. The second one exits the process
    immediately with the same exit code; files are consistent, as they are written
    atomically. Outside the main thread Python delivers no signals, and the function
    always returns False.
    """
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            _say("exited without saving; the last checkpoint is complete")
            os._exit(Interrupted.exit_code)
        asked.set()
        _say("stopping and saving; interrupt again to exit immediately")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Exit the process on SIGINT with a message and an exit code.

    A KeyboardInterrupt would be lost if it occurred in a garbage collection or in an
    import that catches all exceptions. Files are consistent, as they are written
    atomically.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        _say("interrupted")
        os._exit(Interrupted.exit_code)

    other_thread = threading.current_thread() is not threading.main_thread()
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # background job
    if other_thread or ignored:
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    """Write to the descriptor: a signal may arrive while `sys.stderr` is locked."""
    with contextlib.suppress(OSError):
        os.write(2, f"\njaxlstm: {text}\n".encode())
