"""Pictures of forecasts of the test part: fans, errors by horizon, residuals."""

from typing import Any

import numpy as np

import jaxlstm as jl
from jaxlstm.lab.data.series import time_text
from jaxlstm.lab.tasks.base import Picture
from jaxlstm.lab.tasks.forecasting.data import ForecastDataset, Origins
from jaxlstm.lab.tasks.forecasting.evaluation import Evaluation
from jaxlstm.lab.tasks.forecasting.forecaster import Forecaster, levels_of

FANS = 4  # series that are drawn


def of_test(
    trained: Any, dataset: ForecastDataset, evaluation: Evaluation
) -> list[Picture]:
    """Return the pictures of the test part.

    Args:
        trained: the trained run.
        dataset: its data.
        evaluation: the scores of the test part.
    """
    model = Forecaster(trained.config, trained.spec, trained.model, trained.params)
    errors = Picture(
        "error_by_horizon.png",
        "Mean absolute error by the step of the horizon, on all test windows.",
        (8, 4),
        lambda ax: jl.plots.error_by_horizon(
            evaluation.by_horizon, label=_label(dataset, "mean absolute error"), ax=ax
        ),
    )
    found = _residuals(dataset, model)
    distribution = Picture(
        "residuals.png",
        f"Truth minus forecast of {found.shape[1]:,} test windows.",
        (8, 4),
        lambda ax: jl.plots.residuals(
            found, label=_label(dataset, "truth - forecast"), ax=ax
        ),
    )
    count = min(FANS, len(dataset.spec.ids))
    return [*(_fan(dataset, model, k) for k in range(count)), errors, distribution]


def _fan(dataset: ForecastDataset, model: Forecaster, number: int) -> Picture:
    """Return the last test forecast of a series."""
    windows = dataset.config.windows
    tests = dataset.parts["test"]
    own = np.flatnonzero(tests.series == number)
    at = own[-1:] if own.size else np.array([len(tests.series) - 1])
    origin = Origins(tests.series[at], tests.row[at])
    number, row = int(origin.series[0]), int(origin.row[0])
    levels = levels_of(windows.intervals) if model.has_quantiles else ()
    forecast = model(dataset.source.cut(origin), levels=levels)
    fan = {0.5: forecast.point[:, 0]}
    if forecast.quantiles is not None:
        fan |= {level: forecast.quantiles[:, 0, k] for k, level in enumerate(levels)}
        # The mean of counts can lie outside of an interval; a fan shows the median.
    target = dataset.series.target
    shown = min(windows.context, 3 * windows.horizon)
    name, when = dataset.spec.ids[number], time_text(dataset.series.times[row])
    return Picture(
        f"forecast_{number + 1}.png",
        f"Forecast of {name} from {when} on, the last window of the test part.",
        (8, 4),
        lambda ax: jl.plots.forecast_fan(
            target[row - shown : row],
            fan,
            truth=target[row : row + windows.horizon],
            times=dataset.series.times[row - shown : row + windows.horizon],
            label=name,
            ax=ax,
        ),
    )


def _residuals(dataset: ForecastDataset, model: Forecaster, most: int = 512) -> Any:
    """Return truth minus forecast `[H, B]` of evenly spaced test windows."""
    tests = dataset.parts["test"]
    at = np.unique(np.linspace(0, len(tests.series) - 1, most).astype(np.int64))
    chosen = Origins(tests.series[at], tests.row[at])
    horizon = dataset.config.windows.horizon
    truth = dataset.series.target[chosen.row + np.arange(horizon)[:, None]]
    return truth - model(dataset.source.cut(chosen)).point


def _label(dataset: ForecastDataset, text: str) -> str:
    name = dataset.spec.names["target"]
    return text if name in ("", "value") else f"{text} of {name}"
