"""The diagram of an unrolled LSTM cell: lines, boxes and numbers.

The plan is in units of its own: a step is `_STEP` wide, and letters grow with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from jaxlstm.plots.canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    points_across,
    points_up,
)
from jaxlstm.plots.symbols import drawable

_STEP, _GAP = 4.5, 0.95
_BOTTOM, _TOP = -0.62, 3.95
_LINE, _MIDDLE, _BUS = 3.05, 2.35, 0.62  # the heights of c, of the products, of h
_GATE, _GATES = 0.74, 1.0  # the side of a gate, and the height of their lower edges
_PLACES = {"f": 0.78, "i": 1.6, "g": 2.42, "o": 3.24}
_COLOURS = {"f": BLUE, "i": GREEN, "g": ORANGE, "o": PURPLE}
_SUM = (_PLACES["i"] + _PLACES["g"]) / 2
_FRAME, _RIGHT = 0.33, 3.74  # the left edge of the frame, and where h comes down
_BEFORE = 0.62  # how far before its step a line begins: at the name of the state
_INCHES = 0.66  # of a unit, in a figure of one's own


class Step(NamedTuple):
    """What one unit does in one step: numbers, and the symbol that it read."""

    t: int
    symbol: str
    gates: dict[str, float]
    before: tuple[float, float]  # h and c
    after: tuple[float, float]


class _Pen(NamedTuple):
    """Where to draw, how large letters are, and the number of full thickness."""

    ax: Axes
    letters: float
    largest: float


def size(steps: int) -> tuple[float, float]:
    """Width and height in inches of a figure for so many steps, with a title."""
    return _INCHES * _across(steps), _INCHES * (_TOP - _BOTTOM) + 0.4


def draw(ax: Axes, steps: Sequence[Step]) -> Axes:
    """The steps side by side, as large as the axes allow."""
    across = _across(len(steps))
    ax.set(xlim=(-0.8, across - 0.8), ylim=(_BOTTOM, _TOP), aspect="equal")
    ax.axis("off")
    points = min(points_across(ax) / across, points_up(ax) / (_TOP - _BOTTOM))
    cells = [abs(c) for step in steps for _, c in (step.before, step.after)]
    pen = _Pen(ax, min(15.0, 0.27 * points), max(cells) or 1.0)
    for place, step in enumerate(steps):
        _step(pen, _STEP * place, step)
    _state(pen, 0.0, steps[0].t - 1, steps[0].before)
    _hand_on(pen, _STEP * len(steps), steps[-1].after[1])
    return ax


def _across(steps: int) -> float:
    return _STEP * steps + _GAP + 0.1


def _step(pen: _Pen, x: float, step: Step) -> None:
    frame = FancyBboxPatch(
        (x + _FRAME, 0.3),
        _STEP - _GAP,
        3.1,
        boxstyle="round,pad=0,rounding_size=0.18",
        fc="#f4f4f4",
        ec=QUIET,
        lw=0.8,
        zorder=0,
    )
    pen.ax.add_patch(frame)
    _wires(pen, x)
    _cell_line(pen, x, step)
    for name, value in step.gates.items():
        _gate(pen, x + _PLACES[name], name, value)
    products = (_PLACES["f"], _LINE), (_SUM, _MIDDLE), (_PLACES["o"], _MIDDLE)
    for place, height in products:
        _node(pen, x + place, height, "×")
    _node(pen, x + _SUM, _LINE, "+")
    _symbol(pen, x + _SUM, step)
    _state(pen, x + _STEP, step.t, step.after)


def _hand_on(pen: _Pen, x: float, c: float) -> None:
    """The two lines out of the last frame, to where a next one would begin."""
    _thick(pen, x - _BEFORE, x, c)
    pen.ax.plot([x - _BEFORE, x], [_BUS, _BUS], color=INK, lw=pen.letters / 10)


def _wires(pen: _Pen, x: float) -> None:
    """The thin lines: from h and x into the gates, and from the gates on."""
    f, i, g, o = _PLACES.values()
    top, end = _GATES + _GATE, _STEP - _BEFORE
    paths = [
        [(-_BEFORE, _BUS), (o, _BUS)],
        [(f, top), (f, _LINE)],
        [(i, top), (i, _MIDDLE), (_SUM, _MIDDLE), (_SUM, _LINE)],
        [(g, top), (g, _MIDDLE), (_SUM, _MIDDLE)],
        [(o, top), (o, _LINE)],
        [(o, _MIDDLE), (_RIGHT, _MIDDLE), (_RIGHT, _BUS), (end, _BUS)],
        *([(place, _BUS), (place, _GATES)] for place in (f, i, g, o)),
    ]
    for path in paths:
        across, up = zip(*path, strict=True)
        shifted = [x + place for place in across]
        pen.ax.plot(shifted, up, color=INK, lw=pen.letters / 10, zorder=1)
    for place in (f, i, g, o):
        _dot(pen, x + place, _GATES - 0.07, "^")


def _cell_line(pen: _Pen, x: float, step: Step) -> None:
    """c_{t-1}, what f keeps of it, and c_t: each as thick as it is large."""
    before, after = step.before[1], step.after[1]
    kept, written = step.gates["f"] * before, step.gates["i"] * step.gates["g"]
    f, end = _PLACES["f"], _STEP - _BEFORE
    for left, right, number in (
        (-_BEFORE, f, before),
        (f, _SUM, kept),
        (_SUM, end, after),
    ):
        _thick(pen, x + left, x + right, number)
    _say(pen, x + f + 0.1, _LINE - 0.19, f"{kept:+z.2f}", ha="left", va="top")
    _say(pen, x + _SUM + 0.08, _LINE - 0.19, f"{written:+z.2f}", ha="left", va="top")


def _thick(pen: _Pen, left: float, right: float, number: float) -> None:
    height = 0.03 + 0.25 * abs(number) / pen.largest
    piece = Rectangle((left, _LINE - height / 2), right - left, height, zorder=2)
    piece.set(fc="white" if number < 0 else INK, ec=INK, lw=pen.letters / 12)
    pen.ax.add_patch(piece)


def _gate(pen: _Pen, x: float, name: str, value: float) -> None:
    """A box that is filled as far as the gate is open."""
    left, half = x - _GATE / 2, name == "g"
    zero, share = (0.5, 0.5 * value) if half else (0.0, value)
    fill = Rectangle((left, _GATES + zero * _GATE), _GATE, share * _GATE, zorder=3)
    fill.set(fc=_COLOURS[name], alpha=0.45, lw=0)
    under = Rectangle((left, _GATES), _GATE, _GATE, fc="white", lw=0, zorder=3)
    edge = Rectangle((left, _GATES), _GATE, _GATE, fill=False, ec=INK, zorder=3)
    edge.set(lw=pen.letters / 10)
    for patch in (under, fill, edge):
        pen.ax.add_patch(patch)
    said = f"{name}\n{value:+z.2f}" if half else f"{name}\n{value:z.2f}"
    text = _say(pen, x, _GATES + _GATE / 2, said)
    text.set_path_effects([withStroke(linewidth=pen.letters / 4, foreground="white")])


def _node(pen: _Pen, x: float, y: float, sign: str) -> None:
    size = 1.3 * pen.letters
    pen.ax.plot(x, y, "o", ms=size, color="white", mec=INK, zorder=4)
    arms = {"×": "x", "+": "+"}[sign]
    pen.ax.plot(x, y, arms, ms=0.6 * size, color=INK, mew=pen.letters / 9, zorder=5)


def _symbol(pen: _Pen, x: float, step: Step) -> None:
    """What the step reads, below its frame."""
    _dot(pen, x, _BUS, "o")
    pen.ax.plot([x, x], [-0.2, _BUS], color=INK, lw=pen.letters / 10, zorder=1)
    text = _say(pen, x, -0.28, f" {drawable(step.symbol)} ")
    text.set(family="monospace", fontsize=1.15 * pen.letters, parse_math=False)
    text.set_bbox({"fc": "white", "ec": INK, "boxstyle": "round,pad=0.2"})
    _say(pen, x - 0.12, 0.08, f"$x_{{{step.t}}}$", ha="right")


def _state(pen: _Pen, x: float, t: int, state: tuple[float, float]) -> None:
    """c and h between two frames, named and in numbers."""
    h, c = state
    middle = x - (_GAP - _FRAME) / 2 + 0.16
    _say(pen, middle, _LINE + 0.2, f"$c_{{{t}}}$\n{c:+z.2f}", va="bottom")
    _say(pen, middle, _BUS + 0.08, f"$h_{{{t}}}$\n{h:+z.2f}", va="bottom")


def _dot(pen: _Pen, x: float, y: float, shape: str) -> None:
    pen.ax.plot(x, y, shape, color=INK, ms=pen.letters / 3, zorder=1)


def _say(
    pen: _Pen, x: float, y: float, said: str, *, ha: str = "center", va: str = "center"
) -> Text:
    return pen.ax.text(
        x, y, said, ha=ha, va=va, fontsize=pen.letters, color="black", zorder=6
    )
