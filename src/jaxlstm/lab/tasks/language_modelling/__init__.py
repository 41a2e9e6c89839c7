"""Language modelling: predict the next token of a text from all tokens before it.

    p(x_{t+1} | x_1 … x_t) = softmax(W h_t + b)
    loss = -1/N Σ_t log p(x_{t+1} | x_1 … x_t)        nats per token

The state is carried from one batch to the next. The window limits backpropagation
through time, but not how long the state can remember.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxlstm.lab._util.wording import shortened
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.data.vocabulary import Vocabulary, from_json
from jaxlstm.lab.tasks.base import (
    Artifact,
    Carry,
    Losses,
    Metric,
    Params,
    StepCost,
)
from jaxlstm.lab.tasks.language_modelling import data, generation, model, pictures
from jaxlstm.lab.tasks.language_modelling.data import TextDataset
from jaxlstm.lab.tasks.language_modelling.generation import generate as generate
from jaxlstm.lab.tasks.language_modelling.generation import prompt as prompt
from jaxlstm.lab.tasks.language_modelling.model import build as build
from jaxlstm.lab.tasks.language_modelling.model import documents as documents
from jaxlstm.lab.tasks.language_modelling.streaming import TextStream
from jaxlstm.lab.tasks.recurrent import cell as cell
from jaxlstm.layers.base import Layer


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Return `-log softmax(logits)[target]`, computed in float32, in nats.

    Args:
        logits: `[*b, V]`.
        targets: integers `[*b]`.
    """
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), targets
    )


class LanguageModelling:
    """The task `language_modelling`; see `jaxlstm.lab.tasks.base.Task`."""

    name = "language_modelling"
    primary = Metric("loss")
    scores: Sequence[str] = ("bits_per_character", "bits_per_byte", "perplexity")
    positions: Sequence[str] = model.LAYERS
    cell = staticmethod(cell)
    cross_entropy = staticmethod(cross_entropy)

    def data(self, config: Config) -> TextDataset:
        """Read the text."""
        return TextDataset(config)

    def data_of_run(self, config: Config, spec: Vocabulary) -> TextDataset:
        """Read the text again, with the tokenizer of a run."""
        return TextDataset(config, vocabulary=spec)

    def files(self, spec: Vocabulary) -> Mapping[str, str]:
        """Return the tokenizer as a file for other programs."""
        return {"tokenizer.json": spec.tokenizer} if spec.tokenizer else {}

    def check(self, config: Config, spec: Vocabulary) -> None:
        """Check that the sample's prompt can be encoded."""
        if config.sample.length:
            generation.prompt(config.sample, config.data, spec)

    def model(self, config: Config, spec: Vocabulary) -> Layer:
        """Return embedding, recurrent layers and read-out."""
        return build(config.model, spec.size)

    def batch_like(self, config: Config, spec: Vocabulary) -> Any:
        """Return the types of a training batch."""
        return data.batch_like(config)

    def step_cost(self, config: Config) -> StepCost:
        """Return the cost of a step of the LSTM layers."""
        model, training = config.model, config.training
        tokens, units = training.batch_size * training.window, model.hidden_size
        below = [model.embedding_size] + [units] * (model.layers - 1)
        return StepCost(24.0 * tokens * units * sum(d + units for d in below), units)

    def loss(
        self,
        model: Layer,
        params: Params,
        carry: Carry,
        batch: Any,
        *,
        key: Array | None = None,
    ) -> tuple[Losses, Carry]:
        """Return -log p of each target `[T, B]` in nats, and the carried state.

        Padding (weight False) is masked and does not change the state.
        """
        weights = getattr(batch, "weights", None)
        lengths = getattr(batch, "characters", None)
        extra = {} if lengths is None else {"characters": lengths.astype(jnp.float32)}
        carry, logits = model.apply(
            params, batch.inputs, carry, key=key, mask=weights, resets=batch.resets
        )
        return Losses(cross_entropy(logits, batch.targets), weights, extra), carry

    def metrics(self, spec: Vocabulary, means: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, and the forms of it that papers report."""
        return metrics(spec, means["loss"], characters=means.get("characters"))

    def conclude(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return a sample and the pictures of the first layer."""
        found = self.artifacts(trained, dataset)
        if trained.config.sample.length:
            text = trained.config.sample.prompt + trained.sample()
            found.insert(0, Artifact("Sample", text))
        return found

    def artifacts(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return the pictures of the first layer while it reads."""
        drawn = pictures.of_validation(trained.config, trained.params, dataset.corpus)
        return [Artifact(pictures=drawn)]

    def sample(self, trained: Any, **options: Any) -> str:
        """Return text that continues a prompt; see `generation.sample`."""
        return generation.sample(
            trained.model, trained.params, trained.spec, trained.config, **options
        )

    def stream(self, trained: Any, model: Layer, *, slots: int) -> TextStream:
        """Return slots that read and write text."""
        return TextStream(
            model, trained.params, trained.spec, trained.config, slots=slots
        )

    def score(self, trained: Any, text: str) -> np.ndarray:
        """Return log p of each token of a text; see `generation.score`."""
        return generation.score(
            trained.model, trained.params, trained.spec, trained.config, text
        )

    def facts(self, config: Config, dataset: Any) -> dict[str, str]:
        """Return the source of the text and the lengths of its parts."""
        parts = dataset.description
        rows = {"data": f"{parts['source']}, {shortened(parts['paths'], most=3)}"}
        if notes := parts.get("notes"):
            rows["note"] = "; ".join(notes)
        for part, name in ("train", "training"), ("validation", "validation"):
            rows[f"{name} tokens"] = f"{parts[part]['tokens']:,}" + _inside(parts[part])
        return rows | {"vocabulary": f"{dataset.spec.size:,}"}

    def spec_to_json(self, spec: Vocabulary) -> Any:
        """Return the vocabulary as JSON."""
        return json.loads(spec.to_json())

    def spec_from_json(self, written: Any) -> Vocabulary:
        """Return the vocabulary that `spec_to_json` wrote."""
        return from_json(json.dumps(written))


def _inside(part: Mapping[str, int]) -> str:
    """Return what the tokens of a part are, if they are not its characters."""
    words, tokens = [], part["tokens"]
    if part.get("documents", 1) > 1:
        words.append(f"{part['documents']:,} documents")
    if "unknown" in part:
        words.append(f"{part['unknown'] / max(1, tokens):.1%} unknown words")
    return f" ({', '.join(words)})" if words else ""


def metrics(
    vocabulary: Vocabulary, loss: float, *, characters: float | None = None
) -> dict[str, float]:
    """Return the loss in nats per token and the forms of it that papers report.

    Args:
        vocabulary: the vocabulary.
        loss: the mean loss per token.
        characters: the mean number of characters of the same tokens. None in training,
            where they are not counted, and if the tokens joined are not the text.

    Returns:
        Bits per character if tokens are characters or `characters` is known, bits per
        byte for bytes, perplexity per token for words, subwords and other ids.
    """
    found, bits = {"loss": loss}, loss / float(jnp.log(2.0))
    if vocabulary.kind == "character":
        return found | {"bits_per_character": bits}
    if vocabulary.kind == "byte":
        found["bits_per_byte"] = bits
    else:
        found["perplexity"] = float(jnp.exp(loss))
    if characters:
        found["bits_per_character"] = bits / characters
    return found


TASK = LanguageModelling()
