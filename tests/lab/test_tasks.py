"""Tests that a task outside the package runs like language modelling."""

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
import sum_task
import tiny
from matplotlib.figure import Figure
from pydantic import Field
from ruamel.yaml import YAML

import fast_compilation
import jaxlstm as jl
from jaxlstm.lab import checkpoints, cli, config, runs, tasks
from jaxlstm.lab._util.wording import join_names
from jaxlstm.lab.config import loading, schema
from jaxlstm.lab.parallel import devices, shards
from jaxlstm.lab.reports import report
from jaxlstm.lab.sinks import formatting
from jaxlstm.lab.tasks import Losses, Metric
from jaxlstm.lab.training import diagnosis, evaluation, programs
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.state import train_steps

SOURCE = Path(jl.__file__).parent


@pytest.fixture(autouse=True)
def registered_task(monkeypatch):
    """Register the task until the end of a test."""
    monkeypatch.setattr(schema, "CONFIGS", dict(schema.CONFIGS))
    monkeypatch.setattr(loading, "CONFIGS", schema.CONFIGS)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    sum_task.register()


def command(*words, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, sum_task.__file__, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=fast_compilation.environment() | environment,
    )


def test_the_task_trains_evaluates_and_reports(tmp_path, capsys):
    sink = tiny.RecordingSink()
    trained = jl.lab.train(sum_task.config(steps=200), run=tmp_path / "run", sink=sink)
    paces = [r for r in sink.records if r["split"] == "train"]
    for pace in paces:
        assert "tokens_per_second" not in pace
        seconds = pace["milliseconds_per_step"] / 1e3
        assert pace["sequences_per_second"] == pytest.approx(8 / seconds)
        assert re.search(r"  sequences/s \d", formatting.line(pace, 200))
    assert len(paces) == 10
    records = [r for r in trained.metrics() if r["split"] == "validation"]
    assert records[-1]["loss"] < records[0]["loss"] / 4
    best = max(records, key=lambda record: record["share_close"])
    assert trained.step == best["step"]
    scores = trained.evaluate()
    assert set(scores) == {"loss", "share_close"}
    report = (tmp_path / "run" / "report.md").read_text()
    (line,) = re.findall(r"\| best validation \| (.*) \|", report)
    share, loss = best["share_close"], best["loss"]
    expected = f"{share:.4g} share close, loss {loss:.4f} (step {best['step']})"
    assert line == expected
    assert "## Sums and predictions" in report
    assert "| sequences | of 5 numbers |" in report
    assert (tmp_path / "run" / "plots" / "loss.png").exists()
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    share, loss = scores["share_close"], scores["loss"]
    numbers = f"share close {share:.4g}  loss {loss:.4f}"
    expected = f"step {trained.step:>3}/200  validation  {numbers}\n"
    assert capsys.readouterr().out == expected
    with pytest.raises(
        jl.lab.BadInput, match="task sum, which generates no text, expected"
    ):
        trained.sample()
    with pytest.raises(jl.lab.BadInput, match="got a run of the task sum"):
        jl.lab.inspect(tmp_path / "run")


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, capsys):
    """SIGKILL ends one of them between two checkpoints."""
    path = tmp_path / "sums.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(sum_task.config(checkpoint_every=20, log_every=10), file)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = command("train", path, "--run", killed, SUM_TASK_KILLED_AT="30")
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert runs.finished(runs.open(killed)) is None
    assert max(checkpoints.steps(killed / "checkpoints")) in (0, 20)  # of 30 steps
    assert cli.main(["resume", str(killed)]) == 0
    assert cli.main(["train", str(path), "--run", str(whole)]) == 0
    capsys.readouterr()
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert cli.main(["evaluate", str(killed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == jl.lab.load(killed).step


class Terminal(io.StringIO):
    """A standard output that claims to be a terminal."""

    def isatty(self):
        return True


def texts(picture):
    """Draw a picture and return the text of its annotations and its legend."""
    ax = Figure(figsize=picture.size).add_subplot()
    picture.draw(ax)
    return [text.get_text() for text in (*ax.texts, *ax.get_legend().get_texts())]


def test_every_display_selects_the_validation_that_the_task_finds_best(
    tmp_path, monkeypatch
):
    """The largest error is best and occurs first; the lowest loss occurs last."""
    tasks.register(sum_task.LargestError(), sum_task.LargestErrorConfig)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stdout", Terminal())
    drawn = {}
    monkeypatch.setattr(
        report, "save", lambda picture, path: drawn.update({picture.name: picture})
    )
    run = tmp_path / "run"
    trained = jl.lab.train(sum_task.config() | {"task": "largest_error"}, run=run)
    records = [r for r in trained.metrics() if r["split"] == "validation"]
    best = max(records, key=lambda record: record["error"])
    assert trained.step == best["step"] == 20
    assert min(records, key=lambda record: record["loss"])["step"] > 20
    error = f"{best['error']:.4g}"

    display = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sys.stdout.getvalue())
    assert re.findall(r"(\S+) error at (\d+)", display)[-1] == (error, "20")
    score = f"{error} error, {best['share_close']:.4g} share close"
    expected = f"best validation | {score}, loss {best['loss']:.4f} (step 20) |"
    assert expected in (run / "report.md").read_text()
    assert f"best error {error}\nat step 20" in texts(drawn.pop("loss.png"))
    jl.lab.plot([run])
    assert f"best error {error}\nat step 20" in texts(drawn["loss.png"])
    jl.lab.plot([run, run], out=tmp_path / "both.png")
    assert f"{run}: best error {error}" in texts(drawn["both.png"])


def test_auto_shards_are_decided_by_the_cost_that_the_task_states(monkeypatch):
    tasks.register(sum_task.LargestError(), sum_task.LargestErrorConfig)
    monkeypatch.setattr(devices, "cores", lambda: 2)
    facts = {}
    for name in ("sum", "largest_error"):
        made = sum_task.config(shards="auto") | {"task": name}
        facts[name] = jl.lab.check(config.load(made))["shards"]
    assert facts == {
        "sum": "1, the whole batch of 8 sequences "
        "(the task sum states no cost of a step)",
        "largest_error": "2 of 4 sequences on 2 of 2 cores "
        "(2 devices compute in parallel)",
    }


def test_shards_split_each_field_along_its_own_axis():
    """Two shards give the update of the whole batch, up to rounding."""
    after = []
    for count in (1, 2):
        made = config.load(sum_task.config(shards=count))
        experiment = Experiment.build(made)
        dataset, state = experiment.dataset, experiment.initial_state()
        batches = dataset.batches(0, 3)
        parts = (experiment.task, experiment.model, experiment.optimizer)
        if count == 1:
            run = jax.jit(lambda s, b, parts=parts: train_steps(*parts, s, b))
        else:
            run = shards.compile_steps(
                programs.step_parts(*parts),
                state,
                batches,
                batch_axes=dataset.batch_axes,
                shards=count,
            )
        after.append(run(state, batches)[0].params)
    for one, other in zip(*map(jax.tree.leaves, after), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


class WeightedSum(sum_task.Sum):
    """The task with half the weight of a loss, and none where the sum is below 0."""

    def loss(self, *args, **options):
        losses, carry = super().loss(*args, **options)
        batch = args[3]
        return losses._replace(weights=jnp.where(batch.sums > 0, 0.5, 0.0)), carry


def weighted_experiment() -> Experiment:
    experiment = Experiment.build(config.load(sum_task.config(shards=2)))
    return dataclasses.replace(experiment, task=WeightedSum())


def test_shards_with_different_weights_give_the_mean_of_the_whole_batch():
    """Rows 1 to 3, the whole first shard, or all rows have weight 0."""
    experiment = weighted_experiment()
    parts = (experiment.task, experiment.model, experiment.optimizer)
    batches = experiment.dataset.batches(0, 3)
    for step, rows in enumerate([slice(1, 4), slice(4), slice(8)]):
        batches.sums[step, rows] = -1.0
    run = shards.compile_steps(
        programs.step_parts(*parts),
        experiment.initial_state(),
        batches,
        batch_axes=experiment.dataset.batch_axes,
        shards=2,
    )
    after, rows = run(experiment.initial_state(), batches)
    whole, metrics = jax.jit(lambda s: train_steps(*parts, s, batches))(
        experiment.initial_state()
    )
    for name in ("loss", "gradient_norm"):
        expected = getattr(metrics, name)
        np.testing.assert_allclose(getattr(rows, name), expected, rtol=1e-4)
        assert expected[0] > 0 == expected[2]
    assert int(after.step) == 3
    for one, other in zip(
        *map(jax.tree.leaves, (whole.params, after.params)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_divergence_names_no_row_of_weight_0():
    experiment = weighted_experiment()
    batch = experiment.dataset.batch(0)
    batch.sums[[2, 5]] = -np.inf, np.inf
    dataset = SimpleNamespace(
        batch=lambda step: batch, batch_axes=experiment.dataset.batch_axes
    )
    job = SimpleNamespace(
        task=experiment.task, model=experiment.model, shards=2, dataset=dataset
    )
    message = diagnosis.diagnose(job, experiment.initial_state())
    assert "step 1: the loss is not finite" in message
    assert "batch rows 5. " in message


def test_validation_without_any_weight_is_refused():
    experiment = weighted_experiment()
    batch = experiment.dataset.batch(0)._replace(sums=np.full(8, -1.0, np.float32))
    params = experiment.initial_state().params
    with pytest.raises(jl.lab.BadInput, match="validation: got the weight 0 for all"):
        evaluation.evaluate(experiment.task, experiment.model, params, [batch])


def test_vmap_of_the_steps_equals_single_runs():
    """One of three members diverges, which does not affect the others."""
    experiment = Experiment.build(config.load(sum_task.config()))
    parts = (experiment.task, experiment.model, experiment.optimizer)
    batches = jax.tree.map(jnp.asarray, experiment.dataset.batches(0, 5))

    def started(seed):
        from jaxlstm.lab.training.state import initial_state

        return initial_state(*parts, experiment.dataset.batch(0), seed=seed)

    members = jax.jit(jax.vmap(started))(jnp.arange(3))
    head = members.params["head"]
    members = members._replace(
        params=members.params | {"head": head._replace(b=head.b.at[1].set(jnp.nan))}
    )
    run = jax.jit(jax.vmap(lambda s: train_steps(*parts, s, batches)))
    after, metrics = run(members)
    assert metrics.healthy.tolist() == [[True] * 5, [False] * 5, [True] * 5]
    assert after.step.tolist() == [5, 0, 5]
    for seed in (0, 2):
        alone, _ = jax.jit(lambda s: train_steps(*parts, s, batches))(started(seed))
        member = jax.tree.map(lambda leaf, k=seed: leaf[k], after.params)
        pairs = zip(*map(jax.tree.leaves, (alone.params, member)), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


class NamelessConfig(config.RunConfig):
    """A config without a default for its task."""


@pytest.mark.parametrize(
    ("change", "config_", "message"),
    [
        ({"loss": None, "facts": 3}, None, "got an object without loss, facts, exp"),
        ({"scores": None}, None, "got an object without scores, expected every member"),
        ({"primary": "loss"}, None, "got primary 'loss', expected a Metric"),
        ({}, dict, "got the config <class 'dict'>, expected a subclass of RunConfig"),
        ({}, NamelessConfig, "NamelessConfig, whose field task has no default, exp"),
        (
            {},
            sum_task.LargestErrorConfig,
            'whose field task has "largest_error", expected the default "sum"',
        ),
    ],
)
def test_a_task_that_does_not_fit_is_not_registered(change, config_, message):
    """A member with the value None is left out."""
    members = {
        key: getattr(sum_task.Sum, key)
        for key in vars(sum_task.Sum)
        if key[0] != "_" and change.get(key, "") is not None
    }
    members |= {key: value for key, value in change.items() if value is not None}
    task = type("Incomplete", (), members)()
    before = dict(tasks.TASKS)
    with pytest.raises(jl.lab.BadInput, match=f"^task sum: .*{message}"):
        tasks.register(task, config_ or sum_task.SumConfig)
    assert before == tasks.TASKS


def test_an_object_without_a_name_is_no_task():
    for task, got in ((sum_task.Sum, "the class Sum"), (object(), "object without")):
        with pytest.raises(jl.lab.BadInput, match=f"^task: got {got}.*expected an obj"):
            tasks.register(task, sum_task.SumConfig)


@pytest.mark.parametrize(
    ("owner", "change", "message"),
    [
        (
            sum_task.SumDataset,
            {"eval_batches": lambda self, *, full=True: []},
            "got no validation batches, expected at least one",
        ),
        (
            sum_task.SumDataset,
            {"description": property(lambda self: {}, lambda self, value: None)},
            "got a description of the data with sha256 null, expected a list of hashes",
        ),
        (
            sum_task.Sum,
            {"metrics": lambda self, spec, means: {"loss": means["loss"]}},
            "got the metrics loss in validation, expected share_close among them",
        ),
        (
            sum_task.Sum,
            {"metrics": lambda self, spec, means: {"share_close": 1.0}},
            "got the metrics share_close in training, expected loss among them",
        ),
        (
            sum_task.Sum,
            {"metrics": lambda self, spec, means: {"x": means["share_close"]}},
            "got KeyError 'share_close' from metrics in training, expected metrics of "
            "the only means in training: loss$",
        ),
    ],
)
def test_a_task_that_would_fail_later_fails_before_the_first_step(
    monkeypatch, owner, change, message
):
    for name, value in change.items():
        monkeypatch.setattr(owner, name, value, raising=False)
    with pytest.raises(jl.lab.BadInput, match=f"^task sum: {message}"):
        Experiment.build(config.load(sum_task.config()))


def test_metrics_may_be_undefined_for_some_means(monkeypatch):
    """The check before the first step uses made-up means."""
    monkeypatch.setattr(sum_task.Sum, "metrics", lambda self, spec, means: 1 / 0)
    Experiment.build(config.load(sum_task.config()))


def test_bench_refuses_a_model_without_engines():
    with pytest.raises(jl.lab.BadInput, match=r"^bench: got the task sum, whose model"):
        jl.lab.bench(sum_task.config(), seconds=0.0)


def test_the_config_of_a_task_has_its_own_sections(tmp_path):
    found = config.load({"task": "sum", "data": {"length": 7}})
    assert type(found) is sum_task.SumConfig
    assert config.load(found, overrides=["model.units=3"]).model.units == 3
    assert config.dump(found).startswith("config_version: 2\ntask: sum\n")
    path = tmp_path / "again.yaml"
    path.write_text(config.dump(found))
    assert config.load(path).data.length == 7
    with pytest.raises(config.ConfigError, match=r"sample: unknown key"):
        config.load({"task": "sum", "sample": {"length": 3}})
    with pytest.raises(config.ConfigError, match=r'data\.lenght: .*"length"'):
        config.load({"task": "sum", "data": {"lenght": 3}})
    with pytest.raises(config.ConfigError, match='did you mean "sum"'):
        config.load({"task": "summ"})


class OddConfig(schema.RunConfig):
    task: Literal["a task"] = Field(default="a task", description="Task to train.")
    data: None = Field(default=None, description="No data.")
    model: None = Field(default=None, description="No model.")


def test_a_run_without_a_name_has_the_name_of_its_task(tmp_path):
    assert config.load({"task": "sum"}).name == "sum"
    assert config.load(overrides=["task=sum", "model.units=3"]).name == "sum"
    assert config.load({"task": "sum", "name": "other"}).name == "other"
    path = tmp_path / "mine.yaml"
    path.write_text("task: sum\n")
    assert config.load(path).name == "mine"
    assert config.load().name == schema.Config().name == "quickstart"
    schema.register(OddConfig)
    with pytest.raises(
        config.ConfigError, match='name: got "a task", expected letters'
    ):
        config.load({"task": "a task"})
    assert config.load({"task": "a task", "name": "fine"}).name == "fine"


def test_an_unknown_task_is_the_only_error(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(config.load(sum_task.config())))
    schema.CONFIGS.pop("sum")
    with pytest.raises(config.ConfigError) as caught:
        config.load(path)
    assert str(caught.value) == (
        f'{path}:2: task: got "sum", expected {join_names(schema.CONFIGS)}; a task of '
        "your own must be registered first (docs/own-task.md)"
    )
    with pytest.raises(config.ConfigError) as caught:
        config.load(overrides=["task=[]", "model.units=3"])
    assert str(caught.value).startswith('override "task=[]": got an empty list, exp')
    assert len(caught.value.problems) == 1


def test_the_schema_of_several_tasks_agrees_with_load():
    written = config.json_schema()
    schemas = written["anyOf"]
    assert [s["properties"]["task"]["const"] for s in schemas] == list(schema.CONFIGS)
    jsonschema.Draft202012Validator.check_schema(written)
    validator = jsonschema.Draft202012Validator(written)
    text = {"source": "text", "path": "book.txt"}
    for valid in (
        {},
        {"data": text, "model": {"layers": 2}},
        json.loads(schema.Config().model_dump_json()),
        {"task": "sum", "data": {"length": 7}, "training": {"steps": 3}},
        json.loads(sum_task.SumConfig().model_dump_json()),
    ):
        config.load(valid)
        for branch in schemas:
            branch = {**branch, "$defs": written["$defs"]}
            task = branch["properties"]["task"]["const"]
            expected = task == valid.get("task", "language_modelling")
            assert jsonschema.Draft202012Validator(branch).is_valid(valid) == expected
        assert validator.is_valid(valid)
    for wrong in (
        {"data": {"length": 7}},
        {"task": "sum", "data": text},
        {"task": "sum", "data": {"length": 0}},
        {"task": "sum", "training": {"steps": -1}},
        {"training": {"steps": -1}},
        {"task": "summ"},
    ):
        with pytest.raises(config.ConfigError):
            config.load(wrong)
        assert not validator.is_valid(wrong)
    assert validator.is_valid({"extends": "sums.yaml", "data": {"length": 7}})


def test_lab_names_no_task_outside_of_tasks_and_config():
    """Only `lab/tasks` and `lab/config` contain the name of a task."""
    free = [
        path
        for path in (SOURCE / "lab").rglob("*.py")
        if not {"tasks", "config"} & set(path.relative_to(SOURCE).parts)
    ]
    assert len(free) > 30
    for path in free:
        assert "language_modelling" not in path.read_text(), path


@pytest.mark.parametrize("weights", [[True, False, True], [1.0, 0.0, 0.5]])
def test_the_mean_of_weighted_losses(weights):
    """Losses of weight 0 have no effect, even if they are NaN."""
    values = jnp.asarray([1.0, jnp.nan, 4.0])
    losses = Losses(values, jnp.asarray(weights), {"extra": values * 2})
    expected = np.average([1.0, 4.0], weights=[weights[0], weights[2]])
    assert float(losses.mean()) == pytest.approx(expected)
    sums = losses.sums()
    extra = float(sums.extra["extra"]) / float(sums.weight)
    assert extra == pytest.approx(2 * expected)


def test_a_metric_compares_by_mode_and_margin():
    loss, share = Metric("loss"), Metric("share", "max")
    assert loss.better(0.8, 1.0, margin=0.1)
    assert not loss.better(0.95, 1.0, margin=0.1)
    assert share.better(0.8, 0.5, margin=0.1)
    assert not share.better(0.55, 0.5, margin=0.1)
    assert loss.better(1e9, loss.worst)
    assert share.better(-1e9, share.worst)
