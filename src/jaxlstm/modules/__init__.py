"""Layers as Flax modules: `nnx` and `linen`, with the same two classes each.

    Recurrent   any layer of `jaxlstm.layers`
    LSTM        `jaxlstm.stack`: several recurrent layers of one cell

A module holds the parameters of a layer and calls it. Lengths, masks and resets behave
as in `jaxlstm.masking`. Arguments have the names of Flax: `seq_lengths`,
`initial_carry`, `return_carry`, `time_major`, `deterministic`; noise is drawn from the
stream `"dropout"`.
"""

from jaxlstm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
