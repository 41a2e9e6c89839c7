"""Who is told how a run is getting on, while it is going.

A `Sink` is anything that can be told. `progress` chooses the one for this screen: a
live display on a terminal, one plain line per record in a pipe, one updating line in
a notebook. `TextLog` and `TensorBoard` are sinks too, and `together` makes several
into one. What they are told are the records of `jaxlstm.lab.sinks.records`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.sinks.console import Lines, Notebook, Outlet, Terminal
from jaxlstm.lab.sinks.records import Record, line, printable


class Sink(Protocol):
    """Anything that can be told how a run is getting on."""

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """The run called `title` stands at `step` and ends at `total`."""
        ...

    def log(self, record: Record) -> None:
        """New numbers (`jaxlstm.lab.sinks.records` says which)."""
        ...

    def message(self, text: str) -> None:
        """Something to say in words: one line or several."""
        ...

    def finish(self) -> None:
        """Nothing more will come. Safe to call twice, and before `start`."""
        ...


def progress(*, stream: IO[str] | None = None) -> Sink:
    """The sink that suits `stream` (standard output where it is None).

    >>> import io
    >>> sink = progress(stream=io.StringIO())
    >>> type(sink).__name__
    'Lines'
    """
    outlet = Outlet(sys.stdout if stream is None else stream)
    if stream is None and _in_notebook():
        return Notebook(outlet)
    if outlet.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return Terminal(outlet)
    return Lines(outlet)


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class TextLog:
    """Lines handed to `write` one at a time: `partial(runs.log, run)` for log.txt."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._total = 0

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Say where the run begins."""
        self._total = total
        self.message(f"{title or 'run'}: step {step} of {total}")

    def log(self, record: Record) -> None:
        """One line."""
        self.message(line(record, self._total))

    def message(self, text: str) -> None:
        """Each line of the text on its own."""
        for part in printable(text).split("\n"):
            self._write(part)

    def finish(self) -> None:
        """Nothing to put away."""


class TensorBoard:
    """Every number as a scalar `split/key`, in the event files of `directory`.

    Raises `LabError` where tensorboardX is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise LabError(
                "the TensorBoard sink needs tensorboardX: "
                'pip install "jaxlstm[tensorboard]"'
            ) from error
        self._writer = SummaryWriter(str(directory))

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Nothing to show yet."""

    def log(self, record: Record) -> None:
        """One scalar per number."""
        split = record.get("split", "train")
        for key, value in record.items():
            if key not in ("step", "split", "total") and value is not None:
                self._writer.add_scalar(f"{split}/{key}", value, record["step"])

    def message(self, text: str) -> None:
        """TensorBoard shows numbers only."""

    def finish(self) -> None:
        """Write out what is waiting."""
        self._writer.close()


class _Together(NamedTuple):
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


def together(*sinks: Sink) -> Sink:
    """Several sinks as one, told in this order.

    >>> import io
    >>> heard = []
    >>> both = together(progress(stream=io.StringIO()), TextLog(heard.append))
    >>> both.message("saved step 500")
    >>> heard
    ['saved step 500']
    """
    return _Together(sinks)
