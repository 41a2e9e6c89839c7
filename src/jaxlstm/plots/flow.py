"""What flows back through time: gradients, the carousel, spectra."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots import bands
from jaxlstm.plots.canvas import BLUE, INK, QUIET, new_axes, tidy, whole_numbers

Floats = NDArray[np.float64]
_WITHIN = (0.25, 0.75)


class Flow(Protocol):
    """What `diagnostics.gradient_flow` finds: a record of norms `[T, *b]`."""

    @property
    def norm(self) -> Any:
        """A record of the norms of dL/dh_t and of dL/dc_t."""
        ...


class Beside(Protocol):
    """What `diagnostics.carousel` finds, `[T, *b, H]` each."""

    @property
    def product(self) -> ArrayLike:
        """The product of the forget gates."""
        ...

    @property
    def derivative(self) -> ArrayLike:
        """The derivative of c_T by c_t."""
        ...


class Eigenvalues(Protocol):
    """What `diagnostics.jacobian_spectrum` finds, complex numbers of any shape."""

    @property
    def eigenvalues(self) -> ArrayLike:
        """Those of the Jacobian of each step."""
        ...


def gradient_flow(
    flows: Mapping[str, ArrayLike | Flow],
    *,
    of: Literal["h", "c"] = "h",
    against: Literal["lag", "step"] = "lag",
    within: tuple[float, float] = _WITHIN,
    ax: Axes | None = None,
) -> Axes:
    """How large the gradient of a loss is at each step, for several cells:

        ‖dL/dh_t‖ or ‖dL/dc_t‖        on a logarithmic axis, in units of L per unit of h

    A straight line that falls is a gradient that vanishes by a fixed factor a step, a
    flat one is carried. Zeros, which gradients too small for their dtype become, are
    marked at the bottom; what is infinite or not a number is marked at the top.

    Arguments:
        flows: for each name what `diagnostics.gradient_flow` found, of which the rows
            are the seeds, or norms `[T]` or `[seeds, T]`. `diagnostics.compare` gives
            such a dict. Time comes first in a record: make one over seeds by
            `jax.vmap(..., out_axes=1)`.
        of: the state that the gradient is taken with respect to.
        against: "lag", how many steps before the last, or "step", from 0. The last is
            that of the arrays: draw rows of unequal length apart, or against "step".
        within: the ends of the band, as shares of the seeds.

    Errors: `ValueError` for no flows, arrays of other shapes, norms below 0, and a
    state that a flow does not have.

    >>> ax = gradient_flow({"RNN": [1e-3, 1e-2, 1e-1], "LSTM": [0.8, 0.9, 1.0]})
    >>> ax.get_yscale(), ax.get_xlabel()
    ('log', 'steps back from the last')
    """
    _one_of("of", of, ("h", "c"))
    _one_of("against", against, ("lag", "step"))
    ax = new_axes(ax)
    example = '{"LSTM": norms}'
    curves = {}
    for name, flow in bands.named("flows", flows, example).items():
        norms = _norms(f'flows["{name}"]', flow, of)
        curves[name] = _time(norms, against), norms
    bands.draw(ax, curves, within, logarithmic=True)
    ax.set(ylabel=f"‖dL/d{of}‖ (units of L per unit of {of})")
    return _over_time(ax, against)


def carousel(
    found: Beside,
    *,
    unit: int | None = None,
    against: Literal["lag", "step"] = "lag",
    within: tuple[float, float] = _WITHIN,
    ax: Axes | None = None,
) -> Axes:
    """The product of the forget gates beside the true derivative of c_T by c_t.

    Where the two lines agree the carousel alone carries the gradient; where the
    derivative is the larger, the rest went by way of h and the gates. The derivative
    is drawn without its sign.

    Arguments:
        found: what `diagnostics.carousel` found, `[T, *b, H]`.
        unit: draw this one, with a band over the rows; None draws the median of all
            units and rows, and the band that holds most of them.
        against, within: as in `gradient_flow`.

    Errors: `ValueError` for a unit that is not there and for arrays of other shapes.

    >>> import numpy as np
    >>> from jaxlstm.diagnostics import Carousel
    >>> halves = np.array([[0.25], [0.5], [1.0]])
    >>> ax = carousel(Carousel(halves, halves, halves[:, 0]), unit=0)
    >>> ax.get_ylabel()
    'what of c_t reaches c_T (share)'
    """
    _one_of("against", against, ("lag", "step"))
    product = _each_unit("found.product", found.product, unit)
    derivative = np.abs(_each_unit("found.derivative", found.derivative, unit))
    ax = new_axes(ax)
    rows = {"|dc_T / dc_t|, the truth": derivative, "product of forget gates": product}
    time = _time(product, against)
    curves = {name: (time, values) for name, values in rows.items()}
    bands.draw(ax, curves, within, logarithmic=True)
    title = f"{len(product)} units and rows" if unit is None else f"unit {unit}"
    ax.set(ylabel="what of c_t reaches c_T (share)", title=title)
    return _over_time(ax, against)


def spectrum(eigenvalues: ArrayLike | Eigenvalues, *, ax: Axes | None = None) -> Axes:
    """The eigenvalues of the Jacobians of the steps in the complex plane.

    Those within the unit circle shrink what the state carries, those on it keep it,
    those beyond let it grow.

    Arguments:
        eigenvalues: what `diagnostics.jacobian_spectrum` found, or complex numbers of
            any shape.

    Errors: `ValueError` for none, and for some that are not finite.

    >>> ax = spectrum([0.5 + 0.5j, 0.5 - 0.5j, 1.25])
    >>> ax.texts[0].get_text()
    'largest modulus 1.25\\n33.3 % beyond the circle'
    """
    found = np.asarray(getattr(eigenvalues, "eigenvalues", eigenvalues), complex)
    if found.size == 0 or not np.isfinite(found).all():
        lost = int((~np.isfinite(found)).sum())
        raise ValueError(
            f"eigenvalues has the shape {list(found.shape)}, of which {lost} are not "
            "finite; at least one and only finite numbers are needed."
        )
    ax = new_axes(ax, (5.5, 5.5))
    found = found.ravel()
    ax.add_patch(Circle((0, 0), 1, fill=False, ec=INK, lw=1.4, label="unit circle"))
    faint = float(np.clip(200 / found.size, 0.08, 0.8))
    ax.plot(np.real(found), np.imag(found), "o", color=BLUE, ms=3, mew=0, alpha=faint)
    modulus = np.abs(found)
    beyond = f"{100 * (modulus > 1).mean():.3g} % beyond the circle"
    note = f"largest modulus {modulus.max():.4g}\n{beyond}"
    ax.annotate(note, (0.02, 0.98), xycoords="axes fraction", va="top")
    reach = 1.1 * max(1.0, modulus.max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, 1.15 * reach), aspect="equal")
    ax.set(xlabel="real part (per step)", ylabel="imaginary part (per step)")
    return tidy(ax)


def lyapunov_exponents(
    exponents: Mapping[str, ArrayLike],
    *,
    within: tuple[float, float] = _WITHIN,
    ax: Axes | None = None,
) -> Axes:
    """The Lyapunov exponents of several networks, from the largest on.

    Above 0 nearby states part: chaos. At 0 the network remembers, below it forgets. A
    direction that is lost in one step, at -inf, is marked at the bottom.

    Arguments:
        exponents: for each name what `diagnostics.lyapunov_exponents` found, `[count]`
            or `[rows, count]`, in nats per step.
        within: the ends of the band, as shares of the rows.

    Errors: `ValueError` for none and for arrays of other shapes.

    >>> lyapunov_exponents({"RNN": [0.1, -0.2, -0.5]}).get_ylabel()
    'Lyapunov exponent λ (nats per step)'
    """
    ax = new_axes(ax)
    curves = {}
    for name, found in bands.named("exponents", exponents, '{"RNN": found}').items():
        rows = bands.rows(f'exponents["{name}"]', found, "[rows, count] is needed")
        curves[name] = np.arange(1.0, rows.shape[1] + 1), rows
    ax.axhline(0.0, color=QUIET, lw=1.0)
    bands.draw(ax, curves, within, logarithmic=False)
    ax.set(xlabel="rank of the exponent", ylabel="Lyapunov exponent λ (nats per step)")
    whole_numbers(ax.xaxis, 8)
    return tidy(ax)


def _norms(name: str, flow: Any, of: str) -> Floats:
    """The norms `[S, T]` of one curve."""
    if hasattr(flow, "norm"):
        if not hasattr(flow.norm, of):
            fields = ", ".join(flow.norm._fields)
            raise ValueError(f"{name} has no {of}; of must be one of its {fields}.")
        norm = np.asarray(getattr(flow.norm, of), float)
        flow = np.moveaxis(norm, 0, -1).reshape(-1, len(norm))
    norms = bands.rows(name, flow, "norms [T] or [seeds, T] are needed")
    if (norms < 0).any():
        raise ValueError(f"{name} holds {norms[norms < 0][0]:g}; a norm is at least 0.")
    return norms


def _each_unit(name: str, values: ArrayLike, unit: int | None) -> Floats:
    """`[T, *b, H]` as rows over time, of all units or of one."""
    found = np.asarray(values, float)
    if found.ndim < 2 or found.size == 0:
        raise ValueError(
            f"{name} has the shape {list(found.shape)}; [T, *b, H] is needed."
        )
    units = found.shape[-1]
    if unit is not None and not 0 <= unit < units:
        raise ValueError(f"unit must be one of 0 to {units - 1}, but is {unit}")
    chosen = found if unit is None else found[..., unit : unit + 1]
    return np.moveaxis(chosen, 0, -1).reshape(-1, len(found))


def _time(values: Floats, against: str) -> Floats:
    time = np.arange(float(values.shape[1]))
    return time[::-1] if against == "lag" else time


def _over_time(ax: Axes, against: str) -> Axes:
    ax.set(xlabel="step t" if against == "step" else "steps back from the last")
    whole_numbers(ax.xaxis, 8)
    return tidy(ax)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listed = " or ".join(f'"{one}"' for one in allowed)
        raise ValueError(f"{name} is {value!r}; {listed} is needed.")
