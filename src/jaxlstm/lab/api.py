"""The verbs of the command line as Python functions: train, resume, plot.

    config ──> task, data, model, optimizer ──> fit ──> checkpoints, metrics, report
                                                 ▲
                                           any checkpoint

Example:
    import jaxlstm as jl

    trained = jl.lab.train("configs/quickstart.yaml")
    print(trained.sample("def ", length=200))
"""

import contextlib
import functools
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxlstm.lab import checkpoints, native, runs, sweeps, tasks
from jaxlstm.lab._util import interrupts
from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab._util.files import translate_os_errors
from jaxlstm.lab.config import changes, rates
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.sections import expanded, with_absolute_paths
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs import Run
from jaxlstm.lab.runs.trained import Trained, load, newest_spec
from jaxlstm.lab.sinks.base import Progress, choose, combine
from jaxlstm.lab.sinks.tensorboard import TensorBoardSink, require_tensorboard
from jaxlstm.lab.sinks.text import TextSink
from jaxlstm.lab.sweeps import SweepResult
from jaxlstm.lab.tasks.base import Metric
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.optimizer import learning_rate
from jaxlstm.lab.training_run import TrainingRun

if TYPE_CHECKING:
    from jaxlstm.lab.training.population import PopulationExperiment

ConfigSource = str | Path | Mapping[str, Any] | RunConfig | None


@translate_os_errors()
def train(
    config: ConfigSource = None,
    *,
    overrides: Sequence[str] = (),
    run: str | Path | None = None,
    resume: Literal["never", "auto"] = "never",
    sink: Progress = "auto",
    tensorboard: bool = False,
) -> Trained:
    """Train a model in a run directory, as a config describes it.

    Args:
        config: the path of a YAML file, a mapping of the same form, or None for the
            quickstart config.
        overrides: changes such as `"model.hidden_size=256"`, checked like the config.
        run: the run directory; None creates `runs/<name>-<date>-<time>`.
        resume: `"auto"` starts a run in a new directory, resumes a run of the same
            config, and returns the trained model of a finished run.
        sink: object that receives progress; "auto" prints it, None is quiet.
        tensorboard: whether to write event files into the run directory.

    Returns:
        The trained model, with the parameters of the best validation; of a population,
        its best member.

    Raises:
        BadInput: the config, the data or the directory cannot be used.
        Diverged: a loss or gradient is not finite.
        Interrupted: a signal such as Ctrl-C stopped the run.
        LabError: a file cannot be written.
    """
    # With absolute paths, the run resumes from any directory.
    loaded = with_absolute_paths(configs.load(config, overrides=overrides))
    if loaded.sweep is not None:
        raise BadInput(
            "sweep: got a config with a search space, expected one without; search it "
            "with jaxlstm sweep, or train without it: sweep=null"
        )
    if tensorboard:
        require_tensorboard()
    path = None if run is None else expanded(run)
    if resume == "auto" and path is not None and runs.is_run(path):
        existing = runs.open(path)
        before = runs.bound_config(existing, choose(sink).message)
        _require_same_config(existing, before, loaded)
        return _complete(existing, before, sink, tensorboard)
    cost = tasks.get(loaded.task).step_cost(loaded)
    loaded = native.resolve_engine(splits.resolve_shards(loaded, cost))
    with _default_device(loaded):
        # Built before the directory exists, so that an invalid config leaves none.
        experiment = _build(loaded)
    new_run = runs.create(
        path,
        name=loaded.name,
        config=configs.dump(loaded),
        total_steps=loaded.training.steps,
        overrides=overrides,
    )
    return _complete(new_run, loaded, sink, tensorboard, experiment=experiment)


@translate_os_errors()
def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    sink: Progress = "auto",
    tensorboard: bool = False,
) -> Trained:
    """Resume a run from its newest valid checkpoint.

    The result has the same bits as that of an uninterrupted run.

    Args:
        run: a run directory.
        overrides: changes to the config for the remaining steps, such as
            `"training.steps=2000"`. Data and model cannot change, but data that was
            moved has another path: `"data.path=NEW"`.
        sink: as for `train`.
        tensorboard: as for `train`.

    Raises:
        LabError: as for `train`.
    """
    existing = runs.open(Path(run))
    before = runs.bound_config(existing, choose(sink).message)
    if overrides:
        after = _changed_config(existing, before, overrides)
        return _complete(existing, before, sink, tensorboard, after, overrides)
    return _complete(existing, before, sink, tensorboard)


def sweep(
    config: ConfigSource,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    storage: str | None = None,
    trials: int | None = None,
    sink: Progress = "auto",
) -> SweepResult:
    """Search the best config with Optuna, or go on with the trials that are left.

    The same call with the same `out` goes on after an interruption, and shares the work
    if another process is at it.

    Args:
        config: a config with a section `sweep`, as for `train`.
        overrides: changes to the config.
        out: the directory; None is `sweeps/<name>`.
        storage: the URL of Optuna's storage, for several machines; None is SQLite in
            the directory.
        trials: the number of trials of the whole sweep; None takes `sweep.trials`.
        sink: object that receives messages; "auto" prints them, None is quiet.

    Raises:
        BadInput: the config has no section `sweep`, a key of its space is invalid, the
            directory holds another sweep, or Optuna is not installed.
        Interrupted: a signal stopped a trial; the same call goes on.
        LabError: no trial finished.
    """
    loaded = with_absolute_paths(configs.load(config, overrides=overrides))
    path = Path("sweeps") / loaded.name if out is None else expanded(out)
    return sweeps.search(
        loaded, train, out=path, storage=storage, trials=trials, sink=choose(sink)
    )


def _changed_config(run: Run, before: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a run's config with changes; raise `BadInput` if it cannot follow them."""
    after = with_absolute_paths(configs.load(before, overrides=overrides))
    _require_same_stream(before, after)
    newest = max(checkpoints.steps(run.checkpoints), default=0)
    if after.training.steps < newest:
        raise BadInput(
            f"training.steps: got {after.training.steps}, expected at least {newest}, "
            f"the step that {run.path} has reached"
        )
    return after


@translate_os_errors()
def plot(runs_: Sequence[str | Path], *, out: str | Path | None = None) -> list[Path]:
    """Redraw the plots of one run, or compare several runs in one plot.

    Args:
        runs_: run directories.
        out: the file of the comparison; None is `comparison.png`. The plots of a single
            run are written to its `plots/`.

    Returns:
        The files that were written.

    Raises:
        BadInput: a run does not exist or has no metrics.
    """
    paths = [runs.open(Path(run)).path for run in runs_]
    if len(paths) > 1:
        target = _picture(out)
        for path in paths:
            runs.require_own_log(Run(path))
        metrics = {
            tasks.get(configs.load(Run(path).config).task).primary for path in paths
        }
        primary = metrics.pop() if len(metrics) == 1 else Metric("loss")
        return [reports.write_comparison(paths, target, primary=primary)]
    if out is not None:
        raise BadInput(
            f"plot: got --out {out} for a single run, expected several runs; omit "
            f"--out to write the plots to {paths[0] / 'plots'}"
        )
    runs.require_own_log(Run(paths[0]))
    trained = load(paths[0])
    artifacts = trained.task.artifacts(trained, trained.dataset())
    reports.write_plots(paths[0], artifacts, primary=trained.task.primary)
    return sorted(runs.Run(paths[0]).plots.glob("*.png"))


def _picture(out: str | Path | None) -> Path:
    path = Path(out or "comparison.png")
    if path.suffix not in (".png", ".pdf", ".svg") or not path.parent.is_dir():
        raise BadInput(
            f"plot: got --out {path}, expected a .png, .pdf or .svg in an existing "
            "directory"
        )
    return path


def _complete(
    run: Run,
    config: RunConfig,
    sink: Progress,
    tensorboard: bool,
    changed: RunConfig | None = None,
    overrides: Sequence[str] = (),
    *,
    experiment: "Experiment | PopulationExperiment | None" = None,
) -> Trained:
    """Train a run from its newest checkpoint to the end, or load a finished one.

    Args:
        run: the run.
        config: its config.
        sink: as for `train`.
        tensorboard: as for `train`.
        changed: the config that the run follows from now on, if it is another one.
        overrides: the changes that led to it.
        experiment: the parts of the config, if they are built already.
    """
    finished = runs.finished(run)
    if changed is None and finished is not None:
        runs.require_own_log(run)
        early = ", stopped early" * (finished < config.training.steps)
        report = choose(sink).message
        more = f"to train on: jaxlstm resume {run.path} training.steps=N"
        report(f"{run.path} is finished ({runs.progress(run)}{early}); {more}")
        if lost := runs.deleted_log(run):
            report(lost)
        # A change of the config that was killed before it took effect leaves files.
        with contextlib.suppress(LabError), runs.lock(run):
            runs.clean(run)
        return load(run.path, report=report)
    before, config = config, changed or config
    primary = tasks.get(config.task).primary
    sinks = [choose(sink, best=primary), TextSink(functools.partial(runs.log, run))]
    if tensorboard:
        sinks.append(TensorBoardSink(run.path / "tensorboard"))
    sinks_ = combine(*sinks)
    with (
        _default_device(config) as device,
        runs.lock(run),
        interrupts.stop_on_signal(
            shlex.join(["jaxlstm", "resume", str(run.path)])
        ) as stop_requested,
    ):
        environment = runs.describe_environment([str(device.device_kind)])
        try:
            experiment = experiment or _build(config, run)
            training_run: Any = (
                TrainingRun(run, experiment, sinks_, stop_requested)
                if isinstance(experiment, Experiment)
                else _population_run(run, experiment, sinks_, stop_requested)
            )
            # Everything that can refuse the run comes before the first change to it.
            checkpoint = training_run.newest_checkpoint()
            if changed is not None:
                more = changed.training.steps > before.training.steps
                runs.write_config(
                    run,
                    configs.dump(changed),
                    overrides=[*runs.read_overrides(run), *overrides],
                    total_steps=changed.training.steps,
                    continued_from=checkpoint[0] if more and checkpoint else None,
                )
                for message in _kept_schedule(before, changed):
                    sinks_.message(message)
            runs.write_environment(run, environment)
            sinks_.message(f"shards: {splits.describe(config, device)}")
            return training_run.complete(checkpoint)
        finally:
            sinks_.finish()


def _kept_schedule(before: RunConfig, after: RunConfig) -> list[str]:
    """Return a message if the number of steps changed and the schedules did not."""
    keys, training = rates.length_keys(after.optimizer), after.training
    same = training.steps == before.training.steps
    if same or after.optimizer != before.optimizer or not keys:
        return []
    rate = learning_rate(
        after.optimizer, accumulate=training.gradient_accumulation_steps
    )
    last = "" if rate is None else f", {rate(training.steps - 1):.2g} at the last step"
    return [
        f"training.steps is now {training.steps:,}; the schedule of the learning rate "
        f"is unchanged{last}. To let it end with the training, resume with "
        + " ".join(f"{key}=null" for key in keys)
    ]


def _build(
    config: RunConfig, run: Run | None = None
) -> "Experiment | PopulationExperiment":
    """Build the parts of a new run, or of one that is resumed."""
    task, spec = tasks.get(config.task), None
    if run is not None and hasattr(task, "data_of_run"):
        spec = newest_spec(run, task)
    build = functools.partial(Experiment.build, spec=spec)
    if config.population is None:
        return build(config)
    from jaxlstm.lab.training.population import PopulationExperiment

    return PopulationExperiment.build(config, build)


def _population_run(*parts: Any) -> Any:
    from jaxlstm.lab.population_run import PopulationRun

    return PopulationRun(*parts)


def _default_device(config: RunConfig) -> AbstractContextManager[devices.Device]:
    """Select the device of a config, and on a CPU one virtual device for each core."""
    return devices.default_device(config.device, cpu_devices=splits.cpu_devices(config))


def _require_same_config(run: Run, before: RunConfig, config: RunConfig) -> None:
    """Raise `BadInput` if a run was created with another config."""
    changed = changes.differences(before, config)
    resolved = []  # keys that the run has a value for, where the config leaves it open
    if config.training.shards == "auto":
        resolved.append("training.shards")
    if getattr(config.model, "engine", "none") is None:
        resolved.append("model.engine")
    changed = [key for key in changed if key not in resolved]
    if not changed:
        return
    if changes.fixed(config, changed):
        remedy = f"as only {changes.may_change(config)} may change"
    else:
        again = shlex.join(["jaxlstm", "resume", str(run.path)])
        remedy = f"or change that run: {again} KEY=VALUE"
    raise BadInput(
        f"{run.path}: got a run of another config ({', '.join(changed)} differ), "
        f"expected one of the given config; choose another --run, {remedy}"
    )


def _require_same_stream(before: RunConfig, after: RunConfig) -> None:
    """Raise `BadInput` for changes after which the checkpoints would not fit."""
    fixed = changes.fixed(after, changes.differences(before, after))
    if fixed:
        raise BadInput(
            f"resume: got a change of {', '.join(fixed)}, expected only changes of "
            f"{changes.may_change(after)}; start a new run for others"
        )
