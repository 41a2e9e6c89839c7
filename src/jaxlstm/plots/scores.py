"""What a model gets right: classes confused, forecasts and how wide they fan."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import BLUE, INK, VERMILION, new_axes, points_across, tidy
from jaxlstm.plots.symbols import drawable

Floats = NDArray[np.float64]


def confusion_matrix(
    matrix: ArrayLike, labels: Sequence[object], *, ax: Axes | None = None
) -> Axes:
    """Which class is taken for which: a row for each true class, a column for each
    predicted one.

    The shade is the share of the true class, the number in a field how often it
    happened; the title is the share that is right. The row of a class that never
    occurred is crossed out. Numbers are left out where they would not fit.

    Arguments:
        matrix: counts `[K, K]`, `matrix[true, predicted]`.
        labels: the K classes: their names, or numbers.

    Errors: `ValueError` for a matrix that is not square, holds no counts, or does not
    fit the labels.

    >>> confusion_matrix([[8, 2], [1, 9]], ["cat", "dog"]).get_title()
    'right: 85 % of 20'
    """
    counts = _counts(matrix, labels)
    ax = new_axes(ax, (6.0, 5.2))
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    image = ax.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="none")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
    bar.set_label("share of the true class")
    for row in np.flatnonzero(total == 0):
        ax.plot([-0.5, len(counts) - 0.5], [row, row], color=INK, lw=0.8)
    _write_counts(ax, counts, share)
    names = [drawable(label) for label in labels]
    upright = 90 if max(map(len, names)) > 3 else 0
    ax.set_xticks(range(len(names)), names, rotation=upright, parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.tick_params(length=0)
    right = f"right: {100 * np.trace(counts) / counts.sum():.3g} % of {counts.sum():g}"
    ax.set(xlabel="predicted class", ylabel="true class", title=right)
    return ax


def forecast_fan(
    history: ArrayLike,
    quantiles: Mapping[float, ArrayLike],
    *,
    truth: ArrayLike | None = None,
    label: str = "value",
    ax: Axes | None = None,
) -> Axes:
    """A forecast as nested bands, after what was known and beside what came.

    A band lies between two levels that add up to 1, such as 0.05 and 0.95, and should
    hold the share between them, here 90 %. The legend says what share of the truth it
    does hold.

    Arguments:
        history: `[N]`, up to and with the moment of the forecast, step 0.
        quantiles: for each level between 0 and 1 the forecasts `[steps]`; 0.5 is drawn
            as a line, the others in pairs.
        truth: `[steps]`, what came; NaN where it is not known. A step without truth,
            or at which an end of the band is not finite, does not count.
        label: what is forecast, and in which unit.

    Errors: `ValueError` for no levels, for one outside 0 to 1 or without its pair, for
    a pair that crosses, and for arrays that do not fit.

    >>> fan = {0.1: [0.5, 0.2], 0.5: [1.0, 1.1], 0.9: [1.6, 2.1]}
    >>> ax = forecast_fan([0.8, 0.9], fan, truth=[1.2, 2.4])
    >>> [text.get_text() for text in ax.get_legend().get_texts()][-1]
    '80 % band, holds 50 %'
    """
    past = _series("history", history, None)
    levels = _levels(quantiles)
    steps = levels[min(levels)].size
    came = None if truth is None else _series("truth", truth, steps)
    ax = new_axes(ax, (8.0, 4.0))
    ahead = np.arange(1, steps + 1)
    before = np.arange(past.size) - past.size + 1
    alone = "." if past.size == 1 else None
    ax.plot(before, past, color=INK, lw=1.4, marker=alone, label="history")
    if came is not None:
        ax.plot(ahead, came, ".-", color=VERMILION, lw=1.0, ms=5, label="truth")
    if 0.5 in levels:
        at = _wide(ahead)
        middle = np.broadcast_to(levels[0.5], at.shape)
        ax.plot(at, middle, "--", color=BLUE, lw=1.8, label="median forecast")
    _bands(ax, ahead, levels, came)
    ax.axvline(0, color=INK, lw=0.8, ls=":")
    ax.set(xlabel="steps from the forecast", ylabel=label)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return tidy(ax)


def _counts(matrix: ArrayLike, labels: Sequence[object]) -> Floats:
    if not len(labels):
        raise ValueError("labels is empty; the name of at least one class is needed.")
    counts = np.asarray(matrix, float)
    wanted = [len(labels), len(labels)]
    if list(counts.shape) != wanted:
        raise ValueError(
            f"matrix has the shape {list(counts.shape)}; {wanted} is needed, a row and "
            "a column for each of the labels."
        )
    if not (np.isfinite(counts) & (counts >= 0)).all() or not counts.any():
        raise ValueError(
            "matrix must hold counts, finite and at least 0, and some above 0, but "
            f"lies between {counts.min():g} and {counts.max():g}."
        )
    return counts


def _write_counts(ax: Axes, counts: Floats, share: Floats) -> None:
    """The counts in their fields, light on dark and dark on light."""
    most = max(len(f"{count:g}") for count in counts.flat)
    size = min(11.0, 1.2 * points_across(ax) / len(counts) / max(2, most))
    if size < 4.5:
        return
    for (row, column), count in np.ndenumerate(counts):
        if not counts[row].any():
            continue
        dark = share[row, column] > 0.55
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
    """The forecasts by level, rising; each but 0.5 has its pair."""
    if not isinstance(quantiles, Mapping) or not quantiles:
        raise ValueError(
            f"quantiles is {quantiles!r:.60}; a dict such as "
            "{0.1: low, 0.5: middle, 0.9: high} is needed."
        )
    levels = {round(float(level), 9): quantiles[level] for level in sorted(quantiles)}
    steps = np.size(next(iter(levels.values())))
    for level in levels:
        if not 0 < level < 1 or round(1 - level, 9) not in levels:
            raise ValueError(
                f"quantiles has the level {level:g}; levels between 0 and 1 are "
                f"needed, and with {level:g} also {1 - level:g}."
            )
    found = {
        level: _series(f"quantiles[{level:g}]", values, steps)
        for level, values in levels.items()
    }
    for level in [level for level in found if level < 0.5]:
        _uncrossed(level, found[level], found[round(1 - level, 9)])
    return found


def _uncrossed(level: float, low: Floats, high: Floats) -> None:
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        first = crossed[0]
        raise ValueError(
            f"quantiles[{level:g}] is {low[first]:g} at step {first + 1}, above the "
            f"{high[first]:g} of quantiles[{1 - level:g}]; sort the levels of "
            "each step."
        )


def _wide(ahead: NDArray[np.int64]) -> Floats:
    """Where to draw what lies at those steps; a single one as wide as can be seen."""
    at = np.asarray(ahead, float)
    return at if at.size > 1 else np.array([at[0] - 0.2, at[0] + 0.2])


def _bands(
    ax: Axes,
    ahead: NDArray[np.int64],
    levels: dict[float, Floats],
    truth: Floats | None,
) -> None:
    """From the widest to the narrowest, each darker than the one it lies in."""
    at = _wide(ahead)
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
            label=name + _held(low, high, truth),
        )


def _held(low: Floats, high: Floats, truth: Floats | None) -> str:
    if truth is None:
        return ""
    known = ~np.isnan(truth) & np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return ""
    inside = (low <= truth) & (truth <= high)
    return f", holds {100 * inside[known].mean():.3g} %"


def _mix(colour: str, share: float) -> tuple[float, ...]:
    """A share of the colour, the rest white."""
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - part) for part in to_rgb(colour))


def _series(name: str, values: ArrayLike, steps: int | None) -> Floats:
    found = np.asarray(values, float)
    wanted = "[N]" if steps is None else f"[{steps}]"
    if found.ndim != 1 or found.size == 0 or steps not in (None, found.size):
        raise ValueError(
            f"{name} has the shape {list(found.shape)}; {wanted} is needed."
        )
    return found
