"""Baselines that every score stands beside: seasonal naive and drift.

    seasonal naive   ŷ_o+h = y of the same place in the last season before o
    drift            ŷ_o+h = y_o-1 + (h + 1) (y_o-1 - y_o-L) / (L - 1)

A value that is missing in a context is replaced by the one before it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.tasks.forecasting.data import Ints, Origins


def context_values(target: Any, starts: Any, origins: Origins, length: int) -> Any:
    """Return the `length` values before each origin `[length, B]`, without gaps.

    Rows before the first of a series have its first value.

    Args:
        target: `[rows]`.
        starts: `[N]`, the first row of each series.
        origins: the windows.
        length: number of values.
    """
    rows = origins.row[None] - np.arange(length, 0, -1)[:, None]
    values = target[np.maximum(rows, starts[origins.series][None])].astype(np.float64)
    seen = ~np.isnan(values)
    at = np.maximum.accumulate(np.where(seen, np.arange(length)[:, None], -1), axis=0)
    first = np.argmax(seen, axis=0)  # where nothing was seen before
    at = np.where(at < 0, first[None], at)
    return np.nan_to_num(np.take_along_axis(values, at, axis=0))


def seasonal_naive(before: Any, horizon: int, season: int) -> NDArray[np.float64]:
    """Return the last season, repeated, `[H, B]`.

    Args:
        before: `[L, B]`, values before the origins, at least a season.
        horizon: H.
        season: its steps.

    Example:
        >>> seasonal_naive(np.array([[1.0], [2.0], [3.0]]), 3, 2).ravel()
        array([2., 3., 2.])
    """
    return before[len(before) - season + np.arange(horizon) % season]


def drift(before: Any, horizon: int) -> NDArray[np.float64]:
    """Return the line through the first and the last value, continued, `[H, B]`.

    Example:
        >>> drift(np.array([[1.0], [5.0], [3.0]]), 2).ravel()
        array([4., 5.])
    """
    slope = (before[-1] - before[0]) / max(len(before) - 1, 1)
    return before[-1] + np.arange(1, horizon + 1)[:, None] * slope


def naive_quantiles(
    target: Any, rows: Ints, *, season: int, horizon: int, levels: Sequence[float]
) -> NDArray[np.float64]:
    """Return quantiles of the errors of seasonal naive in training, `[H, N, Q]`.

    The error of step h is `y_t - y_t-k`, where k is the number of whole seasons that
    seasonal naive looks back. Zeros where the training part has no such pair.

    Args:
        target: `[rows]`.
        rows: of `data.part_rows`.
        season: its steps.
        horizon: H.
        levels: levels of the quantiles.
    """
    lags = season * (np.arange(horizon) // season + 1)
    found = np.zeros((horizon, len(rows), len(levels)))
    for k, (begin, end, *_) in enumerate(rows):
        seen = target[begin:end].astype(np.float64)
        for lag in np.unique(lags):
            errors = seen[lag:] - seen[:-lag]
            errors = errors[~np.isnan(errors)]
            if errors.size:
                found[lags == lag, k] = np.quantile(errors, levels)
    return found
