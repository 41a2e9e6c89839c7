"""Clipping of the cell state."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, Reported, State
from jaxlstm.cells.wrappers.base import check_cell, compose_edits, edited_step
from jaxlstm.construction import cached, constructor


@constructor
def clip_cell(cell: Cell, limit: float) -> Cell:
    """Clip the cell state before it is read by the output gate and carried:

        c_t  ->  min(max(c_t, -limit), limit)

    The gradient through a clipped unit is zero.

    Args:
        cell: a cell with a cell state, whose step takes `edit`.
        limit: a positive, finite number.

    Raises:
        ValueError: `limit` is not positive and finite, or the step takes no `edit`;
            in a step, the cell has no cell state.

    Reference:
        Sak et al., "Long short-term memory recurrent neural network architectures for
        large scale acoustic modeling", 2014,
        https://www.isca-archive.org/interspeech_2014/sak14_interspeech.html

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.clip_cell(jl.lstm(), 0.1)
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> state, hs = jl.unroll(cell, params, jnp.ones((7, 2, 3)))
        >>> float(abs(state.c).max())
        0.10000000149011612
    """
    check_cell("clip_cell", cell, editable=True)
    is_number = isinstance(limit, int | float | np.integer | np.floating)
    if not is_number or not 0 < limit < math.inf:
        raise ValueError(
            f"clip_cell: limit: got {limit!r}, expected a positive, finite number."
        )
    return _clip_cell(cell, float(limit))


@cached
def _clip_cell(cell: Cell, limit: float) -> Cell:
    @functools.wraps(cell.step)
    def clipped_step(
        params: Params, state: State, z: Any, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        clip = compose_edits(lambda c: jnp.clip(c, -limit, limit), edit.cell)
        return edited_step(cell, params, state, z, edit._replace(cell=clip))

    return cell._replace(step=clipped_step)
