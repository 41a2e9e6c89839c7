"""The `Cell` record, its protocols, and the records that its functions exchange."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxlstm import construction
from jaxlstm.typing import (
    Bias,
    Features,
    Hidden,
    InputMatrix,
    Key,
    Params,
    PerStep,
    Projection,
    RecurrentMatrix,
    Reported,
    State,
    exportable,
    show,
)

Activation = Callable[[Array], Array]


@exportable
class Gates(NamedTuple):
    """Pre-activations or activations of the gates, each `[*b, H]`.

    Attributes:
        i: input gate, the factor of the candidate.
        f: forget gate, the factor of the previous cell state.
        g: candidate (input modulation), the value added to the cell state.
        o: output gate, the factor of the squashed cell state in h.
    """

    i: Hidden
    f: Hidden
    g: Hidden
    o: Hidden


@exportable
class LSTMState(NamedTuple):
    """State of an LSTM: hidden state `h` and cell state `c`, each `[*b, H]`."""

    h: Hidden
    c: Hidden


@exportable
class HiddenState(NamedTuple):
    """State of a cell without a cell state: `h [*b, H]`."""

    h: Hidden


@exportable
class LSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [H, 4, H]`, `b [4, H]`, gates in the order of `Gates`."""

    w_x: InputMatrix
    w_h: RecurrentMatrix
    b: Bias


class Recurrent(Protocol):
    """Parameters with a recurrent matrix `w_h [R, n, H]`."""

    @property
    def w_h(self) -> RecurrentMatrix:
        """The matrix that multiplies the hidden state."""
        ...


class Init(Protocol):
    """Draw the parameters. All other functions read sizes from their shapes."""

    def __call__(
        self,
        key: Key,
        input_size: int,
        hidden_size: int,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Params:
        """Return parameters drawn from the key.

        Args:
            key: one random key, such as `jax.random.key(0)`.
            input_size: number of input features.
            hidden_size: number of hidden units.
            dtype: a floating point dtype.
        """
        ...


class InitialState(Protocol):
    """Return the state before the first step, in the dtypes of the carry."""

    def __call__(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        """Return the state for a batch of this shape and inputs of this dtype.

        Args:
            params: the parameters.
            batch_shape: the axes of the inputs between time and features.
            dtype: dtype of the inputs; None for that of the parameters.
        """
        ...


class Project(Protocol):
    """Compute the part of a step that depends on the input only: `x [..., D] -> z`.

    The axes before the features are free and may include time, so that an engine can
    project many steps in one product. The `project` of a cell with a `prepare` takes
    a third argument, the per-step values that `prepare` returned, if any.
    """

    def __call__(self, params: Params, x: Array) -> Projection:
        """Return the projection of x."""
        ...


class Edit(NamedTuple):
    """Functions `[*b, H] -> [*b, H]` that a wrapper applies inside a step, or None.

    Attributes:
        hidden: applied to h_{t-1} where the recurrent product reads it, and not to
            the h in the state.
        candidate: applied to g before it is added to the cell state.
        cell: applied to c_t before it is read by the output gate and carried.
    """

    hidden: Activation | None = None
    candidate: Activation | None = None
    cell: Activation | None = None


UNEDITED = Edit()


class Step(Protocol):
    """Compute one time step: `step(params, state, z) -> (state, gates)`.

    The state is carried to the next step, the gates are reported only. Wrappers such
    as `clip_cell` need a step that also takes `edit=UNEDITED`; it raises a
    `ValueError` for an edit of a quantity that the cell does not have.
    """

    def __call__(
        self, params: Params, state: State, z: Projection
    ) -> tuple[State, Reported]:
        """Return the next state and the gates that produced it."""
        ...


class Prepare(Protocol):
    """Compute, once per sequence, its parameters and the values of each step.

    `unroll` calls it before the first step and passes the returned parameters to
    `initial_state`, `project` and `step`. `project` also receives the slice of
    `per_step`, whose leaves are `[T, *b, ...]`, for the steps that it projects.
    `per_step` may be None. Without a key, nothing may be random.
    """

    def __call__(
        self, params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        """Return `(params, per_step)` for the sequence xs."""
        ...


class Cell(NamedTuple):
    """A recurrent cell: a record of pure single-step functions.

    The first four fields are required. The state is a NamedTuple whose field h is the
    output of a layer. `partial(cell.step, params)` is a body for `lax.scan`.

    Attributes:
        init: see `Init`.
        initial_state: see `InitialState`.
        project: see `Project`.
        step: see `Step`.
        prepare: see `Prepare`; None if the cell needs none.
        spatial_axes: number of spatial axes between the batch and the features, such
            as 2 for images.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> z = cell.project(params, jnp.ones((7, 3)))
        >>> state = cell.initial_state(params)
        >>> state, gates = jax.lax.scan(functools.partial(cell.step, params), state, z)
        >>> gates.f.shape
        (7, 5)
    """

    init: Init
    initial_state: InitialState
    project: Project
    step: Step
    prepare: Prepare | None = None
    spatial_axes: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the call that makes this cell, for pickle and copy."""
        return construction.reduce(self)

    def __repr__(self) -> str:
        return construction.describe(self)


def project(cell: Cell, params: Params, x: Array, per_step: PerStep) -> Projection:
    """Call the cell's `project`, with the values of `prepare` if there are any."""
    if per_step is None:
        return cell.project(params, x)
    project_with_values: Callable[..., Projection] = cell.project
    return project_with_values(params, x, per_step)


def step_once(
    cell: Cell, params: Params, state: State, x: Array
) -> tuple[State, Reported]:
    """Return `(state, gates)` after a single input x `[*b, D]`, without noise."""
    per_step = None
    if cell.prepare is not None:
        params, per_step = cell.prepare(params, x[None])
        per_step = jax.tree.map(lambda leaf: leaf[0], per_step)
    return cell.step(params, state, project(cell, params, x, per_step))


def check_size(name: str, size: int) -> None:
    """Raise a `ValueError` if size is not an integer >= 1."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{name}: got {size!r}, expected an integer >= 1.")


def as_batch_shape(batch_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the tuple; raise a `ValueError` if it is not a sequence of sizes."""
    sequence = isinstance(batch_shape, Sequence) and not isinstance(batch_shape, str)
    if not sequence or any(isinstance(size, float) for size in batch_shape):
        raise ValueError(
            f"batch_shape: got {batch_shape!r:.60}, expected a tuple of sizes such as "
            "(4,)."
        )
    return tuple(batch_shape)


def cast_like(state: State, after: State) -> State:
    """Return `after` in the dtypes of `state`."""
    return jax.tree.map(lambda old, new: new.astype(old.dtype), state, after)


def apply_edit(edit: Activation | None, value: Array) -> Array:
    """Return `edit(value)`, or the value if there is no edit."""
    return value if edit is None else same_shape("edit", edit(value), value)


def same_shape(name: str, result: Array, x: Array) -> Array:
    """Return the result of a function of x, which must have the shape of x.

    Another shape would be broadcast to that of the gates without an error.
    """
    if jnp.shape(result) != x.shape:
        raise ValueError(
            f"{name}: got a function from {show(x.shape)} to "
            f"{show(jnp.shape(result))}, expected one that keeps the shape."
        )
    return result


def _identity(x: Array) -> Array:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "identity": _identity,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}


def activation(option: str, name: str | Activation) -> Activation:
    """Return the function of that name; a function of a user with a check of its shape.

    Raises:
        ValueError: the name is unknown, or the value cannot be hashed.
    """
    try:
        hash(name)
    except TypeError:
        raise ValueError(
            f"{option}: got {name!r:.60}, which is not hashable; expected a name or a "
            "hashable function."
        ) from None
    if callable(name):
        known = name in ACTIVATIONS.values()
        return name if known else _with_shape_check(option, name)
    if name not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(
            f"{option}: got {name!r}, expected a function or one of {names}."
        )
    return ACTIVATIONS[name]


@construction.cached
def _with_shape_check(option: str, function: Activation) -> Activation:
    @functools.wraps(function, updated=())
    def checked(x: Array) -> Array:
        return same_shape(option, function(x), x)

    return checked
