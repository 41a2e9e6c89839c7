"""`metrics.jsonl`: one JSON object per line, identical bytes for identical runs.

    {"step": 50, "split": "train", "loss": 2.91, "bits_per_character": 4.2}

A population writes one record for each member, with its number under `member`.

Each checkpoint records the size and hash of the log at its step. When a run is resumed,
the log is cut to this size, so that the resumed run leaves no gap and repeats no
record. A log whose beginning has another hash was edited.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab._util.files import read_bytes, reason
from jaxlstm.lab.runs.paths import Run, append_text, write_bytes


class Mark(NamedTuple):
    """Size in bytes and SHA-256 of the beginning of a log."""

    size: int
    sha256: str


class MetricsLog:
    """Appends records to the metrics of a run, and keeps the hash of all of them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        content = _content(run)
        self._size, self._hash = len(content), hashlib.sha256(content)

    @property
    def mark(self) -> Mark:
        """The size and hash of the records so far."""
        return Mark(self._size, self._hash.hexdigest())

    def append(self, *records: Mapping[str, Any]) -> None:
        """Append records; see the function `append`."""
        lines = append(self._run, *records).encode()
        self._size += len(lines)
        self._hash.update(lines)


def append(run: Run, *records: Mapping[str, Any]) -> str:
    """Append records to the metrics, flush them to the disk, and return their lines.

    Each is written as one line of JSON with its keys in the given order. Non-finite
    values become null; NumPy and JAX scalars become plain numbers.

    Raises:
        LabError: the file cannot be written.
    """
    plain = [{key: _plain(value) for key, value in each.items()} for each in records]
    lines = "".join(json.dumps(each, allow_nan=False) + "\n" for each in plain)
    append_text(run.metrics, lines)
    return lines


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Return all records in order, without a last line that a crash cut short.

    Raises:
        LabError: a line before the last is not a record; the message names the line.
    """
    return [record for record, _ in _read_lines(run)]


def has_metrics(run: Run) -> bool:
    """Return whether the log exists and is not empty."""
    return bool(_content(run))


def begins_with(run: Run, mark: Mark) -> bool:
    """Return whether the log begins with the bytes that a mark was made of."""
    content = _content(run)[: mark.size]
    same = hashlib.sha256(content).hexdigest() == mark.sha256
    return len(content) == mark.size and same


def is_complete(run: Run, mark: Mark) -> bool:
    """Return whether the log consists of the bytes that a mark was made of."""
    return begins_with(run, mark) and len(_content(run)) == mark.size


def truncate_metrics(run: Run, to: Mark | int) -> None:
    """Remove every record after a mark, or after a step, and an incomplete last line.

    Args:
        run: the run.
        to: the mark of a checkpoint; the step of one that earlier versions wrote.

    Raises:
        LabError: a line before the last is not a record, or the file cannot be
            written.
    """
    if isinstance(to, Mark):
        write_bytes(run.metrics, _content(run)[: to.size])
        return
    kept = [line for record, line in _read_lines(run) if record["step"] <= to]
    write_bytes(run.metrics, b"".join(kept))


def _content(run: Run) -> bytes:
    try:
        return read_bytes(run.metrics)
    except FileNotFoundError:
        return b""
    except OSError as error:
        message = f"{run.metrics}: cannot be read ({reason(error)})"
        raise LabError(message) from error


def _read_lines(run: Run) -> list[tuple[dict[str, Any], bytes]]:
    """Return every record with its line, without an incomplete last line."""
    lines = _content(run).splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append((record, line))
        elif number < len(lines):
            raise LabError(
                f"{run.metrics}:{number}: got a line that is not a JSON object with a "
                "step; restore the file"
            )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parse a complete line, or return None if it is not a record."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and isinstance(record.get("step"), int):
        return record
    return None


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else None
