"""Pictures of the first recurrent layer while the model reads a text."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlstm as jl
from jaxlstm.cells.emit import Trace
from jaxlstm.lab.config import schema
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.vocabulary import Vocabulary
from jaxlstm.lab.tasks.base import Picture
from jaxlstm.lab.tasks.recurrent import cell

SHOWN, WARM_UP = 96, 200  # symbols


def of_validation(config: Config, params: Any, corpus: Corpus) -> list[Picture]:
    """Return the pictures over the middle of the validation part."""
    middle = len(corpus.validation) // 2
    tokens = corpus.validation[max(0, middle - WARM_UP) : middle + SHOWN]
    shown = min(len(tokens), SHOWN)
    trace = first_layer(
        config.model,
        params,
        jnp.asarray(tokens, jnp.int32),
        warm_up=len(tokens) - shown,
        document_token=corpus.document_token,
    )
    return pictures(_symbols(corpus.vocabulary, tokens[-shown:]), trace)


def first_layer(
    model: schema.Model,
    params: Any,
    tokens: Any,
    *,
    warm_up: int = 0,
    document_token: int | None = None,
) -> Trace:
    """Return gates and states `[T, H]` of the first recurrent layer over tokens.

    Args:
        model: the `model` section of a config.
        params: the parameters of the model.
        tokens: `[warm_up + T]`.
        warm_up: number of tokens that are read first and not returned.
        document_token: the token at which the state is reset.
    """
    table = params["embed"].table
    _, xs = jl.embed(*table.shape).apply(params["embed"], tokens)
    resets = None if document_token is None else tokens == document_token
    _, trace = jl.unroll(
        cell(model), params["rnn"][0], xs, resets=resets, emit=jl.emit.trace
    )
    return jax.tree.map(lambda leaf: leaf[warm_up:], trace)


def _symbols(vocabulary: Vocabulary, tokens: np.ndarray) -> list[str]:
    return [vocabulary.decode([token]) for token in tokens]


def pictures(symbols: Sequence[str], trace: Trace) -> list[Picture]:
    """Return pictures of a layer while it reads: forget gate, one unit, timescales.

    Args:
        symbols: T symbols, as they are written below the picture.
        trace: gates and states `[T, H]`.
    """
    width = min(16.0, max(8.0, 0.14 * len(symbols)))
    found = []
    if (gate := _forget_gate(trace)) is not None:
        name, letter, keeps = gate
        heatmap = Picture(
            f"{name}_gate.png",
            f"The {name} gate while the model reads. Bright: the cell state is kept; "
            "dark: it is dropped.",
            (width, 5),
            lambda ax: jl.plots.gate_heatmap(
                symbols, keeps, f"{name} gate {letter}", ax=ax
            ),
        )
        timescales = Picture(
            "timescales.png",
            "Timescale of each unit, from its forget gate while reading this text.",
            (8, 4),
            lambda ax: jl.plots.timescales(keeps, ax=ax),
        )
        found = [heatmap, timescales]
    if _has_cell_state_per_unit(trace):
        unit = _unit_to_show(trace)
        picture = Picture(
            "unit.png",
            f"Unit {unit}, whose forget gate and cell state vary most: gates, cell "
            "state c and output h while the model reads.",
            (width, 7),
            lambda ax: jl.plots.unit_trace(symbols, trace, unit, ax=ax),
        )
        found.insert(1, picture)
    return found


def _forget_gate(trace: Trace) -> tuple[str, str, np.ndarray] | None:
    """Return the forget or update gate as (name, letter, values), or None.

    A gate that is 1 at every step, as the LSTM of 1997 reports it, is not shown.
    """
    for name, letter in ("forget", "f"), ("update", "z"):
        gate = np.asarray(getattr(trace.gates, letter, 1.0), float)
        if (gate != 1).any():
            return name, letter, gate
    return None


def _has_cell_state_per_unit(trace: Trace) -> bool:
    """Return whether each unit has one cell state and one output."""
    c = getattr(trace.state, "c", None)
    return c is not None and c.shape == trace.state.h.shape


def _unit_to_show(trace: Trace) -> int:
    """Return the unit with the largest mean(f) std(f) std(tanh c).

    Its forget gate is high for a while and then low. If f is 1 throughout, return the
    unit whose cell state varies most.
    """
    forget = np.asarray(trace.gates.f, float)
    variation = np.tanh(np.asarray(trace.state.c, float)).std(0)
    score = forget.mean(0) * forget.std(0) * variation
    return int(np.argmax(score if score.any() else variation))
