"""onnxruntime: `LSTM` or `GRU` nodes in sequence, inference only, time first."""

import os
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.cases import Case, Inputs, Weights
from benchmarks.peers.base import Contender, Prepared, Program, merge_gate_axis

ORDER = {"lstm": np.array([0, 3, 1, 2]), "gru": np.array([1, 0, 2])}  # its gates


def supports(case: Case) -> str | None:
    """Return why a case is not supported: inference of plain cells only."""
    if case.cell not in ORDER:
        return "ONNX has nodes for the usual LSTM and the GRU only"
    if "forward" not in case.measures and "step" not in case.measures:
        return "onnxruntime computes no gradients"
    return None


def _graph(case: Case, inputs: Inputs, states: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Return the graph X [T, B, D] -> Y [T, B, output_size], with named states."""
    nodes, constants, flow = (
        [],
        [_constant("shape", np.array([0, 0, -1], np.int64))],
        "X",
    )
    lengths = "" if inputs.lengths is None else "lengths"
    kind = case.cell.upper()
    options: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    for n, directions in enumerate(inputs.layers):
        own = _weights(directions, ORDER[case.cell])
        constants += [_constant(f"{k}{n}", v) for k, v in own.items()]
        nodes.append(
            helper.make_node(
                kind,
                [flow, f"W{n}", f"R{n}", f"B{n}", lengths, *states],
                [f"Y{n}", *(f"{state}_after" for state in states)],
                hidden_size=case.units,
                direction="bidirectional" if case.bidirectional else "forward",
                **options,
            )
        )
        nodes.append(
            helper.make_node("Transpose", [f"Y{n}"], [f"t{n}"], perm=[0, 2, 1, 3])
        )
        flow = f"h{n}" if n + 1 < len(inputs.layers) else "Y"
        nodes.append(helper.make_node("Reshape", [f"t{n}", "shape"], [flow]))
    given = ["X", *([lengths] if lengths else []), *states]
    gives = ["Y", *(f"{state}_after" for state in states)]
    graph = helper.make_graph(
        nodes, "lstm", [_typed(n) for n in given], [_typed(n) for n in gives], constants
    )
    opset = helper.make_opsetid("", 14)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def _weights(directions: list[Weights], order: np.ndarray) -> dict[str, np.ndarray]:
    """Return W [d, GH, D], R [d, GH, H], B [d, 2GH]; the second bias is 0."""
    ordered = [
        Weights(w.w_x[:, order], w.w_h[:, order], w.b[order]) for w in directions
    ]
    w, r, b = (
        np.stack([merge_gate_axis(leaf).T for leaf in leaves])
        for leaves in zip(*ordered, strict=True)
    )
    return {"W": w, "R": r, "B": np.concatenate([b, 0 * b], axis=-1)}


def _constant(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(value), name)


def _typed(name: str) -> onnx.ValueInfoProto:
    kinds = onnx.TensorProto
    kind = kinds.INT32 if name == "lengths" else kinds.FLOAT
    return helper.make_tensor_value_info(name, kind, None)


def _session(model: onnx.ModelProto) -> Any:
    """Return a session with one thread per available core."""
    options = onnxruntime.SessionOptions()
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def forward(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of the outputs."""
    session = _session(_graph(case, inputs))
    feed: dict[str, np.ndarray] = {"X": inputs.xs}
    if inputs.lengths is not None:
        feed["lengths"] = inputs.lengths
    return Prepared(
        lambda: Program(lambda: session.run(["Y"], feed)[0]), compiled=False
    )


def step(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of a sequence of one step whose state is fed back."""
    states = ("h", "c")
    session = _session(_graph(case, inputs, states))
    zeros = np.zeros((1, case.batch, case.units), np.float32)

    def compiled() -> Program:
        feed = {"X": inputs.xs, "h": zeros, "c": zeros}

        def run() -> np.ndarray:
            ys, feed["h"], feed["c"] = session.run(None, feed)
            return ys[0]

        return Program(run)

    return Prepared(compiled, compiled=False)


CONTENDERS = (Contender("onnxruntime", "onnxruntime", supports, forward, None, step),)
