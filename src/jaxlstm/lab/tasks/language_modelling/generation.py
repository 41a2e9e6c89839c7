"""Text generation: draw tokens one at a time, each from the model's distribution.

    serving.read    tokens -> state, logits of the next token
    write           logits -> token, which is read in turn, and so on

Both work on rows, each with its own state, and know where documents begin through the
model (`jaxlstm.lab.tasks.language_modelling.model.documents`). Each is one compiled
program: lengths, keys and temperatures are its arguments.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlstm.interop.inputs import Inputs
from jaxlstm.lab import serving
from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab.config import schema
from jaxlstm.lab.config.loading import load
from jaxlstm.lab.data import encoding
from jaxlstm.lab.data.vocabulary import Vocabulary
from jaxlstm.lab.serving import Rows
from jaxlstm.lab.tasks.language_modelling import model as models
from jaxlstm.layers.base import Layer

Params = Any

READ, WRITE = 64, 256  # most tokens of a row in one call of a program
TOKENS = Inputs((), np.dtype(np.int32))
NO_TOKEN = -1
ALL = 2**31 - 1


class Draw(NamedTuple):
    """Options of the draws of each row; arrays `[B]`.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: draw from the k most likely tokens; `ALL` for every token.
        top_p: draw from the smallest set of most likely tokens whose probabilities sum
            to at least this; inf for every token.
    """

    temperature: Any
    top_k: Any
    top_p: Any

    @classmethod
    def of(cls, temperature: float, top_k: int | None, top_p: float | None) -> "Draw":
        """Return the options of one row; None for every token."""
        return cls(
            np.array([temperature], np.float32),
            np.array([ALL if top_k is None else top_k], np.int32),
            np.array([np.inf if top_p is None else top_p], np.float32),
        )


class Written(NamedTuple):
    """Tokens that `write` drew.

    Attributes:
        tokens: `[N, B]`.
        counts: `[B]`, the number of tokens of each row. The last one of a row that has
            ended is the document token, and was not read.
        documents: `[B]`, the number of documents that the row may still write.
        finite: `[B]`, False for a row with a NaN or an infinity in its logits.
    """

    tokens: Array
    counts: Array
    documents: Array
    finite: Array


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

    The prompt followed by the result is the whole text: token ids are separated from
    those of the prompt.

    Args:
        model: the model.
        params: its parameters.
        vocabulary: its vocabulary.
        config: the config, whose `sample` section has the defaults of `options`.
        seed: seed of the draws.
        options: `prompt`, `length`, `temperature`, `top_k`, `top_p`, `documents`; None
            for the default.

    Raises:
        BadInput: a number is out of range, or the prompt is empty and the training
            text had no documents.
        LabError: the model returns NaN or infinity.
    """
    key = key_of(seed)
    chosen = choose(config, options)
    token = encoding.document_token(config.data, vocabulary)
    tokens = generate(
        model,
        params,
        prompt(chosen, config.data, vocabulary),
        key,
        length=chosen.length,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        forbidden=never_drawn(vocabulary, token),
        document_token=token,
        documents=chosen.documents,
    )
    return encoding.decode(tokens, config.data, vocabulary, chosen.prompt)


def score(
    model: Layer,
    params: Params,
    vocabulary: Vocabulary,
    config: schema.Config,
    text: str,
) -> np.ndarray:
    """Return log p of each token of a text given those before it, in nats.

        log p(x_t | x_1 ... x_{t-1})        t = 2 ... N

    If the training text had documents, x_1 is the document token, so that the result
    has a number for each token of the text.

    Raises:
        BadInput: the text cannot be encoded.
    """
    tokens = encoding.encode(text, config.data, vocabulary)
    token = encoding.document_token(config.data, vocabulary)
    model = models.documents(model, token)
    _, logits = read_all(model, params, tokens)
    logits = logits[:-1].astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_p[np.arange(len(log_p)), tokens[1:]]


def choose(config: schema.Config, options: dict[str, Any]) -> schema.Sample:
    """Return the `sample` section with the options that are not None.

    Raises:
        BadInput: an option is out of range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return load({"sample": config.sample.model_dump() | given}).sample


def key_of(seed: int) -> Array:
    """Return the random key of a seed.

    Raises:
        BadInput: the seed is not an integer from 0 to 2^32 - 1.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**32:
        raise BadInput(f"seed: got {seed!r:.40}, expected an integer 0 to {2**32 - 1}")
    return jax.random.key(number)


def key_data(key: Array) -> np.ndarray:
    """Return the data of a random key."""
    return np.asarray(jax.random.key_data(key))


def never_drawn(vocabulary: Vocabulary, document_token: int | None) -> tuple[int, ...]:
    """Return the tokens that are not drawn, since no text of the training has them.

    A document token is drawn where documents end; the vocabulary of a text without
    documents has one that never occurred.
    """
    return tuple(id for id in vocabulary.without_text if id != document_token)


def prompt(sample: schema.Sample, data: schema.Data, vocabulary: Vocabulary) -> Any:
    """Return the tokens `[T]` of a prompt, with the document token where one begins.

    Raises:
        BadInput: the prompt cannot be encoded, or is empty and the training text had
            no documents.
    """
    try:
        tokens = encoding.encode(sample.prompt, data, vocabulary)
    except BadInput as error:
        raise BadInput(f"sample.prompt: {error}") from None
    if len(tokens):
        return tokens
    raise BadInput(
        "sample.prompt: got an empty prompt, expected at least one token, since the "
        "training text has no documents; or set sample.length to 0"
    )


def generate(
    model: Layer,
    params: Params,
    prompt: Any,
    key: Array,
    *,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Sequence[int] = (),
    document_token: int | None = None,
    documents: int = 1,
) -> np.ndarray:
    """Return tokens that continue the prompt `[T]`, drawn one at a time.

    Args:
        model: the model.
        params: its parameters.
        prompt: tokens, at least one.
        key: key of the draws.
        length: the most tokens that are drawn.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k: draw from the k most likely tokens only.
        top_p: draw from the smallest set of most likely tokens whose probabilities
            sum to at least this (nucleus sampling).
        forbidden: tokens that are never drawn.
        document_token: the token that begins a document: the state is reset there, as
            in training. None if there are no documents.
        documents: end with the n-th document end; 0 for no end before `length`. The
            document token of the last end is not returned.

    Raises:
        LabError: the model returns NaN or infinity.

    Reference:
        Holtzman et al., "The curious case of neural text degeneration", 2020,
        https://arxiv.org/abs/1904.09751
    """
    model = models.documents(model, document_token)
    rows, _ = read_all(model, params, np.asarray(prompt))
    settings = Draw.of(temperature, top_k, top_p)
    left, found, drawn = np.array([documents or ALL]), [], 0
    allowed = np.ones(rows.output.shape[-1], bool)
    allowed[list(forbidden)] = False
    while drawn < length and left.any():
        rows, written = write(
            model,
            params,
            rows,
            np.zeros(1, np.int32),
            key_data(key)[None],
            np.array([drawn]),
            np.array([min(WRITE, length - drawn)]),
            left,
            settings,
            allowed,
            NO_TOKEN if document_token is None else document_token,
        )
        if not np.all(written.finite):
            raise not_finite()
        left, count = np.asarray(written.documents), int(written.counts[0])
        found.append(np.asarray(written.tokens[:count, 0]))
        drawn += count
    tokens = np.concatenate(found) if found else np.empty(0, np.int32)
    return tokens if left.all() else tokens[:-1]


def not_finite() -> LabError:
    """Return the error for logits that are not finite."""
    return LabError(
        "sample: the model returned a number that is not finite; its parameters are "
        "damaged or have diverged, load another checkpoint"
    )


def read_all(
    model: Layer, params: Params, tokens: np.ndarray
) -> tuple[Rows, np.ndarray]:
    """Read the tokens `[T]` of one row; return it and the logits `[T, V]`."""
    rows = serving.begin(model, params, TOKENS, 1)
    found = [np.empty((0, rows.output.shape[-1]), rows.output.dtype)]
    places = np.zeros(1, np.int32)
    for first in range(0, len(tokens), READ):
        chunk = tokens[first : first + READ]
        padded = np.zeros((READ, 1), np.int32)
        padded[: len(chunk), 0] = chunk
        fresh, lengths = np.array([first == 0]), np.array([len(chunk)], np.int32)
        rows, logits = serving.read(model, params, rows, places, padded, lengths, fresh)
        found.append(np.asarray(logits)[: len(chunk), 0])
    return rows, np.concatenate(found)


@functools.partial(
    jax.jit, static_argnames="model", donate_argnames="rows", keep_unused=True
)
def write(
    model: Layer,
    params: Params,
    rows: Rows,
    places: Array,
    keys: Array,
    first: Array,
    lengths: Array,
    documents: Array,
    settings: Draw,
    allowed: Array,
    document_token: Array,
) -> tuple[Rows, Written]:
    """Draw up to `WRITE` tokens for each row, and read them.

    Args:
        model: the model.
        params: its parameters.
        rows: all rows; their outputs are the logits of the next token.
        places: `[B]`, the rows that draw; out of range for padding.
        keys: data of a key for each row; token n is drawn with `fold_in(key, n)`.
        first: `[B]`, the number n of the first token.
        lengths: `[B]`, the number of tokens to draw for each row, 0 for none.
        documents: `[B]`, the number of documents after which the row ends.
        settings: options of the draws.
        allowed: `[V]`, False for tokens that are never drawn.
        document_token: the token that ends a document, `NO_TOKEN` for none.
    """
    lengths = jnp.minimum(lengths, WRITE).astype(jnp.int32)
    first = first.astype(jnp.int32)
    row_keys, before = jax.random.wrap_key_data(keys), serving.take(rows, places)

    def is_active(count: Array, written: Written) -> Array:
        left = (count < lengths) & (written.documents > 0)
        return left & written.finite

    def more(carry: tuple[Array, Rows, Written]) -> Array:
        count, _, written = carry
        return is_active(count, written).any()

    def step(carry: tuple[Array, Rows, Written]) -> tuple[Array, Rows, Written]:
        count, rows, written = carry
        finite = jnp.isfinite(rows.output).all(-1)
        active = is_active(count, written)
        drawn = active & finite
        logits = jnp.where(allowed, rows.output, -jnp.inf)
        token = draw(
            jax.vmap(jax.random.fold_in)(row_keys, first + count), logits, settings
        )
        ended = drawn & (token == document_token)
        left = written.documents - ended.astype(jnp.int32)
        goes_on = drawn & (left > 0)
        state, found = model.apply(params, token[None], rows.state, mask=goes_on[None])
        return (
            count + 1,
            Rows(state, jnp.where(goes_on[:, None], found[0], rows.output)),
            Written(
                written.tokens.at[count].set(token),
                written.counts + drawn.astype(jnp.int32),
                left,
                written.finite & (finite | ~active),
            ),
        )

    nothing = Written(
        jnp.zeros((WRITE, len(lengths)), jnp.int32),
        jnp.zeros(len(lengths), jnp.int32),
        jnp.asarray(documents, jnp.int32),
        jnp.ones(len(lengths), bool),
    )
    _, after, written = jax.lax.while_loop(
        more, step, (jnp.zeros((), jnp.int32), before, nothing)
    )
    return serving.put(rows, after, places), written


def draw(keys: Array, logits: Array, settings: Draw) -> Array:
    """Return a token of each row, drawn from softmax(logits / temperature).

    Args:
        keys: `[B]`.
        logits: `[B, V]`.
        settings: arrays `[B]`.
    """
    logits = logits.astype(jnp.float32)
    greedy = settings.temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, settings.temperature)[:, None]
    is_restricted = (settings.top_k < logits.shape[-1]) | (settings.top_p < jnp.inf)
    scaled = jax.lax.cond(
        is_restricted.any(),
        jax.vmap(most_likely),
        lambda scaled, top_k, top_p: scaled,
        scaled,
        settings.top_k,
        settings.top_p,
    )
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.where(greedy, logits.argmax(-1), drawn).astype(jnp.int32)


def most_likely(logits: Array, top_k: Array, top_p: Array) -> Array:
    """Return logits `[V]` with -inf outside the top k and outside the nucleus."""
    kth = jnp.sort(logits)[::-1][jnp.clip(top_k, 1, logits.size) - 1]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
    return jnp.where(outside_nucleus(logits, top_p), -jnp.inf, logits)


def outside_nucleus(logits: Array, top_p: Array) -> Array:
    """Return True where more likely tokens already sum to probability `top_p`."""
    order = jnp.argsort(-logits)
    ordered = jax.nn.softmax(logits)[order]
    more_likely = jnp.cumsum(ordered) - ordered
    return jnp.zeros(logits.shape, bool).at[order].set(more_likely >= top_p)
