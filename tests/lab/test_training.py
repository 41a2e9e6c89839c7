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
from jaxlstm.lab.training import loop, policies
from jaxlstm.lab.training import state as state_
from jaxlstm.lab.training.experiment import Experiment


class World:
    """Callbacks and listener of a loop that record their calls.

    The loop is asked to stop at dispatch number `stop`.
    """

    def __init__(self, bench: Experiment, *, stop: int | None = None) -> None:
        self.bench, self.stop = bench, stop
        self.lines: list[tuple] = []
        self.saved: list[tuple[state_.TrainState, loop.LoopState]] = []
        self.losses = iter(())

    def job(self) -> loop.Job:
        def log(step, loss, numbers, pace):
            self.log("train", step, loss, numbers, pace)

        bench, training = self.bench, self.bench.config.training
        return loop.Job(
            bench.task,
            bench.model,
            bench.optimizer,
            bench.dataset,
            training,
            None,
            loop.Listener(log, lambda seconds: None, self.stopping),
            (
                loop.Callback(self.validated, (training.validate_every,)),
                loop.Callback(
                    self.checkpoint,
                    (training.validate_every, training.checkpoint_every),
                    on_stop=True,
                ),
            ),
            self.save,
        )

    def validated(self, state, found):
        loss, step = self.validate(state.params), int(state.step)
        self.log("validation", step, loss, {}, {})
        stopping = self.bench.config.training.early_stopping
        metric = self.bench.task.primary
        return policies.validated(found, metric, stopping, step=step, value=loss)

    def checkpoint(self, state, found):
        self.save(state, found)
        return found

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
    return Experiment.build(configs.load(tiny.config(book)))


def altered(bench: Experiment, **changes) -> Experiment:
    config = bench.config
    changed = config.training.model_copy(update=changes)
    return bench._replace(config=config.model_copy(update={"training": changed}))


def one_step(bench, state, batch):
    step = jax.jit(state_.train_step, static_argnums=(0, 1, 2))
    return step(bench.task, bench.model, bench.optimizer, state, batch)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_one_step_is_the_gradient_of_the_mean_loss_handed_to_optax(bench):
    state = bench.initial_state()
    batch = jax.tree.map(jnp.asarray, bench.dataset.batch(0))

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
    batches = jax.tree.map(jnp.asarray, bench.dataset.batches(0, 4))
    state = single = bench.initial_state()
    state, metrics = jax.jit(state_.train_steps, static_argnums=(0, 1, 2))(
        bench.task, bench.model, bench.optimizer, state, batches
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
    first, second = bench.dataset.batch(0), bench.dataset.batch(1)
    state, _ = one_step(bench, bench.initial_state(), first)
    assert first.resets[0].all()
    assert not second.resets.any()
    carried, _ = bench.task.loss(bench.model, state.params, state.carry, second)
    forgotten, _ = bench.task.loss(bench.model, state.params, None, second)
    assert float(carried.mean()) != float(forgotten.mean())


@pytest.fixture
def compiled_once(whole, monkeypatch):
    """The programs of the whole run, for all runs of the same bench."""
    monkeypatch.setattr(loop, "Programs", lambda job: whole.programs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bench, and the world of a run on it that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "book.txt"
    path.write_text(tiny.text())
    bench = Experiment.build(configs.load(tiny.config(path)))
    world = World(bench)
    world.programs = programs = loop.Programs(world.job())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Programs", lambda job: programs)
        assert loop.fit(world.job(), bench.initial_state(), loop.LoopState())
    return world


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
@pytest.mark.usefixtures("compiled_once")
def test_stopped_anywhere_and_continued_is_the_run_that_never_stopped(whole, stop):
    bench = whole.bench
    before = World(bench, stop=stop)
    assert not loop.fit(before.job(), bench.initial_state(), loop.LoopState())
    state, ledger = before.saved[-1]
    assert int(state.step) == 5 * stop
    after = World(bench)
    ledger = loop.LoopState.from_json(ledger.to_json())
    assert loop.fit(after.job(), _live(state), ledger)

    same(after.saved[-1][0], whole.saved[-1][0])
    assert before.lines + after.lines == whole.lines
    assert after.saved[-1][1] == whole.saved[-1][1]


def test_what_is_logged_validated_and_saved_when(bench):
    world = World(altered(bench, steps=37))
    assert loop.fit(world.job(), bench.initial_state(), loop.LoopState())
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
    assert loop.fit(world.job(), bench.initial_state(), loop.LoopState())
    assert world.lines == world.saved == []


def test_early_stopping_waits_for_its_patience(bench):
    patient = EarlyStopping(patience=2, min_delta=0.1)
    world = World(altered(bench, validate_every=5, early_stopping=patient))
    world.losses = iter([3.0, 2.0, 1.95, 1.5, 1.45, 1.49, 0.1])
    assert loop.fit(world.job(), bench.initial_state(), loop.LoopState())
    _, ledger = world.saved[-1]
    assert (ledger.best_step, ledger.best_value, ledger.waited) == (20, 1.5, 2)
    assert world.at == 30


@pytest.mark.usefixtures("compiled_once")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before(whole):
    bench = whole.bench

    class Poisoned:
        steps_per_epoch = bench.dataset.steps_per_epoch
        batch_axes = bench.dataset.batch_axes
        batch = bench.dataset.batch

        @staticmethod
        def batches(first, count):
            batches = bench.dataset.batches(first, count)
            for k in range(count):
                if first + k == 12:
                    batches.inputs[k, 3, 1] = 10_000  # no such token: NaN, in row 1
            return batches

    Poisoned.batch = staticmethod(
        lambda step: jax.tree.map(lambda leaf: leaf[0], Poisoned.batches(step, 1))
    )
    world = World(bench)
    job = world.job()._replace(dataset=Poisoned)
    with pytest.raises(Diverged, match=r"step 13: the loss is not finite.*rows 1\b"):
        loop.fit(job, bench.initial_state(), loop.LoopState())
    state, ledger = world.saved[-1]
    assert int(state.step) == 12
    assert state.healthy
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert len(ledger.unlogged) == 2

    mended = World(bench)
    assert loop.fit(mended.job(), _live(state), ledger)
    for a, b in zip(
        jax.tree.leaves(mended.saved[-1][0].params),
        jax.tree.leaves(whole.saved[-1][0].params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_evaluation_is_the_mean_over_every_target_with_one_long_memory(bench):
    from jaxlstm.lab.data import validation_windows

    tokens = bench.dataset.corpus.validation
    params = bench.initial_state().params
    windows = validation_windows(tokens, streams=1, window=16)
    found = loop.evaluate(bench.task, bench.model, params, windows)["loss"]
    _, logits = bench.model.apply(params, jnp.asarray(tokens[:-1], jnp.int32))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    wanted = -log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()
    assert found == pytest.approx(wanted, rel=1e-6)


def test_the_ledger_survives_json():
    ledger = loop.LoopState(((0.1, math.pi), (2 / 3, 1e-30)), 20, 1.25, 3)
    assert loop.LoopState.from_json(ledger.to_json()) == ledger
    assert loop.LoopState.from_json(loop.LoopState().to_json()) == loop.LoopState()
