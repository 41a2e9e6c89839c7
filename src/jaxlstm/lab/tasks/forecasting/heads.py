"""Heads: the loss of a forecast, and the numbers that can be read from it.

A model returns K raw numbers for each step. `parameters` turns them into the parameters
of the head in the units of the scaled series; all other functions take these.

    point      y                           absolute, squared or Huber error
    quantiles  q_1 <= ... <= q_K           pinball loss
    normal, student_t, negative_binomial   negative log likelihood
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import stats
from jax.scipy.special import gammaln

from jaxlstm.lab.config import forecasting as sections

SMALLEST = 1e-4  # of a scale, in units of the scaled series


class Head(NamedTuple):
    """Functions of one kind of output; `[*b]` are any axes.

    Attributes:
        size: K, the raw numbers of a step.
        parameters: `(raw [*b, K], center [*b], width [*b]) -> [*b, K]`; the raw
            numbers describe `(y - center) / width`.
        loss: `(parameters [*b, K], y [*b]) -> [*b]`.
        point: `parameters [*b, K] -> [*b]`: the median, or the mean of counts.
        quantiles: `(parameters [*b, K], levels) -> [*b, len(levels)]`, on the host.
            None for a point.
        sample: `(key, parameters [*b, K]) -> [*b]`; None if there is no distribution.
    """

    size: int
    parameters: Callable[[Array, Array, Array], Array]
    loss: Callable[[Array, Array], Array]
    point: Callable[[Array], Array]
    quantiles: Callable[[Any, Sequence[float]], np.ndarray] | None = None
    sample: Callable[[Array, Array], Array] | None = None


def build(section: Any) -> Head:
    """Return the head of a config section."""
    if isinstance(section, sections.Point):
        return point(section.loss, delta=section.delta)
    if isinstance(section, sections.Quantiles):
        return quantiles(section.levels)
    return {
        "normal": normal,
        "student_t": student_t,
        "negative_binomial": negative_binomial,
    }[section.name]()


# -- point --------------------------------------------------------------------


def point(loss: str, *, delta: float = 1.0) -> Head:
    """Return the head of one number for each step.

    Args:
        loss: "mae", "mse" or "huber".
        delta: error at which huber becomes linear.

    Example:
        >>> point("huber", delta=1.0).loss(jnp.array([[3.0]]), jnp.array([0.0]))
        Array([2.5], dtype=float32)
    """

    def of_errors(parameters: Array, y: Array) -> Array:
        error = jnp.abs(parameters[..., 0] - y)
        if loss == "mae":
            return error
        if loss == "mse":
            return error**2
        inside = jnp.minimum(error, delta)
        return 0.5 * inside**2 + delta * (error - inside)

    return Head(1, _affine, of_errors, lambda parameters: parameters[..., 0])


def _affine(raw: Array, center: Array, width: Array) -> Array:
    return raw * width[..., None] + center[..., None]


# -- quantiles ----------------------------------------------------------------


def quantiles(levels: Sequence[float]) -> Head:
    """Return the head of quantiles that never cross.

        q_m = raw_m                               at the level 0.5
        q_k+1 - q_k = d_k softplus(raw) / log 2   for the others

    `d_k` is the difference of a standard normal distribution, so that raw numbers of 0
    are its quantiles. The loss is twice the mean pinball loss, an estimate of the CRPS.

    Args:
        levels: increasing, 0.5 among them.
    """
    levels_ = np.asarray(levels, np.float32)
    middle = int(np.flatnonzero(levels_ == 0.5)[0])
    gaps = np.diff(np.asarray(stats.norm.ppf(levels_))) / np.log(2.0)

    def parameters(raw: Array, center: Array, width: Array) -> Array:
        below, above = raw[..., :middle], raw[..., middle + 1 :]
        down = _last(gaps[:middle], below) * jax.nn.softplus(below)
        up = _last(gaps[middle:], above) * jax.nn.softplus(above)
        median = raw[..., middle : middle + 1]
        low = median - jnp.cumsum(down[..., ::-1], axis=-1)[..., ::-1]
        high = median + jnp.cumsum(up, axis=-1)
        return _affine(jnp.concatenate([low, median, high], -1), center, width)

    def loss(parameters: Array, y: Array) -> Array:
        at = _last(levels_, parameters)
        return 2 * pinball(parameters, y[..., None], at).mean(-1)

    def interpolated(parameters: Any, wanted: Sequence[float]) -> np.ndarray:
        return interpolate(np.asarray(parameters), levels_, np.asarray(wanted))

    return Head(
        len(levels), parameters, loss, lambda found: found[..., middle], interpolated
    )


def _last(values: Any, like: Array) -> Array:
    """Return numbers of the last axis in the shape of an array."""
    return jnp.broadcast_to(jnp.asarray(values, like.dtype), like.shape)


def pinball(quantile: Any, y: Any, level: Any) -> Any:
    """Return the pinball loss `max(τ (y - q), (τ - 1)(y - q))` of the level τ.

    Example:
        >>> float(pinball(jnp.array(1.0), 3.0, 0.9))
        1.7999999523162842
    """
    error = y - quantile
    return jnp.maximum(level * error, (level - 1) * error)


def interpolate(values: np.ndarray, levels: Any, wanted: Any) -> np.ndarray:
    """Return quantiles at other levels, on a line between the two levels around each.

    Outside of the levels, the outermost quantile is returned.

    Args:
        values: `[*b, K]` at the K levels.
        levels: increasing.
        wanted: the other levels.
    """
    levels, wanted = np.asarray(levels, float), np.asarray(wanted, float)
    if len(levels) == 1:
        return np.repeat(values, len(wanted), axis=-1)
    right = np.clip(np.searchsorted(levels, wanted - 1e-6), 1, len(levels) - 1)
    share = (wanted - levels[right - 1]) / (levels[right] - levels[right - 1])
    share = np.clip(share, 0, 1).astype(values.dtype)
    return values[..., right - 1] * (1 - share) + values[..., right] * share


# -- distributions ------------------------------------------------------------


def normal() -> Head:
    """Return the head `y ~ N(μ, σ²)`, with the parameters μ and σ."""

    def loss(parameters: Array, y: Array) -> Array:
        return -stats.norm.logpdf(y, parameters[..., 0], parameters[..., 1])

    def at(parameters: Any, levels: Sequence[float]) -> np.ndarray:
        from scipy import special

        found = np.asarray(parameters)
        return found[..., :1] + found[..., 1:2] * special.ndtri(np.asarray(levels))

    def sample(key: Array, parameters: Array) -> Array:
        noise = jax.random.normal(key, parameters.shape[:-1])
        return parameters[..., 0] + parameters[..., 1] * noise

    return Head(2, _location_scale, loss, lambda found: found[..., 0], at, sample)


def student_t() -> Head:
    """Return the head of Student's t, with the parameters μ, σ and ν > 2."""

    def loss(parameters: Array, y: Array) -> Array:
        mean, scale, freedom = (parameters[..., k] for k in range(3))
        return -stats.t.logpdf(y, freedom, mean, scale)

    def at(parameters: Any, levels: Sequence[float]) -> np.ndarray:
        from scipy import special

        found = np.asarray(parameters)
        z = special.stdtrit(found[..., 2:3], np.asarray(levels))
        return found[..., :1] + found[..., 1:2] * z

    def sample(key: Array, parameters: Array) -> Array:
        noise = jax.random.t(key, parameters[..., 2])
        return parameters[..., 0] + parameters[..., 1] * noise

    return Head(3, _location_scale, loss, lambda found: found[..., 0], at, sample)


def _location_scale(raw: Array, center: Array, width: Array) -> Array:
    """Return μ, σ and, if there is a third number, the degrees of freedom ν."""
    raw = raw.astype(jnp.float32)
    mean = raw[..., 0] * width + center
    scale = (jax.nn.softplus(raw[..., 1]) + SMALLEST) * width
    freedom = [2.0 + jax.nn.softplus(raw[..., k]) for k in range(2, raw.shape[-1])]
    return jnp.stack([mean, scale, *freedom], -1)


def negative_binomial() -> Head:
    """Return the head of counts, with the mean μ and the dispersion α.

        var = μ + α μ²

    Reference:
        Salinas et al., "DeepAR: probabilistic forecasting with autoregressive recurrent
        networks", 2020, https://arxiv.org/abs/1704.04110
    """

    def parameters(raw: Array, center: Array, width: Array) -> Array:
        raw = raw.astype(jnp.float32)
        mean = (jax.nn.softplus(raw[..., 0]) + SMALLEST) * width
        dispersion = jax.nn.softplus(raw[..., 1]) + SMALLEST
        return jnp.stack([mean, dispersion], -1)

    def loss(parameters: Array, y: Array) -> Array:
        mean, size = parameters[..., 0], 1 / parameters[..., 1]
        y = jnp.maximum(y, 0.0)
        chance = jnp.log(mean / (mean + size))
        failures = -jnp.log1p(mean / size)
        log_p = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
        return -(log_p + size * failures + y * chance)

    def at(parameters: Any, levels: Sequence[float]) -> np.ndarray:
        from scipy import stats as host

        found = np.asarray(parameters, float)
        mean, size = found[..., :1], 1 / found[..., 1:2]
        return host.nbinom.ppf(np.asarray(levels), size, size / (size + mean))

    def sample(key: Array, parameters: Array) -> Array:
        first, second = jax.random.split(key)
        mean, size = parameters[..., 0], 1 / parameters[..., 1]
        rate = jax.random.gamma(first, size) * mean / size
        return jax.random.poisson(second, rate).astype(jnp.float32)

    return Head(2, parameters, loss, lambda found: found[..., 0], at, sample)
