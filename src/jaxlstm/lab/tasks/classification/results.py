"""Results of classify, tag and ctc: tables by scikit-learn, pictures, predictions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.labelled import UNLABELLED, LabelledSequences
from jaxlstm.lab.tasks.base import Artifact, Picture
from jaxlstm.lab.tasks.classification import ctc
from jaxlstm.lab.tasks.classification.data import Batch, Spec, in_order

SHOWN = 10
"""Number of wrong answers that a report lists."""


def for_each(
    function: Callable[[Batch], Any],
    sequences: LabelledSequences,
    spec: Spec,
    *,
    size: int,
) -> list[Any]:
    """Return the result of a function of batches for each sequence, in their order.

    Args:
        function: `batch -> arrays`, all with the batch on axis 0.
        sequences: sequences in the scale of the spec.
        spec: the spec.
        size: the number of sequences of a batch.
    """
    compiled = jax.jit(function)
    found: list[Any] = [None] * len(sequences.ids)
    for rows, batch in in_order(sequences, spec, size):
        result = jax.device_get(compiled(batch))
        for place, row in enumerate(rows):
            found[row] = jax.tree.map(lambda leaf, k=place: leaf[k], result)
    return found


def require_scikit_learn() -> None:
    """Raise `BadInput` if scikit-learn, which computes the tables, is missing."""
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError:
        raise BadInput(
            "the tables of classes need scikit-learn; install it with: "
            'pip install "jaxlstm[data]"'
        ) from None


def class_table(
    expected: np.ndarray, found: np.ndarray, classes: Sequence[str], unit: str
) -> str:
    """Return accuracies and a table of the classes, by scikit-learn.

    Args:
        expected: the true classes `[N]`.
        found: the predicted classes `[N]`.
        classes: names of the classes.
        unit: name of what is counted, such as "sequences".

    Example:
        >>> text = class_table(np.array([0, 0, 1]), np.array([0, 1, 1]), "ab", "steps")
        >>> print(text.splitlines()[0])
        accuracy           0.6667   2 of 3 steps; 0.6667 for the largest class alone
    """
    from sklearn import metrics

    once: Any = {"zero_division": 0}  # no warning for a class that nobody chose

    present = np.unique(expected)
    recall = metrics.recall_score(
        expected, found, labels=present, average="macro", **once
    )
    f1 = metrics.f1_score(expected, found, average="macro", **once)
    right, total = int((expected == found).sum()), len(expected)
    largest = np.bincount(expected).max() / total
    table = metrics.classification_report(
        expected,
        found,
        labels=range(len(classes)),
        target_names=list(classes),
        digits=3,
        **once,
    )
    absent = [str(name) for k, name in enumerate(classes) if k not in present]
    note = f"\nNo {unit} here: {', '.join(absent)}." if absent else ""
    return (
        f"accuracy           {right / total:.4f}   {right} of {total} {unit}; "
        f"{largest:.4f} for the largest class alone\n"
        f"balanced accuracy  {recall:.4f}\n"
        f"macro F1           {f1:.4f}\n\n{table}{note}".rstrip()
    )


def confusion(
    expected: np.ndarray, found: np.ndarray, classes: Sequence[str], name: str
) -> Picture:
    """Return the picture of a confusion matrix."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(expected, found, labels=range(len(classes)))

    def draw(ax: Any) -> None:
        from jaxlstm import plots

        plots.confusion_matrix(matrix, classes, ax=ax)

    side = min(12.0, max(5.0, 1.5 + 0.45 * len(classes)))
    caption = f"Confusion matrix of the {name} part: true classes in rows."
    return Picture("confusion.png", caption, (side + 1, side), draw)


def of_sequences(
    sequences: LabelledSequences, probabilities: Sequence[np.ndarray], name: str
) -> Artifact:
    """Return table, confusion matrix and the surest wrong answers of a classifier."""
    chances, expected = np.stack(probabilities), sequences.labels
    found = chances.argmax(1)
    text = class_table(expected, found, sequences.classes, "sequences")
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        order = wrong[np.argsort(-chances[wrong, found[wrong]], kind="stable")]
        rows = [
            f"  {sequences.ids[k]}: {sequences.classes[expected[k]]} taken for "
            f"{sequences.classes[found[k]]} with probability {chances[k, found[k]]:.3f}"
            for k in order[:SHOWN]
        ]
        text += "\n\nThe surest of the wrong answers:\n" + "\n".join(rows)
    picture = confusion(expected, found, sequences.classes, name)
    return Artifact(f"Results of the {name} part", text, [picture])


def of_steps(
    sequences: LabelledSequences, tags: Sequence[np.ndarray], name: str
) -> Artifact:
    """Return table and confusion matrix of the labelled steps of a tagger."""
    expected = sequences.labels
    found = np.concatenate(list(tags))
    known = expected != UNLABELLED
    text = class_table(expected[known], found[known], sequences.classes, "steps")
    ends = sequences.offsets[1:-1]
    right = [bool(part.all()) for part in np.split((found == expected) | ~known, ends)]
    text += f"\n\nSequences without a wrong step: {sum(right)} of {len(right)}."
    picture = confusion(expected[known], found[known], sequences.classes, name)
    return Artifact(f"Results of the {name} part", text, [picture])


def of_symbols(
    sequences: LabelledSequences, decoded: Sequence[Sequence[int]], name: str
) -> Artifact:
    """Return the edit distance, and the sequences with the most errors."""
    assert sequences.label_offsets is not None
    expected = np.split(sequences.labels, sequences.label_offsets[1:-1])
    edits = [
        ctc.edit_distance(list(a), b.tolist())
        for a, b in zip(decoded, expected, strict=True)
    ]
    total, symbols = sum(edits), len(sequences.labels)
    text = (
        f"edit distance      {total / max(symbols, 1):.4f}   {total} edits of "
        f"{symbols} symbols\n"
        f"without an error   {np.mean(np.array(edits) == 0):.4f}   "
        f"{sum(edit == 0 for edit in edits)} of {len(edits)} sequences"
    )
    worst = sorted(range(len(edits)), key=lambda k: -edits[k])[:SHOWN]
    rows = [
        f"  {sequences.ids[k]}: {spelled(sequences.classes, expected[k])} read as "
        f"{spelled(sequences.classes, decoded[k]) or 'nothing'}"
        for k in worst
        if edits[k]
    ]
    if rows:
        text += "\n\nThe most errors:\n" + "\n".join(rows)
    return Artifact(f"Results of the {name} part", text)


def spelled(classes: Sequence[str], symbols: Sequence[int] | np.ndarray) -> str:
    """Return symbols as text, with spaces between names of several letters.

    Example:
        >>> spelled(["a", "b"], [1, 0]), spelled(["sil", "a"], [0, 1])
        ('ba', 'sil a')
    """
    apart = " " if any(len(name) > 1 for name in classes) else ""
    return apart.join(classes[k] for k in symbols)


def probability_columns(
    classes: Sequence[str], chances: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Return a column of probabilities for each class."""
    return {f"p({name})": chances[:, k] for k, name in enumerate(classes)}
