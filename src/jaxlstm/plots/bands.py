"""Curves of several seeds: the median as a line, and a band of quantiles.

NaN ranks above infinity, so that a seed that diverged counts as the worst.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import GREY, add_legend, curve_style, plain_log_ticks

Floats = NDArray[np.float64]


class Band(NamedTuple):
    """Median over the seeds and the limits of the band, `[N]` each."""

    median: Floats
    low: Floats
    high: Floats


def as_rows(name: str, values: ArrayLike, expected: str) -> Floats:
    """Return values as `[S, N]`, one row per seed; `[N]` is one seed."""
    array = np.asarray(values, float)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected {expected}.")
    return np.atleast_2d(array)


def check_mapping(name: str, values: object, example: str) -> Mapping[str, ArrayLike]:
    """Return values, or raise an error if they are not a dict with entries."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"{name}: got {values!r:.60}, expected a dict such as {example}."
        )
    return values


def quantile_band(values: Floats, within: tuple[float, float]) -> Band:
    """Return the median over rows, and the band between two quantiles.

    Masked values do not count; where all rows are masked, the band is NaN.
    """
    low, high = within
    if not 0 <= low < high <= 1:
        raise ValueError(f"within: got {within!r}, expected 0 <= low < high <= 1.")
    ranked = np.sort(np.ma.filled(values, np.nan), axis=0)  # NaN is last
    if len(values) == 1:
        return Band(ranked[0], ranked[0], ranked[0])
    top = np.maximum(np.ma.count(values, axis=0) - 1, 0)
    columns = np.arange(len(top))
    median = 0.5 * ranked[top // 2, columns] + 0.5 * ranked[(top + 1) // 2, columns]
    lowest, highest = (low * top).astype(int), np.ceil(high * top).astype(int)
    return Band(median, ranked[lowest, columns], ranked[highest, columns])


def finite_limits(
    curves: Mapping[str, Floats], above: float = -np.inf
) -> tuple[float, float]:
    """Return the smallest and largest finite value above a bound; 1, 1 if none."""
    values = np.concatenate([curve.ravel() for curve in curves.values()])
    values = values[np.isfinite(values) & (values > above)]
    return (values.min(), values.max()) if values.size else (1.0, 1.0)


def draw(
    ax: Axes,
    curves: Mapping[str, tuple[Floats, Floats]],
    within: tuple[float, float],
    *,
    logarithmic: bool,
) -> None:
    """Draw curves with bands, marks and a legend.

    The y axis covers the lines and bands, not every row.

    Args:
        ax: the axes.
        curves: xs `[N]` and values `[S, N]` by name; masked values do not count.
        within: the quantiles that limit the band.
        logarithmic: whether the y axis is logarithmic.
    """
    values = {name: curve[1] for name, curve in curves.items()}
    bands = {name: quantile_band(rows, within) for name, rows in values.items()}
    drawn = {name: np.concatenate(band) for name, band in bands.items()}
    ends = finite_limits(drawn, 0.0 if logarithmic else -np.inf)
    marks = set()
    for index, (name, (xs, rows)) in enumerate(curves.items()):
        _draw_curve(ax, xs, bands[name], index, name, ends)
        marks |= _draw_marks(ax, xs, rows, index, logarithmic)
    for mark in sorted(marks):
        ax.plot([], [], mark.shape, color=GREY, mfc="none", ms=5, label=mark.name)
    if logarithmic:
        _set_log_scale(ax, *ends)
    add_legend(ax, len(curves) + len(marks), title=_legend_title(values, within))


def _draw_curve(
    ax: Axes, xs: Floats, band: Band, index: int, name: str, ends: tuple[float, float]
) -> None:
    """Draw the median and the band, clipped to the finite limits."""
    colour, style = curve_style(index)
    drawable = np.isfinite(band.median) & (band.median >= ends[0])
    median = np.where(drawable, band.median, np.nan)
    marker = "o" if np.isfinite(median).sum() == 1 else None  # a line needs two points
    ax.plot(xs, median, color=colour, ls=style, lw=1.8, marker=marker, ms=4, label=name)
    if band.high is not band.low:
        low, high = np.clip(band.low, *ends), np.nan_to_num(band.high, nan=np.inf)
        high = np.clip(high, *ends)
        ax.fill_between(xs, low, high, color=colour, alpha=0.22, lw=0)


def _set_log_scale(ax: Axes, low: float, high: float) -> None:
    """Set a logarithmic y axis around the limits, with plain numbers if it is short."""
    bottom, top = np.log10(low), np.log10(high)
    margin = 0.06 * max(0.5, top - bottom)
    bottom, top = np.clip([bottom - margin, top + margin], -322.0, 308.0)
    ax.autoscale(False, axis="y")
    ax.set_yscale("log")
    ax.set_ylim(10**bottom, 10**top)
    if top - bottom < 2.8:
        plain_log_ticks(ax.yaxis)
    if top - bottom > 100:  # Matplotlib's own ticks can overflow here
        ax.set_yticks(10.0 ** np.arange(np.ceil(bottom / 50) * 50, top, 50))
        ax.yaxis.set_minor_locator(NullLocator())


class _Mark(NamedTuple):
    """Mark at the edge of the axes for a value that the axis cannot show."""

    name: str
    shape: str
    height: float  # in axes fractions: 0 is the bottom, 1 the top


_ZERO = _Mark("exactly 0", "v", 0.02)
_LOWEST = _Mark("minus infinity", "v", 0.02)
_INFINITE = _Mark("infinite", "^", 0.98)
_NAN = _Mark("NaN", "x", 0.98)


def _draw_marks(
    ax: Axes, xs: Floats, values: Floats, index: int, logarithmic: bool
) -> set[_Mark]:
    """Mark the x of values that cannot be drawn, each curve at its own height."""
    kinds = {
        _ZERO: (values == 0) & logarithmic,
        _LOWEST: np.isneginf(values),
        _INFINITE: np.isposinf(values),
        _NAN: np.isnan(values),
    }
    found = {kind: np.ma.filled(where, False) for kind, where in kinds.items()}
    used = {kind: xs[where.any(0)] for kind, where in found.items() if where.any()}
    for kind, at in used.items():
        height = kind.height + 0.035 * index * (1 if kind.height < 0.5 else -1)
        (line,) = ax.plot(at, np.full(at.shape, height), kind.shape, clip_on=False)
        line.set(
            color=curve_style(index)[0], mfc="none", ms=5, markevery=1 + at.size // 40
        )
        line.set_transform(ax.get_xaxis_transform())
    return set(used)


def _legend_title(
    curves: Mapping[str, Floats], within: tuple[float, float]
) -> str | None:
    """Return the meaning of line and band, or None if every curve has one row."""
    most = max(len(values) for values in curves.values())
    if most == 1:
        return None
    low, high = within
    band = "min to max" if (low, high) == (0, 1) else f"{low:.0%} to {high:.0%}"
    return f"line: median of {most}, band: {band}"
