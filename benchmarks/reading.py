"""Time and memory of reading 10 million rows: `python benchmarks/reading.py`.

Writes daily values of 2,000 series in a temporary folder, as CSV and as Parquet, and
reads each in a process of its own: with `read_series`, which checks and groups the
rows, and with pandas, which parses the dates and groups by series. Needs pandas and
pyarrow. `--rows N` changes the number of rows.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SERIES = 2000


def write(folder: Path, rows: int) -> None:
    """Write the same rows as CSV and as Parquet."""
    import polars as pl

    length = rows // SERIES
    rng = np.random.default_rng(0)
    day = np.datetime64("2000-01-01", "D") + np.arange(length)
    frame = pl.DataFrame(
        {
            "unique_id": np.repeat([f"shop_{k:04d}" for k in range(SERIES)], length),
            "ds": pl.Series(np.tile(day, SERIES)),
            "y": rng.gamma(2.0, 50.0, length * SERIES).round(2),
            "promotion": rng.integers(0, 2, length * SERIES),
        }
    )
    frame.write_csv(folder / "rows.csv")
    frame.write_parquet(folder / "rows.parquet")


def read_ours(path: str) -> int:
    """Read with `read_series`."""
    from jaxlstm.lab.config.tables import SeriesFiles
    from jaxlstm.lab.data.series import read_series

    series = read_series(SeriesFiles(path=path, future=("promotion",)))
    return len(series.target)


def read_pandas(path: str) -> int:
    """Read with pandas: dates, float32 and groups."""
    import pandas as pd

    dtypes = {"y": np.float32, "promotion": np.float32}
    if path.endswith(".csv"):
        frame = pd.read_csv(path, parse_dates=["ds"], dtype=dtypes)
    else:
        frame = pd.read_parquet(path).astype(dtypes)
    groups = dict(iter(frame.groupby("unique_id")))
    return sum(len(group) for group in groups.values())


READERS = {"jaxlstm": read_ours, "pandas": read_pandas}


def measure(reader: str, path: str) -> dict[str, float]:
    """Return seconds with imports, CPU seconds, and the peak memory of this process."""
    start = time.perf_counter()
    rows = READERS[reader](path)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * 1024
    return {"rows": rows, "seconds": seconds, "cpu": cpu, "peak": peak}


def main() -> None:
    """Write the files, and print one line for each reader and file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--one", nargs=2, metavar=("READER", "FILE"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.rows)
        for name in ("rows.csv", "rows.parquet"):
            path = Path(folder, name)
            size = path.stat().st_size / 1e6
            for reader in READERS:
                command = [sys.executable, __file__, "--one", reader, str(path)]
                written = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True
                )
                found = json.loads(written.stdout)
                print(
                    f"{name} ({size:.0f} MB), {reader}: {found['rows']:,} rows in "
                    f"{found['seconds']:.1f} s ({found['cpu']:.1f} s of CPU), peak "
                    f"{found['peak'] / 2**30:.2f} GiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
