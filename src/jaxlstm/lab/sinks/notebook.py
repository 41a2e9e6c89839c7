"""A sink for Jupyter notebooks."""

from collections.abc import Callable
from typing import Any

from jaxlstm.lab.sinks.formatting import Record, line, printable
from jaxlstm.lab.sinks.text import TextSink


class NotebookSink:
    """Shows training records in one updated line below the cell.

    Validation records and messages are separate lines, passed to a function.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._lines = TextSink(write)
        self._total = 0
        self._handle: Any = None

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Show the line that is updated."""
        from IPython.display import display

        self._total = total
        text = printable(f"{title or 'run'}: step {step} of {total}")
        self._handle = display({"text/plain": text}, raw=True, display_id=True)

    def log(self, record: Record) -> None:
        """Update the line, or write a validation record as a separate line."""
        text = line(record, self._total)
        if record.get("split", "train") != "train":
            self._lines.message(text)
        elif self._handle is not None:
            self._handle.update({"text/plain": text}, raw=True)

    def message(self, text: str) -> None:
        """Write the text as separate lines."""
        self._lines.message(text)

    def finish(self) -> None:
        """Stop updating the line; it stays visible."""
        self._handle = None
