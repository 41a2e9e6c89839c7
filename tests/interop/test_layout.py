"""Every row of the table of layouts reads the bits that it wrote, and gates by name."""

import zlib

import ml_dtypes
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.cells.coupled import CoupledLSTMParams
from jaxlstm.cells.gru import GRUParams
from jaxlstm.cells.peephole import PeepholeLSTMParams
from jaxlstm.cells.projected import ProjectedLSTMParams
from jaxlstm.cells.simple import RNNParams
from jaxlstm.interop.layout import (
    LAYOUTS,
    RECORD_GATES,
    Layout,
    Weights,
    from_params,
    kind_of,
    layout,
    to_params,
)

DTYPES = ("float64", "float32", "float16", ml_dtypes.bfloat16)
ROWS = pytest.mark.parametrize(
    "row", LAYOUTS.values(), ids=lambda row: "-".join(row[:2])
)


def numbers(rng, *shape: int, dtype) -> np.ndarray:
    """Draw numbers of all magnitudes, among them -0, subnormals, inf and NaN."""
    values = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 4, shape)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -6e-8])
    chosen = special[rng.integers(len(special), size=shape)]
    with np.errstate(over="ignore"):
        return np.where(rng.random(shape) < 0.1, chosen, values).astype(dtype)


def draw(rng, row: Layout):
    """Draw parameters that the row can write, of random sizes and a random dtype."""
    dtype = DTYPES[rng.integers(len(DTYPES))]
    inputs, hidden, size = (int(n) for n in rng.integers(1, 6, 3))

    def of(*shape):
        return numbers(rng, *shape, dtype=dtype)

    if row.kind == "rnn":
        return RNNParams(of(inputs, hidden), of(hidden, hidden), of(hidden))
    gates = {"lstm": 4}.get(row.kind, 3)
    b = of(gates, hidden)
    if row.forget_bias:  # numbers whose difference to 1 the dtype has
        b[1] = rng.integers(8, 32, hidden) / 16
    common = of(inputs, gates, hidden), of(hidden, gates, hidden), b
    if row.kind == "gru":
        zeros = "n" not in row.recurrent_bias
        return GRUParams(*common, np.zeros(hidden, dtype) if zeros else of(hidden))
    if row.kind == "gru_reset_before":
        return GRUParams(*common)
    peepholes = row.peepholes and rng.random() < 0.5
    if row.kind == "coupled_lstm":
        p = (of(hidden), of(hidden)) if peepholes else ()
        return CoupledLSTMParams(*common, *p)
    if peepholes:
        return PeepholeLSTMParams(*common, *(of(hidden) for _ in range(3)))
    if row.projection and rng.random() < 0.5:
        w_h, w_p = of(size, gates, hidden), of(hidden, size)
        return ProjectedLSTMParams(common[0], w_h, b, w_p)
    return jl.LSTMParams(*common)


def assert_same_bits(got, expected) -> None:
    assert type(got) is type(expected)
    for name, one, other in zip(expected._fields, got, expected, strict=True):
        if other is None:
            assert one is None, name
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        assert one.tobytes() == other.tobytes(), name


@ROWS
def test_reading_what_was_written_returns_the_same_bits(row):
    """200 random configurations of every library and kind of cell."""
    rng = np.random.default_rng(zlib.crc32(f"{row.library} {row.kind}".encode()))
    for _ in range(200):
        params = draw(rng, row)
        assert kind_of(params) == row.kind
        assert_same_bits(to_params(row, from_params(row, params)), params)


@ROWS
def test_a_cell_without_biases(row):
    """Biases that the library does not have are zeros here."""
    params = draw(np.random.default_rng(1), row)
    zeros = {n: np.zeros_like(getattr(params, n)) for n in ("b", "b_h")
             if getattr(params, n, None) is not None}  # fmt: skip
    params = params._replace(**zeros)
    if row.forget_bias:
        params.b[1] = row.forget_bias
    weights = from_params(row, params, biases=False)
    assert weights.b_x is None
    assert weights.b_h is None
    assert_same_bits(to_params(row, weights), params)


@ROWS
def test_gates_are_found_by_name(row):
    """Gate k of ours is k in the written matrix, or -k if the gate is negated."""
    params = draw(np.random.default_rng(2), row)
    order = RECORD_GATES[type(params)]
    w_x = np.zeros_like(params.w_x)
    if row.kind != "rnn":
        w_x += np.arange(1, len(order) + 1, dtype=w_x.dtype)[:, None]
    params = params._replace(w_x=w_x)
    written = from_params(row, params).w_x
    written = written if row.gates_first else written.T
    for gate, part in zip(row.gates, np.split(written, len(row.gates)), strict=True):
        number = 0 if gate == "_" or row.kind == "rnn" else order.index(gate) + 1
        assert (part == (-number if gate in row.negated else number)).all()


def test_two_biases_are_added():
    rng = np.random.default_rng(3)
    w_x, w_h, b_x, b_h = (rng.normal(size=s) for s in ((12, 2), (12, 3), 12, 12))
    params = to_params(layout("torch", "lstm"), Weights(w_x, w_h, b_x, b_h))
    assert (params.b == (b_x + b_h).reshape(4, 3)).all()
    gates = rng.normal(size=(2, 9))
    params = to_params(layout("torch", "gru"), Weights(w_x[:9], w_h[:9], *gates))
    assert (params.b[:2] == gates.sum(0).reshape(3, 3)[:2]).all()
    assert (params.b[2] == gates[0, 6:]).all()
    assert (params.b_h == gates[1, 6:]).all()


def haiku_round_trip(b):
    row, (number,) = layout("haiku", "lstm"), b.shape
    w_x, w_h = np.zeros((1, 4, number), b.dtype), np.zeros((number, 4, number), b.dtype)
    params = jl.LSTMParams(w_x, w_h, np.stack([np.zeros_like(b), b, b, b]))
    return to_params(row, from_params(row, params)).b[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_forget_bias_of_haiku_is_exact_where_haiku_has_a_bias_for_it(dtype):
    rng, bits = np.random.default_rng(4), np.finfo(dtype).nmant + 1
    exact = np.concatenate([rng.uniform(0.5, 2, 300), rng.uniform(2, 2.0**bits, 300)])
    exact = exact.astype(dtype)
    assert (haiku_round_trip(exact) == exact).all()
    near_zero = rng.uniform(0, 0.5, 300).astype(dtype)
    error = np.abs(haiku_round_trip(near_zero) - near_zero)
    assert 0 < error.max() <= 2.0 ** -(bits + 1)


def test_no_bias_of_haiku_gives_every_number():
    """1 + x takes only every second number of [0.25, 0.5), for x from -1 to 0."""
    b = np.float32(0.3) + np.arange(2, dtype=np.float32) * np.float32(2.0**-25)
    near = np.float32(-0.7) + np.arange(-9, 9).astype(np.float32) * np.float32(2.0**-24)
    assert set(b) - set(near + np.float32(1.0))
    assert (haiku_round_trip(b) != b).sum() == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"w_x": np.zeros((7, 2))},
            "weight_ih and weight_hh: got 7 and 8 for the axis of the gates",
        ),
        ({"w_h": np.zeros((8, 3))}, r"weight_hh: got shape \[8, 3\], expected the "),
        ({"w_h": np.zeros(8)}, r"weight_hh: got shape \[8\], expected two axes"),
        (
            {"b_x": np.zeros(7)},
            r"bias_ih: got shape \[7\], expected \[8\] for the hidden",
        ),
        ({"b_h": np.zeros((2, 4))}, r"bias_hh: got shape \[2, 4\], expected \[8\]"),
        (
            {"w_p": np.zeros((3, 2))},
            r"weight_hr: got shape \[3, 2\], expected \[2, 2\]",
        ),
        (
            {"w_x": np.zeros((8, 2), int)},
            "weight_ih: got dtype int64, expected a floating",
        ),
    ],
)
def test_wrong_arrays_are_named(weights, message):
    right = Weights(np.zeros((8, 2)), np.zeros((8, 2)))
    with pytest.raises(ValueError, match=message):
        to_params(layout("torch", "lstm"), right._replace(**weights))


def test_what_a_library_does_not_have_is_refused():
    rng = np.random.default_rng(5)
    shapes = (2, 4, 3), (1, 4, 3), (4, 3), (3, 1)
    projected = ProjectedLSTMParams(*(rng.normal(size=s) for s in shapes))
    with pytest.raises(ValueError, match="keras: got an LSTM with a projection"):
        from_params(layout("keras", "lstm"), projected)
    shapes = (2, 4, 3), (3, 4, 3), (4, 3), 3, 3, 3
    peepholes = PeepholeLSTMParams(*(rng.normal(size=s) for s in shapes))
    with pytest.raises(ValueError, match="torch: got an LSTM with peepholes"):
        from_params(layout("torch", "lstm"), peepholes)
    gru = GRUParams(*(rng.normal(size=s) for s in ((2, 3, 3), (3, 3, 3), (3, 3), 3)))
    with pytest.raises(ValueError, match=r"nnx: got a bias of .* has no bias b_h"):
        from_params(layout("nnx", "gru"), gru)
    with pytest.raises(ValueError, match=r"torch: got a bias of .* biases=False"):
        from_params(layout("torch", "gru"), gru, biases=False)
    with pytest.raises(ValueError, match="haiku: got a GRU with the reset gate after"):
        layout("haiku", kind_of(gru))
    with pytest.raises(ValueError, match="got ClassicLSTMParams, expected one of"):
        kind_of(jl.cells.classic.ClassicLSTMParams(*gru[:3]))
