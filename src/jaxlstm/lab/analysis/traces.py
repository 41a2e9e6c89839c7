"""Gates and states of a trained model while it reads a text."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxlstm as jl
from jaxlstm.cells.emit import Trace
from jaxlstm.lab.analysis.facts import STRETCH
from jaxlstm.lab.analysis.features import Text
from jaxlstm.lab.data.vocabulary import DOCUMENT_TOKEN
from jaxlstm.lab.runs.trained import Trained

Floats = NDArray[np.floating]

ROWS, WARM_UP = 32, 256
LARGEST_TRACE = 1 << 28  # numbers


class Traces(NamedTuple):
    """States and gates of every layer on stretches of a text.

    Attributes:
        text: The text.
        positions: `[R, S]`, the positions of each stretch in the text.
        layers: For each recurrent layer a trace of `[S, R, H]`.
    """

    text: Text
    positions: NDArray[np.int64]
    layers: list[Trace]


def record(trained: Trained, text: Text) -> Traces:
    """Run the model on evenly spaced stretches of the text.

    `WARM_UP` symbols before each stretch initialise its states. A short text is one
    stretch, without warm-up.
    """
    # These two options would choose engines that do not return gates.
    options = {"engine": None, "checkpoint_every": None}
    config = trained.config.model_copy(
        update={"model": trained.config.model.model_copy(update=options)}
    )
    model = trained.task.model(config, trained.spec)
    assert model.trace is not None
    positions, warm_up = _stretches(len(text.tokens), _affordable_rows(trained))
    tokens = jnp.asarray(text.tokens[positions].T)
    is_reset = resets(trained, tokens)
    _, _, found = jax.jit(model.trace)(trained.params, tokens, resets=is_reset)
    layers = [
        jax.tree.map(lambda leaf: leaf[warm_up:].astype(jnp.float32), trace)
        for trace in found.values()
    ]
    return Traces(text, positions[:, warm_up:], layers)


def untrained(trained: Trained) -> Trained:
    """Return the model with initial parameters from another seed."""
    params, _ = trained.model.init(jax.random.key(trained.config.seed + 1))
    return dataclasses.replace(trained, params=params)


def resets(trained: Trained, tokens: jax.Array) -> jax.Array:
    """Return where documents begin."""
    data = trained.config.data
    separated = data.source == "python" or getattr(data, "document_separator", None)
    token = DOCUMENT_TOKEN.get(trained.vocabulary.kind) if separated else None
    token = getattr(data, "document_token", token)
    return tokens == (-1 if token is None else token)


def _affordable_rows(trained: Trained) -> int:
    model = trained.config.model
    numbers = 6 * model.hidden_size * model.layers * (STRETCH + WARM_UP)
    return max(1, min(ROWS, LARGEST_TRACE // numbers))


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


def memory(trace: Trace) -> tuple[str, Any]:
    """Return the name and the values of c, or of h in a cell without c."""
    name = "c" if hasattr(trace.state, "c") else "h"
    return name, getattr(trace.state, name)


def gates(trace: Trace) -> dict[str, Any]:
    """Return the gates by letter, without candidates and gates that are always 1."""
    named = {name: getattr(trace.gates, name) for name in trace.gates._fields}
    return {
        name: gate
        for name, gate in named.items()
        if name not in jl.diagnostics.gates.CANDIDATES and bool((gate != 1).any())
    }


def flat(values: Any) -> Floats:
    """Return `[S, R, H]` as `[N, H]`, one stretch after another."""
    rows_first = np.asarray(values, np.float32).swapaxes(0, 1)
    return rows_first.reshape(-1, rows_first.shape[-1])
