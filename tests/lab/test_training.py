"""The loop: one step against plain Optax, every place to stop, and what stops it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import Diverged
from jaxlstm.lab.config.schema import EarlyStopping
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training.experiment import Workbench
from jaxlstm.lab.training import loop as training


class World:
    """The hooks of a loop, written down; it asks the loop to stop at `stop`."""

    def __init__(self, bench: Workbench, *, stop: int | None = None) -> None:
        self.bench, self.stop = bench, stop
        self.lines: list[tuple] = []
        self.saved: list[tuple[training.TrainState, training.Ledger]] = []
        self.losses = iter(())

    def job(self) -> training.Job:
        hooks = training.Hooks(
            self.log, self.validate, self.save, lambda seconds: None, self.stopping
        )
        bench = self.bench
        return training.Job(
            bench.model,
            bench.optimizer,
            bench.streams,
            bench.config.training,
            None,
            hooks,
        )

    def log(self, split, step, nats, numbers, pace):
        self.lines.append((split, step, nats, tuple(sorted(numbers.items()))))
        self.at = step

    def validate(self, params):
        return next(
            self.losses,
            float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(params))),
        )

    def save(self, state, ledger):
        self.saved.append((jax.device_get(_plain(state)), ledger))

    def stopping(self):
        self.dispatches = getattr(self, "dispatches", 0) + 1
        return self.stop is not None and self.dispatches == self.stop


def _plain(state):
    return state._replace(key=jax.random.key_data(state.key))


def _live(state):
    return jax.tree.map(
        jnp.asarray, state._replace(key=jax.random.wrap_key_data(state.key))
    )


@pytest.fixture
def bench(book):
    return Workbench.of(configs.load(tiny.config(book)))


def altered(bench: Workbench, **changes) -> Workbench:
    config = bench.config
    changed = config.training.model_copy(update=changes)
    return bench._replace(config=config.model_copy(update={"training": changed}))


def one_step(bench, state, batch):
    step = jax.jit(training.train_step, static_argnums=(0, 1))
    return step(bench.model, bench.optimizer, state, batch)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_one_step_is_the_gradient_of_the_mean_loss_handed_to_optax(bench):
    state = bench.start()
    batch = jax.tree.map(jnp.asarray, bench.streams.batch(0))

    def loss(params):
        key = jax.random.fold_in(state.key, 0)
        _, logits = bench.model.apply(
            params, batch.inputs, key=key, resets=batch.resets
        )
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, batch.targets[..., None], -1).mean()

    nats, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    updates, _ = bench.optimizer.update(
        gradient, bench.optimizer.init(state.params), state.params
    )
    wanted = optax.apply_updates(state.params, updates)
    after, metrics = one_step(bench, state, batch)
    assert metrics.loss == pytest.approx(float(nats), rel=1e-6)
    assert metrics.gradient_norm == pytest.approx(
        math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient))),
        rel=1e-5,
    )
    for a, b in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_several_steps_in_one_dispatch_are_the_steps_one_by_one(bench):
    batches = jax.tree.map(jnp.asarray, bench.streams.batches(0, 4))
    state = single = bench.start()
    state, metrics = jax.jit(training.train_steps, static_argnums=(0, 1))(
        bench.model, bench.optimizer, state, batches
    )
    for k in range(4):
        batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
        single, one = one_step(bench, single, batch)
        assert metrics.loss[k] == pytest.approx(float(one.loss), rel=1e-5)
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(single.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_state_is_carried_and_reset_where_the_stream_says(bench):
    first, second = bench.streams.batch(0), bench.streams.batch(1)
    state, _ = one_step(bench, bench.start(), first)
    assert first.resets[0].all()
    assert not second.resets.any()
    carried = task.loss(bench.model, state.params, state.carry, second)[0]
    forgotten = task.loss(bench.model, state.params, None, second)[0]
    assert float(carried) != float(forgotten)


@pytest.fixture
def compiled_once(whole, monkeypatch):
    """The programs of the whole run, for all runs of the same bench."""
    monkeypatch.setattr(training, "_Programs", lambda job: whole.programs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bench, and the world of a run on it that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "book.txt"
    path.write_text(tiny.text())
    bench = Workbench.of(configs.load(tiny.config(path)))
    world = World(bench)
    world.programs = programs = training._Programs(world.job())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_Programs", lambda job: programs)
        assert training.fit(world.job(), bench.start(), training.Ledger())
    return world


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
@pytest.mark.usefixtures("compiled_once")
def test_stopped_anywhere_and_continued_is_the_run_that_never_stopped(whole, stop):
    bench = whole.bench
    before = World(bench, stop=stop)
    assert not training.fit(before.job(), bench.start(), training.Ledger())
    state, ledger = before.saved[-1]
    assert int(state.step) == 5 * stop
    after = World(bench)
    ledger = training.Ledger.from_json(ledger.to_json())
    assert training.fit(after.job(), _live(state), ledger)

    same(after.saved[-1][0], whole.saved[-1][0])
    assert before.lines + after.lines == whole.lines
    assert after.saved[-1][1] == whole.saved[-1][1]


def test_what_is_logged_validated_and_saved_when(bench):
    world = World(altered(bench, steps=37))
    assert training.fit(world.job(), bench.start(), training.Ledger())
    assert [line[:2] for line in world.lines] == [
        ("train", 10),
        ("train", 20),
        ("validation", 20),
        ("train", 30),
        ("train", 37),
        ("validation", 37),
    ]
    assert [int(state.step) for state, _ in world.saved] == [10, 20, 30, 37]


def test_no_steps_is_no_training(bench):
    world = World(altered(bench, steps=0))
    assert training.fit(world.job(), bench.start(), training.Ledger())
    assert world.lines == world.saved == []


def test_early_stopping_waits_for_its_patience(bench):
    patient = EarlyStopping(patience=2, min_delta=0.1)
    world = World(altered(bench, validate_every=5, early_stopping=patient))
    world.losses = iter([3.0, 2.0, 1.95, 1.5, 1.45, 1.49, 0.1])
    assert training.fit(world.job(), bench.start(), training.Ledger())
    _, ledger = world.saved[-1]
    assert (ledger.best_step, ledger.best_loss, ledger.waited) == (20, 1.5, 2)
    assert world.at == 30


@pytest.mark.usefixtures("compiled_once")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before(whole):
    bench = whole.bench

    class Poisoned:
        steps_per_epoch = bench.streams.steps_per_epoch
        batch = bench.streams.batch

        @staticmethod
        def batches(first, count):
            batches = bench.streams.batches(first, count)
            for k in range(count):
                if first + k == 12:
                    batches.inputs[k, 3, 1] = 10_000  # no such token: NaN, in row 1
            return batches

    Poisoned.batch = staticmethod(
        lambda step: jax.tree.map(lambda leaf: leaf[0], Poisoned.batches(step, 1))
    )
    world = World(bench)
    job = world.job()._replace(streams=Poisoned)
    with pytest.raises(Diverged, match=r"step 13: the loss is not finite.*rows 1\b"):
        training.fit(job, bench.start(), training.Ledger())
    state, ledger = world.saved[-1]
    assert int(state.step) == 12
    assert state.healthy
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert len(ledger.unlogged) == 2

    mended = World(bench)
    assert training.fit(mended.job(), _live(state), ledger)
    for a, b in zip(
        jax.tree.leaves(mended.saved[-1][0].params),
        jax.tree.leaves(whole.saved[-1][0].params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_evaluation_is_the_mean_over_every_target_with_one_long_memory(bench):
    from jaxlstm.lab.data import validation_windows

    tokens = bench.corpus.validation
    params = bench.start().params
    windows = validation_windows(tokens, streams=1, window=16)
    found = training.evaluate(bench.model, params, windows)
    _, logits = bench.model.apply(params, jnp.asarray(tokens[:-1], jnp.int32))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    wanted = -log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()
    assert found == pytest.approx(wanted, rel=1e-6)


def test_the_ledger_survives_json():
    ledger = training.Ledger(((0.1, math.pi), (2 / 3, 1e-30)), 20, 1.25, 3)
    assert training.Ledger.from_json(ledger.to_json()) == ledger
    assert training.Ledger.from_json(training.Ledger().to_json()) == training.Ledger()
