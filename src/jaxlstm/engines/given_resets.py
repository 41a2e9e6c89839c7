"""Resets to a given state, as a cell that replaces its state before a step.

    s_{t-1}  ->  r_t where resets[t], s_{t-1} elsewhere

r is part of the parameters, so that every engine that runs any cell computes it and its
gradient.
"""

import functools
from typing import Any, NamedTuple

import jax

from jaxlstm.cells.base import UNEDITED, Cell, Edit, Params, Reported, State
from jaxlstm.cells.wrappers.base import (
    WrappedInput,
    edited_step,
    inner_params,
    with_outer_params,
    with_per_step,
)
from jaxlstm.construction import cached
from jaxlstm.masking import select
from jaxlstm.typing import ActiveSteps, Features, Key, reshard_like


class GivenResets(NamedTuple):
    """Parameters of the inner cell, and the states after resets.

    Attributes:
        params: the parameters of the inner cell.
        resets: `[T, *b]`, True before the executed steps that start from such a state.
        state: one state for all steps, `[*b, ...]`; None if each step has its own.
        states: a state for each step, `[T, *b, ...]`; None if there is one for all.
    """

    params: Params
    resets: ActiveSteps
    state: State | None
    states: State | None


@cached
def with_given_resets(cell: Cell) -> Cell:
    """Return the cell whose params are `GivenResets` and which resets itself."""
    inner = with_outer_params(cell, functools.partial(inner_params, GivenResets))

    def resets_of_step(
        params: GivenResets, xs: Features, key: Key | None
    ) -> tuple[Any, Key | None]:
        return (params.resets, params.states), key

    @functools.wraps(cell.step)
    def step(
        params: GivenResets, state: State, z: WrappedInput, *, edit: Edit = UNEDITED
    ) -> tuple[State, Reported]:
        resets, of_step = z.own
        given = params.state if of_step is None else of_step
        given = jax.tree.map(reshard_like, state, given)
        before = select(resets, given, state)
        return edited_step(inner, params, before, z.inner, edit)

    return with_per_step(inner, resets_of_step, None)._replace(step=step)
