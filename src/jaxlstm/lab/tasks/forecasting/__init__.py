"""Forecasting: predict the next values of time series, with intervals.

    p(y_o ... y_o+H-1 | y_o-L ... y_o-1, covariates)

A run trains on the training part of the time axis, selects the best parameters on the
validation part, and scores the test part once at its end, beside seasonal naive and
drift on the same windows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlstm.lab.config.forecasting import ForecastConfig
from jaxlstm.lab.tasks.base import Artifact, Carry, Losses, Metric, Params, StepCost
from jaxlstm.lab.tasks.forecasting import (
    data,
    evaluation,
    models,
    pictures,
    prediction,
)
from jaxlstm.lab.tasks.forecasting.data import ForecastDataset, Spec
from jaxlstm.lab.tasks.forecasting.forecaster import Forecaster as Forecaster
from jaxlstm.lab.tasks.forecasting.models import ForecastLayer


class Forecasting:
    """The task `forecast`; see `jaxlstm.lab.tasks.base.Task`."""

    name = "forecast"
    primary = Metric("loss")
    scores: Sequence[str] = ("mae", "mse")

    def data(self, config: ForecastConfig) -> ForecastDataset:
        """Read the series and cut them into windows."""
        return ForecastDataset(config)

    def check(self, config: ForecastConfig, spec: Spec) -> None:
        """Check that the model can use the covariates and the values."""
        prediction.check(config, spec)

    def model(self, config: ForecastConfig, spec: Spec) -> ForecastLayer:
        """Return the layer from windows to the parameters of the head."""
        return models.build(config.model, spec.sizes(config.windows.horizon))

    def batch_like(self, config: ForecastConfig, spec: Spec) -> Any:
        """Return the types of a training batch."""
        return data.batch_like(config, spec)

    def step_cost(self, config: ForecastConfig) -> StepCost:
        """Return the cost of a step of the recurrent layers."""
        model, windows = config.model, config.windows
        steps = windows.context + windows.horizon
        if model.kind == "patched":
            steps = -(-steps // model.segment)
        elif model.kind == "direct":
            steps = windows.context
        units = model.hidden_size
        products = config.training.batch_size * steps * model.layers
        return StepCost(24.0 * products * units * 2 * units, units)

    def loss(
        self,
        model: ForecastLayer,
        params: Params,
        carry: Carry,
        batch: Any,
        *,
        key: Array | None = None,
    ) -> tuple[Losses, Carry]:
        """Return the mean loss of the horizon of each window `[B]`.

        Missing targets are left out; a window weighs as much as it has targets.
        """
        _, parameters = model.apply(params, batch.windows, key=key)
        horizon = parameters.shape[0]
        y, seen = batch.windows.target[-horizon:], batch.windows.observed[-horizon:]
        count = seen.sum(0).astype(jnp.float32)

        def mean(values: Array) -> Array:
            total = jnp.where(seen, values, 0.0).sum(0)
            return total / jnp.maximum(count, 1.0)

        error = model.head.point(parameters) - y
        extra = {"mae": mean(jnp.abs(error)), "mse": mean(error**2)}
        weights = batch.weights * count / horizon
        return Losses(mean(model.head.loss(parameters, y)), weights, extra), ()

    def metrics(self, spec: Spec, means: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, and in validation errors in units of the scaled series."""
        return dict(means)

    def conclude(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Score the test part beside the baselines, and draw forecasts."""
        found = prediction.evaluate(trained, dataset, "test")
        heading = f"Test part: {found.windows:,} windows"
        return [
            Artifact(heading, evaluation.table(found)),
            Artifact(pictures=pictures.of_test(trained, dataset, found)),
        ]

    def artifacts(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return the pictures of the test part."""
        found = prediction.evaluate(trained, dataset, "test")
        return [Artifact(pictures=pictures.of_test(trained, dataset, found))]

    def predict(self, trained: Any, source: Any) -> Mapping[str, Any]:
        """Return the forecast after the last value of each series, as a table."""
        return prediction.predict(trained, source)

    def backtest(self, trained: Any, *, windows: int | None) -> list[Artifact]:
        """Return scores of forecasts from several origins at the end of the data."""
        return prediction.backtest(trained, windows=windows)

    def facts(self, config: ForecastConfig, dataset: Any) -> dict[str, str]:
        """Return series, windows, the split in time, frequency and notes."""
        return prediction.facts(config, dataset)

    def spec_to_json(self, spec: Spec) -> Any:
        """Return the spec as JSON."""
        return data.spec_to_json(spec)

    def spec_from_json(self, written: Any) -> Spec:
        """Return the spec that `spec_to_json` wrote."""
        return data.spec_from_json(written)


TASK = Forecasting()
