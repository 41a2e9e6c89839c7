"""The verbs of the command line as Python functions: train, resume, plot.

    config ──> task, data, model, optimizer ──> fit ──> checkpoints, metrics, report
                                                 ▲
                                           any checkpoint

Example:
    import jaxlstm as jl

    trained = jl.lab.train("configs/quickstart.yaml")
    print(trained.sample("def ", length=200))
"""

import functools
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util import interrupts
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs import Run
from jaxlstm.lab.runs.trained import Trained, load
from jaxlstm.lab.sinks.base import Sink, combine, progress
from jaxlstm.lab.sinks.tensorboard import TensorBoardSink
from jaxlstm.lab.sinks.text import TextSink
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.state import current_names
from jaxlstm.lab.training_run import TrainingRun

ConfigSource = str | Path | Mapping[str, Any] | Config | None

# Sections that a resumed run may change, and keys in them that must stay: they decide
# which data a step sees and how the arrays of a checkpoint are read.
MAY_CHANGE = ("optimizer", "sample", "device", "training")
MUST_STAY = (
    "training.batch_size",
    "training.shards",
    "training.window",
    "training.validation_streams",
    "training.validation_tokens",
)


def train(
    config: ConfigSource = None,
    *,
    overrides: Sequence[str] = (),
    run: str | Path | None = None,
    resume: Literal["never", "auto"] = "never",
    sink: Sink | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Train a model in a run directory, as a config describes it.

    Args:
        config: the path of a YAML file, a mapping of the same form, or None for the
            quickstart.
        overrides: such as `"model.hidden_size=256"`; checked like the config.
        run: the run directory; None makes `runs/<name>-<date>-<time>`.
        resume: `"auto"` starts in a fresh directory, continues in one that holds a
            run of the same config, and returns at once where that run is finished.
        sink: receives the progress; None shows it on standard output.
        tensorboard: write event files into the run directory too.

    Returns: the trained model, with the parameters of the best validation.

    Errors: `BadInput` for a config, data or a directory that cannot be used,
    `Diverged`, `Interrupted` after Ctrl-C, `LabError` where the disk fails.
    """
    wanted = _rooted(configs.load(config, overrides=overrides))
    path = None if run is None else Path(run)
    if resume == "auto" and path is not None and runs.is_run(path):
        there = runs.open(path)
        _refuse_another(there, wanted)
        return _complete(there, sink, tensorboard)
    wanted = splits.settled(wanted)
    with _using(wanted):
        # Finds every mistake before a directory is made.
        experiment = Experiment.build(wanted)
    made = runs.create(
        path,
        name=wanted.name,
        config=configs.dump(wanted),
        total_steps=wanted.training.steps,
        overrides=overrides,
    )
    return _complete(made, sink, tensorboard, experiment)


def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    sink: Sink | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Continue a run from its newest sound checkpoint, to the same bits.

    Args:
        run: a run directory.
        overrides: changes to the config from here on, such as
            `"training.steps=2000"`. Data and model cannot change.
        sink: as for `train`.
        tensorboard: as for `train`.

    Raises:
        LabError: as for `train`.
    """
    there = runs.open(Path(run))
    experiment = _change_config(there, overrides) if overrides else None
    return _complete(there, sink, tensorboard, experiment)


def _change_config(run: Run, overrides: Sequence[str]) -> Experiment:
    """Write another config to a run, if the run can continue with it."""
    before = _config(run)
    after = _rooted(configs.load(before, overrides=overrides))
    _refuse_another_stream(before, after)
    newest = max(checkpoints.steps(run.checkpoints), default=0)
    if after.training.steps < newest:
        raise BadInput(
            f"training.steps: got {after.training.steps}, expected at least {newest}, "
            f"the step that {run.path} has reached"
        )
    with _using(after), runs.lock(run):
        experiment = Experiment.build(after)
        state = experiment.initial_state()
        checkpoints.latest(
            run.checkpoints,
            state,
            lambda text: None,
            rename=current_names(experiment.task, state),
        )
        runs.write_config(
            run,
            configs.dump(after),
            overrides=[*runs.read_overrides(run), *overrides],
            total_steps=after.training.steps,
        )
    return experiment


def plot(runs_: Sequence[str | Path], *, out: str | Path | None = None) -> list[Path]:
    """Draw the pictures of one run again, or compare several runs in one picture.

    Args:
        runs_: run directories.
        out: the file of the comparison, `comparison.png` if None. The pictures of one
            run go to its own `plots/`.

    Returns:
        The files that were written.

    Raises:
        BadInput: there is no run, or it has no metrics.
    """
    paths = [runs.open(Path(run)).path for run in runs_]
    if len(paths) > 1:
        return [reports.write_comparison(paths, _picture(out))]
    if out is not None:
        raise BadInput(
            "plot: --out is for several runs; one run's pictures go to its plots/"
        )
    trained = load(paths[0])
    artifacts = trained.task.artifacts(trained, trained.dataset())
    reports.write_plots(paths[0], artifacts)
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
    run: Run, sink: Sink | None, tensorboard: bool, experiment: Experiment | None = None
) -> Trained:
    """Train a run from its newest checkpoint to the end, or load a finished one."""
    if runs.finished(run) is not None:
        (sink or progress()).message(f"{run.path} is finished ({runs.progress(run)})")
        return load(run.path)
    config = _config(run)
    sinks = [sink or progress(), TextSink(functools.partial(runs.log, run))]
    if tensorboard:
        sinks.append(TensorBoardSink(run.path / "tensorboard"))
    sinks_ = combine(*sinks)
    with (
        _using(config) as device,
        runs.lock(run),
        interrupts.listening() as stopping,
    ):
        environment = runs.describe_environment([str(device.device_kind)])
        runs.write_environment(run, environment)
        sinks_.message(f"shards: {splits.described(config, device)}")
        try:
            experiment = experiment or Experiment.build(config)
            return TrainingRun(run, experiment, sinks_, stopping).complete()
        finally:
            sinks_.finish()


def _config(run: Run) -> Config:
    return configs.load(run.config)


def _using(config: Config) -> AbstractContextManager[devices.Device]:
    """Select the device of a config, and on a CPU one virtual device for each shard."""
    return devices.using(config.device, hosts=splits.number(config.training))


def _rooted(config: Config) -> Config:
    """Make data paths absolute, so that the run resumes from any directory."""
    names = ("path", "validation_path")
    there = {name: getattr(config.data, name, None) for name in names}
    whole = {name: str(Path(path).absolute()) for name, path in there.items() if path}
    return config.model_copy(update={"data": config.data.model_copy(update=whole)})


def _refuse_another(run: Run, wanted: Config) -> None:
    there = _config(run)
    changed = _differences(there, wanted)
    if wanted.training.shards == "auto":  # Any number agrees with auto.
        changed = [key for key in changed if key != "training.shards"]
    if changed:
        raise BadInput(
            f"{run.path} holds a run of another config ({', '.join(changed)} differ); "
            "choose another --run, or change it with: "
            f"{shlex.join(['jaxlstm', 'resume', str(run.path)])} KEY=VALUE"
        )


def _refuse_another_stream(before: Config, after: Config) -> None:
    fixed = [
        key
        for key in _differences(before, after)
        if key.split(".")[0] not in MAY_CHANGE or key in MUST_STAY
    ]
    if fixed:
        raise BadInput(
            f"resume: {', '.join(fixed)} cannot change within a run, because its "
            "checkpoints would mean something else; start a new run for that"
        )


def _differences(one: Config, other: Config) -> list[str]:
    """The keys, `section.key`, in which two configs differ; the name is no matter."""
    ours, theirs = _flat(one.model_dump()), _flat(other.model_dump())
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [key for key in keys if key != "name" and ours.get(key) != theirs.get(key)]


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in fields.items():
        inner = value if isinstance(value, Mapping) else {None: value}
        flat |= {f"{section}.{key}" if key else section: v for key, v in inner.items()}
    return flat
