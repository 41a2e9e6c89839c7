"""The interface of sinks, and the sink for the current output.

A `Sink` is an object that receives the progress of a run as records, which
`jaxlstm.lab.sinks.formatting` describes. `progress` chooses one: a live display on a
terminal, one line per record in a pipe, one updated line in a notebook. `TextSink` and
`TensorBoardSink` write files, and `combine` makes one sink of several.
"""

import os
import sys
from typing import IO, Literal, NamedTuple, Protocol

from jaxlstm.lab.sinks.console import Outlet, TerminalSink
from jaxlstm.lab.sinks.formatting import Record
from jaxlstm.lab.sinks.notebook import NotebookSink
from jaxlstm.lab.sinks.text import TextSink


class Sink(Protocol):
    """An object that receives the progress of a run."""

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Begin a run of `total` steps at `step`; `title` is its name."""
        ...

    def log(self, record: Record) -> None:
        """Receive numbers, as described in `jaxlstm.lab.sinks.formatting`."""
        ...

    def message(self, text: str) -> None:
        """Receive a message of one or more lines."""
        ...

    def finish(self) -> None:
        """Release all resources. May be called twice, and before `start`."""
        ...


def progress(
    *,
    stream: IO[str] | None = None,
    best: tuple[str, Literal["min", "max"]] = ("loss", "min"),
) -> Sink:
    """Return the sink that suits an output stream.

    Args:
        stream: where to write; None for standard output.
        best: the metric that selects the best validation, and whether its smallest or
            largest value is best; `Task.primary`.

    Example:
        >>> import io
        >>> sink = progress(stream=io.StringIO())
        >>> type(sink).__name__
        'TextSink'
    """
    outlet = Outlet(sys.stdout if stream is None else stream)
    if stream is None and _in_notebook():
        return NotebookSink(outlet.write_line)
    # A live display moves the cursor by escape sequences, also without colours.
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb")
    if outlet.isatty() and not is_plain:
        return TerminalSink(outlet, best=best)
    return TextSink(outlet.write_line)


Progress = Sink | Literal["auto"] | None
"""A sink, "auto" for the one of `progress`, or None for none."""


def choose(
    sink: Progress, *, best: tuple[str, Literal["min", "max"]] = ("loss", "min")
) -> Sink:
    """Return the sink that an argument `sink` stands for.

    Example:
        >>> choose(None).message("not shown")
    """
    if sink == "auto":
        return progress(best=best)
    return combine() if sink is None else sink


def _in_notebook() -> bool:
    """Return whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class _Combined(NamedTuple):
    sinks: tuple[Sink, ...]

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        for sink in self.sinks:
            sink.start(total, step=step, title=title)

    def log(self, record: Record) -> None:
        for sink in self.sinks:
            sink.log(record)

    def message(self, text: str) -> None:
        for sink in self.sinks:
            sink.message(text)

    def finish(self) -> None:
        for sink in self.sinks:
            sink.finish()


def combine(*sinks: Sink) -> Sink:
    """Return a sink that passes everything on to several sinks, in this order.

    Example:
        >>> lines = []
        >>> both = combine(TextSink(lines.append), TextSink(lines.append))
        >>> both.message("saved step 500")
        >>> lines
        ['saved step 500', 'saved step 500']
    """
    return _Combined(sinks)
