"""The trained model of a run: load it, evaluate it, generate with it."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlstm.lab import checkpoints, runs, tasks
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.parallel import devices
from jaxlstm.lab.tasks.base import Dataset, Task
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.evaluation import evaluate
from jaxlstm.lab.training.state import TrainState, current_names, initial_state
from jaxlstm.layers.base import Layer


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, as `train`, `resume` and `load` return it.

    run       its directory
    config    the config it was trained by
    task      the task of the config
    spec      what the model knows of the data; a vocabulary for language models
    model     the layer; `model.apply(params, xs)` returns a state and outputs
    params    its parameters, those of the best validation
    step      the step they are from
    data      description of the data: sizes, sha256
    """

    run: Path
    config: Config
    task: Task
    spec: Any
    model: Layer
    params: Any
    step: int
    data: Mapping[str, Any]

    @property
    def vocabulary(self) -> Any:
        """The vocabulary of a language model, which is its `spec`."""
        return self.spec

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
        """Return text that continues the prompt; None takes the config's value.

        Raises:
            BadInput: the task generates no text, a number is out of range, or the
                prompt is empty and the training text had no documents.
        """
        generate = getattr(self.task, "sample", None)
        if generate is None:
            raise BadInput(
                f"sample: {self.run} was trained for the task {self.task.name}, which "
                "generates no text"
            )
        return generate(
            self,
            prompt=prompt,
            length=length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )

    def dataset(self) -> Dataset:
        """Read the data that the model was trained on.

        Raises:
            BadInput: it is missing, or not the same any more.
        """
        dataset = self.task.data(self.config)
        refuse_other_data(self.data, dataset.description)
        return dataset

    def corpus(self) -> Any:
        """Read the text that a language model was trained on; see `dataset`."""
        return getattr(self.dataset(), "corpus")  # noqa: B009

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the whole validation part, the state carried.

        Raises:
            BadInput: as `dataset`.
        """
        batches = self.dataset().eval_batches()
        means = evaluate(self.task, self.model, self.params, batches)
        return self.task.metrics(self.spec, means)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`."""
        return runs.read_metrics(runs.open(self.run))


def load(
    run: str | Path, *, report: Callable[[str], object] = warnings.warn
) -> Trained:
    """Load the model of a run: its best checkpoint, or its newest without validation.

    Args:
        run: a run directory.
        report: is called with a sentence where the best checkpoint is damaged and the
            newest sound one is loaded instead.

    Raises:
        BadInput: there is no run, or no checkpoint yet.
        LabError: every checkpoint is damaged.
    """
    there = runs.open(Path(run))
    devices.find("auto")
    config = configs.load(there.config)
    task = tasks.get(config.task)
    root = there.checkpoints
    step, meta = _best_or_newest(there, report)
    spec = read_spec(task, meta)
    model = task.model(config, spec)
    like = _state_like(config, task, spec, model)
    rename = current_names(task, like)
    try:
        state, _ = checkpoints.restore(root, step, like, rename=rename)
    except checkpoints.DamagedCheckpoint as error:
        report(f"{error}; the newest sound checkpoint is loaded instead")
        found = checkpoints.latest(root, like, report, rename=rename)
        if found is None:
            raise
        step, state, meta = found
    params, data = state.params, meta["data"]
    return Trained(there.path, config, task, spec, model, params, step, data)


def read_spec(task: Task, meta: Mapping[str, Any]) -> Any:
    """Return the spec in the meta of a checkpoint.

    Language models that were trained before there were tasks call it `vocabulary`.
    """
    written = meta["spec"] if "spec" in meta else meta["vocabulary"]
    return task.spec_from_json(written)


def refuse_other_data(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare the data of a run with those read now.

    Raises:
        BadInput: the hashes differ; the message has both.
    """
    if there["sha256"] != here["sha256"]:
        raise BadInput(
            f"data: got sha256 {', '.join(here['sha256'])}, expected "
            f"{', '.join(there['sha256'])} as in the checkpoint; restore the data that "
            "the run began with, or start a new run"
        )


def _state_like(config: Config, task: Task, spec: Any, model: Layer) -> TrainState:
    optimizer = optimizers.build(config.optimizer)
    batch = task.batch_like(config, spec)
    return jax.eval_shape(
        lambda: initial_state(task, model, optimizer, batch, seed=config.seed)
    )


def _best_or_newest(
    run: runs.Run, report: Callable[[str], object]
) -> tuple[int, dict[str, Any]]:
    """Return the step of the checkpoint to load, and its meta."""
    root = run.checkpoints
    best = checkpoints.best(root)
    steps = [*checkpoints.steps(root), *([] if best is None else [best])]
    if not steps:
        raise BadInput(
            f"{run.path} has no checkpoint; train it first, or again in another "
            "directory if they were deleted"
        )
    for step in reversed(steps):
        try:
            return step, checkpoints.read_meta(root, step)
        except checkpoints.DamagedCheckpoint as error:
            report(str(error))
    raise checkpoints.DamagedCheckpoint(f"every checkpoint in {root} is damaged")
