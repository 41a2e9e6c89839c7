"""Activations of ONNX's recurrent nodes, and those of cells that they correspond to.

A node limits each pre-activation to [-clip, clip] before the activation of a gate or a
candidate. onnxruntime does not clip the input of the output activation, and neither
does this module.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlstm.cells.base import ACTIVATIONS, Activation


class Function(NamedTuple):
    """An activation: the defaults of alpha and beta that it has, and its definition."""

    defaults: tuple[float, ...]
    apply: Callable[..., Array]


FUNCTIONS: dict[str, Function] = {
    "Affine": Function((1.0, 0.0), lambda z, a, b: a * z + b),
    "Elu": Function((1.0,), lambda z, a: jax.nn.elu(z, a)),
    "HardSigmoid": Function((0.2, 0.5), lambda z, a, b: jnp.clip(a * z + b, 0.0, 1.0)),
    "LeakyRelu": Function((0.01,), lambda z, a: jax.nn.leaky_relu(z, a)),
    "Relu": Function((), jax.nn.relu),
    "ScaledTanh": Function((1.0, 1.0), lambda z, a, b: a * jnp.tanh(b * z)),
    "Sigmoid": Function((), jax.nn.sigmoid),
    "Softplus": Function((), jax.nn.softplus),
    "Softsign": Function((), jax.nn.soft_sign),
    "Tanh": Function((), jnp.tanh),
    "ThresholdedRelu": Function((1.0,), lambda z, a: jnp.where(z > a, z, 0.0)),
}
"""The activations of the operators LSTM, GRU and RNN, by their names."""

SIXTH = float(np.float32(1 / 6))


@dataclasses.dataclass(frozen=True)
class NodeActivation:
    """An activation with the numbers and the clip of an ONNX node:

        f(min(max(z, -clip), clip); alpha, beta)

    Equal values are equal activations, so that cells with them are the same object.

    Attributes:
        name: a name from `FUNCTIONS`.
        numbers: alpha and beta, as far as the function has them.
        clip: limit of the pre-activation; None for no limit.

    Example:
        >>> import jax.numpy as jnp
        >>> NodeActivation("LeakyRelu", (0.5,), clip=2.0)(jnp.array([-4.0, 3.0]))
        Array([-1.,  2.], dtype=float32)
    """

    name: str
    numbers: tuple[float, ...] = ()
    clip: float | None = None

    def __call__(self, z: Array) -> Array:
        """Return the activation of z."""
        z = z if self.clip is None else jnp.clip(z, -self.clip, self.clip)
        return FUNCTIONS[self.name].apply(z, *self.numbers)


# Activations that have a name in this library.
NAMED: dict[str, NodeActivation] = {
    "sigmoid": NodeActivation("Sigmoid"),
    "tanh": NodeActivation("Tanh"),
    "relu": NodeActivation("Relu"),
    "softplus": NodeActivation("Softplus"),
    "softsign": NodeActivation("Softsign"),
    "identity": NodeActivation("Affine", (1.0, 0.0)),
    "elu": NodeActivation("Elu", (1.0,)),
    "hard_sigmoid": NodeActivation("HardSigmoid", (SIXTH, 0.5)),
}


def read_activations(
    place: str, attributes: Any, default: Sequence[str], directions: int
) -> list[list[NodeActivation]]:
    """Return the activations of each direction, without the clip.

    Alphas and betas stand in the order of the functions that have one.

    Args:
        place: prefix of error messages.
        attributes: attributes of the node.
        default: names of the activations of one direction.
        directions: 1 or 2.

    Raises:
        ValueError: an unknown name, or a wrong number of names, alphas or betas.
    """
    names = attributes.get("activations") or tuple(default) * directions
    if len(names) != len(default) * directions:
        raise ValueError(
            f"{place}: activations: got {len(names)} names, expected "
            f"{len(default) * directions}."
        )
    known = {name.lower(): name for name in FUNCTIONS}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise ValueError(
            f"{place}: activations: got {unknown[0]!r}, expected one of "
            f"{', '.join(FUNCTIONS)}."
        )
    keys = ("activation_alpha", "activation_beta")
    given: list[Iterator[float]] = [iter(attributes.get(key) or ()) for key in keys]
    found = [_with_numbers(known[name.lower()], given) for name in names]
    for key, rest in zip(keys, given, strict=True):
        if next(rest, None) is not None:
            raise ValueError(
                f"{place}: {key}: got more numbers than {', '.join(names)} have."
            )
    count = len(default)
    return [found[count * n : count * (n + 1)] for n in range(directions)]


def _with_numbers(name: str, given: list[Iterator[float]]) -> NodeActivation:
    pairs = zip(given, FUNCTIONS[name].defaults, strict=False)
    return NodeActivation(name, tuple(float(next(own, other)) for own, other in pairs))


def cell_activation(found: NodeActivation, clip: float | None) -> str | NodeActivation:
    """Return the activation as an option of a cell: a name, if there is one."""
    for name, known in NAMED.items():
        if found == known and clip is None:
            return name
    return dataclasses.replace(found, clip=clip)


def node_activation(place: str, option: str, value: str | Activation) -> NodeActivation:
    """Return the node's activation for an option of a cell.

    Raises:
        ValueError: ONNX has no such activation.
    """
    if isinstance(value, NodeActivation):
        return value
    for name, known in NAMED.items():
        if value in (name, ACTIVATIONS[name]):
            return known
    raise ValueError(
        f"{place}: {option}: got {value!r:.60}, which ONNX's recurrent nodes do not "
        f"have; expected one of {', '.join(NAMED)}, or a NodeActivation."
    )
