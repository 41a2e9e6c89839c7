"""Time series that need no file: generated daily sales, and data of statsmodels."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.calendar import calendar_features
from jaxlstm.lab.data.frequency import Frequency, Times, frequency
from jaxlstm.lab.data.series_set import Array, SeriesNames, SeriesSet, fill

if TYPE_CHECKING:
    from jaxlstm.lab.config.tables import GeneratedSeries, PackagedSeries

FIRST_DAY = np.datetime64("2021-01-01", "D")


def retail_series(data: "GeneratedSeries") -> SeriesSet:
    """Return daily sales of several shops, which are known up to noise.

    log y = log(size) + a_w(weekday) + a_s cos(2 pi (day - peak) / 365.25)
            + trend * day / 365.25 + lift * promotion + noise,

    The noise is normal with the standard deviation `data.noise`, rounded sales aside.
    Half of a shop's weekdays, season and lift is common to all shops. Promotions last 3
    to 10 days and are known ahead.
    """
    rng = np.random.default_rng(data.seed)
    count, length = data.series, data.length + data.ahead
    day = np.arange(length)
    times = (FIRST_DAY + day).astype("M8[us]")
    size = np.exp(rng.normal(4.0, 0.7, count))
    weekday = rng.normal(0, 0.25, 7) + rng.normal(0, 0.1, (count, 7))
    season = 0.25 + rng.normal(0, 0.05, count)
    peak = 340 + rng.normal(0, 20, count)
    trend = rng.normal(0.03, 0.05, count)
    lift = 0.5 + rng.normal(0, 0.1, count)
    promotion = np.stack([_promotions(rng, length) for _ in range(count)])
    level = (
        np.log(size)[:, None]
        + weekday[:, (day + 4) % 7]
        + season[:, None] * np.cos(2 * np.pi * (day - peak[:, None]) / 365.25)
        + trend[:, None] * day / 365.25
        + lift[:, None] * promotion
    )
    sales = np.round(np.exp(level + data.noise * rng.normal(size=level.shape)))
    sales[:, data.length :] = np.nan
    return _series(
        [f"shop_{k + 1:03d}" for k in range(count)],
        times,
        sales.astype(np.float32),
        frequency("D"),
        data,
        target="sales",
        future=promotion.reshape(-1, 1).astype(np.float32),
        future_names=("promotion",),
        static=size[:, None].astype(np.float32),
        static_names=("size",),
        lengths=data.length,
    )


def _promotions(rng: np.random.Generator, length: int) -> Any:
    """Return 0 and 1 for each day."""
    active = np.zeros(length)
    at = int(rng.integers(0, 30))
    while at < length:
        days = int(rng.integers(3, 11))
        active[at : at + days] = 1
        at += days + int(rng.integers(14, 60))
    return active


def packaged_series(data: "PackagedSeries") -> SeriesSet:
    """Return a data set of statsmodels.

    Raises:
        BadInput: statsmodels is not installed.
    """
    try:
        from statsmodels import datasets
    except ImportError:
        raise BadInput(
            f"data.source: statsmodels: the data set {data.name} needs statsmodels; "
            "install it with: pip install statsmodels."
        ) from None
    frame = getattr(datasets, data.name).load_pandas().data
    if data.name == "co2":
        values, step = frame["co2"].to_numpy(np.float32), frequency("W")
        times = frame.index.to_numpy().astype("M8[us]")
    elif data.name == "elnino":
        months = frame.drop(columns="YEAR").to_numpy(np.float32)
        values, step = months.ravel(), frequency("MS")
        start = np.datetime64(f"{int(frame['YEAR'].iloc[0])}-01", "M")
        times = (start + np.arange(values.size)).astype("M8[D]").astype("M8[us]")
    else:
        column = {"sunspots": "SUNACTIVITY", "nile": "volume"}[data.name]
        values, step = frame[column].to_numpy(np.float32), frequency("YS")
        years = frame["YEAR" if data.name == "sunspots" else "year"].to_numpy(int)
        times = np.array([f"{year}-01-01" for year in years], "M8[us]")
    return _series([data.name], times, values[None], step, data, target=data.name)


def _series(
    ids: Sequence[str],
    times: Times,
    values: Array,
    step: Frequency,
    data: Any,
    *,
    target: str,
    future: Array | None = None,
    future_names: tuple[str, ...] = (),
    static: Array | None = None,
    static_names: tuple[str, ...] = (),
    lengths: int | None = None,
) -> SeriesSet:
    """Return series of equal times, with missing values filled and the calendar."""
    count, length = values.shape
    rows = count * length
    offsets = np.arange(count + 1) * length
    flat, notes = values.ravel(), []
    inside = np.tile(np.arange(length) < (lengths or length), count)
    missing = int((np.isnan(flat) & inside).sum())
    policy = (
        data.missing
        if isinstance(data.missing, str)
        else data.missing.get(target, "error")
    )
    past, past_names = np.empty((rows, 0), np.float32), ()
    if policy == "flag":
        past, past_names = (
            np.isnan(flat * inside)[:, None].astype(np.float32),
            (f"{target}_missing",),
        )
    elif missing and policy == "error":
        raise BadInput(
            f"data.missing: got error, but {ids[0]} has {missing} missing values; use "
            "zero, interpolate, forward_fill or flag."
        )
    elif missing:
        flat = fill(flat, offsets, inside, policy)
    if missing:
        notes.append(f'column "{target}": {missing} missing values ({policy})')
    columns = [future] if future is not None else []
    names = future_names
    if data.calendar:
        calendar = calendar_features(np.tile(times, count), data.calendar)
        columns.append(calendar.values)
        names += calendar.names
    settings = data.model_dump(mode="json")
    digest = hashlib.sha256(flat.tobytes() + json.dumps(settings).encode()).hexdigest()
    return SeriesSet(
        ids=tuple(ids),
        offsets=offsets,
        times=np.tile(times, count),
        target=flat,
        target_lengths=np.full(count, lengths or length),
        past=past,
        future=np.concatenate(columns, 1)
        if columns
        else np.empty((rows, 0), np.float32),
        static=static if static is not None else np.empty((count, 0), np.float32),
        names=SeriesNames(target, past_names, names, static_names, {}, data.calendar),
        frequency=step,
        notes=tuple(notes),
        description={
            "source": data.source,
            "paths": [],
            "sha256": [digest],
            "series": count,
            "rows": rows,
            "frequency": step.name,
        },
    )
