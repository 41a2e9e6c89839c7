"""One ONNX `LSTM` node as a model, and as a function that onnxruntime runs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from onnx_adapter import Output

from jaxlstm.interop.onnx.nodes import INPUTS

NO_WEIGHTS: Mapping[str, np.ndarray] = {}


def model(
    attributes: dict[str, Any],
    optional: Iterable[str] = (),
    weights: Mapping[str, np.ndarray] = NO_WEIGHTS,
):
    """Return a model of this node with free shapes and only the named inputs.

    Weights are stored in the model instead of being inputs.
    """
    helper = pytest.importorskip("onnx.helper")
    kinds = pytest.importorskip("onnx").TensorProto
    given = {"X", "W", "R", *optional}
    names = [name if name in given else "" for name in INPUTS]
    node = helper.make_node("LSTM", names, list(Output._fields), **attributes)

    def tensors(names: Iterable[str]):
        kind = {"sequence_lens": kinds.INT32}
        return [
            helper.make_tensor_value_info(name, kind.get(name, kinds.FLOAT), None)
            for name in names
            if name and name not in weights
        ]

    to_tensor = pytest.importorskip("onnx.numpy_helper").from_array
    stored = [to_tensor(array, name) for name, array in weights.items()]
    graph = helper.make_graph(
        [node], "lstm", tensors(names), tensors(Output._fields), stored
    )
    opset = helper.make_opsetid("", 14)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def session(
    attributes: dict[str, Any], optional: Iterable[str] = ()
) -> Callable[[dict[str, np.ndarray]], Output]:
    """Return the node as a function of its inputs, on one CPU thread."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    content = model(attributes, optional).SerializeToString()
    inference = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: Output(*inference.run(None, inputs))
