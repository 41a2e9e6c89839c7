"""Functions of one step, such as "relu", as ONNX nodes.

one operator    Relu, LeakyRelu, Softmax, …, written and read
a formula       gelu, mish, silu, …, written as several nodes; not read
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Add = Callable[..., str]
"""`add(op, *inputs, **attributes)` adds a node and returns the name of its output;
inputs are names of tensors, or numbers."""


class Operator(NamedTuple):
    """An ONNX operator that is a function of `jax.nn` with these attributes."""

    op: str
    attributes: Mapping[str, float] = {}


SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}

OPERATORS = {
    "celu": Operator("Celu", {"alpha": 1.0}),
    "elu": Operator("Elu", {"alpha": 1.0}),
    "hard_sigmoid": Operator("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "hard_swish": Operator("HardSwish"),
    "leaky_relu": Operator("LeakyRelu", {"alpha": 0.01}),
    "log_softmax": Operator("LogSoftmax", {"axis": -1}),
    "relu": Operator("Relu"),
    "selu": Operator("Selu", SELU),
    "sigmoid": Operator("Sigmoid"),
    "soft_sign": Operator("Softsign"),
    "softmax": Operator("Softmax", {"axis": -1}),
    "softplus": Operator("Softplus"),
    "tanh": Operator("Tanh"),
}
"""Functions that are one operator."""

DEFAULTS = {
    "Celu": {"alpha": 1.0},
    "Elu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "LeakyRelu": {"alpha": 0.01},
    "LogSoftmax": {"axis": -1},
    "Selu": SELU,
    "Softmax": {"axis": -1},
}
"""Attributes of operators that a node does not give."""


def _gelu(add: Add, x: str) -> str:
    """Add the approximation by tanh, the default of `jax.nn.gelu`."""
    cube = add("Mul", add("Mul", x, x), x)
    inner = add("Add", x, add("Mul", cube, 0.044715))
    tanh = add("Tanh", add("Mul", inner, np.sqrt(2 / np.pi)))
    return add("Mul", add("Mul", x, 0.5), add("Add", tanh, 1.0))


def _squareplus(add: Add, x: str) -> str:
    root = add("Sqrt", add("Add", add("Mul", x, x), 4.0))
    return add("Mul", add("Add", x, root), 0.5)


FORMULAS: dict[str, Callable[[Add, str], str]] = {
    "gelu": _gelu,
    "hard_tanh": lambda add, x: add("Clip", x, -1.0, 1.0),
    "identity": lambda add, x: add("Identity", x),
    "log_sigmoid": lambda add, x: add("Neg", add("Softplus", add("Neg", x))),
    "mish": lambda add, x: add("Mul", x, add("Tanh", add("Softplus", x))),
    "relu6": lambda add, x: add("Clip", x, 0.0, 6.0),
    "silu": lambda add, x: add("Mul", x, add("Sigmoid", x)),
    "squareplus": _squareplus,
}
"""Functions that are several nodes, or one with constants as inputs."""


def write(name: str, add: Add, x: str) -> str:
    """Add the nodes of a function, and return the name of its output."""
    if name in OPERATORS:
        op, attributes = OPERATORS[name]
        return add(op, x, **attributes)
    return FORMULAS[name](add, x)


def read(op: str, attributes: Mapping[str, Any], axes: int) -> str | None:
    """Return the name of the function that a node computes; None if it has no name.

    Args:
        op: the operator.
        attributes: the attributes of the node.
        axes: the number of axes of the data, of which the last one are the features.

    Example:
        >>> read("LeakyRelu", {}, 3), read("LeakyRelu", {"alpha": 0.5}, 3)
        ('leaky_relu', None)
    """
    given = {**DEFAULTS.get(op, {}), **attributes}
    if "axis" in given:
        given["axis"] = (given["axis"] + axes) % axes - axes
    for name, (known, numbers) in OPERATORS.items():
        same = known == op and given.keys() == numbers.keys()
        if same and all(np.float32(given[k]) == np.float32(numbers[k]) for k in given):
            return name
    return None
