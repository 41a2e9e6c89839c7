"""Many curves as one: the median of the seeds, and a band that holds most of them.

NaN counts as the largest number there is, beyond infinity: what diverged did worse
than anything that did not.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import QUIET, look, name_curves, plain_logarithm

Floats = NDArray[np.float64]


class Band(NamedTuple):
    """The median over the seeds and the ends of the band, `[N]` each."""

    middle: Floats
    low: Floats
    high: Floats


def rows(name: str, values: ArrayLike, wanted: str) -> Floats:
    """Values `[S, N]`, a row for each seed; `[N]` is one seed."""
    found = np.asarray(values, float)
    if found.ndim not in (1, 2) or found.size == 0:
        raise ValueError(f"{name} has the shape {list(found.shape)}; {wanted}.")
    return np.atleast_2d(found)


def named(name: str, values: object, example: str) -> Mapping[str, ArrayLike]:
    """A mapping of some names to arrays, or an error that shows one."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"{name} is {values!r:.60}; a dict such as {example} is needed."
        )
    return values


def over_rows(values: Floats, within: tuple[float, float]) -> Band:
    """The median of the rows, and the rows at both shares of their ranks."""
    first, last = within
    if not 0 <= first < last <= 1:
        raise ValueError(f"within is {within!r}; 0 <= low < high <= 1 is needed.")
    ranked, top = np.sort(values, axis=0), len(values) - 1
    if top == 0:
        return Band(ranked[0], ranked[0], ranked[0])
    middle = 0.5 * ranked[top // 2] + 0.5 * ranked[(top + 1) // 2]
    return Band(middle, ranked[int(first * top)], ranked[int(np.ceil(last * top))])


def limits(curves: Mapping[str, Floats], above: float = -np.inf) -> tuple[float, float]:
    """The least and the greatest finite number above the one given; 1, 1 for none."""
    found = np.concatenate([values.ravel() for values in curves.values()])
    found = found[np.isfinite(found) & (found > above)]
    return (found.min(), found.max()) if found.size else (1.0, 1.0)


def draw(
    ax: Axes,
    curves: Mapping[str, tuple[Floats, Floats]],
    within: tuple[float, float],
    *,
    logarithmic: bool,
) -> None:
    """Curves by name, each `xs [N]` and `values [S, N]`, with marks and a legend.

    The axis reaches as far as what is drawn, not as far as every row.
    """
    values = {name: curve[1] for name, curve in curves.items()}
    bands = {name: over_rows(rows, within) for name, rows in values.items()}
    drawn = {name: np.concatenate(band) for name, band in bands.items()}
    ends = limits(drawn, 0.0 if logarithmic else -np.inf)
    used = set()
    for index, (name, (xs, rows)) in enumerate(curves.items()):
        _curve(ax, xs, bands[name], index, name, ends)
        used |= _mark(ax, xs, rows, index, logarithmic)
    for mark in sorted(used):
        ax.plot([], [], mark.shape, color=QUIET, mfc="none", ms=5, label=mark.name)
    if logarithmic:
        _logarithm(ax, *ends)
    name_curves(ax, len(curves) + len(used), title=_title(values, within))


def _curve(
    ax: Axes, xs: Floats, band: Band, index: int, name: str, ends: tuple[float, float]
) -> None:
    """The median in the look of its index; the band is cut off where numbers end."""
    colour, style = look(index)
    drawable = np.isfinite(band.middle) & (band.middle >= ends[0])
    middle = np.where(drawable, band.middle, np.nan)
    alone = "o" if np.isfinite(middle).sum() == 1 else None
    ax.plot(xs, middle, color=colour, ls=style, lw=1.8, marker=alone, ms=4, label=name)
    if band.high is not band.low:
        low, high = np.clip(band.low, *ends), np.nan_to_num(band.high, nan=np.inf)
        high = np.clip(high, *ends)
        ax.fill_between(xs, low, high, color=colour, alpha=0.22, lw=0)


def _logarithm(ax: Axes, low: float, high: float) -> None:
    """A scale around the ends, in plain numbers where it spans few decades."""
    bottom, top = np.log10(low), np.log10(high)
    room = 0.06 * max(0.5, top - bottom)
    bottom, top = np.clip([bottom - room, top + room], -322.0, 308.0)
    ax.autoscale(False, axis="y")
    ax.set_yscale("log")
    ax.set_ylim(10**bottom, 10**top)
    if top - bottom < 2.8:
        plain_logarithm(ax.yaxis)
    if top - bottom > 100:  # where ticks chosen by Matplotlib can overflow
        ax.set_yticks(10.0 ** np.arange(np.ceil(bottom / 50) * 50, top, 50))
        ax.yaxis.set_minor_locator(NullLocator())


class _Mark(NamedTuple):
    """A mark at the edge of the axes for what cannot stand within them."""

    name: str
    shape: str
    height: float  # of the axes: 0 is the bottom, 1 the top


_ZERO = _Mark("exactly 0", "v", 0.02)
_LOWEST = _Mark("minus infinity", "v", 0.02)
_INFINITE = _Mark("infinite", "^", 0.98)
_NO_NUMBER = _Mark("not a number", "x", 0.98)


def _mark(
    ax: Axes, xs: Floats, values: Floats, index: int, logarithmic: bool
) -> set[_Mark]:
    """Mark where some row cannot be drawn, each curve at a height of its own."""
    kinds = {
        _ZERO: (values == 0) & logarithmic,
        _LOWEST: np.isneginf(values),
        _INFINITE: np.isposinf(values),
        _NO_NUMBER: np.isnan(values),
    }
    used = {kind: xs[where.any(0)] for kind, where in kinds.items() if where.any()}
    for kind, at in used.items():
        height = kind.height + 0.035 * index * (1 if kind.height < 0.5 else -1)
        (line,) = ax.plot(at, np.full(at.shape, height), kind.shape, clip_on=False)
        line.set(color=look(index)[0], mfc="none", ms=5, markevery=1 + at.size // 40)
        line.set_transform(ax.get_xaxis_transform())
    return set(used)


def _title(curves: Mapping[str, Floats], within: tuple[float, float]) -> str | None:
    """What line and band are, where there is more than one row to draw."""
    most = max(len(values) for values in curves.values())
    if most == 1:
        return None
    first, last = within
    held = "all" if (first, last) == (0, 1) else f"{first:.0%} to {last:.0%}"
    return f"line: median of {most}, band: {held}"
