"""The registry of cells, wrappers and sequence options, one row each.

To add a cell, add a row to `CELLS` and its equations to `family_oracle`;
`test_registry` and `test_ragged` then test it under every wrapper and option.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import family_oracle as oracle
import jaxlstm as jl
from family_oracle import Model, Question
from oracle import Which

TIME, BATCH, FEATURES, HIDDEN = 4, (3,), 2, 3
NON_FINITE = np.array([np.nan, np.inf, -np.inf])


class CellRow(NamedTuple):
    """A cell and its oracle.

    make     returns the cell; always the same object, so that jit does not retrace
    model    the oracle's cell
    space    the spatial axes between the batch and the features
    memory   whether there is a cell state c
    lacks    the wrappers whose target the cell lacks
    twin     whether it differs from the row before only by an option of the cell; it
             is then combined with the wrappers in TWINS only
    """

    name: str
    make: Callable[[], jl.Cell]
    model: Model
    space: tuple[int, ...] = ()
    memory: bool = True
    lacks: frozenset[str] = frozenset()
    twin: bool = False


class WrapperRow(NamedTuple):
    """A wrapper, and its oracle without a key.

    noisy   whether a key makes it random
    """

    name: str
    wrap: Callable[[jl.Cell, CellRow], jl.Cell]
    model: Callable[[Model, CellRow], Model]
    noisy: bool = False


class Option(NamedTuple):
    """Arguments of `unroll`; masking is none, lengths or mask.

    given   whether an initial state is passed
    engine  the one that is tested; every engine here runs every cell and wrapper
    """

    name: str
    masking: str = "none"
    resets: bool = False
    reverse: bool = False
    given: bool = True
    checkpoint_every: int | None = None
    engine: str = "adjoint"


def zone(cell: jl.Cell, row: CellRow) -> jl.Cell:
    return jl.zoneout(cell, **zone_rates(row))


def zone_rates(row: CellRow) -> dict[str, float]:
    return {"h_rate": 0.3, "c_rate": 0.2} if row.memory else {"h_rate": 0.3}


def zoned(model: Model, row: CellRow) -> Model:
    return oracle.zoneout(model, {"h": 0.3, "c": 0.2})


def unchanged(model: Model, row: CellRow) -> Model:
    return model


NO_CELL_STATE = frozenset({"clip"})
NOTHING_INSIDE = frozenset({"clip", "recurrent dropout"})

CELLS = [
    CellRow("lstm", lambda: jl.lstm(), oracle.model(oracle.lstm)),
    CellRow("classic", lambda: jl.classic_lstm(), oracle.model(oracle.classic)),
    CellRow("peephole", lambda: jl.peephole_lstm(), oracle.model(oracle.peephole)),
    CellRow("coupled", lambda: jl.coupled_lstm(), oracle.model(oracle.coupled)),
    CellRow(
        "coupled with peepholes",
        lambda: jl.coupled_lstm(peepholes=True),
        oracle.model(oracle.coupled),
        twin=True,
    ),
    CellRow("projected", lambda: jl.projected_lstm(2), oracle.model(oracle.projected)),
    CellRow(
        "layer norm", lambda: jl.layer_norm_lstm(), oracle.model(oracle.layer_norm)
    ),
    CellRow(
        "conv", lambda: jl.conv_lstm((3,)), oracle.model(oracle.conv_lstm), space=(4,)
    ),
    CellRow(
        "simple rnn",
        lambda: jl.simple_rnn(),
        oracle.model(oracle.simple_rnn),
        memory=False,
        lacks=NOTHING_INSIDE,
    ),
    CellRow(
        "gru",
        lambda: jl.gru(),
        oracle.model(oracle.gru),
        memory=False,
        lacks=NO_CELL_STATE,
    ),
    CellRow(
        "gru of the paper",
        lambda: jl.gru(reset_after=False),
        oracle.model(oracle.gru),
        memory=False,
        lacks=NO_CELL_STATE,
        twin=True,
    ),
]

WRAPPERS = [
    WrapperRow("none", lambda cell, row: cell, unchanged),
    WrapperRow("zoneout", zone, zoned, noisy=True),
    WrapperRow(
        "variational dropout",
        lambda cell, row: jl.variational_dropout(cell, x_rate=0.3, h_rate=0.2),
        unchanged,
        noisy=True,
    ),
    WrapperRow(
        "recurrent dropout",
        lambda cell, row: jl.recurrent_dropout(cell, 0.4),
        unchanged,
        noisy=True,
    ),
    WrapperRow(
        "weight drop",
        lambda cell, row: jl.weight_drop(cell, 0.4),
        unchanged,
        noisy=True,
    ),
    WrapperRow(
        "clip",
        lambda cell, row: jl.clip_cell(cell, 0.5),
        lambda model, row: oracle.clip_cell(model, 0.5),
    ),
    WrapperRow(
        "learned initial state",
        lambda cell, row: jl.learned_initial_state(cell),
        lambda model, row: oracle.learned_initial_state(model),
    ),
    WrapperRow(
        "taps",
        lambda cell, row: jl.taps(cell),
        lambda model, row: oracle.taps(model),
    ),
    WrapperRow(
        "taps on zoneout on learned",
        lambda cell, row: jl.taps(zone(jl.learned_initial_state(cell), row)),
        lambda model, row: oracle.taps(zoned(oracle.learned_initial_state(model), row)),
        noisy=True,
    ),
]

OPTIONS = [
    Option("nothing", given=False),
    Option("lengths", "lengths", engine="scan"),
    Option("mask", "mask", engine="scan"),
    Option("resets", resets=True, engine="scan"),
    Option("lengths, resets, reverse", "lengths", resets=True, reverse=True),
    Option("checkpoint_every", "mask", checkpoint_every=3),
]

TWINS = {"none", "variational dropout", "taps on zoneout on learned"}
PAIRS = [
    (row, wrap)
    for row in CELLS
    for wrap in WRAPPERS
    if wrap.name not in row.lacks and (wrap.name in TWINS or not row.twin)
]
REFUSED = [(row, wrap) for row in CELLS for wrap in WRAPPERS if wrap.name in row.lacks]


# --- data -----------------------------------------------------------------------------


class Inputs(NamedTuple):
    """The differentiated arguments: params, xs [T, *b, *space, D], initial state."""

    params: Any
    xs: np.ndarray
    state: Any


class Data(NamedTuple):
    """The arguments of one call; steps has its lengths, mask and resets."""

    inputs: Inputs
    steps: dict[str, np.ndarray]


def draw(rng: np.random.Generator, row: CellRow, cell: jl.Cell, option: Option) -> Data:
    """Draw inputs that saturate gates, with NaN and infinity in the padding."""
    steps = draw_steps(rng, option)
    batch = (*BATCH, *row.space)
    xs = rng.normal(size=(TIME, *batch, FEATURES))
    skipped = ~active_steps(steps)
    xs[skipped] = rng.choice(NON_FINITE, size=xs[skipped].shape)
    params = draw_params(rng, cell, (TIME, *batch))
    state = like(rng, lambda: cell.initial_state(params, batch))
    return Data(Inputs(params, xs, state if option.given else None), steps)


def draw_steps(rng: np.random.Generator, option: Option) -> dict[str, np.ndarray]:
    """Draw lengths from 0 to T, one of them T; masks with holes; frequent resets."""
    steps = {}
    if option.masking == "lengths":
        lengths = [TIME, *rng.integers(0, TIME, size=BATCH[0] - 1)]
        steps["lengths"] = rng.permuted(np.asarray(lengths, np.int32))
    if option.masking == "mask":
        steps["mask"] = rng.random((TIME, *BATCH)) < 0.7
    if option.resets:
        steps["resets"] = rng.random((TIME, *BATCH)) < 0.4
    return steps


def active_steps(steps: dict[str, np.ndarray]) -> np.ndarray:
    """Return the executed steps, bool [T, *b]."""
    if "lengths" in steps:
        return np.arange(TIME)[:, None] < steps["lengths"]
    return steps.get("mask", np.ones((TIME, *BATCH), bool))


def draw_params(rng: np.random.Generator, cell: jl.Cell, frame: tuple[int, ...]) -> Any:
    """Draw parameters without zero leaves, including taps [*frame, H]."""
    params = like(rng, lambda: cell.init(jax.random.key(0), FEATURES, HIDDEN))
    return tapped(
        params, lambda _: like(rng, lambda: cell.initial_state(params, frame))
    )


def like(rng: np.random.Generator, make: Callable[[], Any]) -> Any:
    """Draw normal numbers in the shapes of the result of `make`."""
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), jax.eval_shape(make))


def tapped(params: Any, change: Callable[[Any], Any]) -> Any:
    """Return the params with their taps changed, if they have any."""
    if isinstance(params, jl.cells.wrappers.Tapped | jl.cells.wrappers.Learned):
        params = params._replace(params=tapped(params.params, change))
    if isinstance(params, jl.cells.wrappers.Tapped):
        return params._replace(taps=change(params.taps))
    return params


def question(inputs: Inputs) -> Question:
    """Return the inputs in the form of the oracle."""
    return Question(*map(oracle.plain, inputs))


def which(option: Option, steps: dict[str, np.ndarray]) -> Which:
    return Which(**steps, reverse=option.reverse)
