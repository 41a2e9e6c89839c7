"""Tests of shards: their mean gradient, reproducible bits, and no collectives."""

import dataclasses
import os
import signal
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from helpers import (
    Recorder,
    assert_same_bits,
    key_from_data,
    newest_step,
    results,
    wait_until,
)
from jax.sharding import PartitionSpec
from ruamel.yaml import YAML

import jaxlstm as jl
from jaxlstm.lab import config as configs
from jaxlstm.lab import native
from jaxlstm.lab._util.errors import BadInput, Diverged
from jaxlstm.lab.parallel import devices, shards, splits
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training import loop, programs
from jaxlstm.lab.training import state as state_
from jaxlstm.lab.training.experiment import Experiment

N = 4


def config(book: Path, **changes) -> dict:
    """Return the tiny config with 8 streams in 4 shards, without a sample."""
    changes = {"batch_size": 8, "shards": N} | changes
    return tiny.config(book, **changes) | {"sample": {"length": 0}}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    book = tmp_path_factory.mktemp("shards") / "book.txt"
    book.write_text(tiny.text())
    return Experiment.build(configs.load(config(book)))


@pytest.fixture(scope="module")
def sharded(experiment):
    """Return the programs of the experiment for two devices with two shards each."""
    return compiled(experiment, device_count=2)


def compiled(experiment: Experiment, *, device_count: int) -> shards.ShardedSteps:
    parts = programs.step_parts(experiment.task, experiment.model, experiment.optimizer)
    made = (parts, experiment.initial_state(), experiment.dataset.batches(0, 1))
    devices_ = jax.devices()[:device_count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda backend: devices_)
        found = shards.ShardedSteps(*made, experiment.dataset.batch_axes, N)
    assert len(found.gradients) == device_count
    return found


def test_a_step_is_the_mean_of_the_gradients_of_its_shards(experiment, sharded):
    before, batch = experiment.initial_state(), experiment.dataset.batch(0)
    key = jax.random.fold_in(before.key, 0)

    @jax.jit
    @jax.value_and_grad
    def loss(params, part, shard):
        noise = jax.random.fold_in(key, shard)
        losses, _ = experiment.task.loss(
            experiment.model, params, None, part, key=noise
        )
        return losses.mean()

    parts = [
        jax.tree.map(lambda leaf, rows=slice(i, i + 2): leaf[:, rows], batch)
        for i in range(0, 8, 2)
    ]
    found = [loss(before.params, part, shard) for shard, part in enumerate(parts)]
    mean = jax.tree.map(lambda *each: sum(each) / N, *found)
    updates, _ = experiment.optimizer.update(mean[1], before.opt_state, before.params)
    expected = optax.apply_updates(before.params, updates)
    after, metrics = sharded.dispatch(
        experiment.initial_state(), experiment.dataset.batches(0, 1)
    )
    assert metrics.loss[0] == pytest.approx(float(mean[0]), rel=1e-5)
    norm = float(optax.tree.norm(mean[1]))
    assert metrics.gradient_norm[0] == pytest.approx(norm, rel=1e-5)
    assert_close(after.params, expected)


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_without_noise_shards_equal_the_whole_batch_up_to_rounding(experiment):
    silent = experiment.config.model.model_copy(update={"output_dropout": 0.0})
    model = task.build(silent, experiment.dataset.spec.size)
    experiment = dataclasses.replace(experiment, model=model)
    batches = experiment.dataset.batches(0, 7)
    one = jax.jit(state_.train_steps, static_argnums=(0, 1, 2))
    whole, metrics = one(
        experiment.task,
        model,
        experiment.optimizer,
        experiment.initial_state(),
        batches,
    )
    split, rows = compiled(experiment, device_count=1).dispatch(
        experiment.initial_state(), batches
    )
    np.testing.assert_allclose(metrics.loss, jnp.stack(rows.loss), rtol=1e-4)
    assert int(split.step) == 7
    assert_close(whole.params, split.params)
    assert_close(whole.carry, split.carry)


@pytest.mark.parametrize(
    "device_count", [1, *(pytest.param(n, marks=pytest.mark.thorough) for n in (3, 4))]
)
def test_any_number_of_devices_gives_the_same_bits(experiment, sharded, device_count):
    other = compiled(experiment, device_count=device_count)
    batches = experiment.dataset.batches(0, 6)
    assert_same_bits(
        jax.device_get(
            without_key(other.dispatch(experiment.initial_state(), batches))
        ),
        jax.device_get(
            without_key(sharded.dispatch(experiment.initial_state(), batches))
        ),
    )


def without_key(done):
    state, metrics = done
    return state._replace(key=jax.random.key_data(state.key)), metrics


COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter",
    "partition-id", "send", "recv",
)  # fmt: skip


def collectives(compiled) -> list[str]:
    return [word for word in COLLECTIVES if f" {word}" in compiled.as_text()]


def test_each_program_runs_on_one_device_without_collectives(experiment, sharded):
    state, columns = sharded.distribute(experiment.initial_state())
    healthy, here = state.healthy, jax.device_put(tuple(columns), jax.devices()[0])
    join = sharded.join.lower(healthy, here).compile()
    for compiled in [*sharded.gradients.values(), sharded.update, join]:
        assert collectives(compiled) == []
        shardings = jax.tree.leaves(
            (compiled.input_shardings, compiled.output_shardings)
        )
        assert len(set.union(*(sharding.device_set for sharding in shardings))) == 1
    homes = [program.output_shardings[0][0] for program in sharded.gradients.values()]
    assert homes == [
        jax.sharding.SingleDeviceSharding(device) for device in jax.devices()[:2]
    ]


def test_collectives_finds_a_collective():
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": PartitionSpec("b"), "out_specs": PartitionSpec()}
    total = jax.shard_map(lambda x: jax.lax.psum(x, "b"), mesh=mesh, **specs)
    compiled = jax.jit(total).lower(jnp.ones(2)).compile()
    assert collectives(compiled) == ["all-reduce"]


def with_nan(experiment: Experiment, step: int, row: int):
    """Return the batches with NaN in one row of a step.

    A token outside the vocabulary causes it.
    """

    class NanDataset:
        batch_axes = experiment.dataset.batch_axes

        @staticmethod
        def batches(first, count):
            batches = experiment.dataset.batches(first, count)
            if 0 <= step - first < count:
                batches.inputs[step - first, 3, row] = 10_000
            return batches

        @staticmethod
        def batch(at):
            return jax.tree.map(lambda leaf: leaf[0], NanDataset.batches(at, 1))

    return NanDataset


def test_the_state_does_not_change_after_a_loss_that_is_not_finite(experiment, sharded):
    batches = with_nan(experiment, 2, row=5).batches(0, 5)
    stopped, metrics = sharded.dispatch(experiment.initial_state(), batches)
    before, _ = sharded.dispatch(
        experiment.initial_state(), experiment.dataset.batches(0, 2)
    )
    assert [bool(row) for row in metrics.healthy] == [True, True, False, False, False]
    restored = stopped._replace(healthy=before.healthy)
    assert_same_bits(without_key((restored, ()))[0], without_key((before, ()))[0])


@pytest.fixture
def compiled_once(sharded, monkeypatch):
    """Use the programs of `sharded` in all loops."""
    monkeypatch.setattr(shards, "compile_steps", lambda *made, **how: sharded.dispatch)


@pytest.mark.usefixtures("compiled_once")
def test_divergence_names_the_row_and_saves_the_state_before_it(experiment):
    recorder = Recorder(experiment)
    job = recorder.job()._replace(dataset=with_nan(experiment, 12, row=5))
    with pytest.raises(Diverged, match=r"step 13: the loss is not finite.*rows 5\b"):
        loop.fit(job, experiment.initial_state(), loop.LoopState())
    state, _ = recorder.saved[-1]
    assert int(state.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.usefixtures("compiled_once")
def test_a_stopped_and_resumed_loop_equals_an_uninterrupted_one(experiment):
    whole, after = Recorder(experiment), Recorder(experiment)
    before = Recorder(experiment, stop=3)
    assert loop.fit(whole.job(), experiment.initial_state(), loop.LoopState())
    assert not loop.fit(before.job(), experiment.initial_state(), loop.LoopState())
    state, loop_state = before.saved[-1]
    assert loop.fit(after.job(), key_from_data(state), loop_state)
    assert_same_bits(after.saved[-1][0], whole.saved[-1][0])
    assert before.lines + after.lines == whole.lines


# -- number of shards ---------------------------------------------------------


@pytest.fixture
def without_kernel(monkeypatch):
    """The engine `adjoint` is the fastest one, as if the kernel was not built."""
    monkeypatch.setattr(native, "is_chosen", lambda config: False)


def test_the_kernel_uses_all_cores_in_one_shard(monkeypatch):
    monkeypatch.setattr(native.build, "load_built", lambda: None)
    loaded = configs.load()
    cost = task.TASK.step_cost(loaded)
    assert splits.choose(loaded, cost, 4).shards == 1
    assert splits.choose(loaded, cost, 4, platform="gpu").shards == 4
    half = configs.load(overrides=["model.dtype=bfloat16"])
    assert splits.choose(half, cost, 4).shards == 4


@pytest.mark.parametrize(
    ("overrides", "at_most", "shards", "reason"),
    [
        ([], 4, 4, "4 devices compute in parallel"),
        ([], 3, 2, "3 devices compute in parallel"),
        ([], 1, 1, "one device"),
        ([], 64, 4, "64 devices compute in parallel"),
        (["model.hidden_size=4096"], 4, 1, "faster in one shard"),
        (["model.hidden_size=16"], 4, 1, "too little work"),
        (["training.batch_size=17"], 8, 1, "no equal shards of 4"),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_auto_is_the_largest_number_that_pays(overrides, at_most, shards, reason):
    loaded = configs.load(overrides=overrides)
    found = splits.choose(loaded, task.TASK.step_cost(loaded), at_most)
    assert found.shards == shards
    assert reason in found.reason


@pytest.fixture
def two_cores(monkeypatch):
    """Two cores, no lower limit on the work of a step, and no plots."""
    monkeypatch.setattr(splits, "LEAST_WORK", 0)
    monkeypatch.setattr(devices, "cores", lambda: 2)
    monkeypatch.setattr(reports, "write_plots", lambda *args, **options: [])


@pytest.mark.usefixtures("two_cores", "without_kernel")
def test_a_run_keeps_the_number_chosen_for_auto(book, tmp_path, monkeypatch):
    auto, sink = config(book, shards="auto", steps=0), tiny.RecordingSink()
    run = tmp_path / "run"
    trained = jl.lab.train(auto, run=run, sink=sink)
    assert trained.config.training.shards == 2
    assert "shards: 2 of 4 sequences on 2 of 2 cores" in sink.messages
    monkeypatch.setattr(devices, "cores", lambda: 1)
    jl.lab.train(auto, run=run, resume="auto", sink=sink)
    assert "is finished" in sink.messages[-1]
    with pytest.raises(BadInput, match=r"another config \(training\.shards differ\)"):
        jl.lab.train(config(book, steps=0), run=run, resume="auto")
    with pytest.raises(BadInput, match=r"got a change of training\.shards, expected"):
        jl.lab.resume(run, overrides=["training.shards=4"])


def test_the_description_of_more_shards_than_devices(experiment, monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda backend: one)
    found = splits.describe(experiment.config, one[0])
    assert found == (
        "4 of 2 sequences, in turn on 1; JAX was initialised with no more devices"
    )


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("auto", "1, the whole batch of 8 sequences (a step is too little work"),
        (1, "1, the whole batch of 8 sequences (set by training.shards)"),
    ],
)
@pytest.mark.usefixtures("without_kernel")
def test_check_gives_the_reason_for_one_shard(book, requested, expected, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 2)
    facts = jl.lab.check(configs.load(config(book, shards=requested)))
    assert facts["shards"].startswith(expected)


def test_the_copies_of_shards_are_counted_with_the_memory(experiment):
    params = jax.tree.leaves(experiment.initial_state().params)
    assert experiment.shard_bytes() == 2 * N * sum(leaf.nbytes for leaf in params)


def test_a_number_that_does_not_divide_the_batch(book):
    with pytest.raises(
        BadInput, match=r"got 3, expected a divisor of batch_size \(8\)"
    ):
        configs.load(config(book, shards=3))


@pytest.mark.usefixtures("two_cores", "without_kernel")
def test_check_shows_the_number_for_auto(book):
    facts = jl.lab.check(configs.load(config(book, shards="auto")))
    assert (
        facts["shards"]
        == "2 of 4 sequences on 2 of 2 cores (2 devices compute in parallel)"
    )


# -- processes ----------------------------------------------------------------


def write(path: Path, content: dict) -> Path:
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    return path


@pytest.mark.thorough
@pytest.mark.usefixtures("two_cores", "optimised")
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(book, tmp_path):
    """The killed process has two devices, and this one eight."""
    path = write(tmp_path / "tiny.yaml", config(book, shards=2, steps=1_000_000))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = tiny.jaxlstm("train", path, "--run", killed)
    wait_until(lambda: newest_step(killed) > 0, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    steps = f"training.steps={newest_step(killed) // 20 * 20 + 40}"
    jl.lab.resume(killed, overrides=[steps], sink=tiny.RecordingSink())
    jl.lab.train(path, overrides=[steps], run=whole, sink=tiny.RecordingSink())
    assert results(killed) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [2, 4])
def test_ten_thousand_steps_do_not_hang(book, tmp_path, cores):
    """Steps are dispatched asynchronously; a hang fails the test after 15 minutes."""
    long_run = config(
        book, steps=10_000, log_every=1000, validate_every=5000, checkpoint_every=5000
    )
    long_run["model"]["hidden_size"] = 32
    path = write(tmp_path / "soak.yaml", long_run)
    usable = sorted(os.sched_getaffinity(0))[:cores]
    process = tiny.jaxlstm(
        "train", path, "--run", tmp_path / "run",
        preexec_fn=lambda: os.sched_setaffinity(0, usable),
    )  # fmt: skip
    try:
        _, err = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("hung after:\n" + (tmp_path / "run/log.txt").read_text())
    assert process.returncode == 0, err
    assert newest_step(tmp_path / "run") == 10_000
