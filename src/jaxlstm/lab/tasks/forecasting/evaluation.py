"""Scores of forecasts and of the baselines beside them, on the same windows.

    MAE, RMSE      in the units of the data
    MSE (scaled)   of the scaled series, as papers report it
    MASE           MAE of a series / MAE of seasonal naive in its training part
    sMAPE          2 |y - ŷ| / (|y| + |ŷ|), in percent; 0 where both are 0
    coverage       share of values inside a central interval, in percent
    CRPS           2 ∫ pinball loss of the level τ dτ, by the trapezoidal rule over
                   `LEVELS`, in the units of the data

Missing values are left out.

Reference:
    Hyndman and Koehler, "Another look at measures of forecast accuracy", 2006.
    Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation",
    2007.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.tasks.forecasting import baselines
from jaxlstm.lab.tasks.forecasting.data import (
    EVALUATION_ROWS,
    Ints,
    Origins,
    Spec,
    WindowSource,
)
from jaxlstm.lab.tasks.forecasting.forecaster import Forecast, Forecaster, levels_of

LEVELS = (0.01, 0.025, *(round(0.05 * k, 2) for k in range(1, 20)), 0.975, 0.99)


class Scores:
    """Sums over windows, from which the scores follow.

    Args:
        spec: the spec of the data.
        horizon: H.
        intervals: central intervals, in percent.
        levels: levels of the quantiles that `add` receives.
    """

    def __init__(
        self,
        spec: Spec,
        horizon: int,
        intervals: Sequence[int],
        levels: Sequence[float],
    ) -> None:
        self._scale = np.array(spec.scale)
        self._naive = np.array(spec.naive_error)
        self._intervals, self._levels = tuple(intervals), np.asarray(levels)
        self._sums: dict[str, Any] = {}
        self.by_horizon = np.zeros((2, horizon))  # sums of |error|, and counts
        self.windows = 0

    def add(self, series: Ints, y: Any, forecast: Forecast) -> None:
        """Add windows.

        Args:
            series: `[B]`.
            y: `[H, B]`, NaN where it is missing.
            forecast: of the windows.
        """
        seen = ~np.isnan(y)
        truth = np.where(seen, y, 0.0)
        error = np.where(seen, np.abs(truth - forecast.point), 0.0)
        self.windows += len(series)
        self._add("absolute", error, seen)
        self._add("squared", error**2, seen)
        self._add("scaled", (error / self._scale[series]) ** 2, seen)
        naive = self._naive[series]
        usable = seen & (naive > 0)
        self._add("mase", error / np.where(naive > 0, naive, 1.0), usable)
        size = np.abs(truth) + np.abs(forecast.point)
        share = 200 * error / np.where(size > 0, size, 1.0)
        self._add("smape", share, seen)
        self.by_horizon += np.stack([error.sum(1), seen.sum(1)])
        if forecast.quantiles is not None:
            self._add_quantiles(truth, seen, forecast.quantiles)

    def _add_quantiles(self, y: Any, seen: Any, quantiles: Any) -> None:
        for percent in self._intervals:
            low, high = levels_of([percent])
            inside = (y >= self._at(quantiles, low)) & (y <= self._at(quantiles, high))
            self._add(f"coverage {percent}", 100.0 * inside, seen)
        self._add("crps", crps(quantiles, self._levels, y), seen)

    def _at(self, quantiles: Any, level: float) -> Any:
        return quantiles[..., int(np.argmin(np.abs(self._levels - level)))]

    def _add(self, name: str, values: Any, weights: Any) -> None:
        before = self._sums.get(name, np.zeros(2))
        added = np.array([(values * weights).sum(), weights.sum()])
        self._sums[name] = before + added

    def result(self) -> dict[str, float]:
        """Return the scores."""
        means = {
            name: total / count if count else float("nan")
            for name, (total, count) in self._sums.items()
        }
        found = {
            "MAE": means["absolute"],
            "RMSE": means["squared"] ** 0.5,
            "MSE (scaled)": means["scaled"],
            "MASE": means["mase"],
            "sMAPE %": means["smape"],
        }
        for percent in self._intervals:
            if f"coverage {percent}" in means:
                found[f"in {percent} %"] = means[f"coverage {percent}"]
        if "crps" in means:
            found["CRPS"] = means["crps"]
        return {name: float(value) for name, value in found.items()}


def crps(quantiles: Any, levels: Any, y: Any) -> NDArray[np.float64]:
    """Return `2 ∫ pinball(q_τ, y) dτ` by the trapezoidal rule.

    Below the first level and above the last, the loss falls to 0 at the level 0 or 1.

    Args:
        quantiles: `[*b, Q]`.
        levels: `[Q]`, increasing.
        y: `[*b]`.
    """
    levels = np.asarray(levels, float)
    error = np.asarray(y, float)[..., None] - quantiles
    loss = np.maximum(levels * error, (levels - 1) * error)
    edges = np.concatenate([[0.0], levels, [1.0]])
    weights = (edges[2:] - edges[:-2]) / 2
    return 2 * (loss * weights).sum(-1)


class Evaluation(NamedTuple):
    """Scores by forecaster, and the mean absolute error by step of the horizon."""

    scores: Mapping[str, Mapping[str, float]]
    by_horizon: Mapping[str, NDArray[np.float64]]
    windows: int


def evaluate(
    forecaster: Forecaster,
    source: WindowSource,
    origins: Origins,
    spec: Spec,
    rows: Ints,
    *,
    intervals: Sequence[int],
    name: str = "model",
) -> Evaluation:
    """Score a model, seasonal naive and drift on some windows, each once.

    Args:
        forecaster: the model.
        source: the series.
        origins: the windows.
        spec: the spec of the data.
        rows: of `data.part_rows`, whose training parts give the errors of seasonal
            naive.
        intervals: central intervals, in percent.
        name: what the table calls the model.
    """
    levels = tuple(sorted({*LEVELS, *levels_of(intervals)}))
    season, horizon = spec.season, source.horizon
    series = source.series
    errors = baselines.naive_quantiles(
        series.target, rows, season=season, horizon=horizon, levels=levels
    )
    found = {
        key: Scores(spec, horizon, intervals, levels)
        for key in (name, "seasonal naive", "drift")
    }
    starts = series.offsets[:-1]
    length = max(source.context, season)
    size = min(EVALUATION_ROWS, len(origins))
    for chosen, batch in source.batches(origins, size):
        count, at = len(chosen), chosen.series
        y = series.target[chosen.row + np.arange(horizon)[:, None]].astype(np.float64)
        asked = levels if forecaster.has_quantiles else ()
        forecast = forecaster(batch.windows, levels=asked)
        kept = Forecast(
            forecast.point[:, :count],
            None if forecast.quantiles is None else forecast.quantiles[:, :count],
        )
        before = baselines.context_values(series.target, starts, chosen, length)
        naive = baselines.seasonal_naive(before, horizon, season)
        spread = naive[..., None] + errors[:, at] if forecaster.has_quantiles else None
        found[name].add(at, y, kept)
        found["seasonal naive"].add(at, y, Forecast(naive, spread))
        line = baselines.drift(before[-source.context :], horizon)
        found["drift"].add(at, y, Forecast(line, None))
    return Evaluation(
        {key: scores.result() for key, scores in found.items()},
        {
            key: scores.by_horizon[0] / np.maximum(scores.by_horizon[1], 1)
            for key, scores in found.items()
        },
        found[name].windows,
    )


def table(evaluation: Evaluation) -> str:
    """Return the scores as a table, one line for each forecaster."""
    names = list(next(iter(evaluation.scores.values())))
    rows = [["", *names]] + [
        [key, *(_number(scores.get(name)) for name in names)]
        for key, scores in evaluation.scores.items()
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _number(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
