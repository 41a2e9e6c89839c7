"""Language modelling: predict the next token of a text from all that came before.

    p(x_{t+1} | x_1 … x_t) = softmax(W h_t + b)
    loss = -1/N Σ_t log p(x_{t+1} | x_1 … x_t)        nats per token

The state is carried from window to window, so that a window is a place to cut the
gradient (truncated backpropagation through time) and not the end of memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jaxlstm as jl
from jaxlstm.cells.base import Cell
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import schema
from jaxlstm.lab.data import Vocabulary
from jaxlstm.lab.data.vocabulary import DOCUMENT_TOKEN
from jaxlstm.layers import Layer

Params = Any
State = Any


def build(model: schema.Model, vocabulary_size: int) -> Layer:
    """Embedding, a stack of recurrent layers, a linear read-out of one logit a token.

    Outputs `[T, *b, V]` for tokens `[T, *b]`.
    """
    stack = jl.stack(
        cell(model),
        (model.hidden_size,) * model.layers,
        dropout=model.dropout,
        residual=model.residual,
        checkpoint_every=model.checkpoint_every,
        engine=model.engine,
    )
    return jl.serial(
        jl.embed(vocabulary_size, model.embedding_size, dtype=model.dtype),
        jl.dropout(model.embedding_dropout),
        stack,
        jl.dropout(model.output_dropout),
        jl.linear(vocabulary_size),
    )


def cell(model: schema.Model) -> Cell:
    """The cell that the config names, and around it what else the config asks for.

    From the inside out: cell clip, recurrent dropout, variational dropout, weight
    drop, zoneout, learned initial state. What is not asked for is not there.
    """
    factory: Callable[..., Cell] = getattr(jl, model.cell.name)
    made = factory(**model.cell.model_dump(exclude={"name"}))
    if model.cell_clip is not None:
        made = jl.clip_cell(made, model.cell_clip)
    if model.recurrent_dropout:
        made = jl.recurrent_dropout(made, model.recurrent_dropout)
    x_rate, h_rate = model.variational_dropout_x, model.variational_dropout_h
    if x_rate or h_rate:
        made = jl.variational_dropout(made, x_rate=x_rate, h_rate=h_rate)
    if model.weight_drop:
        made = jl.weight_drop(made, model.weight_drop)
    if model.zoneout_h or model.zoneout_c:
        made = jl.zoneout(made, h_rate=model.zoneout_h, c_rate=model.zoneout_c)
    return jl.learned_initial_state(made) if model.learned_initial_state else made


class Score(NamedTuple):
    """A sum of losses in nats, over so many tokens."""

    nats: Array
    tokens: Array


def loss(
    model: Layer,
    params: Params,
    state: State,
    batch: Any,
    *,
    key: Array | None = None,
) -> tuple[Array, State]:
    """Mean loss of a batch in nats per token, and the state after it."""
    state, logits = model.apply(
        params, batch.inputs, state, key=key, resets=batch.resets
    )
    return cross_entropy(logits, batch.targets).mean(), state


def score(
    model: Layer, params: Params, state: State, window: Any
) -> tuple[State, Score]:
    """The summed loss of the tokens of a window that count; its padding is no step."""
    state, logits = model.apply(
        params, window.inputs, state, mask=window.weights, resets=window.resets
    )
    each = jnp.where(window.weights, cross_entropy(logits, window.targets), 0.0)
    return state, Score(each.sum(), window.weights.sum())


def cross_entropy(logits: Array, targets: Array) -> Array:
    """`-log softmax(logits)[target]`, computed in float32, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), targets
    )


def prompt(sample: schema.Sample, data: schema.Data, vocabulary: Vocabulary) -> Any:
    """The tokens `[T]` that a sample begins with.

    Nothing at all begins a document, where the model has learnt what does.

    Errors: `BadInput` for a text that has no tokens, and for an empty one where there
    were no documents.
    """
    try:
        tokens = vocabulary.encode(sample.prompt)
    except BadInput as error:
        raise BadInput(f"sample.prompt: {error}") from None
    if len(tokens):
        return tokens
    if data.source == "python" or getattr(data, "document_separator", None):
        return np.array([DOCUMENT_TOKEN[vocabulary.kind]], np.int32)
    token = getattr(data, "document_token", None)
    if token is not None:
        return np.array([token], np.int32)
    raise BadInput(
        "sample.prompt: it is empty; give the model something to begin with, or set "
        "sample.length to 0"
    )


def measures(nats: float, vocabulary: Vocabulary) -> dict[str, float]:
    """The loss, and the form of it that the field quotes for such tokens.

    Bits per character for characters and bytes, perplexity for other tokens.
    """
    if vocabulary.kind == "tokens":
        return {"loss": nats, "perplexity": float(jnp.exp(nats))}
    return {"loss": nats, "bits_per_character": nats / float(jnp.log(2.0))}


@functools.partial(
    jax.jit, static_argnames=("model", "length", "top_k", "temperature", "top_p")
)
def generate(
    model: Layer,
    params: Params,
    prompt: Array,
    key: Array,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Array | None = None,
) -> Array:
    """Tokens `[length]` that continue the prompt `[T]`, drawn one at a time.

    Arguments:
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of likeliest tokens that together have this
            probability (nucleus sampling).
        forbidden: tokens that are never drawn.

    Reference: Holtzman et al., "The curious case of neural text degeneration", 2020,
    https://arxiv.org/abs/1904.09751
    """
    draw = functools.partial(
        draw_token, temperature=temperature, top_k=top_k, top_p=top_p
    )

    def step(carry: tuple[State, Array], key: Array) -> tuple[Any, Array]:
        state, logits = carry
        if forbidden is not None:
            logits = logits.at[forbidden].set(-jnp.inf)
        token = draw(key, logits)
        state, logits = model.apply(params, token[None], state)
        return (state, logits[0]), token

    state, logits = model.apply(params, prompt)
    _, tokens = jax.lax.scan(step, (state, logits[-1]), jax.random.split(key, length))
    return tokens


def draw_token(
    key: Array,
    logits: Array,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Array:
    """One token out of the distribution of the logits `[V]`, narrowed as asked."""
    logits = logits.astype(jnp.float32)
    if temperature == 0:
        return jnp.argmax(logits)
    logits = logits / temperature
    if top_k is not None and top_k < logits.size:
        kth = jax.lax.top_k(logits, top_k)[0][-1]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p is not None:
        logits = jnp.where(outside_nucleus(logits, top_p), -jnp.inf, logits)
    return jax.random.categorical(key, logits)


def outside_nucleus(logits: Array, top_p: float) -> Array:
    """True where the likelier tokens alone already have the probability `top_p`."""
    order = jnp.argsort(-logits)
    ordered = jax.nn.softmax(logits)[order]
    likelier = jnp.cumsum(ordered) - ordered
    return jnp.zeros(logits.shape, bool).at[order].set(likelier >= top_p)


def read_aloud(
    model: schema.Model, params: Params, tokens: Array, *, warm_up: int = 0
) -> jl.Trace:
    """Gates and states `[T, H]` of the first recurrent layer while it reads tokens.

    Arguments:
        tokens: `[warm_up + T]`; the first `warm_up` are read and not shown.
    """
    embedding, _, recurrent, *_ = params
    _, xs = jl.embed(*embedding.table.shape).apply(embedding, tokens)
    _, trace = jl.unroll(cell(model), recurrent[0], xs, emit=jl.emit.trace)
    return jax.tree.map(lambda leaf: leaf[warm_up:], trace)
