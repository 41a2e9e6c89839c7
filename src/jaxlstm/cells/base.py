"""What a cell is: four pure functions over one instant, and the records they pass."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxlstm.shapes import Bias, Hidden, InputMatrix, Key, RecurrentMatrix

# Pytrees of arrays, each of a kind that only its cell knows.
Params = Any
State = Any
Projection = Any
Reported = Any
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


class LSTMParams(NamedTuple):
    """`w_x [D, 4, H]`, `w_h [H, 4, H]`, `b [4, H]`, gates in the order of `Gates`."""

    w_x: InputMatrix
    w_h: RecurrentMatrix
    b: Bias


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
    project a whole sequence in one product before it enters its loop.
    """

    def __call__(self, params: Params, x: Array) -> Projection:
        """The projection of x."""
        ...


class Step(Protocol):
    """One instant: `step(params, state, z) -> (state, gates)`.

    The state is what the next step needs, the gates are what there is to report.
    """

    def __call__(
        self, params: Params, state: State, z: Projection
    ) -> tuple[State, Reported]:
        """The next state, and the gates that led to it."""
        ...


class Cell(NamedTuple):
    """A recurrent cell: a record of pure functions that `unroll` carries through time.

    Whatever has these four functions is a cell. `partial(cell.step, params)` is a
    body for `lax.scan`:

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


def activation(option: str, name: str) -> Activation:
    """The function that the option names.

    Errors: `ValueError` that lists the names where there is no such function.
    """
    if name not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"{option}={name!r} is unknown; choose one of {names}.")
    return ACTIVATIONS[name]
