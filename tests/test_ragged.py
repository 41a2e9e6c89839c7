"""A thousand random ragged cases for every cell: each row equals the row run alone.

The padding holds NaN and infinity. Rows run alone are cut to their length; rows of the
same length are compiled together, as an ensemble with separate parameters.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import fast_compilation
import jaxlstm as jl
from cases import assert_same, finite
from registry import (
    CELLS,
    FEATURES,
    HIDDEN,
    NON_FINITE,
    CellRow,
    like,
)

pytestmark = pytest.mark.thorough

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
    """Draw cases, and lengths [cases, rows] with each of 0 to T equally often."""
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
    xs[padding] = rng.choice(NON_FINITE, size=xs[padding].shape)
    resets = rng.random((CASES, TIME, ROWS)) < 0.3
    d_hs = rng.normal(size=(*xs.shape[:-1], states[0].h.shape[-1]))
    return Ragged(params, xs, states[0], resets, states[1], d_hs), lengths


@functools.cache
def programs(row: CellRow, reverse: bool):
    """Two functions to ((last state, outputs), (gradients of params, xs, state)).

    together    (cases, lengths), of each case
    alone       (rows,), of each row

    An ensemble of kernels is one convolution with many groups, which takes minutes:
    where there is space, cases are taken one after the other.
    """
    ask = functools.partial(one, row.make(), reverse)

    def together(cases: Ragged, lengths):
        return each(lambda case: ask(*case), (cases, lengths))

    def alone(rows: Ragged):
        return each(lambda case: ask(case, None), rows)

    def each(function, cases):
        return jax.lax.map(function, cases) if row.space else jax.vmap(function)(cases)

    return [
        jax.jit(f, compiler_options=fast_compilation.unoptimised())
        for f in (together, alone)
    ]


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


class Place(NamedTuple):
    """The places of all rows of one length among the cases."""

    case: np.ndarray
    row: np.ndarray
    length: int

    def cut(self, leaf: np.ndarray) -> np.ndarray:
        """Map [cases, T, rows, ...] to [these rows, length, ...]."""
        return leaf[self.case, : self.length, self.row]

    def rows(self, tree):
        """Map [cases, rows, ...] to [these rows, ...]."""
        return jax.tree.map(lambda leaf: leaf[self.case, self.row], tree)

    def cases(self, tree):
        """Map [cases, ...] to [these rows, ...]."""
        return jax.tree.map(lambda leaf: leaf[self.case], tree)


def taken(cases: Ragged, place: Place) -> Ragged:
    """Return these rows cut to their length, with the parameters of their cases."""
    return Ragged(
        place.cases(cases.params),
        place.cut(cases.xs),
        place.rows(cases.state),
        place.cut(cases.resets),
        place.rows(cases.d_state),
        place.cut(cases.d_hs),
    )


def without(leaf: np.ndarray, place: Place) -> np.ndarray:
    """Return the values of these rows after their length."""
    return np.asarray(leaf)[place.case, place.length :, place.row]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("row", CELLS, ids=lambda row: row.name.replace(" ", "_"))
def test_every_row_equals_the_row_alone(row, reverse, record_property, x64):
    rng = np.random.default_rng(list(row.name.encode()))
    cases, lengths = draw(rng, row)
    together, alone = programs(row, reverse)
    got = jax.device_get(together(cases, lengths))
    assert finite(got)
    (last, hs), (d_params, d_xs, d_state) = got
    sums = jax.tree.map(np.zeros_like, d_params)
    for length in range(TIME + 1):
        place = Place(*np.nonzero(lengths == length), length)
        answer, gradients = jax.device_get(alone(taken(cases, place)))
        assert_same((place.rows(last), place.cut(hs)), answer)
        assert_same((place.cut(d_xs), place.rows(d_state)), gradients[1:])
        assert not without(hs, place).any()
        assert not without(d_xs, place).any()
        for total, share in zip(
            *map(jax.tree.leaves, (sums, gradients[0])), strict=True
        ):
            np.add.at(total, place.case, share)
    assert_same(d_params, sums)
    record_property("ragged_cases", CASES)
