"""Ctrl-C and SIGTERM: the first asks a run to save itself, the second ends it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from jaxlstm.lab.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the run was asked to stop.

    The second signal ends the process at once, with the same exit code; what is on
    the disk by then is whole. Outside the main thread Python hands out no signals,
    and the function always says False.
    """
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(Interrupted.exit_code)
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
