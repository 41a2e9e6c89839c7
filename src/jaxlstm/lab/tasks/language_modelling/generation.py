"""Text generation: draw tokens one at a time, each from the model's distribution."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import schema
from jaxlstm.lab.config.loading import load
from jaxlstm.lab.data.vocabulary import DOCUMENT_TOKEN, Vocabulary
from jaxlstm.layers.base import Layer

Params = Any
State = Any


def sample(
    model: Layer,
    params: Params,
    vocabulary: Vocabulary,
    config: schema.Config,
    *,
    seed: int = 0,
    **options: Any,
) -> str:
    """Return text that continues a prompt.

    Args:
        model: the model.
        params: its parameters.
        vocabulary: its vocabulary.
        config: the config, whose `sample` section has the defaults of `options`.
        seed: seed of the draws.
        options: `prompt`, `length`, `temperature`, `top_k`, `top_p`; None for the
            default.

    Raises:
        BadInput: a number is out of range, or the prompt is empty and the training
            text had no documents.
    """
    if not 0 <= seed < 2**32:
        raise BadInput(f"seed: got {seed}, expected 0 to {2**32 - 1}")
    given = {key: value for key, value in options.items() if value is not None}
    chosen = load({"sample": config.sample.model_dump() | given}).sample
    tokens = generate(
        model,
        params,
        jnp.asarray(prompt(chosen, config.data, vocabulary)),
        jax.random.key(seed),
        length=chosen.length,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        forbidden=jnp.asarray(vocabulary.without_text, jnp.int32),
    )
    return vocabulary.decode(tokens)


def prompt(sample: schema.Sample, data: schema.Data, vocabulary: Vocabulary) -> Any:
    """Return the tokens `[T]` of a prompt; the document token if it is empty.

    Raises:
        BadInput: the prompt cannot be encoded, or is empty and the training text had
            no documents.
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
        "sample.prompt: got an empty prompt, expected at least one token, since the "
        "training text has no documents; or set sample.length to 0"
    )


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
    """Return tokens `[length]` that continue the prompt `[T]`, drawn one at a time.

    Args:
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k: draw from the k most likely tokens only.
        top_p: draw from the smallest set of most likely tokens whose probabilities
            sum to at least this (nucleus sampling).
        forbidden: tokens that are never drawn.

    Reference:
        Holtzman et al., "The curious case of neural text degeneration", 2020,
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
    """Return a token drawn from softmax(logits / temperature), logits `[V]`."""
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
    """Return True where more likely tokens already sum to probability `top_p`."""
    order = jnp.argsort(-logits)
    ordered = jax.nn.softmax(logits)[order]
    more_likely = jnp.cumsum(ordered) - ordered
    return jnp.zeros(logits.shape, bool).at[order].set(more_likely >= top_p)
