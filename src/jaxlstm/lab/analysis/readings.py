"""A trained model reading a text: what its units did, and what its layers are like."""

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxlstm as jl
from jaxlstm import diagnostics
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.analysis.features import symbol_name
from jaxlstm.lab.config.schema import Model
from jaxlstm.lab.data.files import open_data, quoted
from jaxlstm.lab.data.vocabulary import DOCUMENT_TOKEN, UNKNOWN
from jaxlstm.lab.runs.trained import Trained

Floats = NDArray[np.floating]

ROWS, STRETCH, WARM_UP = 32, 1536, 256
LARGEST_TEXT = 1 << 19  # symbols, of which the stretches are taken
LARGEST_TAPE = 1 << 28  # numbers
FEWEST = 16  # symbols, to be read at all
FLOW_STEPS, FLOW_ROWS, DIRECTIONS = 512, 8, 16
SHARE = 0.01  # of the largest, below which a gradient does not count


class Text(NamedTuple):
    """What is read: tokens `[M]`, the symbol of each, and where they come from."""

    tokens: NDArray[np.int32]
    symbols: list[str]
    source: str


class Watched(NamedTuple):
    """What every layer did over stretches of a text.

    text      the text
    places    `[R, S]`, where in it each stretch lies
    traces    for each recurrent layer `[S, R, H]`
    """

    text: Text
    places: NDArray[np.int64]
    traces: list[jl.Trace]


class LayerFacts(NamedTuple):
    """What a layer is like.

    units        how many it has
    saturation   the shares of steps at which each gate is shut and open, `[H]` by
                 letter; None without gates
    timescales   `[H]` in steps, None without a gate that forgets
    dead         the units whose h never changes
    duplicates   pairs of units whose h says the same
    flow         `[rows, T - 1]`, the norm of the gradient of the last loss with respect
                 to c, or h, after each step before the last, as a share of its largest
    reach        the steps before the last at which the median of it was `SHARE` first
    reaches      the same of the row that it reaches least far in, and farthest
    span         the largest lag at which an input of the layer changes its output by
                 `SHARE` of what the most telling one does
    steps        the number of steps that reach and span were looked for in
    """

    units: int
    saturation: diagnostics.Saturation | None
    timescales: Floats | None
    dead: list[int]
    duplicates: list[tuple[int, int]]
    flow: Floats
    reach: int
    reaches: tuple[int, int]
    span: int
    steps: int


# -- texts -------------------------------------------------------------------


def validation_text(trained: Trained) -> Text:
    """The validation part of the run's own data.

    Errors: `BadInput` where it is no longer there, or no longer the same.
    """
    tokens = np.asarray(trained.corpus().validation[:LARGEST_TEXT], np.int32)
    return _text(trained, tokens, "the validation text")


def given_text(trained: Trained, text: str, source: str) -> Text:
    """A text of the user's.

    Errors: `BadInput` for a text of less than `FEWEST` symbols, and for one with a
    symbol that the model does not know, with its place.
    """
    tokens = trained.vocabulary.encode(text)
    if trained.vocabulary.kind == "character" and (tokens == UNKNOWN).any():
        at = int(np.argmax(tokens == UNKNOWN))
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise BadInput(
            f"{source}: the symbol {symbol_name(text[at])} at line {line}, column "
            f"{column} is none that this model was trained on; take it out"
        )
    if len(tokens) < FEWEST:
        raise BadInput(
            f"{source}: {len(tokens)} symbol{'s'[: len(tokens) != 1]} came; at least "
            f"{FEWEST} are needed to see a unit change"
        )
    return _text(trained, tokens[:LARGEST_TEXT], source)


def file_text(trained: Trained, path: str | Path) -> Text:
    """A text file of the user's, read in the encoding of the run's data.

    Errors: `BadInput` for a file that cannot be read, and as `given_text`.
    """
    encoding = getattr(trained.config.data, "encoding", "utf-8")
    with open_data(path, key="--input") as file:
        try:
            with io.TextIOWrapper(file, encoding) as reader:
                text = reader.read(LARGEST_TEXT)
        except UnicodeDecodeError as error:
            raise BadInput(
                f"--input: {quoted(path)} is not {encoding} ({error.reason}); convert "
                "it to that"
            ) from None
    text = text.removeprefix("\ufeff")
    vocabulary = trained.vocabulary
    if vocabulary.kind == "character" and "\n" not in vocabulary.symbols:
        text = text.removesuffix("\n")
    return given_text(trained, text, f"--input {path}")


def _text(trained: Trained, tokens: NDArray[np.int32], source: str) -> Text:
    vocabulary = trained.vocabulary
    known = {token: vocabulary.decode([token]) for token in np.unique(tokens).tolist()}
    if vocabulary.kind == "tokens":  # always longer than one letter
        known = {token: f"#{token}" for token in known}
    return Text(tokens, [known[token] for token in tokens.tolist()], source)


# -- reading -----------------------------------------------------------------


def watch(trained: Trained, text: Text) -> Watched:
    """Let the model read stretches of the text, spread evenly over it.

    Each stretch is read from `WARM_UP` symbols before it on, so that its states have a
    past. A short text is one stretch, read from its beginning.
    """
    model = _bare(trained)
    places, warm_up = _stretches(len(text.tokens), _affordable(trained))
    tokens = jnp.asarray(text.tokens[places].T)
    _, _, tape = jax.jit(_tracing(model))(
        trained.params, tokens, _resets(trained, tokens)
    )

    def shown(leaf: jax.Array) -> jax.Array:
        return leaf[warm_up:].astype(jnp.float32)

    traces = [jax.tree.map(shown, seen) for seen in tape.values()]
    return Watched(text, places[:, warm_up:], traces)


def untrained(trained: Trained) -> Trained:
    """The model as it would be before the first step, from another seed."""
    params, _ = _bare(trained).init(jax.random.key(trained.config.seed + 1))
    return dataclasses.replace(trained, params=params)


def _bare(trained: Trained) -> jl.Layer:
    """The model on whatever engine shows its gates."""
    wanted = {"engine": None, "checkpoint_every": None}
    model = trained.config.model.model_copy(update=wanted)
    config = trained.config.model_copy(update={"model": model})
    return trained.task.model(config, trained.spec)


def _tracing(model: jl.Layer) -> Callable[..., Any]:
    def tracing(params: Any, tokens: jax.Array, resets: jax.Array) -> Any:
        assert model.trace is not None
        return model.trace(params, tokens, resets=resets)

    return tracing


def _resets(trained: Trained, tokens: jax.Array) -> jax.Array:
    """Where documents begin."""
    data = trained.config.data
    marked = data.source == "python" or getattr(data, "document_separator", None)
    token = DOCUMENT_TOKEN.get(trained.vocabulary.kind) if marked else None
    token = getattr(data, "document_token", token)
    return tokens == (-1 if token is None else token)


def _affordable(trained: Trained) -> int:
    """How many rows of a tape fit."""
    model = trained.config.model
    each = 6 * model.hidden_size * model.layers * (STRETCH + WARM_UP)
    return max(1, min(ROWS, LARGEST_TAPE // each))


def _stretches(size: int, most: int) -> tuple[NDArray[np.int64], int]:
    """The places `[R, S]` of the stretches with their warm-up, and how long that is.

    Every second stretch comes first, so that both halves are from the whole text.
    """
    length = STRETCH + WARM_UP
    if size < 2 * length or most < 2:
        return np.arange(min(size, 2 * length))[None], 0
    rows = min(most, size // length) // 2 * 2
    begins = np.linspace(0, size - length, rows).astype(np.int64)
    begins = np.concatenate([begins[::2], begins[1::2]])
    return begins[:, None] + np.arange(length), WARM_UP


def holds(trace: jl.Trace) -> jax.Array:
    """What the units hold: c, or h of a cell without c; `[S, R, H]`."""
    return getattr(trace.state, "c", trace.state.h)


def gates_of(trace: jl.Trace) -> dict[str, jax.Array]:
    """The gates by letter, without candidates and gates that are always 1."""
    named = {name: getattr(trace.gates, name) for name in trace.gates._fields}
    return {
        name: gate
        for name, gate in named.items()
        if name not in diagnostics.gates.CANDIDATES and bool((gate != 1).any())
    }


# -- layers ------------------------------------------------------------------


def layer_facts(trained: Trained, watched: Watched) -> list[LayerFacts]:
    """What each layer is like, over the text that was read."""
    tokens = jnp.asarray(_recent(watched))
    facts = []
    for layer, trace in enumerate(watched.traces):
        probe = jax.jit(
            functools.partial(_probed, trained.task, trained.config.model, layer)
        )
        norm, span = probe(trained.params, tokens, _resets(trained, tokens)[:-1])
        facts.append(_facts(trace, _shares(norm), int(np.median(span))))
    return facts


def _facts(trace: jl.Trace, flow: Floats, span: int) -> LayerFacts:
    gates = gates_of(trace)
    kept = any(letter in gates for letter in "fz")
    pairs = diagnostics.duplicate_units(trace.state.h).pairs
    return LayerFacts(
        holds(trace).shape[-1],
        diagnostics.saturation(gates) if gates else None,
        np.asarray(diagnostics.timescales(trace.gates)) if kept else None,
        np.flatnonzero(diagnostics.dead_units(trace.state.h)).tolist(),
        [(int(one), int(other)) for one, other in np.argwhere(np.asarray(pairs))],
        flow,
        _reach(flow),
        (min(rows := [_reach(row[None]) for row in flow]), max(rows)),
        span,
        flow.shape[1] + 1,
    )


def _recent(watched: Watched) -> NDArray[np.int32]:
    """Tokens `[T + 1, rows]`, of the ends of some stretches."""
    places = watched.places[:FLOW_ROWS, -FLOW_STEPS - 1 :]
    return watched.text.tokens[places].T


def _probed(
    task: Any,
    model: Model,
    layer: int,
    params: Any,
    tokens: jax.Array,
    resets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Of a layer: the gradient's norm, `[T - 1, rows]`, and the memory span, `[rows]`.

    The loss is that of the last token, which is predicted from those before it.
    """
    embedding = jl.embed(*params["embed"].table.shape, dtype=model.dtype)
    _, xs = embedding.apply(params["embed"], tokens[:-1])
    for below in range(layer):
        xs = _after(task, model, params, below, xs, resets)

    def loss(state: Any, hs: jax.Array) -> jax.Array:
        ys = xs + hs if model.residual and layer else hs
        for above in range(layer + 1, len(params["rnn"])):
            ys = _after(task, model, params, above, ys, resets)
        _, logits = jl.linear(len(params["embed"].table)).apply(
            params["unembed"], ys[-1:]
        )
        return task.cross_entropy(logits[0], tokens[-1]).sum()

    cell, own = task.cell(model), params["rnn"][layer]
    norm = diagnostics.gradient_flow(cell, own, xs, loss=loss, resets=resets).norm
    span = diagnostics.memory_span(
        cell, own, xs, output=_directions, share=SHARE, resets=resets
    ).span
    return getattr(norm, "c", norm.h)[:-1], span


def _after(
    task: Any, model: Model, params: Any, layer: int, xs: jax.Array, resets: jax.Array
) -> jax.Array:
    """What a recurrent layer makes of its inputs."""
    _, hs = jl.unroll(task.cell(model), params["rnn"][layer], xs, resets=resets)
    return xs + hs if model.residual and layer else hs


def _directions(state: Any) -> jax.Array:
    """h along some random directions, for which one backward pass each is enough."""
    shape = state.h.shape[-1], DIRECTIONS
    return state.h @ jax.random.normal(jax.random.key(0), shape, state.h.dtype)


def _shares(norm: jax.Array) -> Floats:
    """Norms `[T - 1, rows]` as shares of the largest of each row, transposed."""
    sizes = np.asarray(norm, np.float32).T
    return sizes / np.maximum(sizes.max(1, keepdims=True), 1e-30)


def _reach(flow: Floats) -> int:
    """How many steps before the last the gradient still counts; -1 where it never does.

    >>> _reach(np.array([[0.0, 0.002, 0.02, 1.0]]))
    2
    """
    counts = np.flatnonzero(np.median(flow, axis=0) >= SHARE)
    return flow.shape[1] - int(counts[0]) if counts.size else -1
