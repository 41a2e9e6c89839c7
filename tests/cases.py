"""Random cases for sequences, and the results of the library and of the oracle.

A case always has a non-zero initial state and cotangents on hs, h_T and c_T, and NaN
and infinities at every inactive step. `answer` takes the imported package as its first
argument, so that a mutated copy can be tested with the same cases.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from oracle import Gradients, Weights, Which, backward, forward

NON_FINITE = np.array([np.nan, np.inf, -np.inf])


class Shape(NamedTuple):
    """T steps, batch axes, D features, H units."""

    time: int
    batch: tuple[int, ...]
    features: int
    hidden: int


class Kind(NamedTuple):
    """Options of `unroll` that a case uses; masking is none, lengths or mask."""

    masking: str = "none"
    resets: bool = False
    reverse: bool = False


class Case(NamedTuple):
    """Arguments of `unroll`, and the cotangents of its results."""

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
    """Draw a case; padding of xs holds NaN, inf or -inf."""
    time, batch, features, hidden = shape
    which = draw_which(rng, shape, kind)
    xs = rng.normal(size=(time, *batch, features))
    skipped = ~active_steps(which, time, batch)
    xs[skipped] = rng.choice(NON_FINITE, size=(skipped.sum(), features))
    return Case(
        draw_weights(rng, features, hidden),
        xs,
        *rng.normal(size=(2, *batch, hidden)),
        which,
        rng.normal(size=(time, *batch, hidden)),
        *rng.normal(size=(2, *batch, hidden)),
    )


def draw_weights(rng: np.random.Generator, features: int, hidden: int) -> Weights:
    """Draw weights large enough that every gate leaves its linear range."""
    return Weights(
        rng.normal(size=(features, 4, hidden)),
        rng.normal(size=(hidden, 4, hidden)),
        rng.normal(size=(4, hidden)),
    )


def draw_which(rng: np.random.Generator, shape: Shape, kind: Kind) -> Which:
    """Draw lengths from 0 to T inclusive, masks with holes, and frequent resets."""
    time, batch = shape.time, shape.batch
    lengths = rng.integers(0, time + 1, size=batch, dtype=np.int32)
    return Which(
        np.asarray(lengths, np.int32) if kind.masking == "lengths" else None,
        rng.random((time, *batch)) < 0.7 if kind.masking == "mask" else None,
        rng.random((time, *batch)) < 0.3 if kind.resets else None,
        kind.reverse,
    )


def active_steps(which: Which, time: int, batch: tuple[int, ...]) -> np.ndarray:
    """Return the executed steps, bool [T, *b]."""
    active = np.ones((time, *batch), bool)
    if which.lengths is not None:
        t = np.arange(time).reshape(-1, *(1 for _ in batch))
        active = t < which.lengths[None]
    return active if which.mask is None else which.mask


def expected(case: Case) -> Answer:
    """Return the result of the oracle."""
    weights, xs, h, c, which, d_hs, d_h, d_c = case
    run = forward(weights, xs, h, c, which)
    gradients = backward(weights, xs, h, c, which, d_hs, d_h, d_c)
    return Answer(run.hs, run.h, run.c, gradients)


def answer(jl, case: Case, *, jit: bool = True, checkpoint_every=None) -> Answer:
    """Return the result of the package `jl`, under jit or with concrete values."""
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
    """Return `(inputs, steps, cotangents) -> (values, gradients)`, cached."""

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


def assert_same(got, reference, tolerance: float = 1e-12) -> None:
    """Assert that all leaves are equal in number, shape and value."""
    leaves, references = jax.tree.leaves(got), jax.tree.leaves(reference)
    assert len(leaves) == len(references)
    for one, other in zip(leaves, references, strict=True):
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def same_bits(one, other) -> bool:
    """Return whether all leaves are equal in number, dtype and every bit."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(leaves, others, strict=True)
    )


def finite(tree) -> bool:
    """Return whether no leaf has a NaN or an infinity."""
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))
