"""Colours, axes, panels, ticks and errors that all plots share."""

import functools
from collections.abc import Callable, Sequence
from math import ceil, log10
from typing import Literal, ParamSpec, TypeVar

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

P = ParamSpec("P")
R = TypeVar("R")

# Colours of Okabe and Ito, in decreasing order of contrast with white.
INK, BLUE, VERMILION, GREEN, PURPLE, ORANGE = (
    "#222222",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
)
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY = "#777777"

# Colours of several curves; neighbours differ in lightness, for black and white.
CURVES = (INK, BLUE, ORANGE, PURPLE, GREEN)


def prefix_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Prefix the message of a `ValueError` with the name of the public function."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            raise ValueError(f"{function.__name__}: {error}") from error

    return call


def curve_style(index: int) -> tuple[str, object]:
    """Return the colour and line style of a curve; 25 are distinct."""
    cycle, position = divmod(index, len(CURVES))
    return CURVES[position], STYLES[(position + cycle) % len(STYLES)]


def new_axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """Return `ax`, or the axes of a new figure of this size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")[1]


def split_panels(ax: Axes, heights: Sequence[float]) -> list[Axes]:
    """Split `ax` into panels above each other that share the x axis.

    Raises:
        ValueError: ax has no place in a grid.
    """
    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError(
            "ax: got axes that cannot be split into panels, expected axes that "
            "subplots or add_subplot returned."
        )
    grid = spec.subgridspec(len(heights), 1, height_ratios=heights, hspace=0.08)
    ax.set_subplotspec(grid[0])
    below = range(1, len(heights))
    panels = [ax, *(ax.figure.add_subplot(grid[row], sharex=ax) for row in below)]
    for panel in panels[:-1]:
        panel.tick_params(axis="x", labelbottom=False)
    return panels


def plain_log_ticks(axis: Axis) -> None:
    """Label ticks 0.5 and 200 instead of powers of ten.

    The axis must have its limits. Short axes also have ticks at 2 and 5.
    """
    low, high = axis.get_view_interval()
    subs = (1,) if log10(high) - log10(low) > 3.5 else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def integer_ticks(axis: Axis, most: int) -> None:
    """Place at most `most` ticks, at integers only, and at least one."""
    steps = [1, 2, 5, 10]
    axis.set_major_locator(MaxNLocator(most, steps=steps, integer=True, min_n_ticks=1))


def add_legend(
    ax: Axes,
    count: int,
    *,
    loc: Literal["best", "upper right"] = "best",
    title: str | None = None,
) -> None:
    """Add a legend within the axes, or beside them if it has more than 6 entries.

    Labels are shown as they are: `$` is no markup, and a label that begins with `_` is
    not left out.
    """
    handles = [line for line in ax.lines if line.get_label() not in _unnamed(ax)]
    labels = [str(line.get_label()) for line in handles]
    placeholders = [f"{number}" for number in range(len(labels))]
    if count <= 6:
        legend = ax.legend(
            handles,
            placeholders,
            frameon=False,
            loc=loc,
            title=title,
            title_fontsize="small",
        )
    else:
        legend = ax.legend(
            handles,
            placeholders,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.0,
            fontsize="x-small",
            ncols=ceil(count / 25),
            title=title,
            title_fontsize="x-small",
        )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, parse_math=False)


def _unnamed(ax: Axes) -> set[str]:
    """Return the labels that Matplotlib gives to lines without one."""
    return {"", "_nolegend_", *(f"_child{k}" for k in range(len(ax.get_children())))}


def style_axes(ax: Axes) -> Axes:
    """Remove the frame at the top and right, and add light horizontal grid lines."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    return ax


def width_in_points(ax: Axes) -> float:
    """Return the approximate width of the axes in points (1/72 inch)."""
    figure = ax.figure.get_figure(root=True)
    return 72 * figure.get_figwidth() * ax.get_position().width


def height_in_points(ax: Axes) -> float:
    """Return the approximate height of the axes in points."""
    figure = ax.figure.get_figure(root=True)
    return 72 * figure.get_figheight() * ax.get_position().height
