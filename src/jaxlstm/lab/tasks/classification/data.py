"""Batches of labelled sequences: the split, the scale of the features, and buckets."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, did_you_mean, join_names, shortened
from jaxlstm.lab.data import buckets
from jaxlstm.lab.data.labelled import UNLABELLED, LabelledSequences, Labels
from jaxlstm.lab.data.sequences import read_sequences

PAD = UNLABELLED


class Spec(NamedTuple):
    """Facts about the data that a model depends on.

    Attributes:
        labels: what is labelled.
        columns: names of the features.
        classes: names of the classes or symbols.
        mean: the mean of each feature, which is subtracted.
        scale: the standard deviation of each feature, by which it is divided.
        length: number of steps of the longest training batch.
        symbols: largest number of symbols of a sequence; 0 without transcripts.
    """

    labels: Labels
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    length: int
    symbols: int = 0

    def normalized(self, sequences: LabelledSequences) -> LabelledSequences:
        """Return sequences in the scale that the model reads."""
        mean, scale = (np.array(x, np.float32) for x in (self.mean, self.scale))
        return sequences._replace(values=(sequences.values - mean) / scale)


class Batch(NamedTuple):
    """A batch of sequences that are padded to T steps.

    Attributes:
        xs: float32 `[T, B, D]`, 0 at padded steps.
        lengths: int32 `[B]`, at least 1.
        labels: int32 `[B]`, `[B, T]` for a label a step, or `[B, L]` of symbols; -1 is
            padding.
        weights: float32 `[B]`, the class weight of each loss.
        valid: bool `[B]`, False for rows that fill up a batch.
    """

    xs: Any
    lengths: Any
    labels: Any
    weights: Any
    valid: Any


PARTS = {"train": "training", "validation": "validation", "test": "test"}
AXES: Any = Batch(1, 0, 0, 0, 0)


class SequenceDataset:
    """The parts of labelled sequences, and their batches; see `Dataset`.

    Args:
        config: the config of a run.
        labels: what is labelled.

    Raises:
        BadInput: the data cannot be read or split.
    """

    batch_axes = AXES

    def __init__(self, config: Any, labels: Labels) -> None:
        self.labels: Labels = labels
        self._training = config.training
        read = read_sequences(config.data, labels)
        if labels == "sequence" and len(read.train.classes) < 2:
            raise BadInput(
                f"data: got the class {join_names(read.train.classes)} alone, expected "
                "at least 2 classes"
            )
        self.notes: list[str] = list(read.train.notes)
        self.train, self.validation, self.test = self._split(config, read)
        files = [part.description for part in read if part is not None]
        self._hashes = [digest for file in files for digest in file["sha256"]]
        self._paths = [path for file in files for path in file["paths"]]
        self._source = read.train.description
        lengths = np.diff(self.train.offsets)
        self.buckets = buckets.choose(
            lengths,
            smallest=config.training.batch_size * config.training.steps_per_dispatch,
            count=config.training.buckets,
        )
        self.spec = self._fitted(config.model.normalize)
        self.train = self.spec.normalized(self.train)
        self.validation = self.spec.normalized(self.validation)
        self.test = self.test and self.spec.normalized(self.test)
        self.class_weights = self._class_weights()
        self._order = buckets.Order(
            self.buckets,
            batch_size=config.training.batch_size,
            steps_per_dispatch=config.training.steps_per_dispatch,
            seed=config.seed,
        )

    # -- parts ----------------------------------------------------------------

    def _split(
        self, config: Any, read: Any
    ) -> tuple[LabelledSequences, LabelledSequences, LabelledSequences | None]:
        split, rest, test = config.split, read.train, read.test
        if test is None and split.test_fraction:
            rest, test = self._held_out(rest, split.test_fraction, split.seed, "test")
        elif test is not None:
            self.notes += [note for note in test.notes if note not in self.notes]
        train, validation = self._held_out(
            rest, split.validation_fraction, split.seed + 1, "validation"
        )
        return train, validation, test

    def _held_out(
        self, sequences: LabelledSequences, fraction: float, seed: int, name: str
    ) -> tuple[LabelledSequences, LabelledSequences]:
        """Split sequences; with one label each, by the same fraction of each class."""
        count = len(sequences.ids)
        held = round(count * fraction)
        if not 0 < held < count:
            raise BadInput(
                f"split.{name}_fraction: got {fraction} of {count} sequences, which "
                f"leaves {count - held} for training and {held} for {name}, expected "
                "at least 1 in each"
            )
        strata = sequences.labels if self.labels == "sequence" else np.zeros(count, int)
        rows = _stratified(strata, held, np.random.default_rng((seed, count)))
        missing = np.setdiff1d(strata, np.delete(strata, rows))
        absent = np.setdiff1d(strata, strata[rows])
        if self.labels == "sequence" and absent.size:
            names = [sequences.classes[k] for k in absent]
            self.notes.append(
                f"{name}: no sequence of {join_names(names, last='and')}, as "
                f"{len(rows)} of {count} sequences are held out"
            )
        assert not missing.size
        rest = np.setdiff1d(np.arange(count), rows)
        kept, held_out = (take(sequences, each, self.labels) for each in (rest, rows))
        return kept, held_out

    def _fitted(self, normalize: str) -> Spec:
        """Return the spec, with the scale of the training part."""
        values = self.train.values.astype(np.float64)
        mean, scale = values.mean(0), values.std(0)
        constant = scale <= 1e-6 * np.maximum(1.0, abs(mean))
        if constant.any():
            names = [self.train.columns[k] for k in np.flatnonzero(constant)]
            self.notes.append(
                f"{join_names(names, last='and')}: the same value in all training "
                "sequences"
            )
        if normalize == "none":
            mean, scale = np.zeros_like(mean), np.ones_like(scale)
        symbols = 0
        if self.train.label_offsets is not None:
            parts = (self.train, self.validation, self.test)
            symbols = max(
                int(np.diff(part.label_offsets).max())
                for part in parts
                if part is not None and part.label_offsets is not None
            )
        return Spec(
            self.labels,
            self.train.columns,
            self.train.classes,
            tuple(mean.tolist()),
            tuple(np.where(constant, 1.0, scale).tolist()),
            max(bucket.length for bucket in self.buckets),
            max(symbols, 1) if self.train.label_offsets is not None else 0,
        )

    def _class_weights(self) -> np.ndarray:
        """Return the weight of each class, `[C]`."""
        wanted = getattr(self._training, "class_weights", "none")
        classes = self.spec.classes
        if isinstance(wanted, str):
            if wanted == "none":
                return np.ones(len(classes), np.float32)
            counts = np.bincount(self.train.labels, minlength=len(classes))
            used = counts > 0
            return np.where(
                used, counts.sum() / (used.sum() * np.maximum(counts, 1)), 0.0
            ).astype(np.float32)
        for name in wanted:
            if name not in classes:
                raise BadInput(
                    f"training.class_weights: got the class {describe(name)}, expected "
                    f"{join_names(classes)}{did_you_mean(name, classes)}"
                )
        return np.array([wanted.get(name, 1.0) for name in classes], np.float32)

    # -- Dataset --------------------------------------------------------------

    @property
    def description(self) -> dict[str, Any]:
        """Source, paths, sha256 of each file, and sizes."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes = {
            name: {"sequences": len(part.ids), "steps": len(part.values)}
            for name, part in parts.items()
            if part is not None
        }
        return {
            "source": self._source["source"],
            "paths": self._paths,
            "sha256": self._hashes,
            "classes": len(self.spec.classes),
            **sizes,
        }

    def scored(self) -> tuple[str, LabelledSequences]:
        """Return the name and the sequences of the test part, or of the validation."""
        if self.test is not None:
            return "test", self.test
        return "validation", self.validation

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches that hold as many sequences as the training part."""
        return -(-len(self.train.ids) // self._training.batch_size)

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step."""
        rows, length = self._order.batch(step)
        weights = self.class_weights
        return padded(self.train, self.spec, rows, length=length, weights=weights)

    def batches(self, first_step: int, count: int) -> Batch:
        """Return `count` batches of one bucket, stacked along a new axis."""
        each = [self.batch(step) for step in range(first_step, first_step + count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def eval_batches(self, *, full: bool = True) -> Iterable[Batch]:
        """Return the validation part by increasing length; `full` changes nothing."""
        size = self._training.validation_batch_size
        return (batch for _, batch in in_order(self.validation, self.spec, size))


def _stratified(
    strata: np.ndarray, count: int, draw: np.random.Generator
) -> np.ndarray:
    """Return `count` rows with the same fraction of each stratum, up to rounding.

    At least one row of each stratum stays outside.
    """
    kinds, sizes = np.unique(strata, return_counts=True)
    exact = sizes * count / sizes.sum()
    chosen = np.minimum(np.floor(exact).astype(int), sizes - 1)
    # The largest remainders are rounded up, in random order if they are equal.
    order = np.lexsort((draw.random(len(kinds)), chosen - exact))
    while chosen.sum() < min(count, (sizes - 1).sum()):
        for k in order:
            if chosen[k] < sizes[k] - 1 and chosen.sum() < count:
                chosen[k] += 1
    rows = [
        draw.permutation(np.flatnonzero(strata == kind))[:number]
        for kind, number in zip(kinds, chosen, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def take(
    sequences: LabelledSequences, rows: np.ndarray, kind: Labels
) -> LabelledSequences:
    """Return some of the sequences.

    Args:
        sequences: sequences.
        rows: indices of those to keep.
        kind: what is labelled.
    """
    steps, offsets = _pieces(sequences.offsets, rows)
    labels, label_offsets = sequences.labels, sequences.label_offsets
    if label_offsets is not None:
        symbols, label_offsets = _pieces(label_offsets, rows)
        labels = labels[symbols]
    else:
        labels = labels[rows if kind == "sequence" else steps]
    return sequences._replace(
        ids=tuple(sequences.ids[k] for k in rows),
        offsets=offsets,
        values=sequences.values[steps],
        labels=labels,
        label_offsets=label_offsets,
    )


def _pieces(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of some pieces, and the offsets of these pieces."""
    lengths = np.diff(offsets)[rows]
    after = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.repeat(offsets[rows] - after[:-1], lengths)
    return starts + np.arange(after[-1]), after


def padded(
    sequences: LabelledSequences,
    spec: Spec,
    rows: Sequence[int] | np.ndarray,
    *,
    length: int,
    weights: np.ndarray | None = None,
    size: int | None = None,
) -> Batch:
    """Return some of the sequences as a batch.

    Args:
        sequences: sequences in the scale of the spec.
        spec: the spec.
        rows: indices of the sequences.
        length: T, the number of steps with padding.
        weights: the weight of each class; None for 1.
        size: B, to which the batch is filled up with rows that are not valid.
    """
    size = len(rows) if size is None else size
    offsets, label_offsets = sequences.offsets, sequences.label_offsets
    xs = np.zeros((length, size, len(spec.columns)), np.float32)
    lengths, valid = np.ones(size, np.int32), np.zeros(size, bool)
    loss_weights = np.ones(size, np.float32)
    if label_offsets is not None:
        symbols = np.diff(label_offsets)[rows]
        labels = np.full((size, max(spec.symbols, *symbols)), PAD, np.int32)
    elif spec.labels == "sequence":
        labels = np.zeros(size, np.int32)
    else:
        labels = np.full((size, length), PAD, np.int32)
    for place, row in enumerate(rows):
        first, last = offsets[row], offsets[row + 1]
        xs[: last - first, place] = sequences.values[first:last]
        lengths[place], valid[place] = last - first, True
        if label_offsets is not None:
            text = sequences.labels[label_offsets[row] : label_offsets[row + 1]]
            labels[place, : len(text)] = text
        elif labels.ndim == 2:
            labels[place, : last - first] = sequences.labels[first:last]
        else:
            labels[place] = sequences.labels[row]
            loss_weights[place] = 1 if weights is None else weights[labels[place]]
    return Batch(xs, lengths, labels, loss_weights, valid)


def in_order(
    sequences: LabelledSequences, spec: Spec, size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield all sequences once, by increasing length, in few shapes.

    Args:
        sequences: sequences in the scale of the spec.
        spec: the spec.
        size: the number of sequences of a batch; the last one of a bucket is filled up.

    Yields:
        The indices of the sequences, and the batch.
    """
    lengths = np.diff(sequences.offsets)
    size = min(size, len(lengths))
    for bucket in buckets.choose(lengths, smallest=size):
        members = bucket.members[np.argsort(lengths[bucket.members], kind="stable")]
        for first in range(0, len(members), size):
            rows = members[first : first + size]
            yield rows, padded(sequences, spec, rows, length=bucket.length, size=size)


def batch_like(spec: Spec, batch_size: int) -> Batch:
    """Return the types of a training batch of the longest sequences."""
    label_shape = {
        "sequence": (),
        "step": (spec.length,),
        "transcript": (spec.symbols,),
    }
    like = jax.ShapeDtypeStruct
    return Batch(
        like((spec.length, batch_size, len(spec.columns)), np.float32),
        like((batch_size,), np.int32),
        like((batch_size, *label_shape[spec.labels]), np.int32),
        like((batch_size,), np.float32),
        like((batch_size,), np.bool_),
    )


def facts(dataset: SequenceDataset) -> dict[str, str]:
    """Return the rows of `check` and of the report."""
    train, described = dataset.train, dataset.description
    lengths = np.diff(train.offsets)
    sizes = [
        f"{described[name]['sequences']:,} {word}"
        for name, word in PARTS.items()
        if name in described
    ]
    what = {"sequence": "classes", "step": "classes of steps", "transcript": "symbols"}
    wasted = buckets.padding(lengths, dataset.buckets)
    edges = ", ".join(f"{bucket.length:,}" for bucket in dataset.buckets)
    rows = {
        "data": shortened([described["source"], *described["paths"]]),
        "sequences": ", ".join(sizes),
        "features": f"{len(dataset.spec.columns):,}",
        what[dataset.labels]: _classes(dataset),
        "lengths": f"{lengths.min():,} to {lengths.max():,} steps, mean "
        f"{lengths.mean():,.1f}",
        "padding": f"{wasted:.0%} of the steps, padded to {edges}",
    }
    if dataset.notes:
        rows["notes"] = "; ".join(dataset.notes)
    return rows


def _classes(dataset: SequenceDataset) -> str:
    """Return the number of classes, and the smallest and the largest one."""
    names = dataset.spec.classes
    labels = dataset.train.labels[dataset.train.labels != UNLABELLED]
    counts = np.bincount(labels, minlength=len(names))
    few, many = int(counts.argmin()), int(counts.argmax())
    return (
        f"{len(names):,}, with {counts[few]:,} ({names[few]}) to {counts[many]:,} "
        f"({names[many]}) in training"
    )
