"""A text below an axis: one symbol per step."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import points_across, whole_numbers

SMALLEST = 2.0  # points, below which no letter can be read at any magnification


def per_symbol(symbols: Sequence[object], values: ArrayLike) -> NDArray[np.float64]:
    """Values `[T, units]`, checked to have a row for each symbol."""
    values = np.asarray(values, float)
    if values.ndim != 2 or len(values) != len(symbols) or values.size == 0:
        raise ValueError(
            f"values must be [T, units] with a row for each of the {len(symbols)} "
            f"symbols, but have the shape {list(values.shape)}; take one text of a "
            "batch, of at least one symbol"
        )
    return values


def write_symbols(ax: Axes, symbols: Sequence[object]) -> None:
    """The text itself below the axis, one symbol per step; numbers of the steps where
    it is too long to be read.
    """
    ax.set_xlim(-0.5, len(symbols) - 0.5)
    size = min(10.0, 1.5 * points_across(ax) / max(1, len(symbols)))
    if size < SMALLEST:
        ax.set_xlabel("step, one symbol each")
        whole_numbers(ax.xaxis, 10)
        return
    words = any(len(str(symbol)) > 1 for symbol in symbols)
    ax.set_xticks(
        range(len(symbols)),
        [drawable(symbol) for symbol in symbols],
        family="monospace",
        fontsize=size,
        rotation=90 if words else 0,
        parse_math=False,
    )
    ax.set_xlabel("what is read, one symbol a step")
    ax.tick_params(axis="x", length=0)


_STAND_INS = str.maketrans({"\n": "↵", "\t": "→", "\r": "←"})


def drawable(symbol: object) -> str:
    """The symbol with marks for line ends, and a box for what the font lacks."""
    marked = str(symbol).translate(_STAND_INS)
    return "".join(mark if _has_glyph(mark) else "□" for mark in marked)


@cache
def _has_glyph(character: str) -> bool:
    font = get_font(findfont(FontProperties(family="monospace")))
    return character.isprintable() and font.get_char_index(ord(character)) != 0
