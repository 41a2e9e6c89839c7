"""`metrics.jsonl`: one JSON object a line, the same bytes for the same run.

    {"step": 50, "split": "train", "loss": 2.91, "bits_per_character": 4.2}

A run that was killed goes on with `truncate_metrics`, which takes back what the last
checkpoint does not know of; so the log has neither a gap nor a repeat.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.runs.paths import Run, append_text, write_text


def append(run: Run, record: Mapping[str, Any]) -> None:
    """Append one record to the metrics and force it to the disk.

    It is one line of JSON in the order of `record`. What is not finite becomes null,
    and scalars of NumPy or JAX become plain numbers.

    Raises:
        LabError: the disk refuses.
    """
    plain = {key: _plain(value) for key, value in record.items()}
    append_text(run.metrics, json.dumps(plain, allow_nan=False) + "\n")


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """All records, in order; a last line that was cut off by a crash is left out.

    Raises:
        LabError: a line before the last is no record; it is named.
    """
    return [record for record, _ in _read_lines(run)]


def truncate_metrics(run: Run, step: int) -> None:
    """Forget every record after `step`, so that a resumed run repeats none.

    The lines that stay keep their bytes. Do it once, before the first new record.

    Raises:
        LabError: a line before the last is no record, or the disk refuses.
    """
    kept = [line for record, line in _read_lines(run) if record["step"] <= step]
    write_text(run.metrics, "".join(kept))


def _read_lines(run: Run) -> list[tuple[dict[str, Any], str]]:
    """Every record with its line; the last line may be torn, and then is dropped."""
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
                f"{run.metrics}:{number}: not a record with a step; delete that line"
            )
    return records


def _parse(line: bytes) -> dict[str, Any] | None:
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
