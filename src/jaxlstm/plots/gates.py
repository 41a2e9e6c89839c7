"""Plots of gates over a text or a signal, of timescales and of saturation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import (
    BLUE,
    INK,
    ORANGE,
    curve_style,
    height_in_points,
    integer_ticks,
    new_axes,
    plain_log_ticks,
    prefix_errors,
    split_panels,
    style_axes,
    width_in_points,
)
from jaxlstm.plots.symbols import per_symbol, write_symbols

_CANDIDATES = ("g", "n")  # in -1..1


@prefix_errors
def gate_heatmap(
    symbols: Sequence[str],
    values: ArrayLike,
    name: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """Plot the values of a gate over a text: a row per unit, a column per symbol.

    Rows are sorted by their mean, the highest on top; the numbers at the left are those
    of the units. Dark is the lower limit and bright the upper one, in colour and in
    greyscale.

    Args:
        symbols: the T symbols of the text.
        values: `[T, units]`, the gate.
        name: the title.
        limits: the values of the darkest and brightest colour.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: the values do not fit the symbols, or not low < high.

    Example:
        >>> gate_heatmap("abc", [[0.1, 0.9]] * 3, "forget gate f").get_title()
        'forget gate f'
    """
    values = per_symbol(symbols, values)
    _check_limits(limits)
    ax = new_axes(ax)
    _draw_heatmap(ax, [ax], values, limits)
    ax.set_title(name, parse_math=False)
    write_symbols(ax, symbols)
    return ax


@prefix_errors
def signal_heatmap(
    signal: ArrayLike,
    values: ArrayLike,
    name: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    label: str = "input x",
    ax: Axes | None = None,
) -> Axes:
    """Plot the values of a gate below the signal that the cell read.

    As `gate_heatmap`, for numerical inputs.

    Args:
        signal: `[T]`, or `[T, D]` with at most 5 features, one line each.
        values: `[T, units]`, the gate.
        name: the gate, written beside the colour bar.
        limits: the values of the darkest and brightest colour.
        label: name and unit of the signal.
        ax: the axes to split into panels; None for a new figure.

    Returns:
        The axes of the signal.

    Raises:
        ValueError: the signal and the values do not fit, not low < high, or the axes
            cannot be split.

    Example:
        >>> gate = [[0.1, 0.9]] * 3
        >>> signal_heatmap([0.0, 1.0, 0.5], gate, "input gate i").get_ylabel()
        'input x'
    """
    values = np.asarray(values, float)
    lines = _signal_lines(signal, values)
    _check_limits(limits)
    top, bottom = split_panels(new_axes(ax), [1, 2.5])
    for index, line in enumerate(lines):
        colour, style = curve_style(index)
        feature = f"feature {index}" if len(lines) > 1 else None
        top.plot(line, color=colour, ls=style, lw=1.3, label=feature)
    if len(lines) > 1:
        top.legend(frameon=False, ncols=len(lines), fontsize="small")
    top.set_ylabel(label)
    _draw_heatmap(bottom, [top, bottom], values, limits, name)
    bottom.set(xlabel="step", xlim=(-0.5, len(values) - 0.5))
    integer_ticks(bottom.xaxis, 8)
    return style_axes(top)


@prefix_errors
def timescales(values: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Plot a histogram of the memory timescales of the units:

        τ = -1 / mean(log f)        in steps

    The cell state decays by a factor of e in τ steps; with τ below 1, to less than
    37 % (1/e) in a single step. Units that never forget are in the last bar; units with
    NaN are left out and their number is written.

    Args:
        values: `[H]`, the result of `diagnostics.timescales`; or `[T, *b, H]`, the
            forget gate over steps that are all active. Gates are 0 at masked and
            padded steps: use `diagnostics.timescales` if there are any.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: another shape, gates outside 0..1, negative timescales, or NaN in
            every unit.

    Example:
        >>> import numpy as np
        >>> timescales(np.full((10, 4), 0.9)).get_xlabel()
        'timescale τ of a unit: steps until 37 % (1/e) is left'
    """
    array = np.asarray(values, float)
    every = _checked_timescales(array) if array.ndim == 1 else _from_forget_gate(array)
    tau = every[~np.isnan(every)]
    missing = every.size - tau.size
    note = f"\n{missing} unit{'s' * (missing > 1)} with NaN" if missing else ""
    ax = new_axes(ax)
    longest = tau[np.isfinite(tau)].max(initial=5.0)
    edges = np.geomspace(np.clip(tau.min(), 0.01, 0.3), 2 * longest, 31)
    shown = np.clip(tau, edges[0], edges[-1])
    ax.hist(shown, edges, color=BLUE, ec="white", lw=0.6)
    ax.axvline(float(np.median(shown)), color=INK, ls="--", lw=1.4)
    ax.annotate(
        f"median {np.median(tau):.3g} steps{note}",
        (float(np.median(shown)), 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(6, -4),
        textcoords="offset points",
        va="top",
    )
    ax.set(xscale="log", ylabel="number of units")
    ax.set(xlabel="timescale τ of a unit: steps until 37 % (1/e) is left")
    ax.margins(y=0.15)
    plain_log_ticks(ax.xaxis)
    integer_ticks(ax.yaxis, 5)
    return style_axes(ax)


def _checked_timescales(tau: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return timescales `[H]`, checked."""
    if (tau < 0).any():
        raise ValueError(f"values: got {tau[tau < 0][0]:g}, expected timescales >= 0.")
    return _check_some_number(tau)


def _from_forget_gate(forget: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the timescales `[H]` of a forget gate `[T, *b, H]`."""
    if forget.ndim < 2 or forget.size == 0:
        raise ValueError(
            f"values: got shape {list(forget.shape)}, expected a forget gate "
            "[T, *b, H] or timescales [H], with at least one step and unit."
        )
    outside = forget[(forget < 0) | (forget > 1)]
    if outside.size:
        raise ValueError(f"values: got {outside[0]:g}, expected gates in 0..1.")
    tiny = np.finfo(np.float32).tiny
    logarithm = np.log(np.clip(forget, tiny, 1.0)).reshape(-1, forget.shape[-1])
    with np.errstate(divide="ignore"):
        return _check_some_number(1.0 / np.abs(logarithm.mean(0)))


def _check_some_number(tau: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.isnan(tau).all():
        raise ValueError(
            "values: got NaN in every unit, or no unit, expected at least one number; "
            "the training may have diverged."
        )
    return tau


@prefix_errors
def saturation(
    result: tuple[Any, Any], *, order: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plot the fraction of steps at which each gate of each unit is closed or open.

    One panel per gate, one column per unit: dark from the bottom is the fraction of
    steps below the lower threshold, bright from the top the fraction above the upper
    one. For a candidate, g or n, these are values near -1 and near 1.

    Args:
        result: the result of `diagnostics.saturation`: two records of gates, `[H]`
            each.
        order: the gate by which units are sorted, the most open first; None for f, or
            z, or else the first gate.
        ax: the axes to split into panels; None for a new figure.

    Returns:
        The axes of the top panel.

    Raises:
        ValueError: result is not two such records, the gate `order` does not exist, or
            the axes cannot be split.

    Example:
        >>> import numpy as np
        >>> from jaxlstm.diagnostics import Saturation
        >>> ax = saturation(Saturation({"f": np.zeros(4)}, {"f": np.ones(4)}))
        >>> ax.get_title(loc="left")
        'f: closed 0 %, open 100 %'
    """
    low, high = _both_records(result)
    first, units = _order(high, order)
    panels = split_panels(new_axes(ax), [1] * len(low))
    signed = any(gate in _CANDIDATES for gate in low)
    labels = ("closed (or -1)", "open (or 1)") if signed else ("closed", "open")
    for panel, gate in zip(panels, low, strict=True):
        _draw_saturation(panel, gate, low[gate][units], high[gate][units], labels)
    panels[-1].set_xlabel(f"unit number (sorted by how often {first} is open)")
    panels[len(panels) // 2].set_ylabel("fraction of steps")
    _number_units(panels[-1].xaxis, units, width_in_points(panels[-1]) / 25)
    panels[0].legend(
        loc="lower right", bbox_to_anchor=(1, 1.15), ncols=2, frameon=False
    )
    return panels[0]


def _draw_heatmap(
    ax: Axes,
    beside: list[Axes],
    values: NDArray[np.float64],
    limits: tuple[float, float],
    name: str | None = None,
) -> AxesImage:
    """Draw a row per unit, sorted by mean, and a colour bar beside the axes."""
    order = np.argsort(-_means(values), kind="stable")
    low, high = limits
    image = ax.imshow(
        values[:, order].T,
        aspect="auto",
        cmap="cividis",
        vmin=low,
        vmax=high,
        interpolation="none",
    )
    if limits == (0.0, 1.0):
        label = f"{name or 'gate value'} (0: closed, 1: open)"
    else:
        label = name or "value"
    bar = ax.figure.colorbar(image, ax=beside, pad=0.01, aspect=25)
    bar.ax.set_ylabel(label, parse_math=False)
    ax.set(ylabel="unit number (highest mean on top)")
    _number_units(ax.yaxis, order, height_in_points(ax) / 20)
    return image


def _number_units(axis: Axis, order: NDArray[np.int64], most: float) -> None:
    """Label at most `most` positions of an axis with the numbers of their units.

    Args:
        axis: an axis on which position n is the unit `order[n]`.
        order: `[H]`, the numbers of the units.
        most: the number of labels that have room; at least one is written.
    """
    count = min(len(order), max(1, int(most)))
    at = np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))
    axis.set_ticks(at, [str(unit) for unit in order[at]])


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the finite values of each unit; -inf if there are none."""
    finite = np.isfinite(values)
    number = finite.sum(0)
    total = np.where(finite, values, 0.0).sum(0)
    return np.where(number, total / np.maximum(number, 1), -np.inf)


def _check_limits(limits: tuple[float, float]) -> None:
    low, high = limits
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"limits: got {limits!r}, expected finite low < high.")


def _signal_lines(
    signal: ArrayLike, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the lines `[D, T]` of a signal that fits the values."""
    array = np.asarray(signal, float)
    lines = array[None] if array.ndim == 1 else array.T
    if array.ndim not in (1, 2) or not 0 < len(lines) <= 5:
        raise ValueError(
            f"signal: got shape {list(array.shape)}, expected [T] or [T, D] with D "
            "from 1 to 5."
        )
    if values.ndim != 2 or values.size == 0 or len(values) != lines.shape[1]:
        raise ValueError(
            f"values: got shape {list(values.shape)}, expected [T, units] with one row "
            f"for each of the {lines.shape[1]} steps of the signal."
        )
    return lines


_ByGate = Mapping[str, NDArray[np.float64]]


def _both_records(result: Any) -> tuple[_ByGate, _ByGate]:
    """Return low and high by gate, with the same `[H]` for each gate."""
    pair = (
        tuple(_by_gate(record) for record in result)
        if isinstance(result, tuple)
        else ()
    )
    if len(pair) != 2 or not all(pair) or set(pair[0]) != set(pair[1]):
        raise ValueError(
            f"result: got {result!r:.60}, expected the result of "
            "diagnostics.saturation: two records, low and high, of the same gates."
        )
    shapes = [[values.shape for values in record.values()] for record in pair]
    first = shapes[0][0]
    if {*shapes[0], *shapes[1]} != {first} or len(first) != 1 or first == (0,):
        by_gate = [dict(zip(pair[n], shapes[n], strict=True)) for n in (0, 1)]
        raise ValueError(
            f"result: got shapes {by_gate[0]} of low and {by_gate[1]} of high, "
            "expected the same [H] for each gate, with at least one unit."
        )
    return pair[0], pair[1]


def _by_gate(record: Any) -> _ByGate:
    """Return the gates of a record by name; an empty dict if it is not a record."""
    fields = record._asdict() if hasattr(record, "_asdict") else record
    if not isinstance(fields, Mapping):
        return {}
    return {name: np.asarray(values, float) for name, values in fields.items()}


def _order(high: _ByGate, order: str | None) -> tuple[str, NDArray[np.int64]]:
    """Return the gate to sort by, and the units in decreasing order of its openness."""
    if order is None:
        order = next((name for name in "fz" if name in high), next(iter(high)))
    if order not in high:
        raise ValueError(f"order: got {order!r}, expected one of {', '.join(high)}.")
    return order, np.argsort(-high[order], kind="stable")


def _draw_saturation(
    ax: Axes,
    gate: str,
    closed: NDArray[np.float64],
    opened: NDArray[np.float64],
    labels: tuple[str, str],
) -> None:
    edges = np.arange(closed.size + 1) - 0.5
    at_low, at_high = ("at -1", "at 1") if gate in _CANDIDATES else ("closed", "open")
    ax.stairs(closed, edges, fill=True, color=INK, label=labels[0])
    ax.stairs(
        np.ones_like(opened),
        edges,
        baseline=1 - opened,
        fill=True,
        color=ORANGE,
        label=labels[1],
    )
    ax.set(ylim=(0, 1), xlim=(edges[0], edges[-1]), yticks=(0, 0.5, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    percent = 100 * closed.mean(), 100 * opened.mean()
    title = f"{gate}: {at_low} {percent[0]:.3g} %, {at_high} {percent[1]:.3g} %"
    ax.set_title(title, loc="left", fontsize="small", pad=2)
