"""Layers: functions of whole sequences, and combinators that build deep networks.

A layer is a record of pure functions. A combinator takes layers and returns one, so a
deep network is a layer as well:

>>> import jax, jax.numpy as jnp, jaxlstm as jl
>>> model = jl.serial(
...     jl.embed(65, 16), jl.stack(jl.lstm(), (32, 32), dropout=0.1), jl.linear(65)
... )
>>> params, size = model.init(jax.random.key(0))
>>> state, logits = model.apply(params, jnp.zeros((7, 2), jnp.int32))
>>> logits.shape, size
((7, 2, 65), 65)

Lengths, masks and resets behave as in `unroll` in every layer: the inputs of masked and
padded steps are not read, and the outputs there are zero. Without a key, no layer draws
noise.

Equal arguments return equal layers, so that `jit` does not trace an equal static model
again. Layers and cells can be pickled and copied.
"""

from jaxlstm.layers.base import Apply as Apply
from jaxlstm.layers.base import Layer as Layer
from jaxlstm.layers.base import LayerInit as LayerInit
from jaxlstm.layers.base import TraceFn as TraceFn
from jaxlstm.layers.base import Traces as Traces
from jaxlstm.layers.combine import Pair as Pair
from jaxlstm.layers.combine import bidirectional as bidirectional
from jaxlstm.layers.combine import residual as residual
from jaxlstm.layers.combine import serial as serial
from jaxlstm.layers.combine import stack as stack
from jaxlstm.layers.pointwise import EmbedParams as EmbedParams
from jaxlstm.layers.pointwise import LinearParams as LinearParams
from jaxlstm.layers.pointwise import dropout as dropout
from jaxlstm.layers.pointwise import embed as embed
from jaxlstm.layers.pointwise import linear as linear
from jaxlstm.layers.recurrent import recurrent as recurrent
