"""Gates and states of a trained model while it reads a text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxlstm.diagnostics.gates import CANDIDATES
from jaxlstm.lab.data.encoding import document_token

if TYPE_CHECKING:
    from jaxlstm.lab.analysis.text import Text
    from jaxlstm.lab.runs.trained import Trained

Floats = NDArray[np.floating]
Units = Mapping[str, Floats]  # the gates by letter, h, and c where the cell has it

STRETCH, WARM_UP = 1536, 256  # symbols of a stretch, and those read before it
ROWS = 32
LARGEST_TRACE = 1 << 28  # numbers


class Traces(NamedTuple):
    """Gates and states of every layer on stretches of a text.

    Attributes:
        text: The text.
        positions: `[R, S]`, the positions of each stretch in the text.
        layers: For each recurrent layer `[N, H]` of its units, N = R S.
    """

    text: "Text"
    positions: NDArray[np.int64]
    layers: list[Units]


def record(trained: "Trained", text: "Text", *, params: Any = None) -> Traces:
    """Run the model on evenly spaced stretches of the text.

    `WARM_UP` symbols before each stretch initialise its states. A short text is one
    stretch, without warm-up.

    Args:
        trained: The model.
        text: The text.
        params: Parameters to use instead of the trained ones.
    """
    # These two options would choose engines that do not return gates.
    options = {"engine": None, "checkpoint_every": None}
    section = trained.config.model
    config = trained.config.model_copy(
        update={"model": section.model_copy(update=options)}
    )
    model = trained.task.model(config, trained.spec)
    assert model.trace is not None
    numbers = 6 * section.hidden_size * section.layers * (STRETCH + WARM_UP)
    rows = min(ROWS, LARGEST_TRACE // numbers)
    positions, warm_up = _stretches(len(text.tokens), rows)
    tokens = jnp.asarray(text.tokens[positions].T)
    params = trained.params if params is None else params
    _, _, found = jax.jit(model.trace)(params, tokens, resets=resets(trained, tokens))
    layers = []
    for trace in found.values():
        units = {**trace.gates._asdict(), "h": trace.state.h}
        if hasattr(trace.state, "c"):
            units["c"] = trace.state.c
        layers.append({name: _flat(v[warm_up:]) for name, v in units.items()})
    return Traces(text, positions[:, warm_up:], layers)


def resets(trained: "Trained", tokens: jax.Array) -> jax.Array:
    """Return where documents begin."""
    token = document_token(trained.config.data, trained.vocabulary)
    return tokens == (-1 if token is None else token)


def _stretches(size: int, most: int) -> tuple[NDArray[np.int64], int]:
    """Return the positions `[R, S]` of stretches, and the length of their warm-up.

    Every second stretch comes first, so that both halves of the rows are spread over
    the whole text.
    """
    length = STRETCH + WARM_UP
    if size < 2 * length or most < 2:
        return np.arange(min(size, 2 * length))[None], 0
    rows = min(most, size // length) // 2 * 2
    begins = np.linspace(0, size - length, rows).astype(np.int64)
    begins = np.concatenate([begins[::2], begins[1::2]])
    return begins[:, None] + np.arange(length), WARM_UP


def memory(units: Units) -> str:
    """Return "c", or "h" for a cell without c."""
    return "c" if "c" in units else "h"


def gates(units: Units) -> dict[str, Floats]:
    """Return the gates by letter, without candidates and gates that are always 1."""
    return {
        name: values
        for name, values in units.items()
        if name not in ("c", "h", *CANDIDATES) and (values != 1).any()
    }


def gates_and_memory(units: Units) -> dict[str, Floats]:
    """Return `gates`, and c, or h for a cell without c."""
    state = memory(units)
    return gates(units) | {state: units[state]}


def _flat(values: jax.Array) -> Floats:
    """Return `[S, R, H]` as `[N, H]`, one stretch after another."""
    rows_first = np.asarray(values, np.float32).swapaxes(0, 1)
    return rows_first.reshape(-1, values.shape[-1])
