"""Features of a date, known for all times: a sine and a cosine, or a number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe


class Features(NamedTuple):
    """Columns of float32 `[rows, F]`, and their names."""

    values: NDArray[np.float32]
    names: tuple[str, ...]


def calendar_features(
    times: NDArray[np.datetime64], names: Sequence[str], *, zone: str | None = None
) -> Features:
    """Return the features `names` of times.

    A periodic feature of period P is sin(2 pi x / P) and cos(2 pi x / P) with x from 0:
    `minute`, `hour`, `day_of_week` (Monday is 0), `day_of_month`, `day_of_year`,
    `week_of_year`, `month` and `quarter`. `year` is (year - 2000) / 10, and `weekend`
    is 1 on Saturday and Sunday.

    Args:
        times: datetime64[us]; with `zone`, in UTC.
        names: names of features.
        zone: time zone whose local time the features describe.

    Raises:
        BadInput: the times are whole numbers.

    Example:
        >>> monday = np.array(["2024-01-01T06:00"], "M8[us]")
        >>> calendar_features(monday, ["hour"]).values.round(3).tolist()
        [[1.0, 0.0]]
    """
    if times.dtype.kind != "M":
        raise BadInput(
            f"data.calendar: got {describe(names[0])}, but the times are whole numbers "
            "without a date; remove the key, or set data.time_format."
        )
    if zone not in (None, "UTC"):
        times = local_times(times, zone)
    columns: list[NDArray[np.float32]] = []
    for name in names:
        values, period = _value(times, name)
        if period is None:
            columns.append(values.astype(np.float32))
            continue
        angle = 2 * np.pi * values / period
        columns += [np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)]
    stacked = np.stack(columns, 1) if columns else np.empty((len(times), 0), np.float32)
    return Features(stacked, tuple(label for name in names for label in labels(name)))


def labels(name: str) -> tuple[str, ...]:
    """Return the names of the columns of a feature.

    Example:
        >>> labels("hour"), labels("weekend")
        (('hour_sin', 'hour_cos'), ('weekend',))
    """
    if name in ("year", "weekend"):
        return (name,)
    return f"{name}_sin", f"{name}_cos"


def local_times(
    times: NDArray[np.datetime64], zone: str | None
) -> NDArray[np.datetime64]:
    """Return the local times of a zone, from times in UTC."""
    import polars as pl

    series = (
        pl.Series(times).dt.replace_time_zone("UTC").dt.convert_time_zone(zone or "UTC")
    )
    return series.dt.replace_time_zone(None).to_numpy()


def _value(
    times: NDArray[np.datetime64], name: str
) -> tuple[NDArray[np.float64], float | None]:
    """Return the values of a feature from 0, and its period or None."""
    days = times.astype("M8[D]")
    hours = (times - days).astype(np.int64) / 3.6e9
    months, years = days.astype("M8[M]"), days.astype("M8[Y]")
    of_year = (days - years.astype("M8[D]")).astype(np.float64)
    of_month = (days - months.astype("M8[D]")).astype(np.float64)
    length = (
        (months + np.timedelta64(1, "M")).astype("M8[D]") - months.astype("M8[D]")
    ).astype(np.float64)
    weekday = ((days.astype(np.int64) + 3) % 7).astype(np.float64)
    month = (months.astype(np.int64) % 12).astype(np.float64)
    return {
        "minute": lambda: ((hours * 60) % 60, 60.0),
        "hour": lambda: (hours, 24.0),
        "day_of_week": lambda: (weekday, 7.0),
        "day_of_month": lambda: (of_month / length, 1.0),
        "day_of_year": lambda: (of_year, 365.25),
        "week_of_year": lambda: (np.floor(of_year / 7), 52.18),
        "month": lambda: (month, 12.0),
        "quarter": lambda: (np.floor(month / 3), 4.0),
        "year": lambda: ((years.astype(np.int64) - 30) / 10.0, None),
        "weekend": lambda: ((weekday >= 5).astype(np.float64), None),
    }[name]()
