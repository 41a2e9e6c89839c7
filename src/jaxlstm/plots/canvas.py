"""What the pictures share: colours, axes, panels, scales."""

from collections.abc import Sequence
from math import ceil, log10
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's colours, in falling order of contrast with white.
INK, BLUE, VERMILION, GREEN, PURPLE, ORANGE = (
    "#222222",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
)
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
QUIET = "#777777"

# Of several curves, in an order in which neighbours differ in lightness too.
CURVES = (INK, BLUE, ORANGE, PURPLE, GREEN)


def look(index: int) -> tuple[str, object]:
    """The colour and the line style of one of several curves, 25 in all."""
    turn, place = divmod(index, len(CURVES))
    return CURVES[place], STYLES[(place + turn) % len(STYLES)]


def new_axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """The axes that were given, or those of a new figure of so many inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")[1]


def panels_of(ax: Axes, heights: Sequence[float]) -> list[Axes]:
    """Split `ax` into panels one above the other that share their steps."""
    spec = ax.get_subplotspec()
    if spec is None:
        raise ValueError(
            "ax must come from subplots or add_subplot, because it is split in panels"
        )
    grid = spec.subgridspec(len(heights), 1, height_ratios=heights, hspace=0.08)
    ax.set_subplotspec(grid[0])
    below = range(1, len(heights))
    panels = [ax, *(ax.figure.add_subplot(grid[row], sharex=ax) for row in below)]
    for panel in panels[:-1]:
        panel.tick_params(axis="x", labelbottom=False)
    return panels


def plain_logarithm(axis: Axis) -> None:
    """Numbers as they are said, 0.5 and 200, instead of powers of ten.

    The axis must have its limits; only where they are near stand 2 and 5 between.
    """
    low, high = axis.get_view_interval()
    subs = (1,) if log10(high) - log10(low) > 3.5 else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_numbers(axis: Axis, most: int) -> None:
    """Ticks at whole numbers only, at a single one too."""
    steps = [1, 2, 5, 10]
    axis.set_major_locator(MaxNLocator(most, steps=steps, integer=True, min_n_ticks=1))


def name_curves(
    ax: Axes,
    count: int,
    *,
    loc: Literal["best", "upper right"] = "best",
    title: str | None = None,
) -> None:
    """A legend within the axes, or beside them where it would cover the curves."""
    if count <= 6:
        ax.legend(frameon=False, loc=loc, title=title, title_fontsize="small")
        return
    ax.legend(
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.0,
        fontsize="x-small",
        ncols=ceil(count / 25),
        title=title,
        title_fontsize="x-small",
    )


def tidy(ax: Axes) -> Axes:
    """No frame at the top and right, and quiet lines to read values by."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    return ax


def points_across(ax: Axes) -> float:
    """About how wide the axes are, in points (a 72nd of an inch)."""
    figure = ax.figure.get_figure(root=True)
    return 72 * figure.get_figwidth() * ax.get_position().width


def points_up(ax: Axes) -> float:
    """About how high the axes are, in points."""
    figure = ax.figure.get_figure(root=True)
    return 72 * figure.get_figheight() * ax.get_position().height
