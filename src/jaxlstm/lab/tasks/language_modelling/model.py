"""The model of language modelling: embedding, recurrent layers, read-out."""

from collections.abc import Callable, Sequence

import jaxlstm as jl
from jaxlstm.cells.base import Cell
from jaxlstm.lab.config import schema
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
    rnn = jl.stack(
        cell(model),
        (model.hidden_size,) * model.layers,
        dropout=model.dropout,
        residual=model.residual,
        checkpoint_every=model.checkpoint_every,
        engine=model.engine or ("adjoint", "scan"),  # null in old runs
    )
    return jl.serial(
        embed=jl.embed(vocabulary_size, model.embedding_size, dtype=model.dtype),
        embed_dropout=jl.dropout(model.embedding_dropout),
        rnn=rnn,
        rnn_dropout=jl.dropout(model.output_dropout),
        unembed=jl.linear(vocabulary_size),
    )


def cell(model: schema.Model) -> Cell:
    """Return the cell of a config with the wrappers of the config.

    From the inside out: cell clip, recurrent dropout, variational dropout, weight
    drop, zoneout, learned initial state.
    """
    factory: Callable[..., Cell] = getattr(jl, model.cell.name)
    wrapped = factory(**model.cell.model_dump(exclude={"name"}))
    if model.cell_clip is not None:
        wrapped = jl.clip_cell(wrapped, model.cell_clip)
    if model.recurrent_dropout:
        wrapped = jl.recurrent_dropout(wrapped, model.recurrent_dropout)
    x_rate, h_rate = model.variational_dropout_x, model.variational_dropout_h
    if x_rate or h_rate:
        wrapped = jl.variational_dropout(wrapped, x_rate=x_rate, h_rate=h_rate)
    if model.weight_drop:
        wrapped = jl.weight_drop(wrapped, model.weight_drop)
    if model.zoneout_h or model.zoneout_c:
        wrapped = jl.zoneout(wrapped, h_rate=model.zoneout_h, c_rate=model.zoneout_c)
    return jl.learned_initial_state(wrapped) if model.learned_initial_state else wrapped
