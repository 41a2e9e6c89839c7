"""What a run has learnt: load it, sample from it, judge it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlstm.lab import checkpoints, optimizers, runs
from jaxlstm.lab import config as configs
from jaxlstm.lab.config import Config
from jaxlstm.lab.data import Vocabulary, read, validation_windows
from jaxlstm.lab.data.vocabulary import from_json
from jaxlstm.lab.errors import BadInput
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training import evaluate, initial_state
from jaxlstm.layers import Layer


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, as `train`, `resume` and `load` give it.

    run          its directory
    config       what it was trained by
    vocabulary   from text to tokens and back
    model        the layer: `model.apply(params, tokens)` gives a state and logits
    params       its parameters, those of the best validation
    step         the step that they are of
    """

    run: Path
    config: Config
    vocabulary: Vocabulary
    model: Layer
    params: Any
    step: int

    def sample(
        self,
        prompt: str | None = None,
        *,
        length: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Text that continues the prompt; what is None is taken from the config.

        Errors: `BadInput` for a number out of range, and for an empty prompt where
        the model knows no beginning of a document.
        """
        asked = {
            "prompt": prompt,
            "length": length,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        given = {key: value for key, value in asked.items() if value is not None}
        how = configs.load({"sample": self.config.sample.model_dump() | given}).sample
        tokens = task.generate(
            self.model,
            self.params,
            jnp.asarray(self._prompt(how.prompt)),
            jax.random.key(seed),
            length=how.length,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            forbidden=jnp.asarray(self.vocabulary.without_text, jnp.int32),
        )
        return self.vocabulary.decode(tokens)

    def _prompt(self, text: str) -> Any:
        tokens = self.vocabulary.encode(text)
        if not len(tokens):
            raise BadInput(
                "sample.prompt is empty; give the model a character to begin with"
            )
        return tokens

    def evaluate(self) -> dict[str, float]:
        """Loss on the whole validation part in nats per token, state carried along.

        Errors: `BadInput` where the data is no longer there.
        """
        corpus = read(self.config.data)
        windows = validation_windows(
            corpus.validation,
            streams=self.config.training.validation_streams,
            window=self.config.training.window,
            document_token=corpus.document_token,
        )
        nats = evaluate(self.model, self.params, windows)
        return task.measures(nats, self.vocabulary)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return runs.read_metrics(runs.open(self.run))


def load(run: str | Path) -> Trained:
    """The model of a run: its best checkpoint, or its newest before any validation.

    Errors: `BadInput` where there is no run or no checkpoint yet, `LabError` where a
    checkpoint is damaged.
    """
    there = runs.open(Path(run))
    config = configs.load(there.config)
    step = _best_or_newest(there)
    meta = checkpoints.read_meta(there.checkpoints, step)
    vocabulary = from_json(json.dumps(meta["vocabulary"]))
    model = task.build(config.model, vocabulary.size)
    like = jax.eval_shape(
        lambda: initial_state(
            model,
            optimizers.build(config.optimizer),
            batch_size=config.training.batch_size,
            seed=config.seed,
        )
    )
    state, _ = checkpoints.restore(there.checkpoints, step, like)
    return Trained(there.path, config, vocabulary, model, state.params, step)


def _best_or_newest(run: runs.Run) -> int:
    best = checkpoints.best(run.checkpoints)
    steps = checkpoints.steps(run.checkpoints)
    if best is None and not steps:
        raise BadInput(f"{run.path} has no checkpoint yet; train it first")
    return steps[-1] if best is None else best
