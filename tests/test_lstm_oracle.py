"""The plain LSTM equals the float64 oracle: values and every gradient, to 1e-12.

36 programs (each kind of masking, with and without resets, both directions, for
zero, one and two batch axes), 28 draws of each.
"""

from itertools import product

import jax
import numpy as np
import pytest

import jaxlstm as jl
from cases import Kind, Shape, answer, assert_same, draw, expected
from oracle import Which, backward, forward

OPTIMISED = True  # compared bit for bit or nearly: compile as users do

DRAWS = 28
KINDS = [
    Kind(*options)
    for options in product(("none", "lengths", "mask"), (False, True), (False, True))
]
BATCHES = {0: [()], 1: [(3,), (1,), (4,)], 2: [(2, 2), (1, 3), (3, 1)]}


def programs() -> list[tuple[Shape, Kind]]:
    """Return every kind with every number of batch axes, and T from 0 to 12."""
    rng = np.random.default_rng(1997)
    pairs = []
    for number, (axes, kind) in enumerate(product(BATCHES, KINDS)):
        batch = BATCHES[axes][number % len(BATCHES[axes])]
        features, hidden = rng.integers(1, 8, size=2)
        pairs.append((Shape(number % 13, batch, int(features), int(hidden)), kind))
    return pairs


PROGRAMS = programs()


def test_there_are_a_thousand_cases(record_property):
    shapes = [shape for shape, _ in PROGRAMS]
    record_property("oracle_cases", DRAWS * len(PROGRAMS))
    assert DRAWS * len(PROGRAMS) >= 1000
    assert {shape.time for shape in shapes} == set(range(13))
    assert {len(shape.batch) for shape in shapes} == {0, 1, 2}


# The default run holds every pair of masking, resets and direction, with 0, 1 and 2
# batch axes in turn.
BY_DEFAULT = {
    len(KINDS) * ((number + number // 4) % 3) + number
    for number, kind in enumerate(KINDS)
    if (number // 4 + kind.resets + kind.reverse) % 2 == 0
}


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            number, marks=() if number in BY_DEFAULT else pytest.mark.combinations
        )
        for number in range(len(PROGRAMS))
    ],
)
def test_values_and_gradients(number, x64):
    rng = np.random.default_rng([2026, number])
    for _ in range(DRAWS):
        case = draw(rng, *PROGRAMS[number])
        assert_same(answer(jl, case), expected(case))


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(0, len(PROGRAMS), 3))
def test_concrete_values_and_gradients(number, x64):
    case = draw(np.random.default_rng([2027, number]), *PROGRAMS[number])
    assert_same(answer(jl, case, jit=False), expected(case))


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(0, len(PROGRAMS), 2))
def test_length_ends(number, x64):
    """All rows empty, and all rows full."""
    shape, kind = PROGRAMS[number]
    for length in (0, shape.time):
        case = draw(np.random.default_rng(number), shape, kind)
        lengths = np.full(shape.batch, length, np.int32)
        xs = np.full_like(case.xs, np.nan if length == 0 else 0.5)
        which = Which(lengths, None, case.which.resets, kind.reverse)
        case = case._replace(xs=xs, which=which)
        assert_same(answer(jl, case), expected(case))


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_by_finite_differences(kind):
    """The oracle's reverse pass is the derivative of its forward pass."""
    rng = np.random.default_rng(7)
    case = draw(rng, Shape(5, (2,), 3, 2), kind)
    weights, xs, h, c, which, d_hs, d_h, d_c = case
    xs = np.nan_to_num(xs, posinf=2.0, neginf=-2.0)
    leaves, tree = jax.tree.flatten((weights, xs, h, c))

    def objective(*leaves) -> float:
        run = forward(*jax.tree.unflatten(tree, leaves), which)
        return np.sum(run.hs * d_hs) + np.sum(run.h * d_h) + np.sum(run.c * d_c)

    gradients = backward(weights, xs, h, c, which, d_hs, d_h, d_c)
    for number, gradient in enumerate(jax.tree.leaves(gradients)):
        differences = central_differences(objective, leaves, number)
        np.testing.assert_allclose(gradient, differences, rtol=1e-7, atol=1e-8)


def central_differences(objective, leaves, number: int, step: float = 1e-6):
    """Return ∂objective/∂leaves[number], one element at a time."""
    result = np.zeros_like(leaves[number])
    for index in np.ndindex(result.shape):
        up, down = leaves[number].copy(), leaves[number].copy()
        up[index] += step
        down[index] -= step
        ends = [
            objective(*leaves[:number], moved, *leaves[number + 1 :])
            for moved in (up, down)
        ]
        result[index] = (ends[0] - ends[1]) / (2.0 * step)
    return result
