"""A sink of plain lines, for pipes and log files."""

from collections.abc import Callable

from jaxlstm.lab.sinks.formatting import Record, line, printable


class TextSink:
    """Passes one plain line per record to a function, without its line end."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._total = 0

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Write at which step the run begins."""
        self._total = total
        self.message(f"{title or 'run'}: step {step} of {total}")

    def log(self, record: Record) -> None:
        """Write the record as one line."""
        self.message(line(record, self._total))

    def message(self, text: str) -> None:
        """Write each line of the text."""
        for part in printable(text).split("\n"):
            self._write(part)

    def finish(self) -> None:
        """Do nothing: every line has been written."""
