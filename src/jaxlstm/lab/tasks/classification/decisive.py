"""The step at which a classifier decides, and its gates there.

    decisive step   the first step from which on the answer no longer changes: the model
                    that reads only x_1 … x_t gives the same class for every later t

The gates of the first recurrent layer at the decisive steps are compared with those at
all other steps of the same sequences. Sequences are from the test part, or from the
validation part if there is no test part.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlstm.lab.tasks.base import Artifact, Picture
from jaxlstm.lab.tasks.classification import data
from jaxlstm.lab.tasks.classification.data import Batch

MOST = 256
"""Largest number of sequences that are read, drawn with the seed 0."""

SHARES = 20
"""Points of the picture: shares of a sequence of 1/20, 2/20, …"""


class Reading(NamedTuple):
    """Answers of a classifier to the beginnings of sequences.

    Attributes:
        chances: `[T, N, C]`, the probabilities after t + 1 steps; those of the whole
            sequence after its end.
        lengths: `[N]`.
        labels: `[N]`, the true classes.
        gates: mean over the units of each gate of the first layer, `[T, N]` by name.
    """

    chances: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    gates: dict[str, np.ndarray]


def read(trained: Any) -> Reading:
    """Return the answers of a trained classifier while it reads."""
    part = trained.dataset().scored()[1]
    count = len(part.ids)
    rows = np.random.default_rng(0).permutation(count)[:MOST]
    lengths = np.diff(part.offsets)[rows]
    batch = data.padded(part, trained.spec, rows, length=int(lengths.max()))
    model, params = trained.model, trained.params

    @jax.jit
    def after(batch: Batch, steps: Any) -> Any:
        shorter = jax.numpy.minimum(batch.lengths, steps)
        _, logits = model.apply(params, batch.xs, lengths=shorter)
        return jax.nn.softmax(logits)

    chances = [np.asarray(after(batch, t + 1)) for t in range(int(lengths.max()))]
    return Reading(np.stack(chances), lengths, batch.labels, _gates(trained, batch))


def _gates(trained: Any, batch: Batch) -> dict[str, np.ndarray]:
    """Return the mean of each gate over the units of the first layer.

    With a stride before it, the layer has fewer steps than the sequence; then none.
    """
    _, _, traces = trained.model.trace(trained.params, batch.xs, lengths=batch.lengths)
    gates = next(iter(traces.values())).gates
    named = gates if isinstance(gates, dict) else gates._asdict()
    found = {
        name: np.asarray(value, float).mean(-1)
        for name, value in named.items()
        if name in ("i", "f", "o", "r", "z") and np.ndim(value) == 3
    }
    return {k: v for k, v in found.items() if len(v) == len(batch.xs)}


def decisive_steps(reading: Reading) -> np.ndarray:
    """Return the decisive step of each sequence, `[N]`, counted from 1.

    Example:
        >>> chances = np.eye(2)[[[0], [1], [0], [0]]]  # answers 0 1 0 0
        >>> one = np.array([4])
        >>> decisive_steps(Reading(chances, one, np.array([0]), {})).tolist()
        [3]
    """
    answers = reading.chances.argmax(-1)
    changed = answers != answers[-1]
    steps = np.arange(1, len(answers) + 1)[:, None]
    return np.where(changed, steps, 0).max(0) + 1


def describe(trained: Any) -> list[Artifact]:
    """Return when the answers are decided, by class, and the gates there."""
    reading, part = read(trained), trained.dataset().scored()[0]
    decided, classes = decisive_steps(reading), trained.spec.classes
    share = decided / reading.lengths
    right = reading.chances[-1].argmax(-1) == reading.labels
    lines = [
        f"{len(share)} sequences of the {part} part were read step by step.",
        f"Half of the answers are decided after {np.median(share):.0%} of the "
        f"sequence, nine tenths after {np.quantile(share, 0.9):.0%}.",
    ]
    if 0 < right.sum() < len(right):
        lines.append(
            f"Right answers are decided after {np.median(share[right]):.0%} (median), "
            f"wrong ones after {np.median(share[~right]):.0%}."
        )
    present = np.unique(reading.labels)
    table = [
        f"{classes[k]}: {np.median(share[reading.labels == k]):.0%} "
        f"({(reading.labels == k).sum()} sequences)"
        for k in present
    ]
    lines.append("Median by class: " + ", ".join(table) + ".")
    lines += _sentences(reading, decided)
    picture = Picture(
        "decision.png",
        "Mean probability of the right class while sequences are read.",
        (8, 4.5),
        lambda ax: _draw(reading, classes, ax),
    )
    return [Artifact("When the answer is decided", "\n".join(lines), [picture])]


def _sentences(reading: Reading, decided: np.ndarray) -> list[str]:
    """Return a sentence for each gate: its mean at decisive steps and at others."""
    if not reading.gates:
        return ["The layer has other steps than the sequence: gates are not compared."]
    rows = np.arange(len(decided))
    sentences = []
    for name, gate in reading.gates.items():
        active = np.arange(len(gate))[:, None] < reading.lengths
        long = reading.lengths > 1
        at = gate[decided - 1, rows]
        others = (np.where(active, gate, 0).sum(0) - at) / np.maximum(
            reading.lengths - 1, 1
        )
        higher = float((at > others)[long].mean()) if long.any() else 0.5
        sentences.append(
            f"Gate {name} of the first layer: mean {at[long].mean():.3f} at the "
            f"decisive steps, {others[long].mean():.3f} at the others; higher at the "
            f"decisive step in {higher:.0%} of the sequences."
        )
    return sentences


def _draw(reading: Reading, classes: Any, ax: Any) -> None:
    from jaxlstm import plots

    curves = {}
    rows = np.arange(len(reading.labels))
    ends = np.ceil(np.outer(np.arange(1, SHARES + 1) / SHARES, reading.lengths))
    chances = reading.chances[ends.astype(int) - 1, rows, reading.labels]
    for k in np.unique(reading.labels):
        curves[classes[k]] = chances[:, reading.labels == k].mean(1).clip(0, 1)
    plots.decision_curves(curves, ax=ax)
