"""Predictions of a trained run as a table, and backtests.

run, new data  ->  Task.predict  ->  columns of equal length  ->  CSV or Parquet
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.files import reason, write_atomic
from jaxlstm.lab.runs import trained
from jaxlstm.lab.sinks.formatting import printable

Columns = Mapping[str, Any]
SUFFIXES = (".csv", ".parquet")


def predict(
    run: str | Path, data: Any = None, *, out: str | Path | None = None
) -> dict[str, Any]:
    """Return the predictions of a run as the columns of a table.

    For a forecast these are series, times, `forecast` and the limits of intervals,
    such as `lo-80` and `hi-80`.

    Args:
        run: a run directory.
        data: path of a file with the columns of the training data, or a pandas or
            polars frame where the task reads frames; None takes the run's own data.
        out: a new file, with the suffix .csv or .parquet, that the table is written to.

    Raises:
        BadInput: there is no run, its task makes no predictions, or a file cannot be
            read or written.
        Diverged: a parameter is not finite.
    """
    path = None if out is None else check_out(out)
    model = trained.load(run)
    function = _member(model, "predict", "makes no predictions")
    model.require_finite()
    columns = dict(function(model, data))
    if path is not None:
        write(columns, path)
    return columns


def backtest(run: str | Path, *, windows: int | None = None) -> str:
    """Return the scores of forecasts from several origins at the end of the data.

    The origins are a horizon apart, and the last horizon ends with the data. All lie in
    the test part, and the model is not trained again.

    Args:
        run: a run directory.
        windows: number of origins; None for 5, or as many as the test part has.

    Raises:
        BadInput: there is no run, its task makes no forecasts, or an origin lies in the
            part that the model was trained or selected on.
        Diverged: a parameter is not finite.
    """
    model = trained.load(run)
    function = _member(model, "backtest", "makes no forecasts")
    model.require_finite()
    artifacts = function(model, windows=windows)
    return "\n\n".join(f"{each.title}\n{each.text}" for each in artifacts)


def _member(model: trained.Trained, name: str, lacks: str) -> Any:
    function = getattr(model.task, name, None)
    if function is None:
        raise BadInput(
            f"{name}: got a run of the task {model.task.name}, which {lacks}, expected "
            f"one of a task that does; evaluate {model.run} instead"
        )
    return function


def check_out(out: str | Path) -> Path:
    """Return the path of a new table.

    Raises:
        BadInput: it exists, its folder does not, or its suffix is not known.
    """
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise BadInput(f"--out: got {out}, expected the suffix .csv or .parquet")
    if path.exists():
        raise BadInput(f"--out: {out} already exists; choose another name")
    if not path.parent.is_dir():
        raise BadInput(f"--out: there is no directory {path.parent}")
    return path


def write(columns: Columns, path: Path) -> None:
    """Write a table.

    Raises:
        BadInput: the file cannot be written, or Parquet needs a package.
    """
    try:
        if path.suffix == ".csv":
            write_atomic(path, to_csv(columns).encode())
        else:
            write_atomic(path, _to_parquet(columns))
    except OSError as error:
        raise BadInput(f"--out: {path}: cannot be written ({reason(error)})") from None


def to_csv(columns: Columns) -> str:
    """Return a table as CSV.

    Example:
        >>> to_csv({"id": ["a"], "ds": np.array(["2024-02-29"], "M8[us]"), "y": [0.1]})
        'id,ds,y\\r\\na,2024-02-29,0.1\\r\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*map(_texts, columns.values()), strict=True))
    return text.getvalue()


def head(columns: Columns, *, rows: int = 10) -> str:
    """Return the first rows of a table, aligned, and the number of rows.

    Example:
        >>> print(head({"id": ["a", "b"], "y": [1.0, 22.5]}, rows=1))
        id  y
        a   1
        ... 2 rows
    """
    count = len(next(iter(columns.values()), ()))
    texts = [
        [printable(name), *map(printable, _texts(values[:rows], digits=6))]
        for name, values in columns.items()
    ]
    widths = [max(map(len, column)) for column in texts]
    lines = [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in zip(*texts, strict=True)
    ]
    more = [f"... {count:,} rows"] if count > rows else []
    return "\n".join([*lines, *more])


def _texts(values: Any, *, digits: int | None = None) -> Sequence[str]:
    array = np.asarray(values)
    if array.dtype.kind == "M":
        days = array.astype("M8[D]")
        if (days == array).all():
            return np.datetime_as_string(days).tolist()
        texts = np.datetime_as_string(array, unit="us").tolist()
        return [text.replace("T", " ").removesuffix(".000000") for text in texts]
    if array.dtype.kind == "f":
        kept = 9 if digits is None else digits
        return [f"{value:.{kept}g}" for value in array.tolist()]
    return [str(value) for value in array.tolist()]


def _to_parquet(columns: Columns) -> bytes:
    try:
        import polars as pl
    except ImportError:
        raise BadInput(
            '--out: a Parquet file needs polars: pip install "jaxlstm[data]"; or write '
            "a .csv file"
        ) from None
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    frame = pl.DataFrame(
        {
            name: values.tolist() if values.dtype == object else values
            for name, values in arrays.items()
        }
    )
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
