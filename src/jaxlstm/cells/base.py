"""What a cell is: four pure functions over one instant, and the records they pass."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.typing import Bias, Features, Hidden, InputMatrix, Key, RecurrentMatrix

# Pytrees of arrays, each of a kind that only its cell knows.
Params = Any
State = Any
Projection = Any
Reported = Any
PerStep = Any
Activation = Callable[[Array], Array]


class Gates(NamedTuple):
    """One value for each gate of each unit, `[*b, H]`: pre-activations or gates.

    i  input gate: how much of the candidate is written
    f  forget gate: how much of the cell state is kept
    g  candidate (input modulation): what would be written
    o  output gate: how much of the cell state is shown
    """

    i: Hidden
    f: Hidden
    g: Hidden
    o: Hidden


class LSTMState(NamedTuple):
    """What the next step needs, `[*b, H]`: hidden state `h` and cell state `c`."""

    h: Hidden
    c: Hidden


class HiddenState(NamedTuple):
    """What the next step of a cell without a cell state needs: `h [*b, H]`."""

    h: Hidden


class LSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [H, 4, H]`, `b [4, H]`, gates in the order of `Gates`."""

    w_x: InputMatrix
    w_h: RecurrentMatrix
    b: Bias


class Recurrent(Protocol):
    """Parameters of which `w_h [R, n, H]` multiplies the hidden state."""

    @property
    def w_h(self) -> RecurrentMatrix:
        """What multiplies the hidden state."""
        ...


class Init(Protocol):
    """Draws the parameters. Sizes are read from their shapes ever after."""

    def __call__(
        self,
        key: Key,
        input_size: int,
        hidden_size: int,
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Params:
        """Draw them from the key."""
        ...


class InitialState(Protocol):
    """The state before the first step, in the dtypes that the state is carried in."""

    def __call__(
        self,
        params: Params,
        batch_shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike | None = None,
    ) -> State:
        """The state of a batch of this shape, for inputs of this dtype."""
        ...


class Project(Protocol):
    """All of a step that does not wait for the past: `x [..., D] -> z`.

    The axes before the features are free, time among them, so that an engine may
    project many steps in one product. The `project` of a cell that has a `prepare`
    takes a third argument: what that brought for these steps, if anything.
    """

    def __call__(self, params: Params, x: Array) -> Projection:
        """The projection of x."""
        ...


class Edit(NamedTuple):
    """Where a wrapper may reach into a step: functions `[*b, H] -> [*b, H]`, or None.

    hidden     on h_{t-1}, as the recurrent product reads it; what the state keeps of
               h is not touched
    candidate  on g, before it is written
    cell       on c_t, before it is shown and carried
    """

    hidden: Activation | None = None
    candidate: Activation | None = None
    cell: Activation | None = None


UNEDITED = Edit()


class Step(Protocol):
    """One instant: `step(params, state, z) -> (state, gates)`.

    The state is what the next step needs, the gates are what there is to report. A
    step that also takes `edit=UNEDITED` can be wrapped by what reaches into it; it
    refuses with a `ValueError` the edit of something that it does not have.
    """

    def __call__(
        self, params: Params, state: State, z: Projection
    ) -> tuple[State, Reported]:
        """The next state, and the gates that led to it."""
        ...


class Prepare(Protocol):
    """What one whole sequence brings: parameters for it, and something for each step.

    `unroll` calls it once, before the first step. The parameters that it gives back
    are those that `initial_state`, `project` and `step` receive; of `each`, whose
    leaves are `[T, *b, ...]`, `project` receives the steps that it projects. None
    for `each` is nothing. Without a key, nothing may be random.
    """

    def __call__(
        self, params: Params, xs: Features, *, key: Key | None = None
    ) -> tuple[Params, PerStep]:
        """The parameters for the sequence xs, and what its steps get."""
        ...


class Cell(NamedTuple):
    """A recurrent cell: a record of pure functions that `unroll` carries through time.

    Whatever has the first four of these is a cell; its state is a NamedTuple whose
    field h is what a layer gives to the next. `partial(cell.step, params)` is a
    body for `lax.scan`:

    >>> import functools, jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> z = cell.project(params, jnp.ones((7, 3)))
    >>> state = cell.initial_state(params)
    >>> state, gates = jax.lax.scan(functools.partial(cell.step, params), state, z)
    >>> gates.f.shape
    (7, 5)

    init, initial_state, project, step   see the protocols of these names
    prepare        what a whole sequence brings, such as its noise; None for nothing
    spatial_axes   how many of the axes before the features belong to one instant,
                   such as the 2 of an image, and not to the batch
    """

    init: Init
    initial_state: InitialState
    project: Project
    step: Step
    prepare: Prepare | None = None
    spatial_axes: int = 0


def project(cell: Cell, params: Params, x: Array, each: PerStep) -> Projection:
    """What the cell makes of x, and of what its `prepare` brought for these steps."""
    takes_each: Callable[..., Projection] = cell.project
    return cell.project(params, x) if each is None else takes_each(params, x, each)


def check_size(name: str, size: int) -> None:
    """Errors: `ValueError` where size is no whole number from 1."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{name} is {size!r}; a whole number from 1 is needed.")


def typed_like(state: State, after: State) -> State:
    """`after`, in the dtypes in which the state is carried."""
    return jax.tree.map(lambda old, new: new.astype(old.dtype), state, after)


def edited(edit: Activation | None, value: Array) -> Array:
    """The value, changed by the edit if there is one."""
    return value if edit is None else edit(value)


ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}


def activation(option: str, name: str | Activation) -> Activation:
    """The function that the option names, or is; functions are told apart by identity.

    Errors: `ValueError` that lists the names where there is no such function.
    """
    try:
        hash(name)
    except TypeError:
        raise ValueError(
            f"{option} is {name!r:.60}, which cannot be hashed; a name or a function "
            "is needed."
        ) from None
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"{option}={name!r} is unknown; choose one of {names}.")
    return ACTIVATIONS[name]
