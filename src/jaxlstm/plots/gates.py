"""What the gates do: over a text, over a signal, over all steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots.canvas import (
    BLUE,
    INK,
    ORANGE,
    look,
    new_axes,
    panels_of,
    plain_logarithm,
    tidy,
    whole_numbers,
)
from jaxlstm.plots.symbols import per_symbol, write_symbols

_CANDIDATES = ("g", "n")  # between -1 and 1


def gate_heatmap(
    symbols: Sequence[str],
    values: ArrayLike,
    name: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """The values `[T, units]` of a gate over a text of T symbols.

    A row is a unit, a column a symbol; the rows stand in order of their mean. Dark
    is the lower of `limits`, bright the upper, on screen and on paper.

    Errors: `ValueError` for values that do not fit the symbols, and for limits that do
    not rise.

    >>> gate_heatmap("abc", [[0.1, 0.9]] * 3, "forget gate f").get_title()
    'forget gate f'
    """
    values = per_symbol(symbols, values)
    _rising(limits)
    ax = new_axes(ax)
    _heat(ax, [ax], values, limits)
    ax.set_title(name, parse_math=False)
    write_symbols(ax, symbols)
    return ax


def signal_heatmap(
    signal: ArrayLike,
    values: ArrayLike,
    name: str,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    label: str = "input x",
    ax: Axes | None = None,
) -> Axes:
    """The values `[T, units]` of a gate below the signal that the cell read.

    As `gate_heatmap`, for inputs that are numbers. `signal` is `[T]`, or `[T, D]` of
    which each of at most 5 features is a line; `label` says what it is, and in which
    unit.

    Errors: `ValueError` for a signal and values that do not fit, for limits that do not
    rise, and for axes that cannot be split.

    >>> signal_heatmap([0.0, 1.0, 0.5], [[0.1, 0.9]] * 3, "input gate i").get_ylabel()
    'input x'
    """
    values = np.asarray(values, float)
    lines = _signal(signal, values)
    _rising(limits)
    top, bottom = panels_of(new_axes(ax), [1, 2.5])
    for index, line in enumerate(lines):
        colour, style = look(index)
        named = f"{index}" if len(lines) > 1 else None
        top.plot(line, color=colour, ls=style, lw=1.3, label=named)
    if len(lines) > 1:
        top.legend(frameon=False, ncols=len(lines), fontsize="small")
    top.set_title(name, parse_math=False)
    top.set_ylabel(label)
    _heat(bottom, [top, bottom], values, limits)
    bottom.set(xlabel="step", xlim=(-0.5, len(values) - 0.5))
    whole_numbers(bottom.xaxis, 8)
    return tidy(top)


def timescales(found: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """How long each unit remembers, as a histogram over the units.

    What a unit holds shrinks by f at each step, so that over a text it fades by a
    factor e in

        tau = -1 / mean(log f)     steps.

    `found` is `[H]`, what `diagnostics.timescales` found, or `[T, *b, H]`, the forget
    gate over a text of which every step happens: gates are 0 at a step that does not,
    so that of ragged rows the former is needed. Units that never forget stand in the
    last bar; those with a NaN are left out and counted in words.

    Errors: `ValueError` for another shape, for gates outside 0 to 1, for time constants
    below 0, and for a NaN in every unit.

    >>> import numpy as np
    >>> timescales(np.full((10, 4), 0.9)).get_xlabel()
    'time constant of a unit (steps)'
    """
    found = np.asarray(found, float)
    every = _remembering(found) if found.ndim == 1 else _time_constants(found)
    tau = every[~np.isnan(every)]
    lost = every.size - tau.size
    note = f"\n{lost} unit{'s' * (lost > 1)} without a number" if lost else ""
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
    ax.set(xscale="log", xlabel="time constant of a unit (steps)")
    ax.set(ylabel="number of units")
    ax.margins(y=0.15)
    plain_logarithm(ax.xaxis)
    whole_numbers(ax.yaxis, 5)
    return tidy(ax)


def _remembering(tau: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time constants `[H]`, with a number in some unit at least."""
    if (tau < 0).any():
        raise ValueError(
            f"found holds {tau[tau < 0][0]:g}; a time constant is at least 0."
        )
    return _with_a_number(tau)


def _time_constants(forget: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of a forget gate `[T, *b, H]`."""
    if forget.ndim < 2 or forget.size == 0:
        raise ValueError(
            f"found has the shape {list(forget.shape)}; a forget gate [T, *b, H], or "
            "time constants [H], and a step and a unit at least are needed."
        )
    beyond = forget[(forget < 0) | (forget > 1)]
    if beyond.size:
        raise ValueError(f"found holds {beyond[0]:g}; a gate is between 0 and 1.")
    tiny = np.finfo(np.float32).tiny
    logarithm = np.log(np.clip(forget, tiny, 1.0)).reshape(-1, forget.shape[-1])
    with np.errstate(divide="ignore"):
        return _with_a_number(1.0 / np.abs(logarithm.mean(0)))


def _with_a_number(tau: NDArray[np.float64]) -> NDArray[np.float64]:
    if np.isnan(tau).all():
        raise ValueError(
            "found holds a NaN in every unit, or no unit; the weights of a training "
            "that did not diverge, and a step, are needed."
        )
    return tau


def saturation(
    found: tuple[Any, Any], *, order: str | None = None, ax: Axes | None = None
) -> Axes:
    """The share of steps at which each gate of each unit is shut, open or between.

    A panel for each gate, a column for each unit: dark from the bottom the share of
    steps below the lower threshold, bright from the top the share above the higher
    one, white what lies between. A candidate, g or n, is at -1 where a gate is shut
    and at 1 where it is open.

    Arguments:
        found: what `diagnostics.saturation` found: two records of gates, `[H]` each.
        order: the gate by which the units stand in order, the most open first; for
            None f, or z, or else the first.

    Errors: `ValueError` for anything but two such records, for a gate that is not
    there, and for axes that cannot be split.

    >>> import numpy as np
    >>> from jaxlstm.diagnostics import Saturation
    >>> ax = saturation(Saturation({"f": np.zeros(4)}, {"f": np.ones(4)}))
    >>> ax.get_title(loc="left")
    'f: shut 0 %, open 100 %'
    """
    low, high = _both(found)
    first, units = _order(high, order)
    panels = panels_of(new_axes(ax), [1] * len(low))
    signed = any(gate in _CANDIDATES for gate in low)
    labels = ("shut (or -1)", "open (or 1)") if signed else ("shut", "open")
    for panel, gate in zip(panels, low, strict=True):
        _shares(panel, gate, low[gate][units], high[gate][units], labels)
    panels[-1].set_xlabel(f"unit, the most open {first} first")
    panels[len(panels) // 2].set_ylabel("share of steps")
    whole_numbers(panels[-1].xaxis, 8)
    panels[0].legend(
        loc="lower right", bbox_to_anchor=(1, 1.15), ncols=2, frameon=False
    )
    return panels[0]


def _heat(
    ax: Axes,
    beside: list[Axes],
    values: NDArray[np.float64],
    limits: tuple[float, float],
) -> AxesImage:
    """A row for each unit in order of the mean, and a scale beside those axes."""
    rows = values[:, np.argsort(-_means(values), kind="stable")].T
    low, high = limits
    image = ax.imshow(
        rows, aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="none"
    )
    what = "share that passes" if limits == (0.0, 1.0) else "value"
    ax.figure.colorbar(image, ax=beside, pad=0.01, aspect=25, label=what)
    ax.set(ylabel="rank of the unit, highest mean on top")
    whole_numbers(ax.yaxis, 6)
    return image


def _means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each unit over what are numbers, the least of all where none is."""
    finite = np.isfinite(values)
    number = finite.sum(0)
    total = np.where(finite, values, 0.0).sum(0)
    return np.where(number, total / np.maximum(number, 1), -np.inf)


def _rising(limits: tuple[float, float]) -> None:
    low, high = limits
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"limits is {limits!r}; finite low < high is needed.")


def _signal(signal: ArrayLike, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lines `[D, T]` of a signal that fits the values."""
    found = np.asarray(signal, float)
    lines = found[None] if found.ndim == 1 else found.T
    if found.ndim not in (1, 2) or not 0 < len(lines) <= 5:
        raise ValueError(
            f"signal has the shape {list(found.shape)}; [T] or [T, D] is needed, with "
            "D from 1 to 5."
        )
    if values.ndim != 2 or values.size == 0 or len(values) != lines.shape[1]:
        raise ValueError(
            f"values has the shape {list(values.shape)}; [T, units] is needed, with a "
            f"row for each of the {lines.shape[1]} steps of the signal."
        )
    return lines


_ByGate = Mapping[str, NDArray[np.float64]]


def _both(found: Any) -> tuple[_ByGate, _ByGate]:
    """The records of low and of high by gate, with the same `[H]` for each gate."""
    pair = tuple(_by_gate(one) for one in found) if isinstance(found, tuple) else ()
    if len(pair) != 2 or not all(pair) or set(pair[0]) != set(pair[1]):
        raise ValueError(
            f"found is {found!r:.60}; what diagnostics.saturation found is needed: two "
            "records, low and high, of the same gates."
        )
    shapes = [[values.shape for values in record.values()] for record in pair]
    first = shapes[0][0]
    if {*shapes[0], *shapes[1]} != {first} or len(first) != 1 or first == (0,):
        named = [dict(zip(pair[n], shapes[n], strict=True)) for n in (0, 1)]
        raise ValueError(
            f"found has the shapes {named[0]} below and {named[1]} above; the same [H] "
            "is needed for each gate, of at least one unit."
        )
    return pair[0], pair[1]


def _by_gate(record: Any) -> _ByGate:
    """The gates of a record by name; none for what is no record."""
    fields = record._asdict() if hasattr(record, "_asdict") else record
    if not isinstance(fields, Mapping):
        return {}
    return {name: np.asarray(values, float) for name, values in fields.items()}


def _order(high: _ByGate, order: str | None) -> tuple[str, NDArray[np.int64]]:
    """A gate, and the units in the order of how often it is open."""
    if order is None:
        order = next((name for name in "fz" if name in high), next(iter(high)))
    if order not in high:
        raise ValueError(f"order is {order!r}; one of {', '.join(high)} is needed.")
    return order, np.argsort(-high[order], kind="stable")


def _shares(
    ax: Axes,
    gate: str,
    shut: NDArray[np.float64],
    wide: NDArray[np.float64],
    labels: tuple[str, str],
) -> None:
    edges = np.arange(shut.size + 1) - 0.5
    at_low, at_high = ("at -1", "at 1") if gate in _CANDIDATES else ("shut", "open")
    ax.stairs(shut, edges, fill=True, color=INK, label=labels[0])
    ax.stairs(
        np.ones_like(wide),
        edges,
        baseline=1 - wide,
        fill=True,
        color=ORANGE,
        label=labels[1],
    )
    ax.set(ylim=(0, 1), xlim=(edges[0], edges[-1]), yticks=(0, 0.5, 1))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    shares = 100 * shut.mean(), 100 * wide.mean()
    means = f"{gate}: {at_low} {shares[0]:.3g} %, {at_high} {shares[1]:.3g} %"
    ax.set_title(means, loc="left", fontsize="small", pad=2)
