"""The layers as Flax modules: `nnx` and `linen`, with the same two classes each.

    Recurrent   any layer of `jaxlstm.layers`
    LSTM        a stack of one cell: layers, directions, dropout between the layers

A module holds the parameters of a layer and calls it; what a sequence means is said
in `jaxlstm.masking` and nowhere else. The names are Flax's: `seq_lengths`,
`initial_carry`, `return_carry`, `time_major`, `deterministic`, and the stream
`"dropout"` that noise is drawn from.
"""

from jaxlstm.modules import linen as linen
from jaxlstm.modules import nnx as nnx
