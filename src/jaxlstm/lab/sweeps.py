"""Sweeps: many runs whose configs Optuna draws, in one directory.

    DIR/config.yaml          the config with its search space
        study.db             Optuna's storage (SQLite), unless another one is given
        trials/0007/         the run directory of a trial
        trials.csv  best.yaml  report.md  plots/

A trial that was killed is resumed from its checkpoint: its process held a lock on
`trials/0007.lock`, which the operating system releases. Several processes may work on
one directory, or on one storage; the numbers of trials are given out by the storage.
"""

import contextlib
import csv
import fcntl
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from jaxlstm.lab import runs, tasks
from jaxlstm.lab._util.errors import BadInput, Diverged, LabError
from jaxlstm.lab._util.files import reason
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.sweep import Range
from jaxlstm.lab.reports import report as pictures
from jaxlstm.lab.reports import sweep as reports
from jaxlstm.lab.runs.paths import Run, write_text
from jaxlstm.lab.sinks.base import Sink
from jaxlstm.lab.sinks.formatting import Record
from jaxlstm.lab.tasks.base import Metric

_STARTING = 60.0  # seconds in which a new trial of another process has no lock yet
_MOST_REPEATS = 100  # draws without a new combination until the space counts as used up


class SweepResult(NamedTuple):
    """The result of a sweep.

    Attributes:
        path: its directory.
        best: the run directory of the best trial.
        config: the config of the best trial, which `train` takes.
        value: its best validation of the primary metric.
        trials: all trials, the best first.
    """

    path: Path
    best: Path
    config: Any
    value: float
    trials: tuple[reports.Trial, ...]


class Train(Protocol):
    """`jaxlstm.lab.api.train`, which trains the run of a trial."""

    def __call__(
        self, config: Any, *, run: Path, resume: Literal["auto"], sink: Sink
    ) -> object:
        """Start the run, resume it, or return at once if it is finished."""
        ...


def search(
    config: RunConfig,
    train: Train,
    *,
    out: Path,
    storage: str | None,
    trials: int | None,
    sink: Sink,
) -> SweepResult:
    """Train the trials that are left; see `jaxlstm.lab.api.sweep`."""
    if config.sweep is None:
        raise BadInput(
            "sweep: got a config without a section sweep, expected one with a space, "
            "such as sweep: {space: {model.hidden_size: [64, 128]}}"
        )
    _require_optuna()
    configs.require_space(config)
    work = _Sweep(out, config, train, storage, sink)
    count = config.sweep.trials if trials is None else trials
    while work.finished() < count:
        if not work.next_trial():
            break
    return work.conclude()


class _Sweep:
    """The directory of a sweep, its study, and what this process does in it."""

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        train: Train,
        storage: str | None,
        sink: Sink,
    ) -> None:
        self.path, self.config, self.sink = path, config, sink
        self._train_run = train
        self.primary: Metric = tasks.get(config.task).primary
        self.trials = path / "trials"
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{path}: cannot be written ({reason(error)}); choose another --out"
            ) from error
        with _locked(path / ".lock", wait=True):
            self._require_same_config()
            write_text(path / "config.yaml", configs.dump(config))
            self.study = self._open_study(storage)
        self._repeats = 0

    def _require_same_config(self) -> None:
        file = self.path / "config.yaml"
        if not file.exists():
            return
        ignored = {"name": "", "sweep": None}
        before, after = (
            (getattr(each.sweep, "space", None), each.model_copy(update=ignored))
            for each in (configs.load(file), self.config)
        )
        if before != after:
            raise BadInput(
                f"{self.path}: got the directory of a sweep with another config, "
                "expected an empty one or one of this config; choose another --out"
            )

    def _open_study(self, storage: str | None) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        url = storage or f"sqlite:///{self.path.absolute() / 'study.db'}"
        pruner = optuna.pruners.NopPruner()
        if self.config.sweep is not None and self.config.sweep.prune:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
        try:
            return optuna.create_study(
                storage=url,
                study_name=self.config.name,
                load_if_exists=True,
                direction="minimize" if self.primary.mode == "min" else "maximize",
                pruner=pruner,
            )
        except Exception as error:
            raise BadInput(
                f"storage: got {url}, which Optuna cannot use ({reason(error)}); "
                "expected a URL such as postgresql://user@host/sweeps"
            ) from error

    def finished(self) -> int:
        """Return the number of trials that need no more work."""
        return sum(
            trial.state.is_finished() and "repeats" not in trial.user_attrs
            for trial in self.study.get_trials(deepcopy=False)
        )

    def next_trial(self) -> bool:
        """Resume a killed trial, or draw a new one, and train it.

        Returns:
            False if the space has no new combination, or other processes work on all
            that are left.
        """
        import optuna

        with self._killed_trial() as number:
            if number is not None:
                self.sink.message(f"trial {number}: resumed, as its process ended")
                trial = optuna.trial.Trial(self.study, self._id(number))
                self._train(trial)
                return True
        if self._repeats >= _MOST_REPEATS:
            self.sink.message("every combination of the space has been tried")
            return False
        trial = self.study.ask()
        with _locked(self._lock_file(trial.number)):
            values = self._draw(trial)
            repeated = self._repeated(trial.number, values)
            if repeated is not None:
                self._repeats += 1
                trial.set_user_attr("repeats", repeated)
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                return True
            self._repeats = 0
            self._train(trial)
        return True

    def _id(self, number: int) -> int:
        trials = self.study.get_trials(deepcopy=False)
        return next(t._trial_id for t in trials if t.number == number)

    def _lock_file(self, number: int) -> Path:
        return self.trials / f"{number:04d}.lock"

    @contextlib.contextmanager
    def _killed_trial(self) -> Iterator[int | None]:
        """Yield the number of a trial whose process ended, with its lock held."""
        import optuna

        running = self.study.get_trials(
            deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
        )
        for trial in running:
            file = self._lock_file(trial.number)
            age = time.time() - trial.datetime_start.timestamp()
            if not file.exists() and (age < _STARTING or not self._is_local()):
                continue
            try:
                with _locked(file):
                    # Finished by another process since the list was read?
                    if not self._trial(trial.number).state.is_finished():
                        yield trial.number
                        return
            except BlockingIOError:
                continue
        yield None

    def _is_local(self) -> bool:
        """Return whether the storage is the file in this directory."""
        return (self.path / "study.db").exists()

    def _trial(self, number: int) -> Any:
        trials = self.study.get_trials(deepcopy=False)
        return next(trial for trial in trials if trial.number == number)

    def _draw(self, trial: Any) -> dict[str, Any]:
        """Draw the values of a trial, from the seed of the config and its number."""
        import numpy as np
        import optuna

        assert self.config.sweep is not None
        mixed = np.random.SeedSequence((self.config.seed, trial.number))
        self.study.sampler = optuna.samplers.TPESampler(
            constant_liar=True, seed=int(mixed.generate_state(1)[0])
        )
        values = {}
        for key, space in self.config.sweep.space.items():
            if not isinstance(space, Range):
                values[key] = trial.suggest_categorical(key, list(space))
            elif space.whole:
                low, high = int(space.low), int(space.high)
                values[key] = trial.suggest_int(key, low, high, log=space.log)
            else:
                low, high = float(space.low), float(space.high)
                values[key] = trial.suggest_float(key, low, high, log=space.log)
        return values

    def _repeated(self, number: int, values: Mapping[str, Any]) -> int | None:
        """Return the number of an earlier trial with the same values."""
        for trial in self.study.get_trials(deepcopy=False):
            same = trial.params == values and "repeats" not in trial.user_attrs
            if same and trial.number < number:
                return trial.number
        return None

    def _train(self, trial: Any) -> None:
        """Train a trial to its end, and tell the study."""
        import optuna

        state, number = optuna.trial.TrialState, trial.number
        config = configs.trial_config(self.config, self._draw(trial))
        path = self.trials / f"{number:04d}"
        try:
            sink = _TrialSink(trial, self.primary, self._trial(number))
            self._train_run(config, run=path, resume="auto", sink=sink)
        except optuna.TrialPruned:
            trial.set_user_attr("status", "pruned")
            self.study.tell(trial, state=state.PRUNED)
        except Diverged as error:
            # TPE counts a pruned trial without a value as the worst.
            trial.set_user_attr("status", f"diverged: {error}")
            self.study.tell(trial, state=state.PRUNED)
        except BadInput as error:
            trial.set_user_attr("status", f"failed: {error}")
            self.study.tell(trial, state=state.FAIL)
        else:
            trial.set_user_attr("status", "finished")
            self.study.tell(trial, _best(path, self.primary))
        self._report(number)

    def _report(self, number: int) -> None:
        trial = self._trial(number)
        values = ", ".join(f"{key} {value}" for key, value in trial.params.items())
        status = trial.user_attrs["status"]
        if trial.value is not None:
            status = f"{self.primary.name} {trial.value:.5g}"
        self.sink.message(f"trial {number}: {values}: {status}")

    def conclude(self) -> SweepResult:
        """Write table, picture and best config; return the result."""
        found = [
            reports.Trial(
                trial.number,
                dict(trial.params),
                trial.value,
                trial.user_attrs.get("status", trial.state.name.lower()),
                dict(trial.intermediate_values),
            )
            for trial in self.study.get_trials(deepcopy=False)
            if "repeats" not in trial.user_attrs
        ]
        ranked = reports.ranked(found, self.primary)
        if not ranked or ranked[0].value is None:
            reasons = {trial.status for trial in ranked}
            raise LabError(
                f"{self.path}: no trial finished ({'; '.join(sorted(reasons))}); "
                "narrow the space"
            )
        best = ranked[0]
        config = configs.trial_config(self.config, best.values)
        write_text(self.path / "best.yaml", configs.dump(config))
        write_text(self.path / "trials.csv", _table(ranked, self.primary))
        drawn = reports.pictures(ranked, self.primary)
        for picture in drawn:
            pictures.save(picture, self.path / "plots" / picture.name)
        text = reports.page(self.path.name, ranked, self.primary, drawn)
        write_text(self.path / "report.md", text)
        self.sink.message(reports.table(ranked, self.primary))
        again = self.path / "best.yaml"
        self.sink.message(f"best: trial {best.number}; its config is {again}")
        path = self.trials / f"{best.number:04d}"
        assert best.value is not None
        return SweepResult(self.path, path, config, best.value, tuple(ranked))


class _TrialSink:
    """Reports validations to Optuna, and ends a trial that it prunes."""

    def __init__(self, trial: Any, primary: Metric, before: Any) -> None:
        self._trial, self._primary = trial, primary
        self._reported = set(before.intermediate_values)

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Do nothing."""

    def log(self, record: Record) -> None:
        """Report a validation."""
        import optuna

        value = record.get(self._primary.name)
        if record.get("split") != "validation" or value is None:
            return
        if record["step"] not in self._reported and math.isfinite(value):
            self._trial.report(value, record["step"])
            if self._trial.should_prune():
                raise optuna.TrialPruned

    def message(self, text: str) -> None:
        """Do nothing: the log of the run has it."""

    def finish(self) -> None:
        """Do nothing."""


def _best(path: Path, primary: Metric) -> float:
    """Return the best validation of a run; of a population, of the members' mean."""
    by_step: dict[int, list[float]] = {}
    for record in runs.read_metrics(Run(path)):
        value = record.get(primary.name)
        if record["split"] == "validation" and value is not None:
            by_step.setdefault(record["step"], []).append(value)
    means = [math.fsum(values) / len(values) for values in by_step.values()]
    choose: Callable[..., float] = min if primary.mode == "min" else max
    return choose(means, default=primary.worst)


def _table(trials: Sequence[reports.Trial], primary: Metric) -> str:
    keys = list(trials[0].values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *keys, primary.name, "status"])
    for one in trials:
        row = [one.values.get(key) for key in keys]
        writer.writerow([one.number, *row, one.value, one.status])
    return text.getvalue()


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[IO[str]]:
    """Hold a lock file; raise `BlockingIOError` if another process holds it."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise BadInput(
            'sweep: got no Optuna; install it with: pip install "jaxlstm[sweep]"'
        ) from error
