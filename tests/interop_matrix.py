"""The tables of docs/interop.md: library x feature, made by converting, and layouts.

`python tests/interop_matrix.py` writes them into the page; `interop/test_matrix.py`
compares them with the page.

    ✓   loading what was dumped returns the same bits
    ≈   it returns a model with the same outputs up to rounding
    -   refused with a message
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxlstm as jl
from jaxlstm.interop import cudnn, equinox, flax, haiku, keras, onnx, parts, torch
from jaxlstm.interop.layout import LAYOUTS, kind_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "interop.md"
FEATURES = ("<!-- the table of features: begin -->\n", "<!-- end -->\n")
ROWS = ("<!-- the table of layouts: begin -->\n", "<!-- end of layouts -->\n")

Model = tuple[jl.Layer, Any]


def drawn(model: jl.Layer, **fixed: float) -> Model:
    """Return the model with random parameters; fields named in `fixed` are constant."""
    rng, shapes = (
        np.random.default_rng(81),
        jax.eval_shape(lambda key: model.init(key, 3)[0], jax.random.key(0)),
    )

    def draw(path, leaf):
        if isinstance(value := fixed.get(getattr(path[-1], "name", "")), float):
            return np.full(leaf.shape, value, np.float32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    if isinstance(params, dict):
        params = {name: params[name] for name in ("embed", "rnn", "head")}
    return model, params


def features() -> dict[str, Model]:
    """Return a model for each feature."""
    lstm = jl.lstm()
    rnn = jl.recurrent(lstm, 4)
    whole = jl.serial(embed=jl.embed(9, 3), rnn=rnn, head=jl.linear(2))
    return {
        "LSTM": drawn(rnn, b=1.0),
        "any forget bias": drawn(rnn, b=0.1),
        "projection": drawn(jl.recurrent(jl.projected_lstm(2), 4), b=1.0),
        "peepholes": drawn(jl.recurrent(jl.peephole_lstm(), 4), b=1.0),
        "coupled gates": drawn(jl.recurrent(jl.coupled_lstm(), 4), b=1.0),
        "GRU, reset after the product": drawn(jl.recurrent(jl.gru(), 4), b_h=0.0),
        "its bias b_h": drawn(jl.recurrent(jl.gru(), 4)),
        "GRU, reset before": drawn(jl.recurrent(jl.gru(reset_after=False), 4)),
        "simple RNN, tanh": drawn(jl.recurrent(jl.simple_rnn(), 4)),
        "simple RNN, relu": drawn(jl.recurrent(jl.simple_rnn(activation="relu"), 4)),
        "layers": drawn(jl.stack(lstm, (4, 4)), b=1.0),
        "layers of different sizes": drawn(jl.stack(lstm, (4, 3)), b=1.0),
        "both directions": drawn(jl.stack(lstm, (4, 4), bidirectional=True), b=1.0),
        "reverse only": drawn(jl.recurrent(lstm, 4, reverse=True), b=1.0),
        "embedding and linear": drawn(whole, b=1.0),
    }


def libraries() -> dict[str, Callable[[jl.Layer, Any], tuple[Any, jl.Layer]]]:
    """Return for each library the function that dumps a model and loads it."""
    return {
        "torch": lambda m, p: torch.load(torch.dump(m, p), prefix=names(p)),
        "cuDNN": lambda m, p: cudnn.load(cudnn.dump(m, p), **sizes(m, p)),
        "Keras": lambda m, p: keras.load(
            keras.dump(m, p), bidirectional="Pair" in str(jax.tree.structure(p))
        ),
        "linen": lambda m, p: flax.load(flax.dump(m, p), prefix=names(p)),
        "nnx": lambda m, p: flax.load(flax.dump(m, p, api="nnx"), prefix=names(p)),
        "Haiku": lambda m, p: haiku.load(haiku.dump(m, p), prefix=names(p)),
        "Equinox": lambda m, p: equinox.load(
            as_modules(equinox.dump(m, p)), prefix=names(p)
        ),
        "ONNX": lambda m, p: onnx.load(onnx.dump(m, p)),
    }


def names(params: Any) -> str | tuple[str, ...]:
    return tuple(params) if isinstance(params, dict) else ""


def sizes(model: jl.Layer, params: Any) -> dict[str, Any]:
    """Return the sizes that the buffer of cuDNN does not have."""
    [part] = parts.parts_of(model, params).values()
    first = part.layers[0][0]
    return {
        "input_size": first.w_x.shape[0],
        "hidden_size": first.b.shape[-1],
        "layers": len(part.layers),
        "bidirectional": parts.is_bidirectional(part),
        "kind": kind_of(first),
    }


class Node:
    """A module of Equinox: fields, and others inside."""

    def __init__(self, fields: dict[str, Any]):
        self.__dict__.update(fields)


def as_modules(arrays: dict[str, np.ndarray]) -> Any:
    """Return objects with these fields in place of the modules of Equinox."""
    nested: dict[str, Any] = {}
    for path, array in arrays.items():
        place, _, name = path.rpartition(".")
        nested.setdefault(place, {})[name] = array
    return {
        path: Node(
            fields
            | ({"num_embeddings": 9} if path == "embed" else {})
            | ({"in_features": 4} if path == "head" else {})
        )
        for path, fields in nested.items()
    }


def records(model: jl.Layer, params: Any) -> list[Any]:
    """Return the parameters of every cell, table and linear layer, in their order."""
    found = []
    for part in parts.parts_of(model, params).values():
        if isinstance(part, parts.Recurrent):
            found += [cell for directions in part.layers for cell in directions]
        else:
            found.append(part)
    return found


def outcome(convert: Callable[..., Any], model: jl.Layer, params: Any) -> str:
    """Return the sign for a conversion and back."""
    try:
        got, same = convert(model, params)
    except ValueError:
        return "-"
    one, other = records(same, got), records(model, params)
    if [type(record) for record in one] == [type(record) for record in other]:
        leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        if all(np.asarray(a).tobytes() == b.tobytes() for a, b in leaves):
            return "✓"
    xs = np.random.default_rng(82).normal(size=(5, 2, 3)).astype(np.float32)
    ys, expected = same.apply(got, xs)[1], model.apply(params, xs)[1]
    np.testing.assert_allclose(ys, expected, atol=1e-6)
    return "≈"


def column(library: str) -> list[str]:
    """Return the signs of a library, one for each feature."""
    convert = libraries()[library]
    return [outcome(convert, *model) for model in features().values()]


def table() -> str:
    """Return the table in Markdown."""
    columns = {name: column(name) for name in libraries()}
    lines = [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for n, feature in enumerate(features()):
        lines.append(f"| {feature} | {' | '.join(c[n] for c in columns.values())} |")
    return "\n".join(lines) + "\n"


def layouts() -> str:
    """Return the table of layouts in Markdown."""
    header = ["library", "cell", "gates", "matrices", "biases of x", "biases of h",
              "forget bias", "negated", "state"]  # fmt: skip
    rows = [
        [
            row.library,
            row.kind.replace("_", " "),
            " ".join(row.gates),
            "gates, inputs" if row.gates_first else "inputs, gates",
            " ".join(row.input_bias) or "-",
            " ".join(row.recurrent_bias) or "-",
            f"+{row.forget_bias:g} in the step" if row.forget_bias else "-",
            row.negated or "-",
            f"({', '.join(row.state)})",
        ]
        for row in LAYOUTS.values()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    lines.insert(1, "| --- " * len(header) + "|")
    return "\n".join(lines) + "\n"


def written(page: str, marks: tuple[str, str]) -> str:
    """Return the text of the page between two marks."""
    return page.partition(marks[0])[2].partition(marks[1])[0]


def main() -> int:
    """Write the tables into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for (begin, end), text in ((FEATURES, table()), (ROWS, layouts())):
        before, _, rest = page.partition(begin)
        page = before + begin + text + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
