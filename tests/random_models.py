"""Random models, and a comparison of parameters bit for bit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.cells.gru import GRUParams
from jaxlstm.cells.projected import ProjectedLSTMParams
from jaxlstm.cells.simple import RNNParams
from jaxlstm.layers import EmbedParams, LinearParams

MODELS = pytest.mark.parametrize(
    "count", [20, pytest.param(200, marks=pytest.mark.thorough)]
)
"""The number of random models that a test converts."""

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


class Options(NamedTuple):
    """The models to draw from.

    Attributes:
        cells: names of cells: "lstm", "projected", "gru", "gru_reset_before", "rnn".
        bidirectional: whether layers may have two directions.
        equal_sizes: whether all layers of a stack have one size.
        pointwise: whether the model may have an embedding and a linear layer.
        activation: of the simple RNN.
    """

    cells: Sequence[str]
    bidirectional: bool = True
    equal_sizes: bool = False
    pointwise: bool = True
    activation: str = "tanh"


def numbers(rng, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Draw numbers of all magnitudes, among them -0 and subnormals."""
    values = rng.normal(size=shape) * 10.0 ** rng.integers(-4, 3, shape)
    special = np.array([0.0, -0.0, 1e-45, -6e-8])
    chosen = special[rng.integers(len(special), size=shape)]
    return np.where(rng.random(shape) < 0.1, chosen, values).astype(dtype)


def draw(rng, options: Options, *, dtype=None) -> tuple[jl.Layer, Any]:
    """Draw a model, and its parameters as NumPy arrays."""
    dtype = DTYPES[rng.integers(len(DTYPES))] if dtype is None else dtype
    name = options.cells[rng.integers(len(options.cells))]
    size = int(rng.integers(1, 5))
    cell = {
        "lstm": jl.lstm,
        "projected": lambda: jl.projected_lstm(size),
        "gru": jl.gru,
        "gru_reset_before": lambda: jl.gru(reset_after=False),
        "rnn": lambda: jl.simple_rnn(activation=options.activation),
    }[name]()
    sizes = [int(n) for n in rng.integers(1, 6, rng.integers(1, 4))]
    sizes = [sizes[0]] * len(sizes) if options.equal_sizes else sizes
    both = options.bidirectional and bool(rng.random() < 0.5)
    inputs = features = int(rng.integers(1, 5))
    layers = []
    for hidden in sizes:
        shown = size if name == "projected" else hidden
        ways = [record(rng, name, features, hidden, shown, dtype) for _ in range(2)]
        layers.append(jl.Pair(*ways) if both else ways[0])
        features = shown * (1 + both)
    if len(sizes) == 1 and not both:
        model, params = jl.recurrent(cell, sizes[0]), layers[0]
    else:
        model = jl.stack(cell, tuple(sizes), bidirectional=both)
        params = tuple(layers)
    if not options.pointwise or rng.random() < 0.7:
        return model, params
    tokens = inputs + 1 + int(rng.integers(5))  # not square: not ambiguous
    table = EmbedParams(numbers(rng, (tokens, inputs), dtype))
    head = LinearParams(numbers(rng, (features, 3), dtype), numbers(rng, (3,), dtype))
    embed = jl.embed(tokens, inputs, dtype=dtype)
    return (
        jl.serial(embed=embed, rnn=model, head=jl.linear(3)),
        {"embed": table, "rnn": params, "head": head},
    )


def record(rng, name: str, inputs: int, hidden: int, shown: int, dtype):
    """Draw the parameters of one cell, whose h has `shown` units."""

    def of(*shape):
        return numbers(rng, shape, dtype)

    if name == "rnn":
        return RNNParams(of(inputs, hidden), of(hidden, hidden), of(hidden))
    gates = 3 if name.startswith("gru") else 4
    common = of(inputs, gates, hidden), of(shown, gates, hidden), of(gates, hidden)
    if name == "lstm":
        return jl.LSTMParams(*common)
    if name == "projected":
        return ProjectedLSTMParams(*common, of(hidden, shown))
    return GRUParams(*common, of(hidden) if name == "gru" else None)


def ones(model: jl.Layer, inputs: int = 3) -> Any:
    """Return parameters of a model without compiling its `init`."""
    shapes = jax.eval_shape(lambda key: model.init(key, inputs)[0], jax.random.key(0))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def assert_same_bits(got: Any, expected: Any) -> None:
    """Assert equal structures, and leaves of equal dtypes, shapes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    named = jax.tree_util.tree_leaves_with_path(expected)
    for one, (path, other) in zip(jax.tree.leaves(got), named, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        name = jax.tree_util.keystr(path)
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        assert one.tobytes() == other.tobytes(), name
