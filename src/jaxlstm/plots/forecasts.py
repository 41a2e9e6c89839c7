"""Errors of forecasts: by step of the horizon, and their distribution."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxlstm.plots.canvas import (
    BLUE,
    INK,
    VERMILION,
    add_legend,
    curve_style,
    new_axes,
    prefix_errors,
    style_axes,
)


@prefix_errors
def error_by_horizon(
    errors: Mapping[str, ArrayLike],
    *,
    label: str = "mean absolute error",
    ax: Axes | None = None,
) -> Axes:
    """Plot the error of forecasters against the step of the horizon.

    Args:
        errors: the error `[H]` of each forecaster by name.
        label: name and unit of the error.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: errors is empty, or an array is not `[H]` for one H.

    Example:
        >>> ax = error_by_horizon({"model": [1.0, 2.0], "naive": [2.0, 2.5]})
        >>> ax.get_xlabel()
        'steps ahead'
    """
    curves = {name: np.asarray(found, float) for name, found in errors.items()}
    shapes = {found.shape for found in curves.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(
            f"errors: got {len(curves)} curves of the shapes "
            f"{sorted(list(shape) for shape in shapes)}, expected one shape [H]."
        )
    ax = new_axes(ax, (8.0, 4.0))
    for k, (name, found) in enumerate(curves.items()):
        color, style = curve_style(k)
        marker = "." if found.size <= 40 else None
        ax.plot(
            np.arange(1, found.size + 1),
            found,
            color=color,
            ls=style,  # pyright: ignore[reportArgumentType]
            marker=marker,
            label=name,
        )
    ax.set(xlabel="steps ahead", ylabel=label)
    ax.set_ylim(bottom=0)
    add_legend(ax, len(curves))
    return style_axes(ax)


@prefix_errors
def residuals(
    errors: ArrayLike, *, label: str = "truth - forecast", ax: Axes | None = None
) -> Axes:
    """Plot the distribution of errors, with their mean and 80 % and 95 % intervals.

    NaN is left out.

    Args:
        errors: any shape.
        label: name and unit of an error.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: there is no finite error.

    Example:
        >>> residuals([-1.0, 0.0, 1.0, 2.0]).get_xlabel()
        'truth - forecast'
    """
    values = np.asarray(errors, float).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("errors: got no finite value, expected at least one.")
    ax = new_axes(ax, (8.0, 4.0))
    low, high = np.quantile(values, [0.002, 0.998])
    margin = max(high - low, 1e-9) * 0.02
    ax.hist(values, bins=60, range=(low - margin, high + margin), color=BLUE, alpha=0.6)
    mean = values.mean()
    ax.axvline(mean, color=VERMILION, lw=1.4, label=f"mean {mean:.3g}")
    for percent, style in ((80, "--"), (95, ":")):
        ends = np.quantile(values, [(100 - percent) / 200, (100 + percent) / 200])
        for k, end in enumerate(ends):
            name = f"{percent} % between {ends[0]:.3g} and {ends[1]:.3g}"
            ax.axvline(end, color=INK, lw=1.0, ls=style, label=None if k else name)
    ax.set(xlabel=label, ylabel="forecasts")
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)
    return style_axes(ax)
