"""The recurrent layers of a config, for the models of all tasks."""

from collections.abc import Callable

import jaxlstm as jl
from jaxlstm.cells.base import Cell
from jaxlstm.lab.config.recurrent import Recurrent
from jaxlstm.layers.base import Layer


def rnn(section: Recurrent, *, bidirectional: bool = False) -> Layer:
    """Return the stack of recurrent layers of a config.

    Args:
        section: the `model` section of a config.
        bidirectional: also run each layer backwards; its output has both directions,
            `2 hidden_size` features.
    """
    return jl.stack(
        cell(section),
        (section.hidden_size,) * section.layers,
        bidirectional=bidirectional,
        dropout=section.dropout,
        residual=section.residual,
        checkpoint_every=section.checkpoint_every,
        engine=section.engine or ("adjoint", "scan"),  # null in old runs
    )


def cell(section: Recurrent) -> Cell:
    """Return the cell of a config with the wrappers of the config.

    From the inside out: cell clip, recurrent dropout, variational dropout, weight
    drop, zoneout, learned initial state.
    """
    factory: Callable[..., Cell] = getattr(jl, section.cell.name)
    wrapped = factory(**section.cell.model_dump(exclude={"name"}))
    if section.cell_clip is not None:
        wrapped = jl.clip_cell(wrapped, section.cell_clip)
    if section.recurrent_dropout:
        wrapped = jl.recurrent_dropout(wrapped, section.recurrent_dropout)
    x_rate, h_rate = section.variational_dropout_x, section.variational_dropout_h
    if x_rate or h_rate:
        wrapped = jl.variational_dropout(wrapped, x_rate=x_rate, h_rate=h_rate)
    if section.weight_drop:
        wrapped = jl.weight_drop(wrapped, section.weight_drop)
    if section.zoneout_h or section.zoneout_c:
        wrapped = jl.zoneout(
            wrapped, h_rate=section.zoneout_h, c_rate=section.zoneout_c
        )
    return (
        jl.learned_initial_state(wrapped) if section.learned_initial_state else wrapped
    )
