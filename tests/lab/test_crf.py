"""Tests that the conditional random field agrees with sums over all label sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlstm.lab.tasks.classification import crf

T, C = 4, 3
LENGTHS = np.array([4, 1, 3])


@pytest.fixture
def chain(x64):
    """Draw scores of a chain, with NaN at padded steps, and labels, some unknown."""
    draw = np.random.default_rng(0)
    transitions = crf.Transitions(
        draw.normal(size=C), draw.normal(size=(C, C)), draw.normal(size=C)
    )
    emissions = draw.normal(size=(T, len(LENGTHS), C))
    labels = draw.integers(0, C, (T, len(LENGTHS)))
    labels[1, 0] = labels[0, 2] = -1
    for row, length in enumerate(LENGTHS):
        emissions[length:, row] = np.nan
    return jax.tree.map(jnp.asarray, (transitions, emissions, labels))


def paths(row):
    """Return every label sequence of the length of a row, `[N, length]`."""
    return np.array(list(itertools.product(range(C), repeat=int(LENGTHS[row]))))


def all_scores(transitions, emissions, row):
    every = paths(row)
    return (
        transitions.start[every[:, 0]]
        + emissions[np.arange(every.shape[1]), row, every].sum(1)
        + transitions.between[every[:, :-1], every[:, 1:]].sum(1)
        + transitions.end[every[:, -1]]
    )


def enumerated(transitions, emissions, labels):
    """Return the log likelihood of each row by its definition."""
    found = []
    for row in range(len(LENGTHS)):
        scores = all_scores(transitions, emissions, row)
        known = labels[: LENGTHS[row], row]
        fits = ((paths(row) == known) | (known < 0)).all(1)
        given = jax.nn.logsumexp(jnp.where(fits, scores, -jnp.inf))
        found.append(given - jax.nn.logsumexp(scores))
    return jnp.stack(found)


def total(function):
    return lambda *args: function(*args).sum()


def test_likelihood_and_gradients_are_those_of_the_definition(chain):
    transitions, emissions, labels = chain
    labels = np.asarray(labels)

    def ours(transitions, emissions):
        return crf.log_likelihood(
            transitions, emissions, jnp.asarray(labels), jnp.asarray(LENGTHS)
        )

    def theirs(transitions, emissions):
        return enumerated(transitions, emissions, labels)

    np.testing.assert_allclose(
        ours(transitions, emissions), theirs(transitions, emissions), atol=1e-13
    )
    gradients = jax.grad(total(ours), (0, 1))(transitions, emissions)
    # The definition does not read padded steps; the gradient of an index of NaN is 0.
    expected = jax.jit(jax.grad(total(theirs), (0, 1)))(transitions, emissions)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), gradients, expected
    )


def test_viterbi_finds_the_best_of_all_paths(chain):
    transitions, emissions, _ = chain
    found, scores = crf.viterbi(transitions, emissions, jnp.asarray(LENGTHS))
    for row, length in enumerate(LENGTHS):
        every = np.asarray(all_scores(transitions, emissions, row))
        assert found[:length, row].tolist() == paths(row)[every.argmax()].tolist()
        assert (found[length:, row] == -1).all()
        np.testing.assert_allclose(scores[row], every.max(), atol=1e-13)


def test_marginals_are_sums_of_probabilities(chain):
    transitions, emissions, _ = chain
    found = crf.marginals(transitions, emissions, jnp.asarray(LENGTHS))
    for row, length in enumerate(LENGTHS):
        chances = np.asarray(jax.nn.softmax(all_scores(transitions, emissions, row)))
        expected = np.zeros((T, C))
        for path, chance in zip(paths(row), chances, strict=True):
            expected[np.arange(length), list(path)] += chance
        np.testing.assert_allclose(found[:, row], expected, atol=1e-13)


def test_without_transitions_steps_are_independent(chain):
    _, emissions, labels = chain
    none = jax.tree.map(lambda x: x.astype(float), crf.no_transitions(C))
    found = crf.log_likelihood(none, emissions, labels, jnp.asarray(LENGTHS))
    logs = np.asarray(jax.nn.log_softmax(emissions))
    known = [
        (t, b) for t, b in np.ndindex(T, 3) if t < LENGTHS[b] and labels[t, b] >= 0
    ]
    expected = np.zeros(3)
    for t, b in known:
        expected[b] += logs[t, b, labels[t, b]]
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_impossible_transitions_are_never_decoded(chain):
    transitions, emissions, _ = chain
    between = jnp.where(jnp.eye(C, dtype=bool), transitions.between, -jnp.inf)
    found, _ = crf.viterbi(
        transitions._replace(between=between), emissions, jnp.asarray(LENGTHS)
    )
    assert all(len(set(found[:n, b].tolist())) == 1 for b, n in enumerate(LENGTHS))
