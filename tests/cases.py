"""Random cases for whole sequences, and how the library and the oracle answer them.

A case always has a non-zero initial state and cotangents on hs, h_T and c_T, and
NaN and infinities wherever a step does not happen. `answer` takes the imported
package as its first argument, so that a mutated copy answers the same questions.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from oracle import Gradients, Weights, Which, backward, forward

POISON = np.array([np.nan, np.inf, -np.inf])


class Shape(NamedTuple):
    """T steps, batch axes, D features, H units."""

    time: int
    batch: tuple[int, ...]
    features: int
    hidden: int


class Kind(NamedTuple):
    """Which of unroll's options a case uses; masking is none, lengths or mask."""

    masking: str = "none"
    resets: bool = False
    reverse: bool = False


class Case(NamedTuple):
    """One question: arguments of unroll, and the cotangents to pull back."""

    weights: Weights
    xs: np.ndarray
    h: np.ndarray
    c: np.ndarray
    which: Which
    d_hs: np.ndarray
    d_h: np.ndarray
    d_c: np.ndarray


class Answer(NamedTuple):
    """Values and every gradient."""

    hs: np.ndarray
    h: np.ndarray
    c: np.ndarray
    gradients: Gradients


def draw(rng: np.random.Generator, shape: Shape, kind: Kind) -> Case:
    """One random case; padding of xs holds NaN, inf or -inf."""
    time, batch, features, hidden = shape
    which = draw_which(rng, shape, kind)
    xs = rng.normal(size=(time, *batch, features))
    skipped = ~steps_that_happen(which, time, batch)
    xs[skipped] = rng.choice(POISON, size=(skipped.sum(), features))
    return Case(
        draw_weights(rng, features, hidden),
        xs,
        *rng.normal(size=(2, *batch, hidden)),
        which,
        rng.normal(size=(time, *batch, hidden)),
        *rng.normal(size=(2, *batch, hidden)),
    )


def draw_weights(rng: np.random.Generator, features: int, hidden: int) -> Weights:
    """Weights large enough that every gate leaves its linear part."""
    return Weights(
        rng.normal(size=(features, 4, hidden)),
        rng.normal(size=(hidden, 4, hidden)),
        rng.normal(size=(4, hidden)),
    )


def draw_which(rng: np.random.Generator, shape: Shape, kind: Kind) -> Which:
    """Lengths from 0 to T, both ends included; masks with holes; frequent resets."""
    time, batch = shape.time, shape.batch
    lengths = rng.integers(0, time + 1, size=batch, dtype=np.int32)
    return Which(
        np.asarray(lengths, np.int32) if kind.masking == "lengths" else None,
        rng.random((time, *batch)) < 0.7 if kind.masking == "mask" else None,
        rng.random((time, *batch)) < 0.3 if kind.resets else None,
        kind.reverse,
    )


def steps_that_happen(which: Which, time: int, batch: tuple[int, ...]) -> np.ndarray:
    """bool [T, *b]."""
    active = np.ones((time, *batch), bool)
    if which.lengths is not None:
        t = np.arange(time).reshape(-1, *(1 for _ in batch))
        active = t < which.lengths[None]
    return active if which.mask is None else which.mask


def expected(case: Case) -> Answer:
    """What the oracle says."""
    weights, xs, h, c, which, d_hs, d_h, d_c = case
    run = forward(weights, xs, h, c, which)
    gradients = backward(weights, xs, h, c, which, d_hs, d_h, d_c)
    return Answer(run.hs, run.h, run.c, gradients)


def answer(jl, case: Case, *, jit: bool = True, checkpoint_every=None) -> Answer:
    """What the package `jl` says: traced under jit, or with concrete values."""
    weights, xs, h, c, which, d_hs, d_h, d_c = case
    function = pulled(jl, which.reverse, checkpoint_every)
    out, gradients = (jax.jit(function) if jit else function)(
        (jl.LSTMParams(*weights), xs, jl.LSTMState(h, c)),
        (which.lengths, which.mask, which.resets),
        (jl.LSTMState(d_h, d_c), d_hs),
    )
    (state, hs), (d_params, d_xs, d_state) = out, gradients
    d_weights = Weights(*d_params)
    return Answer(hs, state.h, state.c, Gradients(d_weights, d_xs, *d_state))


@lru_cache
def pulled(jl, reverse: bool, checkpoint_every):
    """(inputs, steps, cotangents) -> (values, gradients); one object per program."""

    def values_and_gradients(inputs, steps, cotangents):
        lengths, mask, resets = steps

        def run(params, xs, state):
            return jl.unroll(
                jl.lstm(),
                params,
                xs,
                state,
                lengths=lengths,
                mask=mask,
                resets=resets,
                reverse=reverse,
                checkpoint_every=checkpoint_every,
            )

        out, pull = jax.vjp(run, *inputs)
        return out, pull(cotangents)

    return values_and_gradients


def assert_same(got, wanted, tolerance: float = 1e-12) -> None:
    """Equal leaf for leaf, in structure, shape and value."""
    got_leaves, wanted_leaves = jax.tree.leaves(got), jax.tree.leaves(wanted)
    assert len(got_leaves) == len(wanted_leaves)
    for one, other in zip(got_leaves, wanted_leaves, strict=True):
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def same_bits(one, other) -> bool:
    """Equal in structure, dtype and every bit."""
    leaves, wanted = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(wanted) and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(leaves, wanted, strict=True)
    )


def finite(tree) -> bool:
    """No NaN and no infinity in any leaf."""
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))
