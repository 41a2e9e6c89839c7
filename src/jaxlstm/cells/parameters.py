"""Parameters with an explicit gate axis: how they are drawn, and if they fit.

The annotations of a record of parameters are the shapes that its leaves must have:
equal letters are equal sizes, and a number is itself. What is written there is what
is checked, and what the messages say.
"""

import functools
import typing
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.cells.base import (
    Edit,
    Params,
    Project,
    check_size,
)
from jaxlstm.cells.products import affine
from jaxlstm.initializers import CANDIDATE, FORGET, INPUT, OUTPUT, Preset
from jaxlstm.typing import Key, as_key

EVERY_GATE = (INPUT, FORGET, CANDIDATE, OUTPUT)

EDITED = {"candidate": "candidate that is written", "cell": "cell state c"}

Axes = tuple[str, ...]
Shape = tuple[int, ...]


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
    """`w_x [D, n, H]`, `w_h [R, n, H]`, `b [n, H]` for n gates.

    Arguments:
        gates: which rows of the bias of an LSTM the gates get, and how many there are.
        recurrent_size: R, what the recurrent product reads; None for H.

    Errors: `ValueError` where a size is no whole number from 1, or the dtype is not
    one of floating point numbers; `TypeError` for a key that is none.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype is {jnp.dtype(dtype)}; parameters are floating point numbers."
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
    """The size of each letter in the annotations of the record.

    Arguments:
        record: a NamedTuple whose fields are annotated with their shapes.
        params: one of them.
        without: the fields that are None.

    Errors: `ValueError` where params is of another kind, a leaf is not of floating
    point numbers, or the shapes of the leaves do not belong together.
    """
    wanted = {
        name: None if name in without else axes for name, axes in _axes(record).items()
    }
    shown = ", ".join(f"{name} {_show(axes)}" for name, axes in wanted.items())
    if not isinstance(params, record):
        raise ValueError(
            f"params is a {type(params).__name__}{_contrast(params, wanted)}; "
            f"{record.__name__}({shown}) is needed."
        )
    for name, leaf in zip(wanted, params, strict=True):
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params.{name} has dtype {jnp.result_type(leaf)}; real floating point "
                "numbers are needed."
            )
    shapes = [None if leaf is None else tuple(jnp.shape(leaf)) for leaf in params]
    found: dict[str, int] = {}
    fits = [_fits(*pair, found) for pair in zip(wanted.values(), shapes, strict=True)]
    if not all(fits):
        came = ", ".join(
            f"{name} {_show(shape)}" for name, shape in zip(wanted, shapes, strict=True)
        )
        raise ValueError(
            f"params do not belong together: {record.__name__} wants {shown}; "
            f"these are {came}."
        )
    return found


def _contrast(params: Params, wanted: Collection[str]) -> str:
    """Which leaves are missing, and which are not known: the end of a clause."""
    named = isinstance(params, Mapping)
    there = tuple(params) if named else getattr(params, "_fields", ())
    missing = [str(name) for name in wanted if name not in there]
    unknown = [str(name) for name in there if name not in wanted]
    words = (" without " * bool(missing) + ", ".join(missing)) if there else ""
    return words + (" with " * bool(unknown) + ", ".join(unknown))


def _show(axes: Axes | Shape | None) -> str:
    return "None" if axes is None else f"[{', '.join(map(str, axes))}]"


def _fits(axes: Axes | None, shape: Shape | None, found: dict[str, int]) -> bool:
    """Whether the shape has these axes; letters seen first are noted in `found`."""
    if axes is None or shape is None:
        return axes is shape
    if axes[0].startswith("*"):  # any number of axes
        rest = len(shape) - len(axes) + 1
        names = (f"{axes[0][1:]}{k}" for k in range(rest))
        axes = (*names, *axes[1:])
    return len(axes) == len(shape) and all(
        size == (int(axis) if axis.isdigit() else found.setdefault(axis, size))
        for axis, size in zip(axes, shape, strict=True)
    )


@functools.cache
def _axes(record: type) -> dict[str, Axes]:
    """`{"w_x": ("D", "4", "H"), ...}`, read from the annotations."""
    hints = typing.get_type_hints(record)
    arrays = {name: (*typing.get_args(hint), hint)[0] for name, hint in hints.items()}
    return {name: tuple(array.dim_str.split()) for name, array in arrays.items()}


def projecting(record: type, *, without: Axes = ()) -> Project:
    """The `project` of most cells: `W_x x_t + b`, as `lstm.project` has it."""

    def project(params: Params, x: Array) -> Array:
        sizes(record, params, without=without)
        return affine(x, params.w_x, params.b)

    return project


def refuse(cell: str, edit: Edit, *lacks: str) -> None:
    """Errors: `ValueError` for the edit of something that the cell lacks."""
    for name in lacks:
        if getattr(edit, name) is not None:
            raise ValueError(
                f"{cell} has no {EDITED[name]}, so nothing can be done to it; use a "
                "wrapper that leaves it alone, or a cell that has one."
            )
