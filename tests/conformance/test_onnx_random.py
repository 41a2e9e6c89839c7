"""500 random `LSTM` nodes equal onnxruntime for every attribute, to 1e-5.

A group has one set of attributes, one shape, one session and one program; its cases
differ in weights, inputs, lengths and initial states.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx_adapter
import pytest
from onnx_sessions import session

from jaxlstm.interop.onnx.activations import FUNCTIONS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore")]

GROUPS, CASES = 50, 10

# Activations with 1 - f(z) = f(-z) can be coupled, see `interop.onnx.nodes`.
SYMMETRIC = ["Sigmoid", "HardSigmoid"]
GATES = [*SYMMETRIC, "Tanh", "Softsign", "Affine"]
SQUASHING = ["Tanh", "Sigmoid", "HardSigmoid", "ScaledTanh", "Softsign"]
OTHERS = [
    *SQUASHING,
    "Relu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Elu",
    "Softplus",
    "Affine",
]


class Shape(NamedTuple):
    """T steps, b rows, D features, H units, and one direction or two."""

    time: int
    rows: int
    features: int
    hidden: int
    ways: int


def draw_attributes(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Draw attributes; half of the nodes have other activations, alphas and betas."""
    coupled = n % 3 == 0
    attributes: dict[str, Any] = {
        "hidden_size": int(rng.integers(1, 6)),
        "direction": ("forward", "reverse", "bidirectional")[int(rng.integers(3))],
        "input_forget": int(coupled),
    }
    if rng.random() < 0.5:
        attributes["clip"] = float(np.float32(rng.uniform(0.2, 2.0)))
    if rng.random() < 0.5:
        ways = 1 + (attributes["direction"] == "bidirectional")
        gates = SYMMETRIC if coupled else GATES
        names = [rng.choice(of) for _ in range(ways) for of in (gates, OTHERS, OTHERS)]
        attributes |= activations(rng, list(map(str, names)), coupled)
    return attributes


def activations(rng, names: list[str], coupled: bool) -> dict[str, Any]:
    """Draw alphas and betas for the activations that have them."""
    alphas, betas = [], []
    for position, name in enumerate(names):
        defaults = FUNCTIONS[name].defaults
        alphas += list(rng.uniform(0.2, 0.8, len(defaults[:1])))
        about = 0.5 if coupled and position % 3 == 0 else rng.uniform(0.2, 0.8)
        betas += [about] * len(defaults[1:])
    numbers = {"activation_alpha": alphas, "activation_beta": betas}
    exact = {key: [float(np.float32(a)) for a in own] for key, own in numbers.items()}
    return {"activations": names} | {key: own for key, own in exact.items() if own}


def draw_inputs(rng, shape: Shape, optional: set[str]) -> dict[str, np.ndarray]:
    """Draw tensors: lengths from 0 to T; optional inputs for a whole group or none."""
    time, rows, features, hidden, ways = shape
    sizes = {
        "X": (time, rows, features),
        "W": (ways, 4 * hidden, features),
        "R": (ways, 4 * hidden, hidden),
        "B": (ways, 8 * hidden),
        "P": (ways, 3 * hidden),
        "initial_h": (ways, rows, hidden),
        "initial_c": (ways, rows, hidden),
    }
    expected = {"X", "W", "R"} | optional
    inputs = {
        name: rng.normal(size=size, scale=0.7).astype(np.float32)
        for name, size in sizes.items()
        if name in expected
    }
    if "sequence_lens" in expected:
        inputs["sequence_lens"] = rng.integers(0, time + 1, rows, dtype=np.int32)
    return inputs


OPTIONAL = ("B", "P", "sequence_lens", "initial_h", "initial_c")


def group(n: int):
    """Return generator, attributes, shape and optional inputs of a node."""
    rng = np.random.default_rng([41, n])
    attributes = draw_attributes(rng, n)
    ways = 1 + (attributes["direction"] == "bidirectional")
    time, rows, features = map(int, rng.integers((2, 1, 1), (9, 5, 5)))
    shape = Shape(time, rows, features, attributes["hidden_size"], ways)
    optional = {name for name in OPTIONAL if rng.random() < 0.6}
    return rng, attributes, shape, optional


def identity(n: int) -> str:
    _, attributes, _, optional = group(n)
    words = [attributes["direction"], *sorted(optional)]
    words += ["coupled"] if attributes["input_forget"] else []
    words += [name for name in ("clip",) if name in attributes]
    return "-".join(words + attributes.get("activations", []))


@pytest.mark.parametrize("n", range(GROUPS), ids=identity)
def test_onnxruntime(n):
    rng, attributes, shape, optional = group(n)
    node = session(attributes, optional)
    for _ in range(CASES):
        inputs = draw_inputs(rng, shape, optional)
        got, expected = onnx_adapter.run(attributes, inputs), node(inputs)
        lengths = inputs.get("sequence_lens", np.full(shape.rows, shape.time))
        close(got.Y, expected.Y)
        close(got.Y_h[:, lengths > 0], expected.Y_h[:, lengths > 0])
        close(got.Y_c[:, lengths > 0], expected.Y_c[:, lengths > 0])
        ends_of_empty_rows(got, expected, inputs, lengths == 0)


def ends_of_empty_rows(got, expected, inputs, empty) -> None:
    """The definitions differ: theirs ends in zeros, ours keeps the initial state."""
    for end, begin in (("Y_h", "initial_h"), ("Y_c", "initial_c")):
        assert not getattr(expected, end)[:, empty].any()
        began = inputs.get(begin, np.zeros_like(expected.Y_h))
        np.testing.assert_array_equal(getattr(got, end)[:, empty], began[:, empty])


def close(got, expected) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_every_attribute_is_drawn():
    """Each attribute occurs at least five times."""
    groups = [group(n)[1::2] for n in range(GROUPS)]
    seen = [word for _, optional in groups for word in optional]
    seen += [attributes["direction"] for attributes, _ in groups]
    seen += [f"coupled {attributes['input_forget']}" for attributes, _ in groups]
    seen += [f"clip {'clip' in attributes}" for attributes, _ in groups]
    seen += ["coupled peepholes" for a, o in groups if a["input_forget"] and "P" in o]
    used = [name for a, _ in groups for name in a.get("activations", ())]
    for word in {*OPTIONAL, "forward", "reverse", "bidirectional", "coupled 1",
                 "clip True", "clip False", "coupled peepholes"}:  # fmt: skip
        assert seen.count(word) >= 5, word
    assert set(used) == {*GATES, *OTHERS}
