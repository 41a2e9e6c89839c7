"""Ctrl-C and SIGTERM: the first asks a run to save itself, the second ends it."""

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
    """Gives a function that says whether the run was asked to stop.

    Whoever asks is answered on standard error without delay.

    The second signal ends the process at once, with the same exit code; what is on
    the disk by then is whole. Outside the main thread Python hands out no signals,
    and the function always says False.
    """
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            _say("stopped at once; the last checkpoint is whole")
            os._exit(Interrupted.exit_code)
        asked.set()
        _say("stopping and saving; once more to stop at once")

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
    """A Ctrl-C ends the process, with a word and its exit code.

    An exception would be lost where a library's import or the garbage collector happens
    to run. What is on the disk is whole, as files are replaced in one step.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        _say("interrupted")
        os._exit(Interrupted.exit_code)

    elsewhere = threading.current_thread() is not threading.main_thread()
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # in a background
    if elsewhere or ignored:
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    """Write past Python's streams, which the signal may have found half way."""
    with contextlib.suppress(OSError):
        os.write(2, f"\njaxlstm: {text}\n".encode())
