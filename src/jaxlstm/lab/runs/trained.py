"""What a run has learnt: load it, sample from it, judge it."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab.parallel import devices
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab import config as configs
from jaxlstm.lab.config import Config
from jaxlstm.lab.data import Corpus, Vocabulary, read, validation_windows
from jaxlstm.lab.data.vocabulary import from_json
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training.loop import evaluate, initial_state
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
    data         what the text was: sizes, sha256
    """

    run: Path
    config: Config
    vocabulary: Vocabulary
    model: Layer
    params: Any
    step: int
    data: Mapping[str, Any]

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
        if not 0 <= seed < 2**32:
            raise BadInput(f"seed: {seed} came; 0 to {2**32 - 1} is wanted")
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
            jnp.asarray(task.prompt(how, self.config.data, self.vocabulary)),
            jax.random.key(seed),
            length=how.length,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            forbidden=jnp.asarray(self.vocabulary.without_text, jnp.int32),
        )
        return self.vocabulary.decode(tokens)

    def corpus(self) -> Corpus:
        """The text that it was trained on, read again.

        Errors: `BadInput` where it is no longer there, or no longer the same.
        """
        corpus = read(self.config.data)
        refuse_other_data(self.data, corpus.description)
        return corpus

    def evaluate(self) -> dict[str, float]:
        """Loss on the whole validation part in nats per token, state carried along.

        Errors: `BadInput` where the text is no longer there, or no longer the same.
        """
        corpus = self.corpus()
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


def load(
    run: str | Path, *, report: Callable[[str], object] = warnings.warn
) -> Trained:
    """The model of a run: its best checkpoint, or its newest before any validation.

    Arguments:
        run: a run directory.
        report: is told where the best is damaged and the newest sound one stands in.

    Errors: `BadInput` where there is no run or no checkpoint yet, `LabError` where
    every checkpoint is damaged.
    """
    there = runs.open(Path(run))
    devices.find("auto")
    config = configs.load(there.config)
    root = there.checkpoints
    step, meta = _best_or_newest(there, report)
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
    try:
        state, _ = checkpoints.restore(root, step, like)
    except checkpoints.DamagedCheckpoint as error:
        report(f"{error}; the newest sound one stands in for it")
        found = checkpoints.latest(root, like, report)
        if found is None:
            raise
        step, state, meta = found
    params, data = state.params, meta["data"]
    return Trained(there.path, config, vocabulary, model, params, step, data)


def refuse_other_data(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a text that is not the one a run began with.

    Errors: `BadInput` with the hashes of both.
    """
    if there["sha256"] != here["sha256"]:
        raise BadInput(
            "data: the text is not the one that this run began with (sha256 "
            f"{', '.join(here['sha256'])}, and {', '.join(there['sha256'])} in the "
            "checkpoint); put that text back, or start a new run"
        )


def _best_or_newest(
    run: runs.Run, report: Callable[[str], object]
) -> tuple[int, dict[str, Any]]:
    """The step of the checkpoint to load, and what it says of itself."""
    root = run.checkpoints
    best = checkpoints.best(root)
    steps = [*checkpoints.steps(root), *([] if best is None else [best])]
    if not steps:
        raise BadInput(
            f"{run.path} has no checkpoint; train it first, or anew in another "
            "directory if they were deleted"
        )
    for step in reversed(steps):
        try:
            return step, checkpoints.read_meta(root, step)
        except checkpoints.DamagedCheckpoint as error:
            report(str(error))
    raise checkpoints.DamagedCheckpoint(f"every checkpoint in {root} is damaged")
