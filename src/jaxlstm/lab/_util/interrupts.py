"""Handle SIGINT, SIGTERM, SIGHUP and SIGUSR1: the first stops a run, the second exits.

SIGHUP is sent when a terminal is closed, SIGUSR1 by SLURM before a job ends. A signal
that the process inherited as ignored, as under `nohup` or in a background job of a
script, stays ignored.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from jaxlstm.lab._util.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def stop_on_signal(again: str = "") -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal requested a stop.

    Each signal is confirmed on standard error. The second one exits the process
    immediately with the same exit code; files are consistent, as they are written
    atomically. Outside the main thread Python delivers no signals, and the function
    always returns False.

    Args:
        again: the command that continues what was stopped; the second signal names it.
    """
    requested = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            resume = f"; continue with: {again}" if again else ""
            _write_to_stderr(
                f"exited without saving; the last checkpoint is complete{resume}"
            )
            os._exit(Interrupted.exit_code)
        requested.set()
        _write_to_stderr("stopping and saving; interrupt again to exit immediately")

    with _handled(handle):
        yield requested.is_set


@contextlib.contextmanager
def exit_on_signal(*, remedy: str = "") -> Iterator[None]:
    """Exit the process on a signal with a message and an exit code.

    A KeyboardInterrupt would be lost if it occurred in a garbage collection or in an
    import that catches all exceptions. Files are consistent, as they are written
    atomically.

    Args:
        remedy: how to continue, the end of the message.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        _write_to_stderr(f"interrupted{by}{'; ' if remedy else ''}{remedy}")
        os._exit(Interrupted.exit_code)

    with _handled(handle):
        yield


Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def _handled(handle: Handler) -> Iterator[None]:
    """Install a handler for the signals that are not ignored, in the main thread.

    Handlers that another program has for SIGHUP and SIGUSR1 stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = filter(_is_heeded, SIGNALS)
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_heeded(number: signal.Signals) -> bool:
    current = signal.getsignal(number)
    if current in (None, signal.SIG_IGN):
        return False
    own = getattr(current, "__module__", None) == __name__
    always = number in (signal.SIGINT, signal.SIGTERM)
    return always or own or current == signal.SIG_DFL


def _write_to_stderr(text: str) -> None:
    """Write to descriptor 2: a signal may arrive while `sys.stderr` is locked."""
    with contextlib.suppress(OSError):
        os.write(2, f"\njaxlstm: {text}\n".encode())
