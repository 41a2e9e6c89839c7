"""The trained model of a run: load it, evaluate it, generate with it."""

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlstm.lab import checkpoints, runs, tasks
from jaxlstm.lab._util.errors import BadInput, Diverged
from jaxlstm.lab._util.files import translate_os_errors
from jaxlstm.lab.config import changes, population
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.sections import file_paths, with_absolute_paths
from jaxlstm.lab.data.files import quoted
from jaxlstm.lab.native import that_runs, without_kernel
from jaxlstm.lab.parallel import devices
from jaxlstm.lab.serving import Stream
from jaxlstm.lab.tasks.base import Dataset, Task, data_of
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.evaluation import evaluate, metrics
from jaxlstm.lab.training.state import TrainState, current_names, initial_state
from jaxlstm.layers.base import Layer


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, as `train`, `resume` and `load` return it.

    Attributes:
        run: the run directory.
        config: the config of the run.
        task: the task of the config.
        spec: facts about the data that the model depends on; a vocabulary for language
            models.
        model: the layer; `model.apply(params, xs)` returns a state and outputs.
        params: the parameters at the best validation.
        step: the step of these parameters.
        data: description of the data: sizes, sha256.
    """

    run: Path
    config: Any
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
        documents: int | None = None,
        seed: int = 0,
    ) -> str:
        """Return text that continues the prompt; None takes the config's value.

        The prompt followed by the result is the whole text. The model begins a new
        document where the training text did: at the beginning of the prompt, and where
        the prompt has a separator.

        Args:
            prompt: beginning of the text; numbers such as "7 42" for token ids.
            length: the most tokens to draw.
            temperature: 0 takes the most likely token.
            top_k: draw from the k most likely tokens.
            top_p: draw from the most likely tokens with this total probability.
            documents: end after this many documents; 0 goes on to `length`, and shows
                where documents end.
            seed: seed of the draws.

        Raises:
            BadInput: the task generates no text, a number is out of range, or the
                prompt is empty and the training text had no documents.
        """
        generate = self._of_language_model("sample")
        return generate(
            self,
            prompt=prompt,
            length=length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            documents=documents,
            seed=seed,
        )

    def score(self, text: str) -> Any:
        """Return log p of each token of a text given those before it, in nats.

        The first token has no number, unless the training text had documents: each
        text then begins with the document token, which is not in the result.

        Raises:
            BadInput: the task has no texts, or the text cannot be encoded.
        """
        return self._of_language_model("score")(self, text)

    def stream(self, *, slots: int = 1) -> Any:
        """Return slots that read sequences as they arrive, a `lab.serving.Stream`.

        A language model gives a `TextStream`, which also generates text.

        Args:
            slots: the number of sequences at a time.

        Raises:
            BadInput: the model reads later steps, such as a bidirectional one.
        """
        # Its engine is for whole sequences, and a call of it takes longer for one step.
        model = self.task.model(without_kernel(self.config), self.spec)
        of_task = getattr(self.task, "stream", None)
        if of_task is not None:
            return of_task(self, model, slots=slots)
        return Stream(model, self.params, slots=slots)

    def _of_language_model(self, member: str) -> Callable[..., Any]:
        """Return an optional member of the task, which language models have."""
        found = getattr(self.task, member, None)
        if found is None:
            raise BadInput(
                f"{member}: got a run of the task {self.task.name}, which generates no "
                f"text, expected one of a task that does; evaluate {self.run} instead"
            )
        return found

    def dataset(self) -> Dataset:
        """Read the data that the model was trained on.

        Raises:
            BadInput: the data is missing or has changed.
        """
        dataset = data_of(self.task, self.config, self.spec)
        require_same_data(self.config, self.data, dataset.description)
        return dataset

    def corpus(self) -> Any:
        """Read the text that a language model was trained on; see `dataset`."""
        return getattr(self.dataset(), "corpus")  # noqa: B009

    def evaluate(self) -> dict[str, float]:
        """Return the metrics on the whole validation part, the primary one first.

        Raises:
            BadInput: as for `dataset`.
        """
        batches = self.dataset().eval_batches()
        means = evaluate(self.task, self.model, self.params, batches)
        return metrics(self.task, self.spec, means)

    def require_finite(self) -> None:
        """Raise an error if a parameter is not finite, before numbers are made of it.

        Raises:
            Diverged: there is one; the message names it.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            if not jnp.isfinite(leaf).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise Diverged(
                    f"{self.run}: got the parameter {name} with a number that is not "
                    f"finite; the parameters of step {self.step} cannot be used"
                )

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`; warn if the file was deleted.

        Raises:
            BadInput: the file was edited.
        """
        run = runs.open(self.run)
        runs.require_own_log(run)
        if lost := runs.deleted_log(run):
            warnings.warn(lost, stacklevel=2)
        return runs.read_metrics(run)


@translate_os_errors()
def load(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    report: Callable[[str], object] = warnings.warn,
) -> Trained:
    """Load the model of a run: its best checkpoint, or its newest without validation.

    Args:
        run: a run directory; that of a population gives its best member.
        overrides: new paths of data that was moved, such as `"data.path=NEW"`. Its hash
            is compared when the data is read.
        report: receives a message about a population, or if the best checkpoint is
            damaged and the newest intact one is loaded instead.

    Raises:
        BadInput: there is no run, or no checkpoint yet; a file of the run was edited or
            is of another run; an override changes more than a path.
        LabError: every checkpoint is damaged.
    """
    opened = runs.open(Path(run))
    devices.find("auto")
    config = _moved(runs.bound_config(opened, report), overrides)
    runs.require_own_checkpoints(opened, config)
    if config.population is not None:
        best = _best_member(opened, config, report)
        report(f"{opened.path} is a population; this is its best member, {best}")
        return load(best, overrides=overrides, report=report)
    devices.require_jax_settings(config)
    task = tasks.get(config.task)
    _, meta = _best_or_newest(opened, report)
    spec = read_spec(task, meta)
    model = task.model(that_runs(config), spec)
    like = _state_like(config, task, spec, model)
    step, state, meta = _restored(opened, like, current_names(task, like), report)
    return Trained(
        opened.path, config, task, spec, model, state.params, step, meta["data"]
    )


def _best_member(
    run: runs.Run, config: RunConfig, report: Callable[[str], object]
) -> Path:
    """Return the directory of the best member of a population.

    Its newest checkpoint records the best validation of each member. `members.csv`,
    which people may edit, is not read.

    Raises:
        BadInput: the population is not finished, or the directory holds another member.
        LabError: every checkpoint of the population is damaged.
    """
    from jaxlstm.lab.training.policies import loop_from_json

    section, task = config.population, tasks.get(config.task)
    assert section is not None
    if runs.finished(run) is None:
        again = shlex.join(["jaxlstm", "resume", str(run.path)])
        raise BadInput(
            f"{run.path}: got a population that is not finished "
            f"({runs.progress(run)}), expected a finished one; finish it with: {again}"
        )
    _, meta = _best_or_newest(run, report)
    members = {each.name: each for each in population.members(section, config.seed)}
    loop = loop_from_json(meta["members"], task.primary)
    best = runs.ranked(list(members.values()), loop, task.primary)[0].name
    found = runs.open(run.path / "members" / best)
    alone = config.model_copy(update={"population": None})
    expected = configs.load(alone, overrides=members[best].overrides())
    lines = changes.described(expected, runs.bound_config(found, report))
    if other := changes.fixed(expected, [line.partition(":")[0] for line in lines]):
        raise BadInput(
            f"{found.path}: got the run of another member ({', '.join(other)} differ: "
            f"{'; '.join(lines)}); restore the member, or delete "
            f"{run.state.name} and resume the population to write it anew"
        )
    return found.path


def _moved(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return the config with other paths of its data."""
    if not overrides:
        return config
    moved = with_absolute_paths(configs.load(config, overrides=overrides))
    paths = changes.path_keys(config)
    other = [key for key in changes.differences(config, moved) if key not in paths]
    if other:
        expected = f"only changes of {', '.join(paths)}" if paths else "none"
        raise BadInput(f"got a change of {', '.join(other)}, expected {expected}")
    return moved


def _restored(
    run: runs.Run,
    like: TrainState,
    rename: Callable[[str], str],
    report: Callable[[str], object],
) -> tuple[int, TrainState, dict[str, Any]]:
    """Return step, state and meta of the checkpoint to load.

    A process that trains the run may delete a checkpoint while it is read; then the
    choice is made again.
    """
    root = run.checkpoints
    while True:
        step, meta = _best_or_newest(run, report)
        try:
            return step, checkpoints.restore(root, step, like, rename=rename)[0], meta
        except checkpoints.CheckpointError as error:
            if step not in checkpoints.steps(root):
                continue
            if not isinstance(error, checkpoints.DamagedCheckpoint):
                raise
            report(f"{error}; loading the newest intact checkpoint instead")
            found = checkpoints.latest(root, like, report, rename=rename)
            if found is None:
                raise
            return found


def read_spec(task: Task, meta: Mapping[str, Any]) -> Any:
    """Return the spec in the meta of a checkpoint.

    Checkpoints written before there were several tasks store it under `vocabulary`.
    """
    written = meta["spec"] if "spec" in meta else meta["vocabulary"]
    return task.spec_from_json(written)


def newest_spec(run: runs.Run, task: Task) -> Any:
    """Return the spec in the newest readable checkpoint, None without any."""
    found = [meta for _, meta in runs.readable_meta(run) if "spec" in meta]
    return read_spec(task, found[-1]) if found else None


def require_same_data(
    config: RunConfig, stored: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Compare the data of a checkpoint with the data found now.

    Args:
        config: the config of the run, whose paths are named if the description of the
            data has no `paths`.
        stored: the description of the data in the checkpoint.
        found: the description of the data found now.

    Raises:
        BadInput: the hashes differ.
    """
    before, now = list(stored["sha256"]), list(found["sha256"])
    if before == now:
        return
    paths = list(found.get("paths") or file_paths(config.data))
    remedy = "restore the data that the run began with, or start a new run"
    old_paths = list(stored.get("paths") or ())
    if len(old_paths) == len(before) != len(now) == len(paths):
        files = _other_files(old_paths, before, paths, now)
        raise BadInput(f"data: {files}; {remedy}")
    if len(before) == len(now) == len(paths):
        # Each hash is that of one file; only files that have changed are named.
        changed = [k for k, old in enumerate(before) if old != now[k]]
        before, now, paths = ([x[k] for k in changed] for x in (before, now, paths))
    where = f"data: {', '.join(map(quoted, paths))}" if paths else "data"
    raise BadInput(
        f"{where}: got sha256 {_digits(now)}, expected {_digits(before)} as in the "
        f"checkpoint; {remedy}"
    )


def _other_files(
    old_paths: Sequence[str], before: Sequence[str], paths: Sequence[str], now: Any
) -> str:
    """Name the files of the checkpoint that are missing now, and those that are new."""
    lost = [p for p, digest in zip(old_paths, before, strict=True) if digest not in now]
    new = [p for p, digest in zip(paths, now, strict=True) if digest not in before]
    parts = [f"no file with the contents of {quoted(path)}" for path in lost]
    parts += [f"{quoted(path)}, which is not in the checkpoint" for path in new]
    return (
        f"number of files: got {len(now)}, expected {len(before)} as in the checkpoint"
        f"{': ' if parts else ''}{'; '.join(parts)}"
    )


def _digits(hashes: Sequence[str]) -> str:
    """Return the first digits of each hash, which are enough to compare them."""
    return ", ".join(text[:12] if len(text) == 64 else text for text in hashes)


def _state_like(config: RunConfig, task: Task, spec: Any, model: Layer) -> TrainState:
    optimizer = optimizers.build(
        config.optimizer, accumulate=config.training.gradient_accumulation_steps
    )
    batch = task.batch_like(config, spec)
    return jax.eval_shape(
        lambda: initial_state(task, model, optimizer, batch, seed=config.seed)
    )


def _best_or_newest(
    run: runs.Run, report: Callable[[str], object]
) -> tuple[int, dict[str, Any]]:
    """Return the step of the checkpoint to load, and its meta."""
    root = run.checkpoints
    best, linked = checkpoints.best(root, report), checkpoints.linked_best(root)
    if linked is not None and best is not None and linked != f"{best:06d}":
        report(
            f"{root / 'best'}: points to {linked}, but the checkpoints record "
            f"{best:06d} as the best; the link is ignored"
        )
    steps = [*checkpoints.steps(root), *([] if best is None else [best])]
    if not steps:
        raise BadInput(
            f"{run.path}: got no checkpoint, expected at least one; train the run "
            "first, or again in another directory if its checkpoints were deleted"
        )
    for step in reversed(steps):
        try:
            return step, checkpoints.read_meta(root, step)
        except checkpoints.CheckpointError as error:
            if step not in checkpoints.steps(root):  # deleted by a training process
                return _best_or_newest(run, report)
            if not isinstance(error, checkpoints.DamagedCheckpoint):
                raise
            report(str(error))
    raise checkpoints.DamagedCheckpoint(f"{root}: every checkpoint is damaged")
