"""Drawing and checking of parameters with an explicit gate axis.

The annotations of a record of parameters define the shapes of its leaves: equal
letters are equal sizes. Checks and error messages are derived from them.
"""

import functools
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells.base import (
    ACTIVATIONS,
    Cell,
    Edit,
    Params,
    Project,
    check_size,
)
from jaxlstm.cells.products import affine
from jaxlstm.construction import constructor
from jaxlstm.initializers import (
    CANDIDATE,
    FORGET,
    INPUT,
    NO_FORGET_BIAS,
    OUTPUT,
    Preset,
    name_and_forget_bias,
    resolve_preset,
)
from jaxlstm.typing import Key, as_key

Options = ParamSpec("Options")

EVERY_GATE = (INPUT, FORGET, CANDIDATE, OUTPUT)

EDITED = {"candidate": "candidate g", "cell": "cell state c"}

Axes = tuple[str, ...]
Shape = tuple[int, ...]


def cell_constructor(function: Callable[Options, Cell]) -> Callable[Options, Cell]:
    """Decorate a constructor of cells that takes activations and a preset."""
    return constructor(function, canonical=canonical_options)


def canonical_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a cell, with names for functions and presets that have one.

    Cells with equal activations and initializers are the same object, and their
    recorded options must not depend on which of them was made first.
    """
    names = {function: name for name, function in ACTIVATIONS.items()}
    canonical = {
        name: names.get(value, value) if name.endswith("activation") else value
        for name, value in options.items()
    }
    init = options["init"]
    if not isinstance(init, Preset):
        return canonical
    name, bias = name_and_forget_bias(init)
    if name is not None and "forget_bias" in options:
        canonical |= {"init": name, "forget_bias": bias}
    elif name is not None and resolve_preset(name, NO_FORGET_BIAS) == init:
        canonical["init"] = name
    return canonical


def draw(
    init: Preset,
    key: Key,
    input_size: int,
    hidden_size: int,
    dtype: DTypeLike,
    *,
    gates: tuple[int, ...] = EVERY_GATE,
    recurrent_size: int | None = None,
) -> tuple[Array, Array, Array]:
    """Draw `w_x [D, n, H]`, `w_h [R, n, H]` and `b [n, H]` for n gates.

    Args:
        init: initializers of the three.
        key: one random key.
        input_size: D.
        hidden_size: H.
        dtype: a floating point dtype.
        gates: for each gate, its row in the bias `[4, H]` of an LSTM.
        recurrent_size: R, the size of h; None for H.

    Raises:
        ValueError: a size is not an integer >= 1, or the dtype is not floating point.
        TypeError: the key is not one random key.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype: got {jnp.dtype(dtype)}, expected a floating point dtype."
        )
    check_size("input_size", input_size)
    check_size("hidden_size", hidden_size)
    recurrent_size = hidden_size if recurrent_size is None else recurrent_size
    keys = jax.random.split(as_key("init", key), 3)
    b = init.b(keys[2], (4, hidden_size), dtype)
    return (
        init.w_x(keys[0], (input_size, len(gates), hidden_size), dtype),
        init.w_h(keys[1], (recurrent_size, len(gates), hidden_size), dtype),
        b if gates == EVERY_GATE else b[jnp.array(gates)],
    )


def sizes(record: type, params: Params, *, without: Axes = ()) -> dict[str, int]:
    """Return the size of each letter in the annotations of the record.

    Args:
        record: a NamedTuple type whose fields are annotated with their shapes.
        params: an instance of it.
        without: names of the fields that are None.

    Raises:
        ValueError: params is not such a record, a leaf is not floating point, or the
            shapes of the leaves contradict each other.
    """
    expected = {
        name: None if name in without else axes for name, axes in _axes(record).items()
    }
    shown = ", ".join(f"{name} {_show(axes)}" for name, axes in expected.items())
    if not isinstance(params, record):
        raise ValueError(
            f"params: got {type(params).__name__}{_difference(params, expected)}, "
            f"expected {record.__name__}({shown})."
        )
    for name, leaf in zip(expected, params, strict=True):
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params.{name}: got dtype {jnp.result_type(leaf)}, expected a real "
                "floating point dtype."
            )
    shapes = [None if leaf is None else tuple(jnp.shape(leaf)) for leaf in params]
    found: dict[str, int] = {}
    pairs = zip(expected.values(), shapes, strict=True)
    fits = [_fits(axes, shape, found) for axes, shape in pairs]
    if not all(fits):
        got = ", ".join(
            f"{name} {_show(shape)}"
            for name, shape in zip(expected, shapes, strict=True)
        )
        raise ValueError(
            f"params: got shapes {got}, expected {record.__name__}({shown}) with one "
            "size per letter."
        )
    return found


def _difference(params: Params, expected: Collection[str]) -> str:
    """Return " without a, b with c": the missing and the unknown leaves of params."""
    is_mapping = isinstance(params, Mapping)
    names = tuple(params) if is_mapping else getattr(params, "_fields", ())
    missing = [str(name) for name in expected if name not in names]
    unknown = [str(name) for name in names if name not in expected]
    text = (" without " * bool(missing) + ", ".join(missing)) if names else ""
    return text + (" with " * bool(unknown) + ", ".join(unknown))


def _show(axes: Axes | Shape | None) -> str:
    return "None" if axes is None else f"[{', '.join(map(str, axes))}]"


def _fits(axes: Axes | None, shape: Shape | None, found: dict[str, int]) -> bool:
    """Return whether the shape has these axes; new letters are recorded in `found`."""
    if axes is None or shape is None:
        return axes is shape
    if axes[0].startswith("*"):
        rest = len(shape) - len(axes) + 1
        names = (f"{axes[0][1:]}{k}" for k in range(rest))
        axes = (*names, *axes[1:])
    return len(axes) == len(shape) and all(
        size == (int(axis) if axis.isdigit() else found.setdefault(axis, size))
        for axis, size in zip(axes, shape, strict=True)
    )


@functools.cache
def _axes(record: type) -> dict[str, Axes]:
    """Return `{"w_x": ("D", "4", "H"), ...}` from the annotations of the record."""
    hints = typing.get_type_hints(record)
    arrays = {name: (*typing.get_args(hint), hint)[0] for name, hint in hints.items()}
    return {name: tuple(array.dim_str.split()) for name, array in arrays.items()}


def affine_project(record: type, *, without: Axes = ()) -> Project:
    """Return the `project` of most cells: `W_x x_t + b`, as `lstm.project`."""

    def project(params: Params, x: Array) -> Array:
        sizes(record, params, without=without)
        return affine(x, params.w_x, params.b)

    return project


def reject_edits(cell: str, edit: Edit, *names: str) -> None:
    """Raise a `ValueError` if `edit` has one of the edits `names`."""
    for name in names:
        if getattr(edit, name) is not None:
            raise ValueError(
                f"{cell}: got an edit of the {EDITED[name]}, which this cell does not "
                "have; use another wrapper or another cell."
            )
