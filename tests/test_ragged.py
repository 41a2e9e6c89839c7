"""A thousand random ragged cases for every cell: each row is the row run alone.

The padding holds NaN and infinity. Rows run alone are cut to their length, and all of
one length are compiled together, as an ensemble with parameters of its own for each.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from cases import assert_same, finite
from registry import CELLS, FEATURES, HIDDEN, POISON, CellRow, like

CASES, TIME, ROWS = 1000, 5, 3


class Ragged(NamedTuple):
    """Cases side by side, or rows: leaves [cases, ...] and [T, ...] after it.

    d_state, d_hs   the cotangents of the last state and of the outputs
    """

    params: Any
    xs: np.ndarray
    state: Any
    resets: np.ndarray
    d_state: Any
    d_hs: np.ndarray


def draw(rng: np.random.Generator, row: CellRow) -> tuple[Ragged, np.ndarray]:
    """Cases, and lengths [cases, rows] of which every one from 0 to T is as frequent."""
    cell, batch = row.make(), (CASES, ROWS, *row.space)
    params = jax.eval_shape(
        lambda: cell.init(jax.random.key(0), FEATURES, HIDDEN, dtype=np.float64)
    )
    params = jax.tree.map(lambda leaf: rng.normal(size=(CASES, *leaf.shape)), params)
    first = jax.tree.map(lambda leaf: leaf[0], params)
    states = [like(rng, lambda: cell.initial_state(first, batch)) for _ in "12"]
    lengths = np.arange(CASES * ROWS) % (TIME + 1)
    lengths = rng.permuted(lengths).reshape(CASES, ROWS)
    xs = rng.normal(size=(CASES, TIME, ROWS, *row.space, FEATURES))
    padding = np.arange(TIME)[:, None] >= lengths[:, None]
    xs[padding] = rng.choice(POISON, size=xs[padding].shape)
    resets = rng.random((CASES, TIME, ROWS)) < 0.3
    d_hs = rng.normal(size=(*xs.shape[:-1], states[0].h.shape[-1]))
    return Ragged(params, xs, states[0], resets, states[1], d_hs), lengths


@functools.partial(jax.jit, static_argnums=(0, 1))
def together(cell: jl.Cell, reverse: bool, cases: Ragged, lengths):
    """((last state, outputs), (gradients of params, xs, state)), of each case."""
    return jax.vmap(functools.partial(one, cell, reverse))(cases, lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def alone(cell: jl.Cell, reverse: bool, rows: Ragged):
    """The same, of each row."""
    return jax.vmap(lambda row: one(cell, reverse, row, None))(rows)


def one(cell: jl.Cell, reverse: bool, case: Ragged, lengths):
    def run(params, xs, state):
        return jl.unroll(
            cell,
            params,
            xs,
            state,
            lengths=lengths,
            resets=case.resets,
            reverse=reverse,
        )

    answer, pull = jax.vjp(run, case.params, case.xs, case.state)
    return answer, pull((case.d_state, case.d_hs))


def of_length(cases: Ragged, lengths: np.ndarray, length: int) -> Ragged:
    """All rows of this length, cut to it, each with the parameters of its case."""
    at, row = np.nonzero(lengths == length)
    pick = functools.partial(jax.tree.map, lambda leaf: leaf[at, row])
    steps = (at, slice(length), row) if False else None
    del steps
    cut = lambda leaf: np.moveaxis(leaf[:, :length], 2, 1)[at, row]  # noqa: E731
    return Ragged(
        jax.tree.map(lambda leaf: leaf[at], cases.params),
        cut(cases.xs),
        pick(cases.state),
        cut(cases.resets),
        pick(cases.d_state),
        cut(cases.d_hs),
    )
