"""The model of language modelling: embedding, recurrent layers, read-out."""

from collections.abc import Sequence

import jaxlstm as jl
from jaxlstm.lab.config import schema
from jaxlstm.lab.tasks import recurrent
from jaxlstm.layers.base import Layer

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
