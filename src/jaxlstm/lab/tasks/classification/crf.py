"""A linear-chain conditional random field over the labels of a sequence.

    s(y) = start[y_1] + Σ_t emissions[t, y_t] + Σ_t between[y_{t-1}, y_t] + end[y_T]
    log p(y) = s(y) - log Σ_y' exp s(y')

Sums over all label sequences are computed in log space by the forward algorithm, the
best sequence by the Viterbi algorithm, each in T steps of `jax.lax.scan`. Padded steps
are never read: they may be NaN.

Reference:
    Lafferty, McCallum and Pereira, "Conditional random fields: probabilistic models for
    segmenting and labeling sequence data", 2001. With an LSTM below it: Huang, Xu and
    Yu, "Bidirectional LSTM-CRF models for sequence tagging", 2015,
    https://arxiv.org/abs/1508.01991
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Transitions(NamedTuple):
    """Scores of the chain for C labels.

    Attributes:
        start: `[C]`, score of a label at the first step.
        between: `[C, C]`, score of a label (column) after another (row).
        end: `[C]`, score of a label at the last step.
    """

    start: Array
    between: Array
    end: Array


def no_transitions(labels: int) -> Transitions:
    """Return scores of 0, with which the steps are independent.

    Example:
        >>> no_transitions(3).between.shape
        (3, 3)
    """
    zeros = jnp.zeros
    return Transitions(zeros(labels), zeros((labels, labels)), zeros(labels))


def log_likelihood(
    transitions: Transitions, emissions: Array, labels: Array, lengths: Array
) -> Array:
    """Return `log p(labels)` of each sequence, `[B]`.

    A step without a label is summed over: the result is then the probability of the
    labels that are known.

    Args:
        transitions: the scores of the chain.
        emissions: `[T, B, C]`, the score of each label at each step.
        labels: integers `[T, B]`; -1 for a step without a label.
        lengths: integers `[B]` from 1 to T; later steps are padding.

    Example:
        >>> emissions = jnp.log(jnp.array([[[0.2, 0.8]], [[0.5, 0.5]]]))
        >>> labels, lengths = jnp.array([[1], [-1]]), jnp.array([2])
        >>> found = log_likelihood(no_transitions(2), emissions, labels, lengths)
        >>> jnp.exp(found).round(3).tolist()
        [0.8...]
    """
    choices = jnp.arange(emissions.shape[-1])
    allowed = (labels[..., None] == choices[None, None]) | (labels < 0)[..., None]
    given = jnp.where(allowed, emissions, -jnp.inf)
    return log_partition(transitions, given, lengths) - log_partition(
        transitions, emissions, lengths
    )


def log_partition(transitions: Transitions, emissions: Array, lengths: Array) -> Array:
    """Return `log Σ_y exp s(y)` of each sequence, `[B]`, by the forward algorithm.

        α_1 = start + e_1      α_t = e_t + log Σ_i exp(α_{t-1}[i] + between[i])

    Args:
        transitions: the scores of the chain.
        emissions: `[T, B, C]`; -inf excludes a label.
        lengths: integers `[B]` from 1 to T.
    """
    emissions, active = _active(emissions, lengths)

    def step(alpha: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        emission, is_active = inputs
        scores = alpha[..., :, None] + transitions.between[None]
        after = emission + jax.nn.logsumexp(scores, axis=-2)
        return jnp.where(is_active, after, alpha), None

    first = transitions.start[None] + emissions[0]
    last, _ = jax.lax.scan(step, first, (emissions[1:], active[1:]))
    return jax.nn.logsumexp(last + transitions.end[None], axis=-1)


def marginals(transitions: Transitions, emissions: Array, lengths: Array) -> Array:
    """Return `p(y_t = c)`, `[T, B, C]`; 0 at padded steps.

    The derivative of the log partition function with respect to an emission is the
    marginal probability of that label.
    """

    def total(emissions: Array) -> Array:
        return log_partition(transitions, emissions, lengths).sum()

    return jax.grad(total)(emissions)


def viterbi(
    transitions: Transitions, emissions: Array, lengths: Array
) -> tuple[Array, Array]:
    """Return the label sequence with the largest score, and its score.

    Args:
        transitions: the scores of the chain.
        emissions: `[T, B, C]`.
        lengths: integers `[B]` from 1 to T.

    Returns:
        The labels `[T, B]`, -1 at padded steps, and the scores `[B]`. Of several best
        sequences, it is the one with the smaller label at the last step in which they
        differ.

    Reference:
        Viterbi, "Error bounds for convolutional codes and an asymptotically optimum
        decoding algorithm", 1967.
    """
    emissions, active = _active(emissions, lengths)
    labels = jnp.arange(emissions.shape[-1])

    def forward(best: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        emission, is_active = inputs
        scores = best[..., :, None] + transitions.between[None]
        after = emission + scores.max(-2)
        before = jnp.where(is_active, scores.argmax(-2), labels[None])
        return jnp.where(is_active, after, best), before

    def backward(label: Array, before: Array) -> tuple[Array, Array]:
        return jnp.take_along_axis(before, label[:, None], -1)[:, 0], label

    first = transitions.start[None] + emissions[0]
    best, before = jax.lax.scan(forward, first, (emissions[1:], active[1:]))
    best = best + transitions.end[None]
    first_label, later = jax.lax.scan(backward, best.argmax(-1), before, reverse=True)
    found = jnp.concatenate([first_label[None], later])
    return jnp.where(active[..., 0], found, -1), best.max(-1)


def _active(emissions: Array, lengths: Array) -> tuple[Array, Array]:
    """Return the emissions, 0 at padded steps, and the mask `[T, B, 1]`."""
    steps = jnp.arange(len(emissions))[:, None, None]
    active = steps < lengths[None, :, None]
    return jnp.where(active, emissions, 0.0), active
