"""Plots of gradients through time, of the carousel and of spectra."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots import bands
from jaxlstm.plots.canvas import (
    BLUE,
    GREY,
    INK,
    integer_ticks,
    new_axes,
    prefix_errors,
    style_axes,
)

Floats = NDArray[np.float64]
_WITHIN = (0.25, 0.75)


class Flow(Protocol):
    """Result of `diagnostics.gradient_flow`: a record of norms `[T, *b]`."""

    @property
    def norm(self) -> Any:
        """Norms of dL/dh_t and dL/dc_t."""
        ...


class CarouselResult(Protocol):
    """Result of `diagnostics.carousel`, `[T, *b, H]` each."""

    @property
    def product(self) -> ArrayLike:
        """Product of the later forget gates."""
        ...

    @property
    def derivative(self) -> ArrayLike:
        """Derivative of c_T with respect to c_t."""
        ...


class Eigenvalues(Protocol):
    """Result of `diagnostics.jacobian_spectrum`: complex numbers of any shape."""

    @property
    def eigenvalues(self) -> ArrayLike:
        """Eigenvalues of the Jacobian of each step."""
        ...


@prefix_errors
def gradient_flow(
    flows: Mapping[str, ArrayLike | Flow],
    *,
    of: Literal["h", "c"] = "h",
    against: Literal["lag", "step"] = "lag",
    lengths: ArrayLike | None = None,
    within: tuple[float, float] = _WITHIN,
    ax: Axes | None = None,
) -> Axes:
    """Plot the norm of the gradient of a loss at each step, for several cells:

        ‖dL/dh_t‖ or ‖dL/dc_t‖        on a logarithmic axis

    A falling straight line is a gradient that vanishes by a constant factor per step.
    Exact zeros, for example by underflow, are marked at the bottom; infinities and NaN
    at the top.

    Args:
        flows: by name, the result of `diagnostics.gradient_flow`, whose rows are drawn
            as seeds, or norms `[T]` or `[seeds, T]`. `diagnostics.compare` returns
            such a dict. Records have time first: use `jax.vmap(..., out_axes=1)` for
            several seeds.
        of: the state that the gradient is taken with respect to.
        against: x axis: "lag", the number of steps before the last step of a row, or
            "step", from 0.
        lengths: the number of steps of each row, `[*b]` or `[seeds]`, as it was passed
            to `diagnostics.gradient_flow`. Padding, whose gradients are 0, is left out.
        within: the quantiles of the seeds that limit the band.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: flows is empty, an array has another shape, a norm is negative, or
            a flow lacks the state `of`; lengths are not one number from 0 to T for
            each row.

    Example:
        >>> ax = gradient_flow({"RNN": [1e-3, 1e-2, 1e-1], "LSTM": [0.8, 0.9, 1.0]})
        >>> ax.get_yscale(), ax.get_xlabel()
        ('log', 'steps before the last')
    """
    _check_choice("of", of, ("h", "c"))
    _check_choice("against", against, ("lag", "step"))
    ax = new_axes(ax)
    example = '{"LSTM": norms}'
    curves = {}
    for name, flow in bands.check_mapping("flows", flows, example).items():
        norms = _norms(f'flows["{name}"]', flow, of)
        if lengths is not None:
            norms = _without_padding(norms, lengths, against)
        curves[name] = _time(norms, against), norms
    bands.draw(ax, curves, within, logarithmic=True)
    ax.set(ylabel=f"gradient norm ‖dL/d{of}‖")
    return _label_time(ax, against)


@prefix_errors
def carousel(
    result: CarouselResult,
    *,
    unit: int | None = None,
    against: Literal["lag", "step"] = "lag",
    within: tuple[float, float] = _WITHIN,
    ax: Axes | None = None,
) -> Axes:
    """Plot the product of the forget gates and the exact derivative of c_T:

        ∏ f_s  over t < s <= T        |dc_T / dc_t|

    Where the lines agree, the carousel carries the gradient. A larger derivative is
    the part that passes through h and the gates.

    Args:
        result: the result of `diagnostics.carousel`, `[T, *b, H]`.
        unit: index of the unit to draw, with a band over rows; None for the median and
            band over all units and rows.
        against: as in `gradient_flow`.
        within: as in `gradient_flow`.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: the unit does not exist, or an array has another shape.

    Example:
        >>> import numpy as np
        >>> from jaxlstm.diagnostics import Carousel
        >>> halves = np.array([[0.25], [0.5], [1.0]])
        >>> ax = carousel(Carousel(halves, halves, halves[:, 0]), unit=0)
        >>> ax.get_ylabel()
        'derivative of c_T with respect to c_t'
    """
    _check_choice("against", against, ("lag", "step"))
    product = _unit_rows("result.product", result.product, unit)
    derivative = np.abs(_unit_rows("result.derivative", result.derivative, unit))
    ax = new_axes(ax)
    rows = {"exact |dc_T / dc_t|": derivative, "product of forget gates": product}
    time = _time(product, against)
    curves = {name: (time, values) for name, values in rows.items()}
    bands.draw(ax, curves, within, logarithmic=True)
    title = f"all units and rows ({len(product)})" if unit is None else f"unit {unit}"
    ax.set(ylabel="derivative of c_T with respect to c_t", title=title)
    return _label_time(ax, against)


@prefix_errors
def spectrum(eigenvalues: ArrayLike | Eigenvalues, *, ax: Axes | None = None) -> Axes:
    """Plot the eigenvalues of the Jacobians of the steps in the complex plane.

    Eigenvalues inside the unit circle shrink changes of the state, those on it keep
    them, and those outside amplify them.

    Args:
        eigenvalues: the result of `diagnostics.jacobian_spectrum`, or complex numbers
            of any shape.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: there are no eigenvalues, or some are not finite.

    Example:
        >>> ax = spectrum([0.5 + 0.5j, 0.5 - 0.5j, 1.25])
        >>> ax.texts[0].get_text()
        'largest modulus 1.25\\n33.3 % outside the unit circle'
    """
    values = np.asarray(getattr(eigenvalues, "eigenvalues", eigenvalues), complex)
    if values.size == 0 or not np.isfinite(values).all():
        invalid = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"eigenvalues: got shape {list(values.shape)} with {invalid} values not "
            "finite, expected at least one value, and only finite ones."
        )
    ax = new_axes(ax, (5.5, 5.5))
    values = values.ravel()
    ax.add_patch(Circle((0, 0), 1, fill=False, ec=INK, lw=1.4, label="unit circle"))
    alpha = float(np.clip(200 / values.size, 0.08, 0.8))
    ax.plot(np.real(values), np.imag(values), "o", color=BLUE, ms=3, mew=0, alpha=alpha)
    modulus = np.abs(values)
    outside = f"{100 * (modulus > 1).mean():.3g} % outside the unit circle"
    note = f"largest modulus {modulus.max():.4g}\n{outside}"
    ax.annotate(note, (0.02, 0.98), xycoords="axes fraction", va="top")
    reach = 1.1 * max(1.0, modulus.max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, 1.15 * reach), aspect="equal")
    ax.set(xlabel="real part", ylabel="imaginary part")
    return style_axes(ax)


@prefix_errors
def lyapunov_exponents(
    exponents: Mapping[str, ArrayLike],
    *,
    within: tuple[float, float] = _WITHIN,
    ax: Axes | None = None,
) -> Axes:
    """Plot the Lyapunov exponents of several networks in decreasing order.

    Above 0, nearby states diverge: chaos. At 0, information is kept; below, it is
    forgotten. Exponents of -inf, of directions that one step loses, are marked at the
    bottom.

    Args:
        exponents: by name, the result of `diagnostics.lyapunov_exponents`, `[count]`
            or `[rows, count]`, in nats per step.
        within: the quantiles of the rows that limit the band.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: exponents is empty, or an array has another shape.

    Example:
        >>> lyapunov_exponents({"RNN": [0.1, -0.2, -0.5]}).get_ylabel()
        'Lyapunov exponent λ (nats per step)'
    """
    ax = new_axes(ax)
    curves = {}
    example = '{"RNN": exponents}'
    for name, values in bands.check_mapping("exponents", exponents, example).items():
        rows = bands.as_rows(f'exponents["{name}"]', values, "[count] or [rows, count]")
        curves[name] = np.arange(1.0, rows.shape[1] + 1), rows
    ax.axhline(0.0, color=GREY, lw=1.0)
    bands.draw(ax, curves, within, logarithmic=False)
    ax.set(xlabel="rank of the exponent", ylabel="Lyapunov exponent λ (nats per step)")
    integer_ticks(ax.xaxis, 8)
    return style_axes(ax)


def _norms(name: str, flow: Any, of: str) -> Floats:
    """Return the norms `[S, T]` of one curve."""
    if hasattr(flow, "norm"):
        if not hasattr(flow.norm, of):
            fields = ", ".join(flow.norm._fields)
            raise ValueError(f"of: got {of!r}, expected a state of {name}: {fields}.")
        norm = np.asarray(getattr(flow.norm, of), float)
        flow = np.moveaxis(norm, 0, -1).reshape(-1, len(norm))
    norms = bands.as_rows(name, flow, "norms [T] or [seeds, T]")
    if (norms < 0).any():
        raise ValueError(f"{name}: got {norms[norms < 0][0]:g}, expected norms >= 0.")
    return norms


def _without_padding(norms: Floats, lengths: ArrayLike, against: str) -> Any:
    """Return the norms with padding masked, for lags with the last steps aligned."""
    rows, time = norms.shape
    counts = np.asarray(lengths).ravel()
    wrong = counts.dtype.kind not in "iu" or len(counts) != rows
    if wrong or counts.min() < 0 or counts.max() > time:
        raise ValueError(
            f"lengths: got {np.asarray(lengths)!r:.60}, expected {rows} integers from "
            f"0 to {time}, one for each row."
        )
    step = np.arange(time) - (against == "lag") * (time - counts[:, None])
    masked = (step < 0) | (step >= counts[:, None])
    return np.ma.array(np.take_along_axis(norms, step % time, 1), mask=masked)


def _unit_rows(name: str, values: ArrayLike, unit: int | None) -> Floats:
    """Return `[T, *b, H]` as rows over time, of all units or of one."""
    array = np.asarray(values, float)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected [T, *b, H].")
    units = array.shape[-1]
    if unit is not None and not 0 <= unit < units:
        raise ValueError(f"unit: got {unit}, expected 0 to {units - 1}.")
    chosen = array if unit is None else array[..., unit : unit + 1]
    return np.moveaxis(chosen, 0, -1).reshape(-1, len(array))


def _time(values: Floats, against: str) -> Floats:
    time = np.arange(values.shape[1], dtype=np.float64)
    return time[::-1] if against == "lag" else time


def _label_time(ax: Axes, against: str) -> Axes:
    ax.set(xlabel="step t" if against == "step" else "steps before the last")
    integer_ticks(ax.xaxis, 8)
    return style_axes(ax)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listed = " or ".join(f'"{choice}"' for choice in allowed)
        raise ValueError(f"{name}: got {value!r}, expected {listed}.")
