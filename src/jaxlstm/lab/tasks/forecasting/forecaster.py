"""Forecasts of a trained model, in the units of the data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.tasks.forecasting import heads, models
from jaxlstm.lab.tasks.forecasting.data import Spec
from jaxlstm.lab.tasks.forecasting.models import State, Windows
from jaxlstm.layers.base import Layer


class Forecast(NamedTuple):
    """Forecasts of B windows.

    Attributes:
        point: `[H, B]`, the median, or the mean of counts.
        quantiles: `[H, B, Q]`; None if the model has a point only.
    """

    point: NDArray[np.float64]
    quantiles: NDArray[np.float64] | None


def levels_of(intervals: Sequence[int]) -> tuple[float, ...]:
    """Return the levels at the ends of central intervals, from low to high.

    Example:
        >>> levels_of([80, 95])
        (0.025, 0.1, 0.9, 0.975)
    """
    ends = [side for percent in intervals for side in (100 - percent, 100 + percent)]
    return tuple(sorted({round(end / 200, 6) for end in ends}))


class Forecaster:
    """A model with the scalers of its data.

    Args:
        config: the config of the run.
        spec: the spec of its data.
        model: the model.
        params: its parameters.
    """

    def __init__(self, config: Any, spec: Spec, model: Layer, params: Any) -> None:
        self._section, self._spec = config.model, spec
        self._sizes = spec.sizes(config.windows.horizon)
        self._head = heads.build(config.model.head)
        self._params, self._model = params, model
        self._center, self._scale = np.array(spec.center), np.array(spec.scale)
        self._apply = jax.jit(lambda params, *args: model.apply(params, *args))
        keys = jax.random.split(jax.random.key(config.seed), config.windows.samples)
        self._paths = jax.jit(
            lambda params, windows: self._drawn(params, windows, keys)
        )

    @property
    def has_quantiles(self) -> bool:
        """True if the model forecasts more than a point."""
        return self._head.quantiles is not None

    def __call__(self, windows: Windows, *, levels: Sequence[float] = ()) -> Forecast:
        """Return the forecasts of windows, whose horizons are not read.

        Args:
            windows: `[L + H, B]`, scaled.
            levels: levels of the quantiles.
        """
        hidden = _without_horizon(windows, self._sizes.horizon)
        if self._section.kind == "autoregressive":
            paths = np.asarray(self._paths(self._params, hidden), np.float64)
            found = np.quantile(paths, [0.5, *levels], axis=0)
            point, at = found[0], np.moveaxis(found[1:], 0, -1)
            return self._in_units(windows.series, point, at)
        _, parameters = self._apply(self._params, hidden)
        return self._read(windows.series, parameters, levels)

    def encode(self, windows: Windows) -> State:
        """Return the state of series after the context of some windows.

        It holds the recurrent state `rnn`, and the center and width of the window.
        """
        return self._apply(
            self._params, _without_horizon(windows, self._sizes.horizon)
        )[0]

    def go_on(
        self, state: State, windows: Windows, *, levels: Sequence[float] = ()
    ) -> tuple[State, Forecast]:
        """Return the state after more rows, and the forecast from there.

        Center and width of the first context are kept.

        Args:
            state: of `encode` or of the last call.
            windows: the new rows as context, of any length, which is a multiple of the
                segment for a patched model; the horizon is not read.
            levels: levels of the quantiles.

        Raises:
            ValueError: the model is autoregressive, whose forecasts are drawn from
                whole windows.
        """
        if self._section.kind == "autoregressive":
            raise ValueError(
                "go_on: got an autoregressive model; forecast whole windows."
            )
        hidden = _without_horizon(windows, self._sizes.horizon)
        state, parameters = self._apply(self._params, hidden, state)
        return state, self._read(windows.series, parameters, levels)

    def _read(self, series: Any, parameters: Any, levels: Sequence[float]) -> Forecast:
        point = np.asarray(self._head.point(parameters), np.float64)
        at = None
        if self._head.quantiles is not None:
            at = self._head.quantiles(np.asarray(parameters, np.float64), levels)
        return self._in_units(series, point, at)

    def _drawn(self, params: Any, windows: Windows, keys: Any) -> Any:
        def one(key: Any) -> Any:
            return models.sample_paths(self._section, self._sizes, params, windows, key)

        return jax.lax.map(one, keys, batch_size=10)

    def _in_units(self, series: Any, point: Any, quantiles: Any) -> Forecast:
        center, scale = self._center[series], self._scale[series]
        point = point * scale + center
        if quantiles is not None:
            quantiles = quantiles * scale[:, None] + center[:, None]
        return Forecast(point, quantiles)


def _without_horizon(windows: Windows, horizon: int) -> Windows:
    """Return windows whose horizon has no targets."""
    known = (np.arange(len(windows.target)) < len(windows.target) - horizon)[:, None]
    return windows._replace(
        target=jnp.where(known, windows.target, 0.0),
        observed=jnp.asarray(windows.observed) & known,
    )
