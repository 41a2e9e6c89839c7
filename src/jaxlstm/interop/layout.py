"""One table of the parameter layouts of other libraries, and its two directions.

A row of `LAYOUTS` describes one kind of cell in one library. `to_params` and
`from_params` apply a row to NumPy arrays; every converter of this package names and
groups arrays, and leaves the rest to them.

    kind               record                                                gates
    lstm               LSTMParams, ProjectedLSTMParams, PeepholeLSTMParams   i f g o
    coupled_lstm       CoupledLSTMParams                                     f g o
    gru                GRUParams, reset after the recurrent product          r z n
    gru_reset_before   GRUParams without b_h                                 r z n
    rnn                RNNParams                                             g

Arrays are reordered, transposed and negated, which changes no bits. Two operations
round:

- Two biases of one gate are added when they are read. `from_params` writes the bias on
  one side and zeros on the other, and a sum with zero returns the other term itself, so
  that reading what was written returns the same bits.
- A constant that the forward pass adds to the forget gate (Haiku, +1) is added to the
  bias when it is read and subtracted when it is written. The second is exact if b - 1
  has no more bits than the dtype, as it has for every b from 0.5 to 2^24 in float32.
  For other b the library has no bias that gives b: reading what was written then
  returns b + e, |e| at most half the distance of the floating point numbers around
  b - 1 (2^-25 for b in [0, 0.5) in float32).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlstm.cells.base import LSTMParams, Params
from jaxlstm.cells.coupled import CoupledLSTMParams
from jaxlstm.cells.gru import GRUParams
from jaxlstm.cells.parameters import sizes
from jaxlstm.cells.peephole import PeepholeLSTMParams
from jaxlstm.cells.projected import ProjectedLSTMParams
from jaxlstm.cells.simple import RNNParams
from jaxlstm.typing import show


class Layout(NamedTuple):
    """Conventions of one kind of cell in one library.

    Gates are written as the letters of our records.

    Attributes:
        library: the name of the library.
        kind: the kind of cell, as in the table above.
        gates: the gates in the library's order; "_" for a place that is not read.
        gates_first: whether matrices are `[gates * H, D]`, and not `[D, gates * H]`.
        input_bias: the gates that have a bias beside W_x.
        recurrent_bias: the gates that have a bias beside W_h.
        forget_bias: constant that the forward pass adds to the forget gate.
        negated: gates whose pre-activation has the opposite sign of ours, because the
            library uses 1 - σ(z) = σ(-z).
        peepholes: the gates that can read the cell state, in the library's order.
        projection: whether h can be projected.
        state: the order of the parts of the state.
    """

    library: str
    kind: str
    gates: str
    gates_first: bool
    input_bias: str
    recurrent_bias: str = ""
    forget_bias: float = 0.0
    negated: str = ""
    peepholes: str = ""
    projection: bool = False
    state: str = "h"


def _rows() -> Iterable[Layout]:
    for name in "torch", "cudnn":
        is_torch = name == "torch"
        yield Layout(name, "lstm", "ifgo", True, "ifgo", "ifgo",
                     projection=is_torch, state="hc")  # fmt: skip
        yield Layout(name, "gru", "rzn", True, "rzn", "rzn")
        yield Layout(name, "rnn", "g", True, "g", "g")
    yield Layout("keras", "lstm", "ifgo", False, "ifgo", state="hc")
    yield Layout("keras", "gru", "zrn", False, "zrn", "zrn")
    yield Layout("keras", "gru_reset_before", "zrn", False, "zrn")
    yield Layout("keras", "rnn", "g", False, "g")
    for name, candidate in ("linen", "n"), ("nnx", ""):
        yield Layout(name, "lstm", "ifgo", False, "", "ifgo", state="ch")
        yield Layout(name, "gru", "rzn", False, "rzn", candidate)
        yield Layout(name, "rnn", "g", False, "g")
    yield Layout("haiku", "lstm", "igfo", False, "igfo", forget_bias=1.0, state="hc")
    yield Layout("haiku", "gru_reset_before", "zrn", False, "zrn", negated="z")
    yield Layout("haiku", "rnn", "g", False, "g", "g")
    yield Layout("equinox", "lstm", "ifgo", True, "ifgo", state="hc")
    yield Layout("equinox", "gru", "rzn", True, "rzn", "n")
    yield Layout("onnx", "lstm", "iofg", True, "iofg", "iofg",
                 peepholes="iof", state="hc")  # fmt: skip
    # input_forget: f = 1 - i, and the node's own forget gate is not read.
    yield Layout("onnx", "coupled_lstm", "fo_g", True, "fo_g", "fo_g",
                 negated="f", peepholes="fo_", state="hc")  # fmt: skip
    yield Layout("onnx", "gru", "zrn", True, "zrn", "zrn")
    yield Layout("onnx", "gru_reset_before", "zrn", True, "zrn", "zrn")
    yield Layout("onnx", "rnn", "g", True, "g", "g")


LAYOUTS = {(row.library, row.kind): row for row in _rows()}

NAMES = {
    "lstm": "an LSTM",
    "coupled_lstm": "an LSTM with coupled gates",
    "gru": "a GRU with the reset gate after the product (reset_after=True)",
    "gru_reset_before": "a GRU with the reset gate before the product "
    "(reset_after=False)",
    "rnn": "a simple RNN",
}

ARRAY_NAMES = {
    "torch": {
        "w_x": "weight_ih",
        "w_h": "weight_hh",
        "b_x": "bias_ih",
        "b_h": "bias_hh",
        "w_p": "weight_hr",
    },
    "keras": {"w_x": "kernel", "w_h": "recurrent_kernel", "b_x": "bias", "b_h": "bias"},
    "equinox": {
        "w_x": "weight_ih",
        "w_h": "weight_hh",
        "b_x": "bias",
        "b_h": "bias_n",
    },
    "onnx": {"w_x": "W", "w_h": "R", "b_x": "Wb", "b_h": "Rb", "p": "P"},
}
"""Names of the fields of `Weights` in libraries that store them as they are."""

RECORD_GATES = {
    LSTMParams: "ifgo",
    ProjectedLSTMParams: "ifgo",
    PeepholeLSTMParams: "ifgo",
    CoupledLSTMParams: "fgo",
    GRUParams: "rzn",
    RNNParams: "g",
}


class Weights(NamedTuple):
    """The arrays of one cell in the layout of a library, its gates concatenated.

    Attributes:
        w_x: `[gates * H, D]`, or `[D, gates * H]` without `gates_first`.
        w_h: likewise, with H or the size of the projection in place of D.
        b_x: one bias per gate of `input_bias`, concatenated; None without biases.
        b_h: likewise, for the gates of `recurrent_bias`.
        w_p: the projection, `[P, H]`, or `[H, P]` without `gates_first`.
        p: one peephole `[H]` per gate of `peepholes`, concatenated.
    """

    w_x: np.ndarray
    w_h: np.ndarray
    b_x: np.ndarray | None = None
    b_h: np.ndarray | None = None
    w_p: np.ndarray | None = None
    p: np.ndarray | None = None


def layout(library: str, kind: str) -> Layout:
    """Return the row of the table for a library and a kind of cell.

    Raises:
        ValueError: the library has no such cell.

    Example:
        >>> layout("haiku", "lstm").gates
        'igfo'
        >>> layout("haiku", "gru")
        Traceback (most recent call last):
        ValueError: haiku: got a GRU with the reset gate after the product \
(reset_after=True), expected one of: an LSTM; a GRU with the reset gate before the \
product (reset_after=False); a simple RNN.
    """
    if (library, kind) not in LAYOUTS:
        known = "; ".join(NAMES[k] for name, k in LAYOUTS if name == library)
        got = NAMES.get(kind, kind)
        raise ValueError(f"{library}: got {got}, expected one of: {known}.")
    return LAYOUTS[library, kind]


def kind_of(params: Params) -> str:
    """Return the kind of cell that has these parameters.

    Raises:
        ValueError: they are of a cell that is not in the table.
    """
    if isinstance(params, GRUParams):
        return "gru_reset_before" if params.b_h is None else "gru"
    if isinstance(params, CoupledLSTMParams):
        return "coupled_lstm"
    if isinstance(params, RNNParams):
        return "rnn"
    if type(params) in RECORD_GATES:
        return "lstm"
    known = ", ".join(record.__name__ for record in RECORD_GATES)
    raise ValueError(
        f"params: got {type(params).__name__}, expected one of {known}; other cells "
        "have no counterpart in other libraries."
    )


# -- from a library --------------------------------------------------------------------


def to_params(layout: Layout, weights: Weights) -> Params:
    """Return the parameters of our cell from the arrays of a library.

    The leaves are NumPy arrays in the dtypes of the arrays.

    Raises:
        ValueError: shapes or dtypes do not fit together.

    Example:
        Haiku concatenates i g f o, and adds 1 to f in the forward pass.

        >>> import numpy as np
        >>> row = layout("haiku", "lstm")
        >>> b = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
        >>> w = np.zeros((1, 4), np.float32)
        >>> to_params(row, Weights(w, w, b)).b.ravel().tolist()
        [1.0, 4.0, 2.0, 4.0]
    """
    hidden = _check(layout, weights)
    turn = np.transpose if layout.gates_first else np.asarray
    order = RECORD_GATES[_record(layout, weights)]
    w_x = _gates(layout, turn(weights.w_x), layout.gates, order)
    w_h = _gates(layout, turn(weights.w_h), layout.gates, order)
    b_x, b_h = (
        {} if bias is None or not gates else _by_gate(layout, bias, gates)
        for bias, gates in (
            (weights.b_x, layout.input_bias),
            (weights.b_h, layout.recurrent_bias),
        )
    )
    zeros = np.zeros(hidden, w_x.dtype)
    extra: dict[str, Any] = {}
    if layout.kind == "gru":  # the reset gate scales the recurrent bias of n
        extra["b_h"] = b_h.pop("n", zeros)
    b = np.stack([_sum(b_x.get(gate), b_h.get(gate), zeros) for gate in order])
    if layout.forget_bias:
        b[order.index("f")] += b.dtype.type(layout.forget_bias)
    if weights.w_p is not None:
        extra["w_p"] = np.ascontiguousarray(turn(weights.w_p))
    if weights.p is not None:
        for gate, p in _by_gate(layout, weights.p, layout.peepholes).items():
            extra[f"p_{gate}"] = p
    if layout.kind == "rnn":
        w_x, w_h, b = w_x[:, 0], w_h[:, 0], b[0]
    return _record(layout, weights)(w_x, w_h, b, **extra)


def _record(layout: Layout, weights: Weights) -> Any:
    if layout.kind == "lstm":
        if weights.w_p is not None:
            return ProjectedLSTMParams
        return LSTMParams if weights.p is None else PeepholeLSTMParams
    records = {"coupled_lstm": CoupledLSTMParams, "rnn": RNNParams}
    return records.get(layout.kind, GRUParams)


def _check(layout: Layout, weights: Weights) -> int:
    """Return the hidden size; raise a `ValueError` if the shapes contradict it."""
    count = len(layout.gates)
    names = {field: field for field in Weights._fields}
    names |= ARRAY_NAMES.get(layout.library, {})
    for field, array in zip(Weights._fields, weights, strict=True):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{names[field]}: got dtype {array.dtype}, expected a floating point "
                "dtype."
            )
    shapes = [
        _matrix(layout, names[field], getattr(weights, field))
        for field in ("w_x", "w_h")
    ]
    (rows, _), (recurrent_rows, recurrent) = shapes
    if rows != recurrent_rows or rows % count or not rows:
        raise ValueError(
            f"{names['w_x']} and {names['w_h']}: got {rows} and {recurrent_rows} for "
            f"the axis of the gates, expected {count} times the hidden size in both, "
            f"for {NAMES[layout.kind]}."
        )
    hidden = rows // count
    expected: dict[str, tuple[int, ...]] = {
        "b_x": (hidden * len(layout.input_bias),),
        "b_h": (hidden * len(layout.recurrent_bias),),
        "p": (hidden * len(layout.peepholes),),
    }
    if weights.w_p is not None:
        shape = (recurrent, hidden)
        expected["w_p"] = shape if layout.gates_first else shape[::-1]
    elif recurrent != hidden:
        raise ValueError(
            f"{names['w_h']}: got shape {show(weights.w_h.shape)}, expected the hidden "
            f"size {hidden} in place of {recurrent}."
        )
    for name, shape in expected.items():
        array = getattr(weights, name)
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{names[name]}: got shape {show(array.shape)}, expected {show(shape)} "
                f"for the hidden size {hidden}."
            )
    return hidden


def _matrix(layout: Layout, name: str, array: np.ndarray) -> tuple[int, int]:
    """Return the sizes of the axis of the gates and of the other one."""
    if array.ndim != 2:
        raise ValueError(f"{name}: got shape {show(array.shape)}, expected two axes.")
    rows, columns = array.shape if layout.gates_first else array.shape[::-1]
    return rows, columns


def _by_gate(layout: Layout, array: np.ndarray, gates: str) -> dict[str, np.ndarray]:
    """Split the last axis into gates, with the signs of ours."""
    parts = np.split(array, len(gates), axis=-1)
    return {
        gate: -part if gate in layout.negated else part
        for gate, part in zip(gates, parts, strict=True)
        if gate != "_"
    }


def _gates(layout: Layout, matrix: np.ndarray, gates: str, order: str) -> np.ndarray:
    """Return `[D, gates, H]` from `[D, gates * H]`, in the order of our record."""
    parts = _by_gate(layout, matrix, gates)
    return np.stack([parts[gate] for gate in order], axis=-2)


def _sum(
    first: np.ndarray | None, second: np.ndarray | None, zeros: np.ndarray
) -> np.ndarray:
    """Return the sum of two biases; where the second is zero, the bits of the first."""
    if first is None or second is None:
        only = second if first is None else first
        return zeros if only is None else only
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as in the library
        return np.where(second == 0, first, first + second)


# -- to a library ----------------------------------------------------------------------


def from_params(layout: Layout, params: Params, *, biases: bool = True) -> Weights:
    """Return the arrays of a library from the parameters of our cell.

    A bias is written beside W_x if the library has one there, and beside W_h if not.

    Args:
        layout: a row of the table for `kind_of(params)`.
        params: parameters whose leaves are arrays of NumPy or JAX.
        biases: False for a cell without biases.

    Raises:
        ValueError: the library has no place for a parameter that is not zero, or the
            shapes of the parameters contradict each other.

    Example:
        >>> import numpy as np
        >>> from jaxlstm.cells.simple import RNNParams
        >>> params = RNNParams(np.zeros((1, 2)), np.zeros((2, 2)), np.ones(2))
        >>> from_params(layout("torch", "rnn"), params).b_h.tolist()
        [0.0, 0.0]
    """
    if kind_of(params) != layout.kind:
        raise ValueError(
            f"{layout.library}: got {type(params).__name__}, expected the parameters "
            f"of {NAMES[layout.kind]}."
        )
    params = type(params)(*(None if a is None else np.asarray(a) for a in params))
    absent = tuple(n for n in params._fields if getattr(params, n) is None)
    sizes(type(params), params, without=absent)
    order = RECORD_GATES[type(params)]
    w_x, w_h, b = params[:3]
    if layout.kind == "rnn":
        w_x, w_h, b = w_x[:, None], w_h[:, None], b[None]
    turn = np.transpose if layout.gates_first else np.asarray
    b_x, b_h = _written_biases(layout, params, dict(zip(order, b, strict=True)), biases)
    w_p = getattr(params, "w_p", None)
    if w_p is not None and not layout.projection:
        raise ValueError(
            f"{layout.library}: got an LSTM with a projection, expected one without: "
            "this library has no projection of h."
        )
    return Weights(
        w_x=np.ascontiguousarray(turn(_joined(layout, w_x, order))),
        w_h=np.ascontiguousarray(turn(_joined(layout, w_h, order))),
        b_x=b_x,
        b_h=b_h,
        w_p=None if w_p is None else np.ascontiguousarray(turn(w_p)),
        p=_written_peepholes(layout, params),
    )


def _joined(layout: Layout, matrix: np.ndarray, order: str) -> np.ndarray:
    """Return `[D, gates * H]` from `[D, gates, H]`, in the order of the library."""
    parts = {gate: matrix[:, k] for k, gate in enumerate(order)}
    return _concatenated(layout, parts, layout.gates)


def _concatenated(
    layout: Layout, parts: dict[str, np.ndarray], gates: str
) -> np.ndarray:
    unread = np.zeros_like(next(iter(parts.values())))
    signed = {g: -part if g in layout.negated else part for g, part in parts.items()}
    return np.concatenate([signed.get(gate, unread) for gate in gates], axis=-1)


def _written_biases(
    layout: Layout, params: Any, b: dict[str, np.ndarray], biases: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the biases beside W_x and beside W_h; None for none."""
    if layout.forget_bias:
        b["f"] = b["f"] - b["f"].dtype.type(layout.forget_bias)
    zeros = np.zeros_like(next(iter(b.values())))
    recurrent = {g: zeros if g in layout.input_bias else b[g] for g in b}
    if layout.kind == "gru":
        recurrent["n"] = params.b_h
    if not biases:
        _require_zeros(layout, "biases=False", [*b.values(), *recurrent.values()])
        return None, None
    if layout.kind == "gru" and "n" not in layout.recurrent_bias:
        _require_zeros(layout, "no bias b_h that the reset gate scales", [params.b_h])
    b_x = _concatenated(layout, b, layout.input_bias) if layout.input_bias else None
    if not layout.recurrent_bias:
        return b_x, None
    return b_x, _concatenated(layout, recurrent, layout.recurrent_bias)


def _require_zeros(layout: Layout, what: str, arrays: Iterable[np.ndarray]) -> None:
    largest = max(float(np.abs(a.astype(np.float64)).max(initial=0)) for a in arrays)
    if largest != 0:
        raise ValueError(
            f"{layout.library}: got a bias of {largest:.3g}, expected zeros: the cell "
            f"has {what}."
        )


def _written_peepholes(layout: Layout, params: Any) -> np.ndarray | None:
    """Return the peepholes, concatenated; None for a cell without them."""
    parts = {
        gate: p
        for gate in "ifo"
        if (p := getattr(params, f"p_{gate}", None)) is not None
    }
    if parts and not layout.peepholes:
        raise ValueError(
            f"{layout.library}: got an LSTM with peepholes, expected one without: this "
            "library has none."
        )
    return _concatenated(layout, parts, layout.peepholes) if parts else None
