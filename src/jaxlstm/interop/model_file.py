"""A model and its parameters in one safetensors file, readable in any language.

The tensors are named by their path in the parameters, such as "rnn/0/w_x". The metadata
of the file hold three strings:

    model    the calls that construct the model, as JSON
    inputs   the number of input features, as JSON; null for tokens
    sha256   a hash of names, dtypes, shapes and bytes of the tensors

A call is an object with one key, the name of a constructor, and its arguments:

    {"serial": {"layers": [], "named": {
        "rnn": {"recurrent": {"cell": {"lstm": {"forget_bias": 1.0, ...}}, ...}},
        "head": {"linear": {"size": 2}}}}}

Only the constructors in `CONSTRUCTORS` are called when a file is read, and their
parameters are compared with the tensors before any is used.
"""

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlstm import initializers
from jaxlstm.cells import (
    classic,
    convolutional,
    coupled,
    gru,
    lstm,
    normalized,
    peephole,
    projected,
    simple,
    wrappers,
)
from jaxlstm.cells.base import Cell, Params
from jaxlstm.construction import Construction, construction_of
from jaxlstm.initializers import Preset
from jaxlstm.interop import files
from jaxlstm.interop.inputs import inputs_of
from jaxlstm.interop.trees import hash_arrays, named_leaves
from jaxlstm.interop.writing import write_atomic
from jaxlstm.layers import combine, pointwise
from jaxlstm.layers.base import Layer, check_model
from jaxlstm.layers.recurrent import recurrent
from jaxlstm.masking import error_prefix
from jaxlstm.typing import show

FORMAT = "1"
MAX_CHARACTERS = 2**20
MAX_CALLS = 10_000
MAX_DEPTH = 60

_FUNCTIONS: list[Callable[..., Any]] = [
    classic.classic_lstm,
    convolutional.conv_lstm,
    coupled.coupled_lstm,
    gru.gru,
    lstm.lstm,
    normalized.layer_norm_lstm,
    peephole.peephole_lstm,
    projected.projected_lstm,
    simple.simple_rnn,
    wrappers.clip_cell,
    wrappers.learned_initial_state,
    wrappers.recurrent_dropout,
    wrappers.taps,
    wrappers.variational_dropout,
    wrappers.weight_drop,
    wrappers.zoneout,
    combine.bidirectional,
    combine.residual,
    combine.serial,
    combine.stack,
    pointwise.dropout,
    pointwise.embed,
    pointwise.linear,
    recurrent,
]
_INITIALIZERS: dict[type, Callable[..., Any]] = {
    initializers.ChronoBias: initializers.chrono_bias,
    initializers.ForgetBias: initializers.forget_bias,
    initializers.GlorotFused: initializers.glorot_fused,
    initializers.LecunPerGate: initializers.lecun_per_gate,
    initializers.OrthogonalFused: initializers.orthogonal_fused,
    initializers.OrthogonalPerGate: initializers.orthogonal_per_gate,
    initializers.Uniform: initializers.uniform,
}
CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in _FUNCTIONS},
    **{function.__name__: function for function in _INITIALIZERS.values()},
    "preset": Preset,
}


def save(path: str | os.PathLike[str], model: Layer, params: Params) -> None:
    """Write a model and its parameters.

    Args:
        path: the file, named `.safetensors`; an existing one is replaced.
        model: a model of the layers and cells of this package.
        params: its parameters.

    Raises:
        ValueError: the model has a layer, cell or function of your own, which data
            cannot describe; or the parameters are not those of the model.
        OSError: the file cannot be written.

    Example:
        >>> import jax, tempfile, jaxlstm as jl
        >>> model = jl.serial(embed=jl.embed(9, 4), rnn=jl.recurrent(jl.lstm(), 5))
        >>> params, _ = model.init(jax.random.key(0))
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> jl.interop.model_file.save(path, model, params)
        >>> params, again = jl.interop.model_file.load(path)
        >>> again == model, params["rnn"].w_x.shape
        (True, (4, 4, 5))
    """
    from safetensors.numpy import save as to_bytes

    check_model(model)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: got a file named {path.suffix or 'without a suffix'}, expected "
            ".safetensors."
        )
    described = to_data(model)
    found = inputs_of(model, params)
    size = None if found.vocabulary is not None else found.shape[-1]
    arrays = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    with error_prefix("params"):
        _check_shapes(_expected(model, size), arrays)
    metadata = {
        "format": FORMAT,
        "model": json.dumps(described),
        "inputs": json.dumps(size),
        "sha256": hash_arrays(arrays),
    }
    write_atomic(path, to_bytes(arrays, metadata=metadata))


def load(path: str | os.PathLike[str]) -> tuple[Params, Layer]:
    """Return the parameters and the model of a file that `save` wrote.

    The file may come from anywhere: nothing in it is executed, and nothing is allocated
    before its size is known to be in the file. float64 becomes float32 unless JAX's x64
    mode is on.

    Raises:
        ValueError: the file is damaged or describes no model, or its tensors are not
            those of the model.
        OSError: it cannot be opened.
    """
    path = Path(path)
    arrays = files.read(path)
    metadata = _metadata(path)
    with error_prefix(str(path)):
        if metadata.get("format") != FORMAT or not {"model", "inputs"} <= set(metadata):
            raise ValueError(
                f"got tensors without a model in format {FORMAT}, expected a file that "
                "jaxlstm.interop.model_file.save wrote; read the tensors alone with "
                "jaxlstm.interop.files.read."
            )
        if metadata.get("sha256") not in (None, hash_arrays(arrays)):
            raise ValueError("got a damaged file: its tensors are not as written.")
        model = from_data(_json("model", metadata["model"]))
        if not isinstance(model, Layer):
            raise ValueError("model: got a cell or initializer, expected a layer.")
        expected = _expected(model, _json("inputs", metadata["inputs"]))
        _check_shapes(expected, arrays)
        leaves = [_to_jax(name, arrays[name]) for name in named_leaves(expected)]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves), model


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:  # `files.read` has checked it
        return file.metadata() or {}


def _to_jax(name: str, array: np.ndarray) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name}: got dtype {array.dtype}, expected floating point.")
    return jnp.asarray(array.astype(jax.dtypes.canonicalize_dtype(array.dtype)))


def _expected(model: Layer, input_size: Any) -> Params:
    """Return the shapes of the model's parameters, without drawing them.

    Raises:
        ValueError: the model cannot read inputs of this size.
    """
    try:
        key = jax.eval_shape(jax.random.key, 0)
        return jax.eval_shape(lambda key: model.init(key, input_size)[0], key)
    except (TypeError, OverflowError, IndexError) as error:
        raise ValueError(f"model: got sizes that fit no parameters: {error}") from None


def _check_shapes(expected: Params, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise a `ValueError` if arrays have other names or shapes than parameters."""
    leaves = named_leaves(expected)
    for name in sorted(leaves.keys() | arrays.keys()):
        got = show(arrays[name].shape) if name in arrays else "no array"
        wanted = show(leaves[name].shape) if name in leaves else "no array"
        if got != wanted:
            raise ValueError(f"{name}: got {got}, expected {wanted} for this model.")


# -- the model as data -----------------------------------------------------------------


def to_data(value: Any, place: str = "model") -> Any:
    """Return a layer, cell or argument as numbers, strings, lists and dicts.

    Args:
        value: the layer, cell or argument.
        place: its name, for messages.

    Raises:
        ValueError: it has a function of your own.

    Example:
        >>> import jaxlstm as jl
        >>> to_data(jl.linear(2))
        {'linear': {'size': 2}}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, Preset):
        fields = value._asdict()
        return {"preset": _items(fields, place)}
    if type(value) in _INITIALIZERS:
        fields = dataclasses.asdict(value)
        return {_INITIALIZERS[type(value)].__name__: _items(fields, place)}
    if isinstance(value, dict):
        return _items(value, place)
    if isinstance(value, Layer | Cell):
        construction = construction_of(value)
        if construction is None:
            kind = type(value).__name__
            raise ValueError(
                f"{place}: got a {kind} that no constructor of jaxlstm made, expected "
                "one that data can describe; save the parameters alone."
            )
        name = construction.function.__name__
        return {name: _items(construction.arguments, f"{place}.{name}")}
    if isinstance(value, tuple):
        return [to_data(item, f"{place}[{n}]") for n, item in enumerate(value)]
    raise ValueError(
        f"{place}: got {value!r:.60}, expected a value that data can describe, such as "
        "the name of an activation; save the parameters alone."
    )


def _items(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    return {name: to_data(value, f"{place}.{name}") for name, value in values.items()}


def from_data(data: Any) -> Any:
    """Return the layer, cell or argument that `to_data` described.

    Raises:
        ValueError: a constructor is unknown, or its arguments are wrong.

    Example:
        >>> import jaxlstm as jl
        >>> from_data({"linear": {"size": 2}}) == jl.linear(2)
        True
        >>> from_data({"eval": {"source": "1"}})
        Traceback (most recent call last):
        ValueError: model: got the constructor 'eval', expected one of ...
    """
    return _Reader().read(data, "model", 0)


class _Reader:
    """Conversion of data to a model that counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def read(self, data: Any, place: str, depth: int) -> Any:
        """Return the value at a place of the data."""
        if isinstance(data, list):
            self.count(place, depth, len(data))
            return tuple(
                self.read(item, f"{place}[{n}]", depth + 1)
                for n, item in enumerate(data)
            )
        return self.call(data, place, depth) if isinstance(data, dict) else data

    def call(self, data: Any, place: str, depth: int) -> Any:
        """Return the result of a constructor."""
        self.count(place, depth, 1)
        if len(data) != 1 or not isinstance(next(iter(data.values())), dict):
            raise ValueError(
                f"{place}: got an object with the keys {', '.join(data)!r:.60}, "
                "expected one constructor with its arguments."
            )
        [(name, options)] = data.items()
        if name not in CONSTRUCTORS:
            raise ValueError(
                f"{place}: got the constructor {name!r:.60}, expected one of "
                f"{', '.join(sorted(CONSTRUCTORS))}."
            )
        function, place = CONSTRUCTORS[name], f"{place}.{name}"
        known = inspect.signature(function).parameters
        if unknown := [option for option in options if option not in known]:
            raise ValueError(
                f"{place}: got the argument {unknown[0]!r:.60}, expected some of "
                f"{', '.join(known) or 'none'}."
            )
        arguments = {
            option: self.argument(name, option, value, place, depth + 1)
            for option, value in options.items()
        }
        try:
            return Construction(function, arguments).build()
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{place}: {error}") from None

    def argument(
        self, function: str, option: str, value: Any, place: str, depth: int
    ) -> Any:
        """Return an argument; `named` of serial is a dict of layers, not a call."""
        place = f"{place}.{option}"
        if (function, option) != ("serial", "named"):
            return self.read(value, place, depth)
        if not isinstance(value, dict):
            raise ValueError(f"{place}: got {value!r:.60}, expected layers by name.")
        return {
            name: self.read(layer, f"{place}.{name}", depth + 1)
            for name, layer in value.items()
        }

    def count(self, place: str, depth: int, calls: int) -> None:
        """Raise a `ValueError` for data that is deeper or larger than any model."""
        self.calls += calls
        if depth > MAX_DEPTH or self.calls > MAX_CALLS:
            raise ValueError(
                f"{place:.60}: got more than {MAX_CALLS:,} calls, or {MAX_DEPTH} in "
                "each other, expected those of one model."
            )


def _json(name: str, text: str) -> Any:
    """Return the data of JSON text of limited size, without NaN and infinities."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{name}: got {len(text):,} characters, expected at most "
            f"{MAX_CHARACTERS:,}."
        )

    def refuse(number: str) -> Any:
        raise ValueError(f"got {number}, expected finite numbers")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: got no valid JSON ({error}).") from None
