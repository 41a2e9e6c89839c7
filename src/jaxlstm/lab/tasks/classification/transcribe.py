"""The task `ctc`: a symbol sequence for each sequence, without an alignment."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.data.labelled import LabelledSequences
from jaxlstm.lab.tasks.base import Artifact, Carry, Losses, Metric, Params
from jaxlstm.lab.tasks.classification import ctc, model, results
from jaxlstm.lab.tasks.classification.data import Batch, SequenceDataset, Spec
from jaxlstm.lab.tasks.classification.task import SequenceTask, Table
from jaxlstm.layers.base import Layer


class CTC(SequenceTask):
    """The task `ctc`: a symbol sequence for a longer sequence.

    The loss of a sequence is divided by its number of symbols. The edit distance is
    that of the most probable path, divided by the number of symbols.
    """

    name = "ctc"
    labels = "transcript"
    primary = Metric("loss")
    scores = ("edit_distance",)

    def check(self, config: Any, spec: Spec) -> None:
        """Check nothing: the report needs no other library."""

    def data(self, config: Any) -> SequenceDataset:
        """Read the sequences, and check that each is long enough for its symbols."""
        dataset = SequenceDataset(config, self.labels)
        for part in (dataset.train, dataset.validation, dataset.test):
            if part is not None:
                _require_steps(config, part)
        return dataset

    def outputs(self, spec: Spec) -> int:
        """Return the number of symbols and the blank."""
        return len(spec.classes) + 1

    def loss(
        self,
        model: Layer,
        params: Params,
        carry: Carry,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> tuple[Losses, Carry]:
        """Return the loss of each sequence `[B]` in nats per symbol."""
        lengths, logits = model.apply(params, batch.xs, lengths=batch.lengths, key=key)
        count = jnp.maximum((batch.labels >= 0).sum(1), 1).astype(jnp.float32)
        values = ctc.loss(logits, lengths, batch.labels) / count
        edits = ctc.edit_distances(logits.argmax(-1), lengths, batch.labels)
        weights = jnp.where(batch.valid, count, 0.0)
        distance = edits.astype(jnp.float32) / count
        return Losses(values, weights, {"edit_distance": distance}), ()

    def decoded(self, trained: Any, part: LabelledSequences) -> list[list[int]]:
        """Return the symbols of each sequence, by the search of the config."""

        def chances(batch: Batch) -> tuple[Array, Array]:
            lengths, logits = trained.model.apply(
                trained.params, batch.xs, lengths=batch.lengths
            )
            return lengths, jax.nn.log_softmax(logits).swapaxes(0, 1)

        size = trained.config.training.validation_batch_size
        found = results.for_each(chances, part, trained.spec, size=size)
        search = trained.config.decoding
        if search.method == "greedy":
            return [ctc.greedy(logs[:length]) for length, logs in found]
        return [
            ctc.prefix_beam(logs[:length], width=search.width)[0]
            for length, logs in found
        ]

    def result(self, trained: Any, part: LabelledSequences, name: str) -> Artifact:
        """Return the edit distance and the sequences with the most errors."""
        return results.of_symbols(part, self.decoded(trained, part), name)

    def table(self, trained: Any, part: LabelledSequences) -> Table:
        """Return the columns id and symbols."""
        classes = trained.spec.classes
        texts = [results.spelled(classes, one) for one in self.decoded(trained, part)]
        return {"id": list(part.ids), "symbols": texts}


def _require_steps(config: Any, part: LabelledSequences) -> None:
    """Raise `BadInput` for a sequence that is too short for its symbols."""
    assert part.label_offsets is not None
    steps = model.output_lengths(config.model, np.diff(part.offsets))
    for k, (first, last) in enumerate(itertools.pairwise(part.label_offsets)):
        symbols = part.labels[first:last].tolist()
        if ctc.steps_needed(symbols) > steps[k]:
            raise BadInput(
                f"data: sequence {describe(part.ids[k])}: got {len(symbols)} symbols "
                f"for {steps[k]} steps, expected at least {ctc.steps_needed(symbols)} "
                "steps, one for each symbol and one between equal symbols; remove it, "
                "or lower model.convolution.stride"
            )


TASK = CTC()
