"""Many time series on regular times, and selections of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import join_names
from jaxlstm.lab.data.calendar import calendar_features, labels
from jaxlstm.lab.data.files import quoted
from jaxlstm.lab.data.frequency import Frequency, Times

Array = NDArray[np.float32]


class SeriesNames(NamedTuple):
    """Names of the columns of a `SeriesSet`.

    Attributes:
        target: name of the target column, or "value" if each series is a column.
        past: columns of `past`; flags of missing values are `<column>_missing`.
        future: columns of `future`, with those of the calendar last.
        static: columns of `static`; categories are `<column>=<text>`.
        categories: the texts of each category column.
        calendar: names of the calendar features, such as "hour".
    """

    target: str
    past: tuple[str, ...]
    future: tuple[str, ...]
    static: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    calendar: tuple[str, ...] = ()


class SeriesSet(NamedTuple):
    """Many time series, stored one after another.

    Series k is rows `offsets[k]` to `offsets[k + 1]`. Its target is known in the first
    `target_lengths[k]` of them; the others have known future covariates only, NaN as
    target and 0 as past covariates. A target is also NaN where it is missing and its
    policy is "flag".

    Attributes:
        ids: names of the N series.
        offsets: int64 `[N + 1]`.
        times: datetime64[us] or int64 `[rows]`, regular in a series; in UTC if
            `frequency.zone` is set.
        target: float32 `[rows]`.
        target_lengths: int64 `[N]`.
        past: float32 `[rows, P]`.
        future: float32 `[rows, F]`, known ahead; the calendar is last.
        static: float32 `[N, S]`, categories as one 0/1 column each.
        names: names of the columns.
        frequency: step between two times.
        notes: sentences on what was inferred, filled and left out.
        description: JSON: source, paths, sha256 of each file, and sizes.
    """

    ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    times: Times
    target: Array
    target_lengths: NDArray[np.int64]
    past: Array
    future: Array
    static: Array
    names: SeriesNames
    frequency: Frequency
    notes: tuple[str, ...]
    description: Mapping[str, Any]


def require_future(series: SeriesSet, horizon: int, *, key: str = "data") -> None:
    """Raise `BadInput` if a future covariate ends before the end of a forecast.

    The calendar does not end. `horizon` rows after the last target are needed.
    """
    own = _own_future(series)
    if not own:
        return
    ahead = np.diff(series.offsets) - series.target_lengths
    for k in np.flatnonzero(ahead < horizon)[:1]:
        last = series.times[series.offsets[k + 1] - 1]
        needed = series.frequency.after(last, int(horizon - ahead[k]))[-1]
        raise BadInput(
            f"{key}.future: series {quoted(series.ids[k])}: "
            f"{join_names(own, last='and')} end at {time_text(last)}, expected values "
            f"until {time_text(needed)} ({horizon} steps after the last target); "
            f"add rows for these times, with an empty target, or set {key}.future_path."
        )


def with_future(series: SeriesSet, horizon: int, *, key: str = "data") -> SeriesSet:
    """Return series with `horizon` rows, or more, after the last target.

    Rows that are added have the calendar features of their times.

    Raises:
        BadInput: a future covariate ends too early; see `require_future`.
    """
    require_future(series, horizon, key=key)
    rows = np.diff(series.offsets)
    missing = np.maximum(horizon - (rows - series.target_lengths), 0)
    if not missing.any():
        return series
    offsets = np.concatenate([[0], np.cumsum(rows + missing)])
    added = np.ones(int(offsets[-1]), bool)
    added[
        np.arange(int(rows.sum())) + np.repeat(offsets[:-1] - series.offsets[:-1], rows)
    ] = False
    times = np.empty(int(offsets[-1]), series.times.dtype)
    times[~added] = series.times
    for k in np.flatnonzero(missing):
        last = series.times[series.offsets[k + 1] - 1]
        stop = offsets[k + 1]
        times[stop - missing[k] : stop] = series.frequency.after(last, int(missing[k]))
    target = np.full(len(times), np.nan, np.float32)
    target[~added] = series.target
    past = np.zeros((len(times), series.past.shape[1]), np.float32)
    past[~added] = series.past
    names, zone = series.names.calendar, series.frequency.zone
    future = np.zeros((len(times), series.future.shape[1]), np.float32)
    future[~added] = series.future
    if names:  # own covariates would have been refused above
        future[added] = calendar_features(times[added], names, zone=zone).values
    return series._replace(
        offsets=offsets, times=times, target=target, past=past, future=future
    )


def _own_future(series: SeriesSet) -> tuple[str, ...]:
    """Return the future covariates that are not features of the calendar."""
    count = sum(len(labels(name)) for name in series.names.calendar)
    return series.names.future[: len(series.names.future) - count]


def enough_rows(
    series: SeriesSet, rows: int, *, policy: str = "error", key: str = "data"
) -> SeriesSet:
    """Return the series that have at least `rows` targets.

    Args:
        series: the series.
        rows: number of rows needed, such as context + horizon.
        policy: "error" refuses shorter series, "drop" leaves them out with a note.
        key: name of the section, for error messages.

    Raises:
        BadInput: a series is shorter and the policy is "error", or all are shorter.
    """
    short = np.flatnonzero(series.target_lengths < rows)
    if not short.size:
        return series
    listed = ", ".join(
        f"{quoted(series.ids[k])} ({series.target_lengths[k]:,})" for k in short[:10]
    ) + (f" and {len(short) - 10:,} more" if len(short) > 10 else "")
    some = "1 series has" if len(short) == 1 else f"{len(short):,} series have"
    if policy == "error" or len(short) == len(series.ids):
        remedy = "or provide longer series"
        if len(short) < len(series.ids):
            remedy = f"or set {key}.short_series: drop"
        raise BadInput(
            f"{key}: {some} fewer than {rows:,} rows: {listed}; reduce the context or "
            f"the horizon, {remedy}."
        )
    kept = select(series, np.flatnonzero(series.target_lengths >= rows))
    note = f"left out {len(short):,} series with fewer than {rows:,} rows: {listed}"
    return kept._replace(notes=(*kept.notes, note))


def select(series: SeriesSet, which: NDArray[np.int64]) -> SeriesSet:
    """Return some of the series."""
    offsets = series.offsets
    rows = np.concatenate(
        [np.arange(int(offsets[k]), int(offsets[k + 1])) for k in which]
    )
    return series._replace(
        ids=tuple(series.ids[k] for k in which),
        offsets=np.concatenate([[0], np.cumsum(np.diff(offsets)[which])]),
        times=series.times[rows],
        target=series.target[rows],
        target_lengths=series.target_lengths[which],
        past=series.past[rows],
        future=series.future[rows],
        static=series.static[which],
    )


def time_text(time: Any) -> str:
    """Format a time without parts that are zero.

    Example:
        >>> time_text(np.datetime64("2024-01-31T00:00", "us"))
        '2024-01-31'
    """
    if not isinstance(time, np.datetime64):
        return str(time)
    text = str(time.astype("M8[us]")).replace("T", " ")
    return text.removesuffix(".000000").removesuffix(":00").removesuffix(" 00:00")


def fill(
    values: Array, offsets: NDArray[np.int64], inside: NDArray[np.bool_], policy: str
) -> Array:
    """Return values whose missing ones are replaced, inside each series.

    Args:
        values: float32 `[rows]`, NaN is missing.
        offsets: int64 `[N + 1]`.
        inside: rows to fill.
        policy: "zero" is 0, "forward_fill" the value before, "interpolate" the line
            between the values before and after. A value without those stays NaN.

    Example:
        >>> gap = np.array([1, np.nan, 3, np.nan], np.float32)
        >>> fill(gap, np.array([0, 4]), np.ones(4, bool), "interpolate").tolist()
        [1.0, 2.0, 3.0, nan]
    """
    known = ~np.isnan(values)
    if policy == "zero":
        return np.where(known | ~inside, values, np.float32(0))
    rows = np.arange(len(values))
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    before = np.maximum.accumulate(np.where(known, rows, -1))
    missing = np.flatnonzero(~known & inside & (before >= starts))
    left = before[missing]
    result = values.copy()
    if policy == "forward_fill":
        result[missing] = values[left]
        return result
    stops = np.repeat(offsets[1:], np.diff(offsets))
    after = np.minimum.accumulate(np.where(known, rows, len(rows))[::-1])[::-1]
    missing = missing[after[missing] < stops[missing]]
    left, right = before[missing], after[missing]
    share = (missing - left) / (right - left)
    result[missing] = values[left] * (1 - share) + values[right] * share
    return result
