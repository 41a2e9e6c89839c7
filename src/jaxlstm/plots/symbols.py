"""Tick labels of a text, one symbol per step."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import integer_ticks, width_in_points

MIN_FONT_SIZE = 2.0  # points; smaller letters are illegible in print


def per_symbol(symbols: Sequence[object], values: ArrayLike) -> NDArray[np.float64]:
    """Return values as `[T, units]`.

    Raises:
        ValueError: they have another rank, or not one row per symbol.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or len(values) != len(symbols) or values.size == 0:
        raise ValueError(
            f"values: got shape {list(values.shape)}, expected [T, units] with one row "
            f"for each of the {len(symbols)} symbols, at least one; pass one row of a "
            "batch."
        )
    return values


def write_symbols(ax: Axes, symbols: Sequence[object]) -> None:
    """Label the x axis with the symbols, or with step numbers if they do not fit."""
    ax.set_xlim(-0.5, len(symbols) - 0.5)
    size = min(10.0, 1.5 * width_in_points(ax) / max(1, len(symbols)))
    if size < MIN_FONT_SIZE:
        ax.set_xlabel("step (one symbol per step)")
        integer_ticks(ax.xaxis, 10)
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
    ax.set_xlabel("input symbol at each step")
    ax.tick_params(axis="x", length=0)


_VISIBLE = str.maketrans({"\n": "↵", "\t": "→", "\r": "←"})


def drawable(symbol: object) -> str:
    """Return the symbol with visible line ends, and □ for glyphs the font lacks."""
    visible = str(symbol).translate(_VISIBLE)
    return "".join(char if _has_glyph(char) else "□" for char in visible)


@cache
def _has_glyph(character: str) -> bool:
    font = get_font(findfont(FontProperties(family="monospace")))
    return character.isprintable() and font.get_char_index(ord(character)) != 0
