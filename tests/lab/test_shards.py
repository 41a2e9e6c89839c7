"""A batch in shards: the same training, other bits, no collective, no hang."""

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
from jax.sharding import PartitionSpec
from ruamel.yaml import YAML
from test_experiments import arrays, newest_step, wait_until
from test_training import Recorder, assert_same_bits, key_from_data

import jaxlstm as jl
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput, Diverged
from jaxlstm.lab.parallel import devices, shards, splits
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training import loop, programs
from jaxlstm.lab.training import state as state_
from jaxlstm.lab.training.experiment import Experiment

N = 4


def config(book: Path, **changes) -> dict:
    """The tiny run on eight streams, in four shards of two; it writes no sample."""
    changes = {"batch_size": 8, "shards": N} | changes
    return tiny.config(book, **changes) | {"sample": {"length": 0}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    book = tmp_path_factory.mktemp("shards") / "book.txt"
    book.write_text(tiny.text())
    return Experiment.build(configs.load(config(book)))


@pytest.fixture(scope="module")
def sharded(bench):
    """The programs of the bench, for two devices with two shards each."""
    return compiled(bench, there=2)


def compiled(bench: Experiment, *, there: int) -> shards._Sharded:
    halves = programs.halves(bench.task, bench.model, bench.optimizer)
    made = (halves, bench.initial_state(), bench.dataset.batches(0, 1))
    devices_ = jax.devices()[:there]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda backend: devices_)
        found = shards._Sharded(*made, bench.dataset.batch_axes, N)
    assert len(found.gradients) == there
    return found


def test_a_step_is_the_mean_of_the_gradients_of_its_shards(bench, sharded):
    before, batch = bench.initial_state(), bench.dataset.batch(0)
    key = jax.random.fold_in(before.key, 0)

    @jax.jit
    @jax.value_and_grad
    def loss(params, part, shard):
        noise = jax.random.fold_in(key, shard)
        return bench.task.loss(bench.model, params, None, part, key=noise)[0].mean()

    parts = [
        jax.tree.map(lambda leaf, rows=slice(i, i + 2): leaf[:, rows], batch)
        for i in range(0, 8, 2)
    ]
    found = [loss(before.params, part, shard) for shard, part in enumerate(parts)]
    mean = jax.tree.map(lambda *each: sum(each) / N, *found)
    updates, _ = bench.optimizer.update(mean[1], before.opt_state, before.params)
    wanted = optax.apply_updates(before.params, updates)
    after, metrics = sharded.dispatch(
        bench.initial_state(), bench.dataset.batches(0, 1)
    )
    assert metrics.loss[0] == pytest.approx(float(mean[0]), rel=1e-5)
    norm = float(optax.tree.norm(mean[1]))
    assert metrics.gradient_norm[0] == pytest.approx(norm, rel=1e-5)
    close(after.params, wanted)


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_without_noise_shards_are_the_whole_batch_but_for_rounding(bench):
    silent = bench.config.model.model_copy(update={"output_dropout": 0.0})
    model = task.build(silent, bench.dataset.spec.size)
    bench = bench._replace(model=model)
    batches = bench.dataset.batches(0, 7)
    one = jax.jit(state_.train_steps, static_argnums=(0, 1, 2))
    whole, metrics = one(
        bench.task, model, bench.optimizer, bench.initial_state(), batches
    )
    split, rows = compiled(bench, there=1).dispatch(bench.initial_state(), batches)
    np.testing.assert_allclose(metrics.loss, jnp.stack(rows.loss), rtol=1e-4)
    assert int(split.step) == 7
    close(whole.params, split.params)
    close(whole.carry, split.carry)


@pytest.mark.parametrize(
    "there", [1, *(pytest.param(n, marks=pytest.mark.thorough) for n in (3, 4))]
)
def test_any_number_of_devices_gives_the_same_bits(bench, sharded, there):
    other = compiled(bench, there=there)
    batches = bench.dataset.batches(0, 6)
    assert_same_bits(
        jax.device_get(_plain(other.dispatch(bench.initial_state(), batches))),
        jax.device_get(_plain(sharded.dispatch(bench.initial_state(), batches))),
    )


def _plain(done):
    state, metrics = done
    return state._replace(key=jax.random.key_data(state.key)), metrics


COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "collective", "reduce-scatter",
    "partition-id", "send", "recv",
)  # fmt: skip


def collectives(compiled) -> list[str]:
    return [word for word in COLLECTIVES if f" {word}" in compiled.as_text()]


def test_no_program_holds_a_collective_or_knows_of_a_second_device(bench, sharded):
    state, columns = sharded._spread(bench.initial_state())
    healthy, here = state.healthy, jax.device_put(tuple(columns), jax.devices()[0])
    join = sharded.join.lower(healthy, here).compile()
    for compiled in [*sharded.gradients.values(), sharded.update, join]:
        assert collectives(compiled) == []
        shardings = jax.tree.leaves(
            (compiled.input_shardings, compiled.output_shardings)
        )
        assert len(set.union(*(sharding.device_set for sharding in shardings))) == 1
    homes = [program.output_shardings[0] for program in sharded.gradients.values()]
    assert homes == [
        jax.sharding.SingleDeviceSharding(device) for device in jax.devices()[:2]
    ]


def test_a_collective_would_be_seen():
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": PartitionSpec("b"), "out_specs": PartitionSpec()}
    total = jax.shard_map(lambda x: jax.lax.psum(x, "b"), mesh=mesh, **specs)
    compiled = jax.jit(total).lower(jnp.ones(2)).compile()
    assert collectives(compiled) == ["all-reduce"]


def poisoned(bench: Experiment, step: int, row: int):
    """Streams with a token that there is not: NaN, at one step of one row."""

    class Poisoned:
        batch_axes = bench.dataset.batch_axes

        @staticmethod
        def batches(first, count):
            batches = bench.dataset.batches(first, count)
            if 0 <= step - first < count:
                batches.inputs[step - first, 3, row] = 10_000
            return batches

        @staticmethod
        def batch(at):
            return jax.tree.map(lambda leaf: leaf[0], Poisoned.batches(at, 1))

    return Poisoned


def test_after_a_loss_that_is_not_finite_the_state_stands_still(bench, sharded):
    batches = poisoned(bench, 2, row=5).batches(0, 5)
    stopped, metrics = sharded.dispatch(bench.initial_state(), batches)
    before, _ = sharded.dispatch(bench.initial_state(), bench.dataset.batches(0, 2))
    assert [bool(row) for row in metrics.healthy] == [True, True, False, False, False]
    mended = stopped._replace(healthy=before.healthy)
    assert_same_bits(_plain((mended, ()))[0], _plain((before, ()))[0])


@pytest.fixture
def compiled_once(sharded, monkeypatch):
    """The loop takes the programs that are there."""
    monkeypatch.setattr(shards, "program", lambda *made, **how: sharded.dispatch)


@pytest.mark.usefixtures("compiled_once")
def test_divergence_names_the_row_and_keeps_the_state_before(bench):
    world = Recorder(bench)
    job = world.job()._replace(dataset=poisoned(bench, 12, row=5))
    with pytest.raises(Diverged, match=r"step 13: the loss is not finite.*rows 5\b"):
        loop.fit(job, bench.initial_state(), loop.LoopState())
    state, _ = world.saved[-1]
    assert int(state.step) == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.usefixtures("compiled_once")
def test_stopped_and_continued_is_the_run_that_never_stopped(bench):
    whole, before, after = Recorder(bench), Recorder(bench, stop=3), Recorder(bench)
    assert loop.fit(whole.job(), bench.initial_state(), loop.LoopState())
    assert not loop.fit(before.job(), bench.initial_state(), loop.LoopState())
    state, ledger = before.saved[-1]
    assert loop.fit(after.job(), key_from_data(state), ledger)
    assert_same_bits(after.saved[-1][0], whole.saved[-1][0])
    assert before.lines + after.lines == whole.lines


# -- how many -----------------------------------------------------------------


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
def test_auto_is_the_largest_number_that_pays(overrides, at_most, shards, reason):
    found = splits.choose(configs.load(overrides=overrides), at_most)
    assert found.shards == shards
    assert reason in found.reason


@pytest.fixture
def two_cores(monkeypatch):
    """Two cores, no lower limit on the work of a step, and no plots."""
    monkeypatch.setattr(splits, "LEAST_WORK", 0)
    monkeypatch.setattr(devices, "cores", lambda: 2)
    monkeypatch.setattr(reports, "write_plots", lambda run, artifacts: [])


@pytest.mark.usefixtures("two_cores")
def test_a_run_keeps_the_number_chosen_for_auto(book, tmp_path, monkeypatch):
    wanted, sink = config(book, shards="auto", steps=0), tiny.Silence()
    run = tmp_path / "run"
    trained = jl.lab.train(wanted, run=run, sink=sink)
    assert trained.config.training.shards == 2
    assert "shards: 2 of 4 sequences on 2 of 2 cores" in sink.messages
    monkeypatch.setattr(devices, "cores", lambda: 1)
    jl.lab.train(wanted, run=run, resume="auto", sink=sink)
    assert "is finished" in sink.messages[-1]
    with pytest.raises(BadInput, match=r"another config \(training\.shards differ\)"):
        jl.lab.train(config(book, steps=0), run=run, resume="auto")
    with pytest.raises(BadInput, match=r"got a change of training\.shards, expected"):
        jl.lab.resume(run, overrides=["training.shards=4"])


def test_the_description_of_more_shards_than_devices(bench, monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda backend: one)
    found = splits.describe(bench.config, one[0])
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
def test_check_gives_the_reason_for_one_shard(book, requested, expected, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 2)
    facts = jl.lab.check(configs.load(config(book, shards=requested)))
    assert facts["shards"].startswith(expected)


def test_the_copies_of_shards_are_counted_with_the_memory(bench):
    params = jax.tree.leaves(bench.initial_state().params)
    assert bench.shard_bytes() == 2 * N * sum(leaf.nbytes for leaf in params)


def test_a_number_that_does_not_divide_the_batch(book):
    with pytest.raises(
        BadInput, match=r"got 3, expected a divisor of batch_size \(8\)"
    ):
        configs.load(config(book, shards=3))


@pytest.mark.usefixtures("two_cores")
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
@pytest.mark.usefixtures("two_cores")
def test_killed_and_resumed_is_the_run_that_was_not(book, tmp_path):
    """The victim has two devices of its own, and this process eight."""
    path = write(tmp_path / "tiny.yaml", config(book, shards=2, steps=1_000_000))
    hasty = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    victim, whole = tmp_path / "victim", tmp_path / "whole"
    process = tiny.jaxlstm("train", path, "--run", victim, env=hasty)
    wait_until(lambda: newest_step(victim) > 0, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    steps = f"training.steps={newest_step(victim) // 20 * 20 + 40}"
    jl.lab.resume(victim, overrides=[steps], sink=tiny.Silence())
    jl.lab.train(path, overrides=[steps], run=whole, sink=tiny.Silence())
    assert arrays(victim) == arrays(whole)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [2, 4])
def test_ten_thousand_steps_do_not_hang(book, tmp_path, cores):
    """Dispatched ahead as in any run, on four devices; a hang is killed, and fails."""
    wanted = config(
        book, steps=10_000, log_every=1000, validate_every=5000, checkpoint_every=5000
    )
    wanted["model"]["hidden_size"] = 32
    path = write(tmp_path / "soak.yaml", wanted)
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
