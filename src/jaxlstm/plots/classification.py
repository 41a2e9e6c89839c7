"""Plots of a classifier while it reads."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxlstm.plots.canvas import (
    add_legend,
    curve_style,
    new_axes,
    prefix_errors,
    style_axes,
)


@prefix_errors
def decision_curves(
    chances: Mapping[str, ArrayLike], *, ax: Axes | None = None
) -> Axes:
    """Plot the probability of the right class against the share that has been read.

    Args:
        chances: for each class, probabilities `[N]` at N equal shares of a sequence,
            the first after 1/N of it and the last at its end.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: there is no class, or the probabilities are not `[N]` in 0..1.

    Example:
        >>> ax = decision_curves({"a": [0.3, 0.9], "b": [0.5, 0.6]})
        >>> ax.get_ylabel()
        'probability of the right class'
    """
    if not isinstance(chances, Mapping) or not chances:
        raise ValueError(
            f"chances: got {chances!r:.60}, expected a dict such as "
            "{'a': [0.3, 0.9]}."
        )
    ax = new_axes(ax, (8.0, 4.5))
    for index, (name, values) in enumerate(chances.items()):
        curve = np.asarray(values, float)
        if (
            curve.ndim != 1
            or curve.size == 0
            or not ((curve >= 0) & (curve <= 1)).all()
        ):
            raise ValueError(
                f"chances[{name!r}]: got shape {list(curve.shape)} with values from "
                f"{curve.min(initial=1):g} to {curve.max(initial=0):g}, expected "
                "probabilities [N] in 0..1."
            )
        colour, style = curve_style(index)
        share = 100 * np.arange(1, curve.size + 1) / curve.size
        ax.plot(share, curve, color=colour, ls=style, lw=1.5, label=str(name))
    ax.set(
        xlabel="share of the sequence that has been read, in %",
        ylabel="probability of the right class",
        ylim=(0, 1.02),
    )
    add_legend(ax, len(chances))
    return style_axes(ax)
