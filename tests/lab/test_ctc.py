"""Tests that CTC decoding and its loss agree with sums over all paths."""

import itertools
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlstm.lab.tasks.classification import ctc

K = 2  # symbols


def merged(path):
    """Return the symbols of a path by the definition."""
    return tuple(label - 1 for label, _ in itertools.groupby(path) if label)


def enumerated(logs):
    """Return the probability of each symbol sequence."""
    found = defaultdict(float)
    for path in itertools.product(range(K + 1), repeat=len(logs)):
        found[merged(path)] += np.exp(
            sum(logs[t, label] for t, label in enumerate(path))
        )
    return found


def drawn(seed, steps):
    logits = 2 * np.random.default_rng(seed).normal(size=(steps, K + 1))
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_prefix_search_is_exact(seed):
    logs = drawn(seed, 1 + seed % 5)
    every = enumerated(logs)
    best = max(every, key=every.__getitem__)
    found, log_probability = ctc.prefix_beam(logs, width=100)
    assert tuple(found) == best
    assert np.exp(log_probability) == pytest.approx(every[best], rel=1e-5)


def test_a_narrow_prefix_search_gives_a_lower_bound():
    logs = drawn(3, 5)
    every = enumerated(logs)
    for width in 1, 2, 4:
        found, log_probability = ctc.prefix_beam(logs, width=width)
        assert np.exp(log_probability) <= every[tuple(found)] * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_merges_the_most_probable_path(seed):
    logs = drawn(seed, 6)
    assert tuple(ctc.greedy(logs)) == merged(logs.argmax(-1).tolist())


def test_the_loss_is_the_sum_over_paths_and_ignores_padding():
    lengths = np.array([4, 1, 3])
    symbols = np.array([[0, 0], [1, -1], [-1, -1]])
    logits = np.random.default_rng(0).normal(size=(4, 3, K + 1)).astype(np.float32)
    expected = []
    for row, length in enumerate(lengths):
        logs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits[:length, row])))
        expected.append(
            -np.log(enumerated(logs)[tuple(s for s in symbols[row] if s >= 0)])
        )
        logits[length:, row] = np.nan

    def total(logits):
        return ctc.loss(logits, jnp.asarray(lengths), jnp.asarray(symbols))

    np.testing.assert_allclose(total(jnp.asarray(logits)), expected, rtol=1e-5)
    gradient = jax.grad(lambda logits: total(logits).sum())(jnp.asarray(logits))
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[np.isnan(logits)] == 0).all()


def test_steps_needed_is_the_length_of_the_shortest_path():
    for symbols in itertools.product(range(K), repeat=3):
        fitting = [
            steps
            for steps in range(7)
            for path in itertools.product(range(K + 1), repeat=steps)
            if merged(path) == symbols
        ]
        assert ctc.steps_needed(symbols) == min(fitting)


def slow_edit_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    replaced = slow_edit_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(
        replaced, slow_edit_distance(a[1:], b) + 1, slow_edit_distance(a, b[1:]) + 1
    )


def test_edit_distances_by_recursion():
    words = [w for n in range(4) for w in itertools.product(range(K), repeat=n)]
    for a, b in itertools.product(words, repeat=2):
        assert ctc.edit_distance(a, b) == slow_edit_distance(a, b)


def test_edit_distances_of_a_batch_of_paths():
    draw = np.random.default_rng(0)
    path = draw.integers(0, K + 1, (7, 40))
    lengths = draw.integers(1, 8, 40)
    symbols = draw.integers(0, K, (40, 4))
    for row, count in enumerate(draw.integers(0, 5, 40)):
        symbols[row, count:] = -1
    found = ctc.edit_distances(*map(jnp.asarray, (path, lengths, symbols)))
    for row in range(40):
        read = merged(path[: lengths[row], row].tolist())
        expected = tuple(s for s in symbols[row].tolist() if s >= 0)
        assert found[row] == ctc.edit_distance(read, expected)
