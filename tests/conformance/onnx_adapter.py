"""Runs an ONNX `LSTM` node, given by attributes and tensors, as a model of jaxlstm.

The node is written to a file with its weights, and the file is read by
`jaxlstm.interop.onnx.load`. Without the package onnx, the same graph is passed to the
reader as records. Lengths and initial states are inputs of the graph.
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxlstm as jl
from jaxlstm.interop.onnx import reader
from jaxlstm.interop.onnx.graph import Graph, Input, Node
from jaxlstm.interop.onnx.nodes import INPUTS

INSTALLED = importlib.util.find_spec("onnx") is not None
WEIGHTS = ("W", "R", "B", "P")


class Output(NamedTuple):
    """The outputs of a node: `Y [T, d, b, H]`, `Y_h` and `Y_c [d, b, H]`."""

    Y: np.ndarray
    Y_h: np.ndarray
    Y_c: np.ndarray


def run(attributes: dict[str, Any], inputs: dict[str, np.ndarray]) -> Output:
    """Return the outputs of this library; a row of length 0 keeps its state."""
    params, model = loaded(attributes, inputs)
    batch_first = attributes.get("layout", 0) == 1
    if batch_first:
        sequences = ("X", "initial_h", "initial_c")
        turned = {n: np.swapaxes(inputs[n], 0, 1) for n in sequences if n in inputs}
        inputs = {**inputs, **turned}
    ways = len(inputs["W"])
    rows, size = inputs["X"].shape[1], inputs["R"].shape[2]
    zeros = np.zeros((ways, rows, size), np.float32)
    h, c = (inputs.get(name, zeros) for name in ("initial_h", "initial_c"))
    states = [jl.LSTMState(*map(jnp.asarray, (h[n], c[n]))) for n in range(ways)]
    state = jl.Pair(*states) if ways == 2 else states[0]
    state, ys = model.apply(
        params, inputs["X"], state, lengths=inputs.get("sequence_lens")
    )
    states = state if ways == 2 else [state]
    y = np.moveaxis(np.reshape(ys, (*ys.shape[:2], ways, size)), 2, 1)
    h, c = (np.stack([getattr(s, name) for s in states]) for name in "hc")
    if batch_first:
        return Output(np.moveaxis(y, 2, 0), h.swapaxes(0, 1), c.swapaxes(0, 1))
    return Output(y, h, c)


def loaded(attributes: dict[str, Any], inputs: dict[str, np.ndarray]):
    """Return params and model of the node, as the reader gives them."""
    if not INSTALLED:
        return reader.build(records(attributes, inputs))
    from onnx_sessions import model

    optional = set(inputs) - {"X", "W", "R"}
    weights = {name: inputs[name] for name in WEIGHTS if name in inputs}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "node.onnx"
        path.write_bytes(model(attributes, optional, weights).SerializeToString())
        return reader.load(path)


def records(attributes: dict[str, Any], inputs: dict[str, np.ndarray]) -> Graph:
    """Return the graph that the reader finds in the file."""
    names = tuple(name if name in inputs else "" for name in INPUTS)
    node = Node("lstm", "LSTM", names, Output._fields, attributes)
    weights = {name: inputs[name] for name in WEIGHTS if name in inputs}
    free = tuple(
        Input(name, None, name == "sequence_lens")
        for name in names
        if name and name not in weights
    )
    return Graph(free, Output._fields, (node,), weights)
