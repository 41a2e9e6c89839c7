"""The task `classify`: one label for each sequence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxlstm.lab.data.labelled import LabelledSequences
from jaxlstm.lab.tasks.base import Artifact, Carry, Losses, Metric, Params
from jaxlstm.lab.tasks.classification import decisive, results
from jaxlstm.lab.tasks.classification.data import Batch
from jaxlstm.lab.tasks.classification.task import SequenceTask, Table
from jaxlstm.layers.base import Layer


class Classify(SequenceTask):
    """The task `classify`: one label for a sequence.

    loss = -w_label log softmax(W pool(h_1 … h_T) + b)[label]
    """

    name = "classify"
    labels = "sequence"
    primary = Metric("loss")
    scores = ("accuracy",)

    def loss(
        self,
        model: Layer,
        params: Params,
        carry: Carry,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> tuple[Losses, Carry]:
        """Return the weighted cross entropy of each sequence `[B]` in nats."""
        _, logits = model.apply(params, batch.xs, lengths=batch.lengths, key=key)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        right = (logits.argmax(-1) == batch.labels).astype(jnp.float32)
        losses = Losses(values * batch.weights, batch.valid, {"accuracy": right})
        return losses, ()

    def probabilities(self, trained: Any, part: LabelledSequences) -> np.ndarray:
        """Return the probability of each class, `[N, C]`."""

        def chances(batch: Batch) -> Array:
            _, logits = trained.model.apply(
                trained.params, batch.xs, lengths=batch.lengths
            )
            return jax.nn.softmax(logits)

        size = trained.config.training.validation_batch_size
        return np.stack(results.for_each(chances, part, trained.spec, size=size))

    def result(self, trained: Any, part: LabelledSequences, name: str) -> Artifact:
        """Return table and confusion matrix."""
        return results.of_sequences(part, list(self.probabilities(trained, part)), name)

    def inspect(self, trained: Any) -> list[Artifact]:
        """Return the steps at which answers are decided, and the gates there."""
        return decisive.describe(trained)

    def table(self, trained: Any, part: LabelledSequences) -> Table:
        """Return the columns id, label, and the probability of each class."""
        chances = self.probabilities(trained, part)
        classes = trained.spec.classes
        return {
            "id": list(part.ids),
            "label": [classes[k] for k in chances.argmax(1)],
            **results.probability_columns(classes, chances),
        }


TASK = Classify()
