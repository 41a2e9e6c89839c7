"""One run of a population: restore its state, train, and write a run for each member.

RUN/metrics.jsonl           one line a member, with its number under `member`
    checkpoints/000500/     the states of all members, and the best state of each
    members.csv             seeds, values of the grid and results, ranked
    report.md  plots/
    members/07/             a run like any other: config, metrics, checkpoints
"""

import functools
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import Interrupted
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.reports import population as reports
from jaxlstm.lab.reports import report
from jaxlstm.lab.runs import Run
from jaxlstm.lab.runs import members as directories
from jaxlstm.lab.runs.trained import Trained, load, require_same_data
from jaxlstm.lab.sinks.base import Sink
from jaxlstm.lab.sinks.formatting import duration, table
from jaxlstm.lab.tasks.base import Artifact, files_of
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training import policies
from jaxlstm.lab.training import population as populations
from jaxlstm.lab.training.evaluation import metrics
from jaxlstm.lab.training.policies import LoopState, MemberLoop, PopulationLoop
from jaxlstm.lab.training.population import (
    PopulationExperiment,
    PopulationJob,
    PopulationState,
)

Checkpoint = tuple[int, PopulationState, dict[str, Any]]


class PopulationRun:
    """A run directory, the parts of its population, and a sink for its progress."""

    def __init__(
        self,
        run: Run,
        experiment: PopulationExperiment,
        sink: Sink,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.run, self.experiment, self.sink = run, experiment, sink
        self.task = experiment.task
        self._stop_requested = stop_requested
        self._start = time.perf_counter()
        self._compiling = 0.0
        self._saves = checkpoints.BackgroundSaves(sink.message)
        self._writer = runs.RunWriter(run, experiment.config, self._saves.message)
        self._rates = [
            optimizers.learning_rate(
                config.optimizer, accumulate=config.training.gradient_accumulation_steps
            )
            for config in experiment.configs
        ]

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None if there is none.

        Raises:
            LabError: the run cannot continue with this data and config.
        """
        self._writer.check()
        found = checkpoints.latest(
            self.run.checkpoints, self.experiment.state_like, self.sink.message
        )
        self._writer.check_log(found)
        if found is not None:
            pairs = zip(
                self.experiment.configs,
                found[2]["data"],
                self.experiment.descriptions(),
                strict=True,
            )
            for config, stored, now in pairs:
                require_same_data(config, stored, now)
        return found

    def complete(self, checkpoint: Checkpoint | None) -> Trained:
        """Train to the last step, write the results, and return the best member.

        Args:
            checkpoint: the result of `newest_checkpoint`.

        Raises:
            Interrupted: the run was interrupted; a checkpoint was saved.
            Diverged: every member diverged.
        """
        self._writer.begin()
        files = files_of(self.task, self.experiment.first.dataset.spec)
        runs.write_files(self.run, files, self.sink.message)
        with self._saves:
            state, loop = self._restored(checkpoint)
            self._saves.wait()
            steps, count = self.experiment.config.training.steps, len(loop)
            title = f"{self.run.path.name}: {count} members, means ± 95 % intervals"
            self.sink.start(steps, step=int(state.step), title=title)
            self._final: tuple[PopulationState, PopulationLoop] = state, loop
            done = populations.fit(self._job(), state, loop)
        if not done:
            again = shlex.join(["jaxlstm", "resume", str(self.run.path)])
            raise Interrupted(
                f"{self.run.path} was stopped and saved ({runs.progress(self.run)}); "
                f"continue with: {again}"
            )
        return self._conclude(*self._final)

    def _job(self) -> PopulationJob:
        return PopulationJob(
            self.experiment,
            self._log_training,
            self.sink.message,
            self._compiled,
            self._stopping,
            self._validate,
            self._save,
        )

    # -- functions that the loop calls ----------------------------------------

    def _validate(
        self, state: PopulationState, loop: PopulationLoop
    ) -> tuple[PopulationState, PopulationLoop]:
        """Validate all members, log them, and keep the best state of each."""
        means = self.experiment.evaluate(state.members.params)
        step = int(state.step)
        rows = [
            each if member.active else None
            for each, member in zip(means, loop, strict=True)
        ]
        found = self._log("validation", step, rows, {})
        primary = self.task.primary
        values = [primary.worst if row is None else row[primary.name] for row in found]
        state, after = populations.validated(self.experiment, state, loop, values)
        for member, now, before in zip(
            self.experiment.members, after, loop, strict=True
        ):
            if now.stopped is not None and before.stopped is None:
                self.sink.message(f"member {member.name} stopped early at step {step}")
        return state, after

    def _save(self, state: PopulationState, loop: PopulationLoop) -> None:
        meta = {
            **self._writer.meta,
            "best": None,
            "members": policies.loop_to_json(loop),
            "data": self.experiment.descriptions(),
            "spec": self.task.spec_to_json(self.experiment.first.dataset.spec),
        }
        step, content = int(state.step), checkpoints.snapshot(state, meta)
        self._saves.start(functools.partial(self._write, step, content))
        self._final = state, loop

    def _write(self, step: int, content: checkpoints.Snapshot) -> None:
        checkpoints.write(self.run.checkpoints, step, content)
        self._writer.prune([])

    def _log_training(
        self,
        step: int,
        rows: list[dict[str, float] | None],
        pace: dict[str, float],
    ) -> None:
        self._log("train", step, rows, pace)

    def _log(
        self,
        split: str,
        step: int,
        rows: list[dict[str, float] | None],
        pace: dict[str, float],
    ) -> list[dict[str, float] | None]:
        """Write a record of each member, and one of all to the sink.

        Returns:
            The task's metrics of each member, None where there is no row.
        """
        found, records = [], []
        for k, row in enumerate(rows):
            if row is None:
                found.append(None)
                continue
            means = dict(row)
            numbers = {}
            if "gradient_norm" in means and split == "train":
                numbers["gradient_norm"] = means.pop("gradient_norm")
                if "skipped_updates" in means:
                    numbers["skipped_updates"] = means.pop("skipped_updates")
                rate = self._rates[k]
                if rate is not None:
                    numbers["learning_rate"] = rate(step - 1)
            spec = self.experiment.datasets[k].spec
            found.append(metrics(self.task, spec, means))
            records.append(
                {"step": step, "split": split, "member": k} | found[-1] | numbers
            )
        self._writer.append(*records)
        if records:
            self.sink.log(reports.mean_record(records) | pace)
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

    # -- before and after -----------------------------------------------------

    def _restored(
        self, checkpoint: Checkpoint | None
    ) -> tuple[PopulationState, PopulationLoop]:
        """Return the states of a checkpoint, or the initial ones without any."""
        root = self.run.checkpoints
        if checkpoint is None:
            state = self.experiment.initial_state()
            checkpoints.require_room(root, state, copies=2)
            first = MemberLoop(LoopState(best_value=self.task.primary.worst))
            loop = (first,) * len(self.experiment.members)
            self._save(state, loop)
            return state, loop
        _, state, meta = checkpoint
        return state, policies.loop_from_json(meta["members"], self.task.primary)

    def _compared(self, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return the task's own numbers about all members, if it has any."""
        compare = getattr(self.task, "compare", None)
        if compare is None:
            return {}
        own: list[list[Mapping[str, Any]]] = [[] for _ in self.experiment.members]
        for record in records:
            own[record["member"]].append(record)
        return compare(self.experiment.config, own)

    def _conclude(self, state: PopulationState, loop: PopulationLoop) -> Trained:
        """Write a run for each member and the report, then mark the run as finished."""
        experiment, records = self.experiment, runs.read_metrics(self.run)
        rows = directories.ranked(experiment.members, loop, self.task.primary)
        for k, member in enumerate(experiment.members):
            directories.write(
                self.run,
                member,
                config=configs.dump(experiment.configs[k]),
                last=experiment.take(state.members, k),
                best=experiment.take(state.best, k),
                loop=loop[k].loop,
                meta={
                    "data": experiment.descriptions()[k],
                    "spec": self.task.spec_to_json(experiment.datasets[k].spec),
                },
                records=[
                    {key: value for key, value in record.items() if key != "member"}
                    for record in records
                    if record["member"] == k
                ],
                steps=experiment.config.training.steps,
            )
        facts = {
            "parameters": f"{experiment.first.parameters():,} a member",
            **self.task.facts(experiment.first.config, experiment.first.dataset),
            **self._compared(records),
            "compile time": duration(self._compiling),
            "total time": duration(time.perf_counter() - self._start),
        }
        primary = self.task.primary
        self.sink.message("writing the report ...")
        shown, score = reports.in_shown_unit(rows, records, primary)
        ranking = reports.ranking_table(shown, score)
        summary = reports.summary(shown, score)
        directories.write_ranking(self.run, rows, primary)
        drawn = reports.pictures(rows, records, primary)
        report.write_members_report(
            self.run.path,
            summary | facts,
            Artifact("Members", ranking, drawn),
            self.sink.message,
        )
        runs.finish(self.run, int(state.step))
        self.sink.finish()
        self.sink.message(ranking)
        self.sink.message(table(summary | facts | {"report": str(self.run.report)}))
        return load(self.run.path, report=self.sink.message)
