"""The model of language modelling: embedding, recurrent layers, read-out."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

import jaxlstm as jl
from jaxlstm.construction import constructor
from jaxlstm.lab.config import schema
from jaxlstm.lab.tasks import recurrent
from jaxlstm.layers.base import (
    Call,
    Layer,
    Result,
    begin_layer,
    call_layer,
    input_check_of,
    make_layer,
)

LAYERS: Sequence[str] = ("embed", "embed_dropout", "rnn", "rnn_dropout", "unembed")
"""The layers by name, in the order of the forward pass.

Also their alphabetical order, in which JAX flattens a dict. Sums over all parameters,
such as the gradient norm, therefore add in the order of runs whose layers had positions
instead of names, and give the same bits.
"""


def build(model: schema.Model, vocabulary_size: int) -> Layer:
    """Return the model, which maps tokens `[T, *b]` to logits `[T, *b, V]`.

        logits = unembed(dropout(rnn(dropout(embed(tokens)))))

    Args:
        model: the `model` section of a config.
        vocabulary_size: V, the number of tokens.
    """
    return jl.serial(
        embed=jl.embed(vocabulary_size, model.embedding_size, dtype=model.dtype),
        embed_dropout=jl.dropout(model.embedding_dropout),
        rnn=recurrent.rnn(model),
        rnn_dropout=jl.dropout(model.output_dropout),
        unembed=jl.linear(vocabulary_size),
    )


def documents(model: Layer, token: int | None) -> Layer:
    """Return the model with a reset wherever a document begins, as in training.

    Sampling, scoring, streaming and pictures read text with this layer.

    Args:
        model: a layer that reads tokens.
        token: the token that begins a document; None for the model as it is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = jl.serial(jl.embed(9, 4), jl.recurrent(jl.lstm(), 5))
        >>> params, _ = model.init(jax.random.key(0))
        >>> _, ys = documents(model, 0).apply(params, jnp.array([3, 0, 7]))
        >>> _, expected = model.apply(params, jnp.array([0, 7]))
        >>> bool((ys[1:] == expected).all())
        True
    """
    return model if token is None else reset_at(model, token)


@constructor
def reset_at(model: Layer, token: int) -> Layer:
    """Return the layer that resets its state before each step with this token."""

    def run(params: Any, tokens: Any, state: Any, call: Call) -> Result:
        tokens = jnp.asarray(tokens)
        steps = call.step_mask(tokens.shape)
        begins = tokens == token
        resets = begins if steps.resets is None else begins | steps.resets
        call = call._replace(steps=steps._replace(resets=resets))
        return call_layer(model, params, tokens, state, call)

    begin = functools.partial(begin_layer, model)
    return make_layer("reset_at", model.init, run, input_check_of(model), begin=begin)
