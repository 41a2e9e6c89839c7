"""The task `tag`: a label for each step of a sequence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxlstm.lab.data.labelled import UNLABELLED, LabelledSequences
from jaxlstm.lab.tasks.base import Artifact, Carry, Losses, Metric, Params
from jaxlstm.lab.tasks.classification import crf, results
from jaxlstm.lab.tasks.classification.data import Batch
from jaxlstm.lab.tasks.classification.task import SequenceTask, Table
from jaxlstm.layers.base import Layer


class Tag(SequenceTask):
    """The task `tag`: a label for each step, with or without a random field.

    The loss of a sequence is its mean over the labelled steps.
    """

    name = "tag"
    labels = "step"
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
        """Return the loss of each sequence `[B]` in nats per labelled step."""
        _, logits = model.apply(params, batch.xs, lengths=batch.lengths, key=key)
        labels = batch.labels.T
        known = labels != UNLABELLED
        count = known.sum(0).astype(jnp.float32)
        if "transitions" in params:
            total = -crf.log_likelihood(
                params["transitions"], logits, labels, batch.lengths
            )
        else:
            each = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.where(known, labels, 0)
            )
            total = jnp.where(known, each, 0.0).sum(0)
        found = decode(params, logits, batch.lengths)
        right = ((found == labels) & known).sum(0).astype(jnp.float32)
        some = jnp.maximum(count, 1.0)
        weights = jnp.where(batch.valid, count, 0.0)
        return Losses(total / some, weights, {"accuracy": right / some}), ()

    def tagged(
        self, trained: Any, part: LabelledSequences
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return labels `[T]` and probabilities `[T, C]` of each sequence."""

        def chances(batch: Batch) -> tuple[Array, Array]:
            _, logits = trained.model.apply(
                trained.params, batch.xs, lengths=batch.lengths
            )
            tags = decode(trained.params, logits, batch.lengths)
            if "transitions" in trained.params:
                transitions = trained.params["transitions"]
                found = crf.marginals(transitions, logits, batch.lengths)
            else:
                found = jax.nn.softmax(logits)
            return tags.T, found.swapaxes(0, 1)

        size = trained.config.training.validation_batch_size
        found = results.for_each(chances, part, trained.spec, size=size)
        lengths = np.diff(part.offsets)
        tags = [tags[:n] for (tags, _), n in zip(found, lengths, strict=True)]
        return tags, [p[:n] for (_, p), n in zip(found, lengths, strict=True)]

    def result(self, trained: Any, part: LabelledSequences, name: str) -> Artifact:
        """Return table and confusion matrix of the steps."""
        return results.of_steps(part, self.tagged(trained, part)[0], name)

    def table(self, trained: Any, part: LabelledSequences) -> Table:
        """Return the columns id, step, label, and the probability of each class.

        With a random field, the label is that of the most probable sequence, and the
        probabilities are those of one step given all inputs.
        """
        tags, chances = self.tagged(trained, part)
        lengths, classes = np.diff(part.offsets), trained.spec.classes
        return {
            "id": np.repeat(np.array(part.ids), lengths),
            "step": np.concatenate([np.arange(n) for n in lengths]),
            "label": [classes[k] for k in np.concatenate(tags)],
            **results.probability_columns(classes, np.concatenate(chances)),
        }


def decode(params: Params, logits: Array, lengths: Array) -> Array:
    """Return the most probable labels `[T, B]`: of a random field, all together."""
    if "transitions" in params:
        return crf.viterbi(params["transitions"], logits, lengths)[0]
    return logits.argmax(-1)


TASK = Tag()
