"""Scores, forecasts of the future, and backtests of a trained run."""

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import join_names
from jaxlstm.lab.config.forecasting import ForecastConfig
from jaxlstm.lab.data.series import SeriesSet, read_series, time_text, with_future
from jaxlstm.lab.tasks.base import Artifact
from jaxlstm.lab.tasks.forecasting import evaluation
from jaxlstm.lab.tasks.forecasting.data import (
    EVALUATION_ROWS,
    ForecastDataset,
    Origins,
    Part,
    Spec,
    WindowSource,
    scale_covariates,
)
from jaxlstm.lab.tasks.forecasting.evaluation import Evaluation
from jaxlstm.lab.tasks.forecasting.forecaster import Forecaster, levels_of


def forecaster(trained: Any) -> Forecaster:
    """Return the forecaster of a trained run."""
    return Forecaster(trained.config, trained.spec, trained.model, trained.params)


def check(config: ForecastConfig, spec: Spec) -> None:
    """Raise `BadInput` if a model cannot use the data.

    An autoregressive model draws the target alone, so it cannot have covariates that
    are known up to the present only.
    """
    model = config.model
    if model.kind == "autoregressive" and spec.names["past"]:
        names = join_names(spec.names["past"], last="and")
        raise BadInput(
            f"model.kind: got autoregressive with the past covariates {names}, "
            "expected covariates that are known ahead; remove data.past, or choose "
            "direct"
        )
    if model.head.name == "point" and config.windows.intervals != (80, 95):
        raise BadInput(
            "windows.intervals: got intervals with the head point, which has none; "
            "choose the head quantiles, normal or student_t"
        )


def evaluate(trained: Any, dataset: ForecastDataset, part: Part) -> Evaluation:
    """Return the scores of all windows of a part, beside those of the baselines."""
    return evaluation.evaluate(
        forecaster(trained),
        dataset.source,
        dataset.parts[part],
        trained.spec,
        dataset.rows,
        intervals=trained.config.windows.intervals,
        name=trained.config.model.kind,
    )


_MOST_ORIGINS = 5  # of a backtest, unless more are asked for


# -- predict ------------------------------------------------------------------


def predict(trained: Any, source: Any) -> dict[str, Any]:
    """Return the forecast of the `horizon` times after the last value of each series.

    Args:
        trained: the trained run.
        source: path of a file with the columns of the training data, or a pandas or
            polars frame; None continues the series of the run's own data. It needs
            `context` rows of each series, and the future covariates of the horizon.

    Returns:
        The columns of a table: series and time by the names of the config, or else
        `unique_id` and `ds`; `forecast`; and for each interval `lo-80` and `hi-80`.

    Raises:
        BadInput: the data cannot be read, or a series is unknown or too short.
    """
    config, spec = trained.config, trained.spec
    windows = config.windows
    series = _read(config, spec, source)
    numbers = _numbers(spec, series)
    context = windows.context
    short = np.flatnonzero(series.target_lengths < context)
    if short.size:
        k = short[0]
        raise BadInput(
            f"series {series.ids[k]}: got {series.target_lengths[k]:,} rows, expected "
            f"at least {context:,} (windows.context)"
        )
    series = with_future(series, windows.horizon)
    cut = WindowSource(
        scale_covariates(series, spec.covariates),
        np.array(spec.center)[numbers],
        np.array(spec.scale)[numbers],
        numbers=numbers,
        context=context,
        horizon=windows.horizon,
    )
    ends = series.offsets[:-1] + series.target_lengths
    origins = Origins(np.arange(len(series.ids)), ends)
    ahead = ends[:, None] + np.arange(windows.horizon)
    model = forecaster(trained)
    levels = levels_of(windows.intervals) if model.has_quantiles else ()
    points, quantiles = [], []
    for chosen, batch in cut.batches(origins, min(EVALUATION_ROWS, len(origins))):
        found = model(batch.windows, levels=levels)
        points.append(found.point[:, : len(chosen)].T)
        if found.quantiles is not None:
            quantiles.append(found.quantiles[:, : len(chosen)].swapaxes(0, 1))
    id_name = getattr(config.data, "id", None) or "unique_id"
    time_name = getattr(config.data, "time", None) or "ds"
    columns: dict[str, Any] = {
        id_name: np.repeat(np.array(series.ids, object), windows.horizon),
        time_name: shown_times(series.times[ahead].ravel(), series.frequency.zone),
        "forecast": np.concatenate(points).ravel(),
    }
    if quantiles:
        at = np.concatenate(quantiles)
        for percent in sorted(windows.intervals):
            for side, level in zip(("lo", "hi"), levels_of([percent]), strict=True):
                place = levels.index(level)
                columns[f"{side}-{percent}"] = at[..., place].ravel()
    return columns


def shown_times(times: Any, zone: str | None) -> Any:
    """Return times as they are; those of a time zone as local times with the offset.

    Example:
        >>> utc = np.array(["2024-03-31T00:30", "2024-03-31T01:30"], "M8[us]")
        >>> shown_times(utc, "Europe/Berlin").tolist()
        ['2024-03-31 01:30:00+01:00', '2024-03-31 03:30:00+02:00']
    """
    if zone is None:
        return times
    local, utc = ZoneInfo(zone), ZoneInfo("UTC")
    aware = (time.replace(tzinfo=utc).astimezone(local) for time in times.tolist())
    return np.array([time.isoformat(sep=" ") for time in aware], object)


def _read(config: ForecastConfig, spec: Spec, source: Any) -> SeriesSet:
    """Read the series to forecast: those of the run, of a file or of a frame."""
    if source is None:
        return read_series(config.data, like=spec.series_names())
    if config.data.source != "files":
        raise BadInput(
            f"--data: got a file for a run whose data is {config.data.source}, which "
            "has no columns; omit --data, or train on files"
        )
    if not isinstance(source, str | Path):
        return read_series(config.data, frame=source, like=spec.series_names())
    data = config.data.model_copy(update={"path": str(source), "future_path": None})
    return read_series(data, key="--data", like=spec.series_names())


def _numbers(spec: Spec, series: SeriesSet) -> Any:
    """Return the number in the spec of each series."""
    known = {name: k for k, name in enumerate(spec.ids)}
    unknown = [name for name in series.ids if name not in known]
    if unknown:
        listed = join_names(unknown[:5], last="and")
        more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
        raise BadInput(
            f"got the series {listed}{more}, which the model was not trained on, "
            f"expected some of its {len(spec.ids):,} series, such as "
            f"{join_names(spec.ids[:3])}; train on them, or remove their rows"
        )
    return np.array([known[name] for name in series.ids])


# -- backtest -----------------------------------------------------------------


def backtest(trained: Any, *, windows: int | None) -> list[Artifact]:
    """Return scores of forecasts from origins a horizon apart at the end of the data.

    Args:
        trained: the trained run.
        windows: number of origins; None for 5, or as many as the test part has.

    Raises:
        BadInput: an origin lies in the part that the model was trained or selected on.
    """
    dataset: ForecastDataset = trained.dataset()
    spec, horizon = trained.spec, trained.config.windows.horizon
    ends = dataset.rows[:, 3]
    if windows is None:
        fitting = int((ends - dataset.rows[:, 2]).min() // horizon)
        windows = max(1, min(_MOST_ORIGINS, fitting))
    if windows < 1:
        raise BadInput(f"windows: got {windows}, expected at least 1")
    earliest = ends - windows * horizon
    late = np.flatnonzero(earliest < dataset.rows[:, 2])
    if late.size:
        k = late[0]
        most = int((ends[k] - dataset.rows[k, 2]) // horizon)
        raise BadInput(
            f"windows: got {windows}, expected at most {most} for series "
            f"{spec.ids[k]}; more would reach into the times before {spec.ends[1]}, "
            "on which the model was trained and selected"
        )
    each, model = {}, forecaster(trained)
    for place in range(windows):
        rows = earliest + place * horizon
        found = evaluation.evaluate(
            model,
            dataset.source,
            Origins(np.arange(len(spec.ids)), rows),
            spec,
            dataset.rows,
            intervals=trained.config.windows.intervals,
            name="model",
        )
        when = time_text(dataset.series.times[rows[0]])
        each |= {f"{when} {name}": row for name, row in found.scores.items()}
    text = evaluation.table(Evaluation(each, {}, windows * len(spec.ids)))
    origins = "1 origin" if windows == 1 else f"{windows} origins"
    return [Artifact(f"Backtest: {origins}, {horizon} steps each", text)]


# -- facts --------------------------------------------------------------------


def facts(config: ForecastConfig, dataset: ForecastDataset) -> dict[str, str]:
    """Return rows for `check` and the report."""
    spec, windows = dataset.spec, config.windows
    lengths = dataset.series.target_lengths
    span = f"{lengths.min():,}"
    if lengths.min() != lengths.max():
        span += f" to {lengths.max():,}"
    counts = {part: f"{len(found):,}" for part, found in dataset.parts.items()}
    covariates = [
        f"{len(spec.names[kind])} {kind}"
        for kind in ("past", "future", "static")
        if spec.names[kind]
    ]
    found = {
        "series": f"{len(spec.ids):,} of {span} times",
        "frequency": f"{spec.frequency}, season of {spec.season}",
        "covariates": ", ".join(covariates) or "none",
        "context, horizon": f"{windows.context:,}, {windows.horizon:,}",
        "training": f"{counts['train']} windows before {spec.ends[0]}",
        "validation": f"{counts['validation']} windows before {spec.ends[1]}",
        "test": f"{counts['test']} windows before {spec.ends[2]}",
    }
    notes = "; ".join(dataset.series.notes)
    return found | ({"notes": notes} if notes else {})
