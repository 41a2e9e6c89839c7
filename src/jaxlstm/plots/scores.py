"""Plots of predictions: a confusion matrix, and quantile forecasts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import (
    BLUE,
    INK,
    VERMILION,
    new_axes,
    prefix_errors,
    style_axes,
    width_in_points,
)
from jaxlstm.plots.symbols import drawable

Floats = NDArray[np.float64]


@prefix_errors
def confusion_matrix(
    matrix: ArrayLike, labels: Sequence[object], *, ax: Axes | None = None
) -> Axes:
    """Plot the confusion matrix: a row per true class, a column per predicted class.

    The shade is the fraction of the true class, the number in a cell the count, and
    the title the accuracy. The row of a class without examples is crossed out. Counts
    are left out if they do not fit.

    Args:
        matrix: counts `[K, K]`, `matrix[true, predicted]`.
        labels: the names of the K classes, or numbers.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: the matrix is not square, has no counts, or does not fit the
            labels.

    Example:
        >>> confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"]).get_title()
        'accuracy 85 % (20 examples)'
    """
    counts = _counts(matrix, labels)
    ax = new_axes(ax, (6.0, 5.2))
    total = counts.sum(1, keepdims=True)
    fraction = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    image = ax.imshow(fraction, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="none")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
    bar.set_label("fraction of the true class")
    for row in np.flatnonzero(total == 0):
        ax.plot([-0.5, len(counts) - 0.5], [row, row], color=INK, lw=0.8)
    _write_counts(ax, counts, fraction)
    names = [drawable(label) for label in labels]
    rotation = 90 if max(map(len, names)) > 3 else 0
    ax.set_xticks(range(len(names)), names, rotation=rotation, parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.tick_params(length=0)
    accuracy = 100 * np.trace(counts) / counts.sum()
    title = f"accuracy {accuracy:.3g} % ({counts.sum():g} examples)"
    ax.set(xlabel="predicted class", ylabel="true class", title=title)
    return ax


@prefix_errors
def forecast_fan(
    history: ArrayLike,
    quantiles: Mapping[float, ArrayLike],
    *,
    truth: ArrayLike | None = None,
    times: ArrayLike | None = None,
    label: str = "value",
    ax: Axes | None = None,
) -> Axes:
    """Plot a quantile forecast as nested bands, with the history and the truth.

    A band lies between two levels that add up to 1, such as 0.05 and 0.95, and should
    contain the fraction between them of the truth, here 90 %. The legend shows the
    fraction that it contains.

    Args:
        history: `[N]`, the values up to the forecast; the last one is step 0.
        quantiles: the forecasts `[steps]` by level in 0..1; 0.5 is drawn as a line,
            the others in pairs.
        truth: `[steps]`, the true values; NaN where unknown. Steps without truth, or
            where a limit of the band is not finite, do not count in the fraction.
        times: `[N + steps]`, the times of the history and of the forecast, datetime64
            or numbers; None numbers the steps.
        label: name and unit of the values.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: quantiles is empty, a level is outside 0..1 or lacks its pair, a
            pair crosses, or the arrays do not fit.

    Example:
        >>> fan = {0.1: [0.5, 0.2], 0.5: [1.0, 1.1], 0.9: [1.6, 2.1]}
        >>> ax = forecast_fan([0.8, 0.9], fan, truth=[1.2, 2.4])
        >>> [text.get_text() for text in ax.get_legend().get_texts()][-1]
        '80 % band, contains 50 %'
    """
    past = _series("history", history, None)
    levels = _levels(quantiles)
    steps = levels[min(levels)].size
    true_values = None if truth is None else _series("truth", truth, steps)
    ax = new_axes(ax, (8.0, 4.0))
    ahead = np.arange(1, steps + 1)
    before = np.arange(past.size) - past.size + 1
    marker = "." if past.size == 1 else None
    ax.plot(before, past, color=INK, lw=1.4, marker=marker, label="history")
    if true_values is not None:
        ax.plot(ahead, true_values, ".-", color=VERMILION, lw=1.0, ms=5, label="truth")
    if 0.5 in levels:
        at = _step_positions(ahead)
        middle = np.broadcast_to(levels[0.5], at.shape)
        ax.plot(at, middle, "--", color=BLUE, lw=1.8, label="median forecast")
    _bands(ax, ahead, levels, true_values)
    ax.axvline(0, color=INK, lw=0.8, ls=":")
    ax.set(xlabel="step (0: last step of the history)", ylabel=label)
    if times is not None:
        _label_times(ax, np.asarray(times), past.size, steps)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return style_axes(ax)


def _label_times(ax: Axes, times: NDArray[Any], past: int, steps: int) -> None:
    """Label the integer positions of the x axis with the times."""
    if times.shape != (past + steps,):
        raise ValueError(
            f"times: got shape {list(times.shape)}, expected [{past + steps}]: {past} "
            f"of the history and {steps} of the forecast."
        )
    texts = times.astype(str)
    if np.issubdtype(times.dtype, np.datetime64):
        midnight = (times == times.astype("datetime64[D]")).all()
        texts = np.datetime_as_string(times, unit="D" if midnight else "m")

    def text_at(position: float, _: object = None) -> str:
        index = round(position) + past - 1
        return texts[index].replace("T", "\n") if 0 <= index < len(texts) else ""

    ax.xaxis.set_major_locator(MultipleLocator(math.ceil(len(texts) / 6)))
    ax.xaxis.set_major_formatter(text_at)
    ax.set(xlabel="")


def _counts(matrix: ArrayLike, labels: Sequence[object]) -> Floats:
    if not len(labels):
        raise ValueError("labels: got none, expected the name of at least one class.")
    counts = np.asarray(matrix, float)
    expected = [len(labels), len(labels)]
    if list(counts.shape) != expected:
        raise ValueError(
            f"matrix: got shape {list(counts.shape)}, expected {expected}, a row and a "
            "column for each of the labels."
        )
    if not (np.isfinite(counts) & (counts >= 0)).all() or not counts.any():
        raise ValueError(
            f"matrix: got values from {counts.min():g} to {counts.max():g}, expected "
            "finite counts >= 0, some above 0."
        )
    return counts


def _write_counts(ax: Axes, counts: Floats, fraction: Floats) -> None:
    """Write the counts into the cells, light on dark and dark on light."""
    most = max(len(f"{count:g}") for count in counts.flat)
    size = min(11.0, 1.2 * width_in_points(ax) / len(counts) / max(2, most))
    if size < 4.5:
        return
    for (row, column), count in np.ndenumerate(counts):
        if not counts[row].any():
            continue
        dark = fraction[row, column] > 0.55
        colour = "white" if dark else INK
        ax.text(
            column,
            row,
            f"{count:g}",
            ha="center",
            va="center",
            color=colour,
            fontsize=size,
        )


def _levels(quantiles: Mapping[float, ArrayLike]) -> dict[float, Floats]:
    """Return the forecasts by increasing level; each but 0.5 has its pair."""
    if not isinstance(quantiles, Mapping) or not quantiles:
        raise ValueError(
            f"quantiles: got {quantiles!r:.60}, expected a dict such as "
            "{0.1: low, 0.5: median, 0.9: high}."
        )
    levels = {round(float(level), 9): quantiles[level] for level in sorted(quantiles)}
    steps = np.size(next(iter(levels.values())))
    for level in levels:
        if not 0 < level < 1 or round(1 - level, 9) not in levels:
            raise ValueError(
                f"quantiles: got the level {level:g}, expected levels in 0..1, and "
                f"with {level:g} also {1 - level:g}."
            )
    forecasts = {
        level: _series(f"quantiles[{level:g}]", values, steps)
        for level, values in levels.items()
    }
    for level in [level for level in forecasts if level < 0.5]:
        _check_not_crossed(level, forecasts[level], forecasts[round(1 - level, 9)])
    return forecasts


def _check_not_crossed(level: float, low: Floats, high: Floats) -> None:
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        first = crossed[0]
        raise ValueError(
            f"quantiles[{level:g}]: got {low[first]:g} at step {first + 1}, expected "
            f"at most the {high[first]:g} of quantiles[{1 - level:g}]; sort the levels "
            "of each step."
        )


def _step_positions(ahead: NDArray[np.int64]) -> Floats:
    """Return the x of the steps; a single step gets a visible width."""
    at = np.asarray(ahead, float)
    return at if at.size > 1 else np.array([at[0] - 0.2, at[0] + 0.2])


def _bands(
    ax: Axes,
    ahead: NDArray[np.int64],
    levels: dict[float, Floats],
    truth: Floats | None,
) -> None:
    """Draw the bands from the widest to the narrowest, each darker than the last."""
    at = _step_positions(ahead)
    lower = [level for level in levels if level < 0.5]
    for number, level in enumerate(lower, start=1):
        low, high = levels[level], levels[round(1 - level, 9)]
        shade = 0.15 + 0.45 * number / len(lower)
        name = f"{100 * (1 - 2 * level):.3g} % band"
        ax.fill_between(
            at,
            np.broadcast_to(low, at.shape),
            np.broadcast_to(high, at.shape),
            color=_mix(BLUE, shade),
            lw=0,
            zorder=0.6 + number / 100,
            label=name + _coverage(low, high, truth),
        )


def _coverage(low: Floats, high: Floats, truth: Floats | None) -> str:
    if truth is None:
        return ""
    known = ~np.isnan(truth) & np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return ""
    inside = (low <= truth) & (truth <= high)
    return f", contains {100 * inside[known].mean():.3g} %"


def _mix(colour: str, fraction: float) -> tuple[float, ...]:
    """Return this fraction of the colour mixed with white."""
    from matplotlib.colors import to_rgb

    return tuple(1 - fraction * (1 - part) for part in to_rgb(colour))


def _series(name: str, values: ArrayLike, steps: int | None) -> Floats:
    array = np.asarray(values, float)
    expected = "[N]" if steps is None else f"[{steps}]"
    if array.ndim != 1 or array.size == 0 or steps not in (None, array.size):
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected {expected}.")
    return array
