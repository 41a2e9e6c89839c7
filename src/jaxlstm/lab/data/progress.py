"""Show how much of a large file has been read, on the standard error stream."""

import sys
import time

from jaxlstm.lab._util.wording import shown

FIRST, TERMINAL, LOG = 2.0, 0.2, 10.0  # seconds


class Progress:
    """A line such as "reading sales.csv: 45 %", once reading takes 2 seconds.

    A terminal shows one line that changes; a log gets a line every 10 seconds. The
    object is called with the amount that is done and the whole.
    """

    def __init__(self, name: str) -> None:
        self._name, self._stream = shown(name), sys.stderr
        self._next = time.monotonic() + FIRST
        self._width = 0

    def __call__(self, done: int, whole: int) -> None:
        """Show the progress, if it is time to."""
        now = time.monotonic()
        if now < self._next or not whole:
            return
        terminal = self._stream.isatty()
        self._next = now + (TERMINAL if terminal else LOG)
        text = f"reading {self._name}: {100 * done // whole} %"
        self._width = len(text)
        end = "\r" if terminal else "\n"
        print(text, end=end, file=self._stream, flush=True)

    def close(self) -> None:
        """Clear the line on a terminal."""
        if self._width and self._stream.isatty():
            print(" " * self._width, end="\r", file=self._stream, flush=True)
