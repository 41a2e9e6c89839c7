"""The three screens of a run: a pipe, a notebook and a terminal. Each is a `Sink`."""

import math
import os
import time
from collections.abc import Callable
from typing import IO, Any, TypeGuard

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxlstm.lab.sinks.records import (
    PACE,
    SCORES,
    Record,
    clock,
    line,
    printable,
    written,
)


class Outlet:
    """A text stream that falls silent when its reader has gone.

    After `jaxlstm train ... | head` nobody reads any more. Training goes on, and
    nothing is printed, also not by the interpreter when it flushes at the end.
    Characters that the stream's encoding lacks are spelled out.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write `text`, or nothing once the reader has gone."""
        safe = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._attempt(lambda stream: stream.write(safe))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        self._attempt(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether somebody sits in front of it."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor, by which a terminal is asked for its width."""
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
    """Let what is still in the stream's buffer go nowhere."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Lines:
    """One plain line per record: for pipes, files and terminals without a cursor."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._total = 0

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Say where the run begins."""
        self._total = total
        self.message(f"{title or 'run'}: step {step} of {total}")

    def log(self, record: Record) -> None:
        """One line."""
        self.message(line(record, self._total))

    def message(self, text: str) -> None:
        """The text, with anything that is not text spelled out."""
        self._outlet.write(printable(text) + "\n")
        self._outlet.flush()

    def finish(self) -> None:
        """Nothing to put away."""


class Notebook:
    """One line under the cell that is written anew with every record."""

    def __init__(self, outlet: Outlet) -> None:
        self._plain = Lines(outlet)
        self._total = 0
        self._handle: Any = None

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Show the line."""
        from IPython.display import display

        self._total = total
        text = printable(f"{title or 'run'}: step {step} of {total}")
        self._handle = display({"text/plain": text}, raw=True, display_id=True)

    def log(self, record: Record) -> None:
        """Write the line anew; a validation keeps a line of its own."""
        text = line(record, self._total)
        if record.get("split", "train") != "train":
            self._plain.message(text)
        elif self._handle is not None:
            self._handle.update({"text/plain": text}, raw=True)

    def message(self, text: str) -> None:
        """A line of its own."""
        self._plain.message(text)

    def finish(self) -> None:
        """The last line stays."""
        self._handle = None


class Terminal:
    """A live display at the foot of a terminal; messages scroll above it."""

    def __init__(self, outlet: Outlet) -> None:
        self._console = Console(
            file=outlet,  # pyright: ignore[reportArgumentType]
            force_terminal=True,
            markup=False,
            emoji=False,
            highlight=False,
        )
        self._live: Live | None = None
        self._panel = _Panel()

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Show the display, before the first step is compiled."""
        self._panel.begin(total, step, title)
        self._live = Live(self._panel, console=self._console, refresh_per_second=4)
        self._live.start()
        self._console.show_cursor(True)  # it stays, even after a kill -9

    def log(self, record: Record) -> None:
        """Redraw; a validation also leaves a line behind."""
        self._panel.take(record)
        if record.get("split", "train") != "train":
            self.message(line(record, self._panel.total))

    def message(self, text: str) -> None:
        """Print above the display."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def finish(self) -> None:
        """Draw a last time and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Panel:
    """What the live display shows: a bar, and a row of numbers under their names."""

    def __init__(self) -> None:
        self.begin(0, 0, "")

    def begin(self, total: int, step: int, title: str) -> None:
        """Forget all, and start the clock."""
        self.total, self.step, self.title = total, step, printable(title)
        self._began = self._heard = time.monotonic()
        self._latest: Record = {}
        self._best: tuple[float, str] | None = None

    def take(self, record: Record) -> None:
        """Keep the newest numbers, and the best validation."""
        self.step = record["step"]
        if record.get("split", "train") == "train":
            self._latest, self._heard = record, time.monotonic()
        elif record["split"] == "validation" and _finite(record.get("loss")):
            value = written(record, SCORES)[-1][1]
            mine = (record["loss"], f"{value} at {self.step}")
            self._best = min(self._best or mine, mine)

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
        times, eta = clock(now - self._began), self._latest.get("eta_seconds")
        if _finite(eta):
            times += f"  eta {clock(eta - (now - self._heard))}"
        return times

    def _numbers(self, width: int) -> Table | Text:
        pairs = written(self._latest, (*SCORES, *PACE))
        if not pairs:
            return Text("compiling the first step ...", style="dim")
        if self._best:
            pairs.insert(2, ("best valid.", self._best[1]))
        return _columns(pairs, width)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _columns(pairs: list[tuple[str, str]], width: int) -> Table:
    """As many columns as fit, the first ones first."""
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
