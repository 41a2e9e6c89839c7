"""Wrappers: functions from cell to cell that compose in any order.

The inner wrapper acts first: `taps(zoneout(cell))` adds its taps to the state that
zoneout returned. Three wrappers act inside the step of the innermost cell, the inner
one first: `variational_dropout` on h as the recurrent product reads it,
`recurrent_dropout` on the candidate and `clip_cell` on the cell state. Therefore
`zoneout(clip_cell(cell))` equals `clip_cell(zoneout(cell))`.

Noise is a function of the key and of the shapes, not of the engine, of
`checkpoint_every` or of any value. A wrapper that draws noise splits the key between
itself and the inner cell. No key, no noise. With the same key:

    windows     a sequence cut into windows keeps the masks that `variational_dropout`
                and `weight_drop` draw once per sequence; masks drawn per step repeat
                in each window, unless the window's index is folded into the key
    resets      a reset draws no new mask
    shard_map   every device draws the same noise for its rows, unless the device's
                index is folded into the key

Example:
    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.zoneout(jl.weight_drop(jl.lstm(), 0.5), h_rate=0.1, c_rate=0.5)
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> xs = jnp.ones((7, 2, 3))
    >>> state, hs = jl.unroll(cell, params, xs, key=jax.random.key(1))
    >>> hs.shape, type(params).__name__
    ((7, 2, 5), 'LSTMParams')
"""

from jaxlstm.cells.wrappers.clipping import clip_cell as clip_cell
from jaxlstm.cells.wrappers.dropouts import recurrent_dropout as recurrent_dropout
from jaxlstm.cells.wrappers.dropouts import variational_dropout as variational_dropout
from jaxlstm.cells.wrappers.gradient_taps import Tapped as Tapped
from jaxlstm.cells.wrappers.gradient_taps import taps as taps
from jaxlstm.cells.wrappers.initial_states import Learned as Learned
from jaxlstm.cells.wrappers.initial_states import (
    learned_initial_state as learned_initial_state,
)
from jaxlstm.cells.wrappers.weight_dropping import weight_drop as weight_drop
from jaxlstm.cells.wrappers.zoneouts import zoneout as zoneout
