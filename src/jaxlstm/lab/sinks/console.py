"""The live display of a run on a terminal, and a stream that outlives its reader."""

import math
import os
import time
from collections.abc import Callable
from typing import IO, Literal, TypeGuard

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxlstm.lab.sinks.formatting import (
    Record,
    clock,
    fill,
    format_fields,
    format_metrics,
    format_score,
    line,
    printable,
)


class Outlet:
    """A text stream that discards what is written after its reader has closed it.

    `jaxlstm train ... | head` closes the pipe after ten lines; training must go on, and
    the interpreter must not fail when it flushes the stream at exit. Characters that
    the stream's encoding lacks are escaped.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write `text`; do nothing if the stream is closed."""
        safe = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._attempt(lambda stream: stream.write(safe))
        return len(text)

    def write_line(self, text: str) -> None:
        """Write `text` and a line end, and flush."""
        self.write(text + "\n")
        self.flush()

    def flush(self) -> None:
        """Flush the stream; do nothing if it is closed."""
        self._attempt(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor, from which Rich reads the terminal's width."""
        if self._stream is None:
            raise OSError("the stream is closed")
        return self._stream.fileno()

    def _attempt(self, act: Callable[[IO[str]], object]) -> None:
        if self._stream is None:
            return
        try:
            act(self._stream)
        except (OSError, ValueError):  # the pipe is broken, the file is closed
            _discard(self._stream)
            self._stream = None


def _discard(stream: IO[str]) -> None:
    """Redirect the stream's descriptor to the null device, for its buffered text."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class TerminalSink:
    """A live display at the bottom of a terminal; messages scroll above it.

    Args:
        outlet: the terminal.
        best: the metric that selects the best validation, and whether its smallest or
            largest value is best.
    """

    def __init__(
        self,
        outlet: Outlet,
        *,
        best: tuple[str, Literal["min", "max"]] = ("loss", "min"),
    ) -> None:
        self._console = Console(
            file=outlet,  # pyright: ignore[reportArgumentType]
            force_terminal=True,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self._live: Live | None = None
        self._panel = _Panel(*best)

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Show the display. It is called before the first step is compiled."""
        self._panel.reset(total, step, title)
        self._live = Live(self._panel, console=self._console, refresh_per_second=4)
        self._live.start()
        self._console.show_cursor(True)  # else kill -9 would leave it hidden

    def log(self, record: Record) -> None:
        """Update the display; print a validation record above it as well."""
        self._panel.update(record)
        if record.get("split", "train") != "train":
            self.message(line(record, self._panel.total))

    def message(self, text: str) -> None:
        """Print above the display."""
        # Broken between words here, since a terminal breaks within them.
        lines = fill(printable(text), self._console.width, indent="  ")
        self._console.print(Text(lines), soft_wrap=True)

    def finish(self) -> None:
        """Draw the display once more and stop updating it."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Panel:
    """The content of the live display: a progress bar, and numbers below labels."""

    def __init__(self, metric: str, mode: Literal["min", "max"]) -> None:
        self._metric, self._choose = metric, min if mode == "min" else max
        self.reset(0, 0, "")

    def reset(self, total: int, step: int, title: str) -> None:
        """Clear the numbers and start the clock."""
        self.total, self.step, self.title = total, step, printable(title)
        self._started = self._updated = time.monotonic()
        self._latest: Record = {}
        self._best: tuple[float, str] | None = None

    def update(self, record: Record) -> None:
        """Keep the latest training numbers and the best validation score."""
        self.step = record["step"]
        if record.get("split", "train") == "train":
            self._latest, self._updated = record, time.monotonic()
        elif record["split"] == "validation" and _finite(record.get(self._metric)):
            words = f"{format_score(record, self._metric)} at {self.step}"
            score = (record[self._metric], words)
            self._best = self._choose(self._best or score, score, key=lambda s: s[0])

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        yield self._bar(options.max_width)
        yield self._numbers(options.max_width)

    def _bar(self, width: int) -> Table:
        title = self.title if width >= 72 else ""
        steps = f"{self.step}/{self.total}"
        times = self._times(time.monotonic())
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(max_width=30, no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(min_width=len(steps), no_wrap=True)
        row.add_column(min_width=len(times), no_wrap=True)
        bar = ProgressBar(total=max(1, self.total), completed=self.step)
        row.add_row(Text(title, style="bold"), bar, steps, times)
        return row

    def _times(self, now: float) -> str:
        times, eta = clock(now - self._started), self._latest.get("eta_seconds")
        if _finite(eta):
            times += f"  eta {clock(eta - (now - self._updated))}"
        return times

    def _numbers(self, width: int) -> Table | Text:
        metrics, pace = format_metrics(self._latest), format_fields(self._latest)
        if not metrics + pace:
            return Text("compiling the first step ...", style="dim")
        best = [("best valid.", self._best[1])] if self._best else []
        return _columns(metrics + best + pace, width)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _columns(pairs: list[tuple[str, str]], width: int) -> Table:
    """Return a table of as many leading columns as fit into the width."""
    grid, used = Table.grid(padding=(0, 2)), 0
    shown = []
    for name, value in pairs:
        used += max(len(name), len(value)) + 2
        if used - 2 > width:
            break
        grid.add_column(justify="right", no_wrap=True)
        shown.append((name, value))
    grid.add_row(*(Text(name, style="dim") for name, _ in shown))
    grid.add_row(*(Text(value) for _, value in shown))
    return grid
