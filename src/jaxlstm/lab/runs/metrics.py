"""`metrics.jsonl`: one JSON object per line, identical bytes for identical runs.

    {"step": 50, "split": "train", "loss": 2.91, "bits_per_character": 4.2}

A population writes one record for each member, with its number under `member`.

When a run is resumed, `truncate_metrics` removes the records written after the
checkpoint, so that the resumed run leaves no gap and repeats no record.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.runs.paths import Run, append_text, write_text


def append(run: Run, *records: Mapping[str, Any]) -> None:
    """Append records to the metrics and flush them to the disk.

    Each is written as one line of JSON with its keys in the given order. Non-finite
    values become null; NumPy and JAX scalars become plain numbers.

    Raises:
        LabError: the file cannot be written.
    """
    plain = [{key: _plain(value) for key, value in each.items()} for each in records]
    lines = (json.dumps(each, allow_nan=False) + "\n" for each in plain)
    append_text(run.metrics, "".join(lines))


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Return all records in order, without a last line that a crash cut short.

    Raises:
        LabError: a line before the last is not a record; the message names the line.
    """
    return [record for record, _ in _read_lines(run)]


def truncate_metrics(run: Run, step: int) -> None:
    """Remove every record after `step`; call it before a resumed run appends.

    The remaining lines keep their bytes.

    Raises:
        LabError: a line before the last is not a record, or the file cannot be
            written.
    """
    kept = [line for record, line in _read_lines(run) if record["step"] <= step]
    write_text(run.metrics, "".join(kept))


def _read_lines(run: Run) -> list[tuple[dict[str, Any], str]]:
    """Return every record with its line, without an incomplete last line."""
    if not run.metrics.exists():
        return []
    lines = run.metrics.read_bytes().splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append((record, line.decode()))
        elif number < len(lines):
            raise LabError(
                f"{run.metrics}:{number}: got a line that is not a JSON object with a "
                "step; delete that line"
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
