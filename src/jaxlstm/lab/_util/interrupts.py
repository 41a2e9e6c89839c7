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
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal requested a stop.

    Each signal is confirmed on standard error. The second one exits the process
    immediately with the same exit code; files are consistent, as they are written
    atomically. Outside the main thread Python delivers no signals, and the function
    always returns False.
    """
    requested = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            _write_to_stderr("exited without saving; the last checkpoint is complete")
            os._exit(Interrupted.exit_code)
        requested.set()
        _write_to_stderr("stopping and saving; interrupt again to exit immediately")

    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield requested.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit the process on SIGINT with a message and an exit code.

    A KeyboardInterrupt would be lost if it occurred in a garbage collection or in an
    import that catches all exceptions. Files are consistent, as they are written
    atomically.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        _write_to_stderr("interrupted")
        os._exit(Interrupted.exit_code)

    other_thread = threading.current_thread() is not threading.main_thread()
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # background job
    if other_thread or ignored:
        yield
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _write_to_stderr(text: str) -> None:
    """Write to descriptor 2: a signal may arrive while `sys.stderr` is locked."""
    with contextlib.suppress(OSError):
        os.write(2, f"\njaxlstm: {text}\n".encode())
