"""One training run: restore its state, train with callbacks, write its results."""

import contextlib
import functools
import shlex
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import Interrupted, LabError
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs import Run
from jaxlstm.lab.runs.trained import Trained, load, require_same_data
from jaxlstm.lab.sinks.base import Sink
from jaxlstm.lab.sinks.formatting import duration, table
from jaxlstm.lab.tasks.base import files_of
from jaxlstm.lab.training import diagnosis, policies
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.evaluation import evaluate, metrics
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.job import Callback, Job, Listener
from jaxlstm.lab.training.loop import LoopState, fit
from jaxlstm.lab.training.state import TrainState, current_names

Checkpoint = tuple[int, TrainState, dict[str, Any]]
"""The step of a checkpoint, its state and its meta."""


class TrainingRun:
    """A run directory, the parts of its experiment, and a sink for its progress."""

    def __init__(
        self,
        run: Run,
        experiment: Experiment,
        sink: Sink,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.run, self.experiment, self.sink = run, experiment, sink
        self.config, self.task = experiment.config, experiment.task
        self._stop_requested = stop_requested
        self._start = time.perf_counter()
        self._compiling = 0.0
        self._saves = checkpoints.BackgroundSaves(sink.message)
        self._writer = runs.RunWriter(run, self.config, self._saves.message)

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None if there is none.

        The run directory is only read, except that its log receives messages and that
        unfinished files of a dead writer are removed.

        Raises:
            LabError: the run cannot continue with this data and config.
        """
        like, root = self.experiment.state_like, self.run.checkpoints
        self._writer.check()
        for _, meta in runs.readable_meta(self.run):
            found = self.experiment.dataset.description
            require_same_data(self.config, meta["data"], found)
        rename = _Renaming(current_names(self.task, like))
        found = checkpoints.latest(root, like, self.sink.message, rename=rename)
        self._writer.check_log(found)
        if found is not None and rename.example:
            self.sink.message(
                f"{self.run.path} was made before layers had names; from the next "
                f"checkpoint on its arrays are called by name ({rename.example})"
            )
        return found

    def complete(self, checkpoint: Checkpoint | None) -> Trained:
        """Train from a checkpoint to the last step, and write the results.

        Args:
            checkpoint: the result of `newest_checkpoint`.

        Raises:
            Interrupted: the run was interrupted; a checkpoint was saved.
        """
        self._writer.begin()
        files = files_of(self.task, self.experiment.dataset.spec)
        runs.write_files(self.run, files, self.sink.message)
        with self._saves:
            state, loop = self._restored(checkpoint)
            self._saves.wait()
            steps, title = self.config.training.steps, self.run.path.name
            self.sink.start(steps, step=int(state.step), title=title)
            with _explained_memory():
                done = fit(self._job(), state, loop)
        if not done:
            again = shlex.join(["jaxlstm", "resume", str(self.run.path)])
            raise Interrupted(
                f"{self.run.path} was stopped and saved ({runs.progress(self.run)}); "
                f"continue with: {again}"
            )
        return self._conclude()

    def _job(self) -> Job:
        """Return the run as the loop sees it, with its callbacks in their order."""
        experiment, training = self.experiment, self.config.training
        validate = (training.validate_every,)
        save = (training.validate_every, training.checkpoint_every)
        return Job(
            experiment.task,
            experiment.model,
            experiment.optimizer,
            experiment.dataset,
            training,
            optimizers.learning_rate(
                self.config.optimizer, accumulate=training.gradient_accumulation_steps
            ),
            Listener(self._log_training, self._compiled, self._stopping, self._skipped),
            (
                Callback(self._validate, validate),
                Callback(self._checkpoint, save, on_stop=True),
            ),
            self._save,
            experiment.losses_like,
        )

    # -- callbacks ------------------------------------------------------------

    def _validate(self, state: TrainState, loop: LoopState) -> LoopState:
        """Evaluate, log, and remember whether this is the best so far."""
        experiment = self.experiment
        batches = experiment.dataset.eval_batches(full=False)
        means = evaluate(self.task, experiment.model, state.params, batches)
        step = int(state.step)
        found = self._log("validation", step, means, {}, {})
        return policies.validated(
            loop,
            self.task.primary,
            self.config.training.early_stopping,
            step=step,
            value=found[self.task.primary.name],
        )

    def _checkpoint(self, state: TrainState, loop: LoopState) -> LoopState:
        self._save(state, loop)
        return loop

    def _save(self, state: TrainState, loop: LoopState) -> None:
        """Save a checkpoint, remove old ones, and export it if it is the best.

        The state is copied here, as the next step overwrites it; files are written by
        another thread.
        """
        best = loop.best_step
        meta = {
            **self._writer.meta,
            "best": best,
            # The key of the LoopState in the format of stored checkpoints.
            "ledger": loop.to_json(),
            "data": self.experiment.dataset.description,
            "spec": self.task.spec_to_json(self.experiment.dataset.spec),
        }
        step, content = int(state.step), checkpoints.snapshot(state, meta)
        self._saves.start(functools.partial(self._write, step, content, best))

    def _write(
        self, step: int, content: checkpoints.Snapshot, best: int | None
    ) -> None:
        checkpoints.write(self.run.checkpoints, step, content)
        self._writer.prune([] if best is None else [best])
        if best is not None and best == step:
            self._writer.link_best(best)
            self._export_weights(content.below("params"))

    def _export_weights(self, params: Any) -> None:
        spec = self.task.spec_to_json(self.experiment.dataset.spec)
        config = self.config.model_dump(mode="json")
        runs.export_weights(self.run.weights, params, config=config, spec=spec)

    def _log_training(
        self, step: int, loss: float, numbers: dict[str, Any], pace: dict[str, Any]
    ) -> None:
        self._log("train", step, {"loss": loss}, numbers, pace)

    def _log(
        self,
        split: str,
        step: int,
        means: dict[str, float],
        numbers: dict[str, Any],
        pace: dict[str, Any],
    ) -> dict[str, float]:
        """Write a record to the metrics and the sink; return the task's metrics."""
        found = metrics(self.task, self.experiment.dataset.spec, means)
        record = {"step": step, "split": split} | found | numbers
        self._writer.append(record)
        self.sink.log(record | pace)
        return found

    def _compiled(self, seconds: float) -> None:
        self._compiling += seconds
        self.sink.message(f"compiled in {seconds:.1f} s")

    def _stopping(self) -> bool:
        self._saves.check()
        stopping = self._stop_requested()
        if stopping:
            self.sink.message("stopping: saving a checkpoint first")
        return stopping

    def _skipped(self, step: int, count: int) -> None:
        self.sink.message(diagnosis.skipped(step, count))

    # -- before and after -----------------------------------------------------

    def _restored(self, checkpoint: Checkpoint | None) -> tuple[TrainState, LoopState]:
        """Return the states of a checkpoint, or the initial ones without any."""
        root = self.run.checkpoints
        if checkpoint is None:
            state = self.experiment.initial_state()
            checkpoints.require_room(root, state, copies=2)
            loop = LoopState(best_value=self.task.primary.worst)
            self._save(state, loop)
            return state, loop
        step, state, meta = checkpoint
        loop = LoopState.from_json(meta["ledger"], self.task.primary)
        loop = self._patient(self._reconciled(loop, state), step)
        best = loop.best_step
        self._writer.prune([] if best is None else [best])
        return state, loop

    def _patient(self, loop: LoopState, step: int) -> LoopState:
        """Count anew for early stopping if the steps were raised after a stop."""
        stopping, total = (
            self.config.training.early_stopping,
            self.config.training.steps,
        )
        if step >= total or not policies.out_of_patience(loop, stopping):
            return loop
        if not self._writer.continued_from(step):
            self.sink.message(
                f"{self.run.path} stopped early at step {step}, after {loop.waited} "
                "validations without improvement; to train on, raise training.steps or "
                "training.early_stopping.patience"
            )
            return loop
        self.sink.message(
            f"{self.run.path} stopped early at step {step}; it trains on to step "
            f"{total}, and its patience counts from here"
        )
        return loop._replace(waited=0)

    def _reconciled(self, loop: LoopState, state: TrainState) -> LoopState:
        """Make the link `best` and the weights match the loop state.

        They differ if the process died between a save and the link, or if the newest
        checkpoint was damaged and the run continues from an older one.
        """
        root, best = self.run.checkpoints, loop.best_step
        if best is None:
            self._writer.link_best(None)
            return loop
        rename = current_names(self.task, state)
        try:
            kept, _ = checkpoints.restore(root, best, state, rename=rename)
        except checkpoints.CheckpointError as error:
            self.sink.message(
                f"{error}; the best checkpoint is selected anew from here"
            )
            self._writer.link_best(None)
            fresh = LoopState(best_value=self.task.primary.worst)
            return fresh._replace(unlogged=loop.unlogged)
        self._writer.link_best(best)
        self._export_weights(kept.params)
        return loop

    def _conclude(self) -> Trained:
        """Write report and pictures, then mark the run as finished."""
        self.sink.message("writing the report ...")
        trained = load(self.run.path, report=self.sink.message)
        artifacts = self.task.conclude(trained, self.experiment.dataset)
        facts = self._facts()
        reports.write_report(
            self.run.path,
            primary=self.task.primary,
            scores=self.task.scores,
            facts=facts,
            artifacts=artifacts,
            report=self.sink.message,
        )
        runs.finish(self.run, max(checkpoints.steps(self.run.checkpoints)))
        self.sink.finish()
        for artifact in artifacts:
            if artifact.text:
                self.sink.message(f"\n{artifact.text}\n")
        records = runs.read_metrics(self.run)
        rows = reports.summary(
            records, primary=self.task.primary, scores=self.task.scores
        )
        rows |= facts | {"report": str(self.run.report)}
        self.sink.message(table(rows))
        return trained

    def _facts(self) -> dict[str, str]:
        return {
            "parameters": f"{self.experiment.parameters():,}",
            **self.task.facts(self.config, self.experiment.dataset),
            "compile time": duration(self._compiling),
            "total time": duration(time.perf_counter() - self._start),
        }


class _Renaming:
    """A renaming of leaves that remembers the first path it changed."""

    def __init__(self, rename: Callable[[str], str]) -> None:
        self._rename = rename
        self.example = ""

    def __call__(self, path: str) -> str:
        renamed = self._rename(path)
        if renamed != path and not self.example:
            self.example = f"{path} is now {renamed}"
        return renamed


@contextlib.contextmanager
def _explained_memory() -> Iterator[None]:
    """Translate JAX's error about memory into a message with a remedy."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise LabError(
            f"the device ran out of memory ({str(error).splitlines()[0]}); set "
            "model.checkpoint_every to sqrt, or lower training.window, "
            "training.batch_size or model.hidden_size"
        ) from error
