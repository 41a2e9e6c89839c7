"""Lines, boxes and numbers of the diagram of an unrolled LSTM cell.

Positions are in data units: one step is `_STEP` wide, and the font scales with it.
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
    GREY,
    INK,
    ORANGE,
    PURPLE,
    height_in_points,
    width_in_points,
)
from jaxlstm.plots.symbols import drawable

_STEP, _GAP = 4.5, 0.95
_BOTTOM, _TOP = -0.62, 3.95
_LINE, _MIDDLE, _BUS = 3.05, 2.35, 0.62  # y of the lines of c, of the products and of h
_GATE, _GATES = 0.74, 1.0  # side of a gate box, and y of its lower edge
_GATE_X = {"f": 0.78, "i": 1.6, "g": 2.42, "o": 3.24}
_COLOURS = {"f": BLUE, "i": GREEN, "g": ORANGE, "o": PURPLE}
_SUM = (_GATE_X["i"] + _GATE_X["g"]) / 2
_FRAME, _RIGHT = 0.33, 3.74  # x of the left edge of the frame, and of the branch of h
_BEFORE = 0.62  # a line starts this far before its step, at the state's name
_INCHES = 0.66  # inches per data unit in a new figure


class Step(NamedTuple):
    """Values of one unit in one step, and the input symbol."""

    t: int
    symbol: str
    gates: dict[str, float]
    before: tuple[float, float]  # h and c before the step
    after: tuple[float, float]


class _Pen(NamedTuple):
    """Axes, font size, and the |c| that has full thickness."""

    ax: Axes
    font_size: float
    largest: float


def size(steps: int) -> tuple[float, float]:
    """Return width and height in inches of a figure of so many steps, with a title."""
    return _INCHES * _across(steps), _INCHES * (_TOP - _BOTTOM) + 0.4


def draw(ax: Axes, steps: Sequence[Step]) -> Axes:
    """Draw the steps side by side, scaled to the axes."""
    across = _across(len(steps))
    ax.set(xlim=(-0.8, across - 0.8), ylim=(_BOTTOM, _TOP), aspect="equal")
    ax.axis("off")
    points = min(width_in_points(ax) / across, height_in_points(ax) / (_TOP - _BOTTOM))
    cells = [abs(c) for step in steps for _, c in (step.before, step.after)]
    pen = _Pen(ax, min(15.0, 0.27 * points), max(cells) or 1.0)
    for place, step in enumerate(steps):
        _step(pen, _STEP * place, step)
    _state(pen, 0.0, steps[0].t - 1, steps[0].before)
    _outgoing_lines(pen, _STEP * len(steps), steps[-1].after[1])
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
        ec=GREY,
        lw=0.8,
        zorder=0,
    )
    pen.ax.add_patch(frame)
    _wires(pen, x)
    _cell_line(pen, x, step)
    for name, value in step.gates.items():
        _gate(pen, x + _GATE_X[name], name, value)
    products = (_GATE_X["f"], _LINE), (_SUM, _MIDDLE), (_GATE_X["o"], _MIDDLE)
    for place, height in products:
        _node(pen, x + place, height, "×")
    _node(pen, x + _SUM, _LINE, "+")
    _symbol(pen, x + _SUM, step)
    _state(pen, x + _STEP, step.t, step.after)


def _outgoing_lines(pen: _Pen, x: float, c: float) -> None:
    """Draw the lines of c and h behind the last step."""
    _thick(pen, x - _BEFORE, x, c)
    pen.ax.plot([x - _BEFORE, x], [_BUS, _BUS], color=INK, lw=pen.font_size / 10)


def _wires(pen: _Pen, x: float) -> None:
    """Draw the thin lines from h and x to the gates, and from the gates on."""
    f, i, g, o = _GATE_X.values()
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
        pen.ax.plot(shifted, up, color=INK, lw=pen.font_size / 10, zorder=1)
    for place in (f, i, g, o):
        _dot(pen, x + place, _GATES - 0.07, "^")


def _cell_line(pen: _Pen, x: float, step: Step) -> None:
    """Draw c_{t-1}, f · c_{t-1} and c_t, each with the thickness of its value."""
    before, after = step.before[1], step.after[1]
    kept, written = step.gates["f"] * before, step.gates["i"] * step.gates["g"]
    f, end = _GATE_X["f"], _STEP - _BEFORE
    for left, right, number in (
        (-_BEFORE, f, before),
        (f, _SUM, kept),
        (_SUM, end, after),
    ):
        _thick(pen, x + left, x + right, number)
    _text(pen, x + f + 0.1, _LINE - 0.19, f"{kept:+z.2f}", ha="left", va="top")
    _text(pen, x + _SUM + 0.08, _LINE - 0.19, f"{written:+z.2f}", ha="left", va="top")


def _thick(pen: _Pen, left: float, right: float, number: float) -> None:
    height = 0.03 + 0.25 * abs(number) / pen.largest
    piece = Rectangle((left, _LINE - height / 2), right - left, height, zorder=2)
    piece.set(fc="white" if number < 0 else INK, ec=INK, lw=pen.font_size / 12)
    pen.ax.add_patch(piece)


def _gate(pen: _Pen, x: float, name: str, value: float) -> None:
    """Draw a box that is filled up to the value of the gate."""
    left, half = x - _GATE / 2, name == "g"
    zero, share = (0.5, 0.5 * value) if half else (0.0, value)
    fill = Rectangle((left, _GATES + zero * _GATE), _GATE, share * _GATE, zorder=3)
    fill.set(fc=_COLOURS[name], alpha=0.45, lw=0)
    under = Rectangle((left, _GATES), _GATE, _GATE, fc="white", lw=0, zorder=3)
    edge = Rectangle((left, _GATES), _GATE, _GATE, fill=False, ec=INK, zorder=3)
    edge.set(lw=pen.font_size / 10)
    for patch in (under, fill, edge):
        pen.ax.add_patch(patch)
    label = f"{name}\n{value:+z.2f}" if half else f"{name}\n{value:z.2f}"
    text = _text(pen, x, _GATES + _GATE / 2, label)
    text.set_path_effects([withStroke(linewidth=pen.font_size / 4, foreground="white")])


def _node(pen: _Pen, x: float, y: float, sign: str) -> None:
    size = 1.3 * pen.font_size
    pen.ax.plot(x, y, "o", ms=size, color="white", mec=INK, zorder=4)
    arms = {"×": "x", "+": "+"}[sign]
    pen.ax.plot(x, y, arms, ms=0.6 * size, color=INK, mew=pen.font_size / 9, zorder=5)


def _symbol(pen: _Pen, x: float, step: Step) -> None:
    """Draw the input symbol below the frame."""
    _dot(pen, x, _BUS, "o")
    pen.ax.plot([x, x], [-0.2, _BUS], color=INK, lw=pen.font_size / 10, zorder=1)
    text = _text(pen, x, -0.28, f" {drawable(step.symbol)} ")
    text.set(family="monospace", fontsize=1.15 * pen.font_size, parse_math=False)
    text.set_bbox({"fc": "white", "ec": INK, "boxstyle": "round,pad=0.2"})
    _text(pen, x - 0.12, 0.08, f"$x_{{{step.t}}}$", ha="right")


def _state(pen: _Pen, x: float, t: int, state: tuple[float, float]) -> None:
    """Write c and h between two frames."""
    h, c = state
    middle = x - (_GAP - _FRAME) / 2 + 0.16
    _text(pen, middle, _LINE + 0.2, f"$c_{{{t}}}$\n{c:+z.2f}", va="bottom")
    _text(pen, middle, _BUS + 0.08, f"$h_{{{t}}}$\n{h:+z.2f}", va="bottom")


def _dot(pen: _Pen, x: float, y: float, shape: str) -> None:
    pen.ax.plot(x, y, shape, color=INK, ms=pen.font_size / 3, zorder=1)


def _text(
    pen: _Pen, x: float, y: float, text: str, *, ha: str = "center", va: str = "center"
) -> Text:
    return pen.ax.text(
        x, y, text, ha=ha, va=va, fontsize=pen.font_size, color="black", zorder=6
    )
