"""A whole run, from a config to its report: train, resume, load.

    config ──> data, model, optimizer ──> fit ──> checkpoints, metrics, report
                                           ▲
                                     any checkpoint

These are the verbs of the command line as functions:

    import jaxlstm as jl

    trained = jl.lab.train("configs/quickstart.yaml")
    print(trained.sample("def ", length=200))
"""

import contextlib
import functools
import json
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab import config as configs
from jaxlstm.lab._util import interrupts
from jaxlstm.lab._util.errors import BadInput, Interrupted, LabError
from jaxlstm.lab.config import Config
from jaxlstm.lab.data import Corpus, validation_windows
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs import Run
from jaxlstm.lab.runs.trained import Trained, load, refuse_other_data
from jaxlstm.lab.sinks.base import Sink, TensorBoard, TextLog, progress, together
from jaxlstm.lab.sinks.records import duration, table
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.experiment import Workbench
from jaxlstm.lab.training.loop import (
    Hooks,
    Job,
    Ledger,
    TrainState,
    evaluate,
    fit,
)

ConfigSource = str | Path | Mapping[str, Any] | Config | None

# What a resumed run may change: nothing that decides which data a step sees, nor
# what the arrays of a checkpoint mean.
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
    """Train a model as a config says, in a run directory.

    Arguments:
        config: the path of a YAML file, a mapping of the same form, or None for the
            quickstart.
        overrides: `"model.hidden_size=256"`, checked like the rest.
        run: the run directory; None makes `runs/<name>-<date>-<time>`.
        resume: `"auto"` starts in a fresh directory, continues in one that holds a
            run of the same config, and returns at once where that run is finished.
        sink: who is told; None for a display on this screen.
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
        return _carry_out(there, sink, tensorboard)
    wanted = splits.settled(wanted)
    with _using(wanted):
        bench = Workbench.of(wanted)  # finds every mistake before a directory is made
    made = runs.create(
        path,
        name=wanted.name,
        config=configs.dump(wanted),
        total_steps=wanted.training.steps,
        overrides=overrides,
    )
    return _carry_out(made, sink, tensorboard, bench)


def resume(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    sink: Sink | None = None,
    tensorboard: bool = False,
) -> Trained:
    """Continue a run from its newest sound checkpoint, to the same bits.

    Arguments:
        run: a run directory.
        overrides: changes to the config from here on, such as
            `"training.steps=2000"`; what decides the data or the model must stay.
        sink, tensorboard: as for `train`.

    Errors: as for `train`.
    """
    there = runs.open(Path(run))
    bench = _change(there, overrides) if overrides else None
    return _carry_out(there, sink, tensorboard, bench)


def _change(run: Run, overrides: Sequence[str]) -> Workbench:
    """Give a run another config, once it is sure that the run can go on with it."""
    before = _config(run)
    after = _rooted(configs.load(before, overrides=overrides))
    _refuse_another_stream(before, after)
    newest = max(checkpoints.steps(run.checkpoints), default=0)
    if after.training.steps < newest:
        raise BadInput(
            f"training.steps: {after.training.steps} came, and {run.path} is at step "
            f"{newest} already; more steps than that are needed"
        )
    with _using(after), runs.lock(run):
        bench = Workbench.of(after)
        checkpoints.latest(run.checkpoints, bench.start(), lambda text: None)
        runs.write_config(
            run,
            configs.dump(after),
            overrides=[*runs.read_overrides(run), *overrides],
            total_steps=after.training.steps,
        )
    return bench


def plot(runs_: Sequence[str | Path], *, out: str | Path | None = None) -> list[Path]:
    """Draw the pictures of one run again, or compare several in one picture.

    Arguments:
        runs_: run directories.
        out: where the comparison goes; `comparison.png` if None. One run's pictures
            go into its own directory.

    Returns: the files that were written.

    Errors: `BadInput` where there is no run, or no metrics in it.
    """
    paths = [runs.open(Path(run)).path for run in runs_]
    if len(paths) > 1:
        return [reports.write_comparison(paths, _picture(out))]
    if out is not None:
        raise BadInput("plot: --out is for several runs; one run's go into its plots/")
    trained = load(paths[0])
    reports.write_plots(paths[0], reading=_reading(trained, trained.corpus()))
    return sorted(runs.Run(paths[0]).plots.glob("*.png"))


def _picture(out: str | Path | None) -> Path:
    path = Path(out or "comparison.png")
    if path.suffix not in (".png", ".pdf", ".svg") or not path.parent.is_dir():
        raise BadInput(
            f"plot: --out {path} cannot be drawn; name a .png, .pdf or .svg in a "
            "directory that is there"
        )
    return path


def _carry_out(
    run: Run, sink: Sink | None, tensorboard: bool, bench: Workbench | None = None
) -> Trained:
    """Bring a run to its end, from wherever it stands."""
    if runs.finished(run) is not None:
        (sink or progress()).message(f"{run.path} is finished ({runs.progress(run)})")
        return load(run.path)
    config = _config(run)
    sinks = [sink or progress(), TextLog(functools.partial(runs.log, run))]
    if tensorboard:
        sinks.append(TensorBoard(run.path / "tensorboard"))
    told = together(*sinks)
    with (
        _using(config) as device,
        runs.lock(run),
        interrupts.listening() as stopping,
    ):
        environment = runs.describe_environment([str(device.device_kind)])
        runs.write_environment(run, environment)
        told.message(f"shards: {splits.described(config, device)}")
        try:
            bench = bench or Workbench.of(config)
            return _Experiment(run, bench, told, stopping).carry_out()
        finally:
            told.finish()


class _Experiment:
    """One run while it is going: what the loop of `training.fit` is hooked up to."""

    def __init__(self, run: Run, bench: Workbench, sink: Sink, stopping: Any) -> None:
        self.run, self.bench, self.sink = run, bench, sink
        self.config, self.corpus = bench.config, bench.corpus
        self._stopping = stopping
        self._began = time.perf_counter()
        self._compiling = 0.0

    def carry_out(self) -> Trained:
        """Restore, train, conclude."""
        state, ledger = self._restore()
        training = self.config.training
        self.sink.start(training.steps, step=int(state.step), title=self.run.path.name)
        job = Job(
            self.bench.model,
            self.bench.optimizer,
            self.bench.streams,
            training,
            optimizers.learning_rate(self.config.optimizer),
            Hooks(self._log, self._validate, self._save, self._compiled, self._asked),
        )
        with _memory_in_words():
            done = fit(job, state, ledger)
        if not done:
            again = shlex.join(["jaxlstm", "resume", str(self.run.path)])
            raise Interrupted(
                f"{self.run.path} was stopped and saved ({runs.progress(self.run)}); "
                f"continue with: {again}"
            )
        return self._conclude()

    def _restore(self) -> tuple[TrainState, Ledger]:
        """The newest sound checkpoint, or the beginning."""
        state, ledger = self.bench.start(), Ledger()
        root = self.run.checkpoints
        checkpoints.clean(root)
        for meta in _readable_meta(root):
            refuse_other_data(meta["data"], self.corpus.description)
        found = checkpoints.latest(root, state, self.sink.message)
        if found is None:
            checkpoints.require_room(root, state, copies=2)
            runs.truncate_metrics(self.run, 0)
            self._save(state, ledger)
            return state, ledger
        step, state, meta = found
        runs.truncate_metrics(self.run, step)
        return state, self._reconciled(Ledger.from_json(meta["ledger"]), state)

    def _reconciled(self, ledger: Ledger, state: TrainState) -> Ledger:
        """The ledger, with `best` and the weights leading to the best that it knows.

        They may not: the process died between a save and the link, or the newest
        checkpoint was damaged and the run goes on from an older one.
        """
        root, best = self.run.checkpoints, ledger.best_step
        if best is None:
            checkpoints.forget_best(root)
            return ledger
        try:
            kept, _ = checkpoints.restore(root, best, state)
        except checkpoints.CheckpointError as error:
            self.sink.message(f"{error}; the best is looked for anew")
            checkpoints.forget_best(root)
            return ledger._replace(best_step=None, best_loss=math.inf, waited=0)
        checkpoints.mark_best(root, best)
        runs.export_weights(self.run.weights, kept.params)
        return ledger

    def _log(
        self,
        split: str,
        step: int,
        nats: float,
        numbers: dict[str, Any],
        pace: dict[str, Any],
    ) -> None:
        scores = task.measures(nats, self.corpus.vocabulary)
        record = {"step": step, "split": split} | scores | numbers
        runs.append(self.run, record)
        self.sink.log(record | pace)

    def _validate(self, params: Any) -> float:
        windows = validation_windows(
            self.corpus.validation,
            streams=self.config.training.validation_streams,
            window=self.config.training.window,
            limit=self.config.training.validation_tokens,
            document_token=self.corpus.document_token,
        )
        return evaluate(self.bench.model, params, windows)

    def _save(self, state: TrainState, ledger: Ledger) -> None:
        meta = {
            "ledger": ledger.to_json(),
            "data": self.corpus.description,
            "vocabulary": json.loads(self.corpus.vocabulary.to_json()),
        }
        root = self.run.checkpoints
        checkpoints.save(root, int(state.step), state, meta)
        self._remember_best(ledger, state)
        checkpoints.prune(root, self.config.training.keep_checkpoints)

    def _remember_best(self, ledger: Ledger, state: TrainState) -> None:
        if ledger.best_step is None or ledger.best_step != int(state.step):
            return
        checkpoints.mark_best(self.run.checkpoints, ledger.best_step)
        runs.export_weights(self.run.weights, state.params)

    def _compiled(self, seconds: float) -> None:
        self._compiling += seconds
        self.sink.message(f"compiled in {seconds:.1f} s")

    def _asked(self) -> bool:
        asked = self._stopping()
        if asked:
            self.sink.message("stopping: saving a checkpoint first")
        return asked

    def _conclude(self) -> Trained:
        """Sample, pictures, report; the run is finished when all of it is written."""
        trained = load(self.run.path, report=self.sink.message)
        prompt = self.config.sample.prompt
        text = prompt + trained.sample() if self.config.sample.length else ""
        facts = self._facts()
        reports.write_report(
            self.run.path,
            facts=facts,
            sample=text,
            reading=_reading(trained, self.corpus),
        )
        runs.finish(self.run, max(checkpoints.steps(self.run.checkpoints)))
        self.sink.finish()
        if text:
            self.sink.message(f"\n{text}\n")
        rows = reports.summary(runs.read_metrics(self.run)) | facts
        self.sink.message(table(rows | {"report": str(self.run.report)}))
        return trained

    def _facts(self) -> dict[str, str]:
        parts = self.corpus.description
        return {
            "parameters": f"{self.bench.parameters():,}",
            "training tokens": f"{parts['train']['tokens']:,}",
            "validation tokens": f"{parts['validation']['tokens']:,}",
            "compiling": duration(self._compiling),
            "time, all in all": duration(time.perf_counter() - self._began),
        }


@contextlib.contextmanager
def _memory_in_words() -> Iterator[None]:
    """What JAX says of memory that is not there, with what to do about it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise LabError(
            f"the device has not enough memory ({str(error).splitlines()[0]}); set "
            "model.checkpoint_every to sqrt, or lower training.window, "
            "training.batch_size or model.hidden_size"
        ) from error


def _reading(trained: Trained, corpus: Corpus) -> reports.Reading:
    """The model reading from the middle of the validation part."""
    middle = len(corpus.validation) // 2
    tokens = corpus.validation[max(0, middle - 200) : middle + 96]
    shown = min(len(tokens), 96)
    trace = task.read_aloud(
        trained.config.model,
        trained.params,
        jnp.asarray(tokens, jnp.int32),
        warm_up=len(tokens) - shown,
    )
    symbols = [corpus.vocabulary.decode([token]) for token in tokens[-shown:]]
    return reports.Reading(symbols, trace)


def _readable_meta(root: Path) -> Iterator[dict[str, Any]]:
    """What the checkpoints say of themselves, those that can be read."""
    for step in checkpoints.steps(root):
        with contextlib.suppress(checkpoints.DamagedCheckpoint):
            yield checkpoints.read_meta(root, step)


def _config(run: Run) -> Config:
    return configs.load(run.config)


def _using(config: Config) -> AbstractContextManager[devices.Device]:
    """The device that a config names, and as many beside it as it has shards."""
    return devices.using(config.device, hosts=splits.number(config.training))


def _rooted(config: Config) -> Config:
    """The config with whole paths, so that the run can be resumed from anywhere."""
    names = ("path", "validation_path")
    there = {name: getattr(config.data, name, None) for name in names}
    whole = {name: str(Path(path).absolute()) for name, path in there.items() if path}
    return config.model_copy(update={"data": config.data.model_copy(update=whole)})


def _refuse_another(run: Run, wanted: Config) -> None:
    there = _config(run)
    changed = _differences(there, wanted)
    if wanted.training.shards == "auto":  # whatever it was for that run
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
