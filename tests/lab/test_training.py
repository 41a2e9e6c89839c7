"""Tests of the training loop: one step against Optax, stopping, and divergence."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from helpers import Recorder, assert_same_bits, key_from_data

from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import Diverged
from jaxlstm.lab.config.schema import EarlyStopping
from jaxlstm.lab.tasks.base import Metric
from jaxlstm.lab.training import loop, policies
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training import state as state_
from jaxlstm.lab.training.experiment import Experiment


@pytest.fixture
def experiment(book):
    return Experiment.build(configs.load(tiny.config(book)))


def with_training(experiment: Experiment, **changes) -> Experiment:
    config = experiment.config
    changed = config.training.model_copy(update=changes)
    return dataclasses.replace(
        experiment, config=config.model_copy(update={"training": changed})
    )


def one_step(experiment, state, batch):
    step = jax.jit(state_.train_step, static_argnums=(0, 1, 2))
    return step(experiment.task, experiment.model, experiment.optimizer, state, batch)


def test_one_step_equals_optax_on_the_gradient_of_the_mean_loss(experiment):
    state = experiment.initial_state()
    batch = jax.tree.map(jnp.asarray, experiment.dataset.batch(0))

    def loss(params):
        key = jax.random.fold_in(state.key, 0)
        _, logits = experiment.model.apply(
            params, batch.inputs, key=key, resets=batch.resets
        )
        log_p = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_p, batch.targets[..., None], -1).mean()

    nats, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    updates, _ = experiment.optimizer.update(
        gradient, experiment.optimizer.init(state.params), state.params
    )
    expected = optax.apply_updates(state.params, updates)
    after, metrics = one_step(experiment, state, batch)
    assert metrics.loss == pytest.approx(float(nats), rel=1e-6)
    assert metrics.gradient_norm == pytest.approx(
        math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient))),
        rel=1e-5,
    )
    for a, b in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_several_steps_in_one_dispatch_equal_single_steps(experiment):
    batches = jax.tree.map(jnp.asarray, experiment.dataset.batches(0, 4))
    state = single = experiment.initial_state()
    state, metrics = jax.jit(state_.train_steps, static_argnums=(0, 1, 2))(
        experiment.task, experiment.model, experiment.optimizer, state, batches
    )
    for k in range(4):
        batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches)
        single, one = one_step(experiment, single, batch)
        assert metrics.loss[k] == pytest.approx(float(one.loss), rel=1e-5)
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(single.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_carry_of_one_batch_affects_the_next(experiment):
    first, second = experiment.dataset.batch(0), experiment.dataset.batch(1)
    state, _ = one_step(experiment, experiment.initial_state(), first)
    assert first.resets[0].all()
    assert not second.resets.any()
    carried, _ = experiment.task.loss(
        experiment.model, state.params, state.carry, second
    )
    forgotten, _ = experiment.task.loss(experiment.model, state.params, None, second)
    assert float(carried.mean()) != float(forgotten.mean())


@pytest.fixture
def compiled_once(uninterrupted, monkeypatch):
    """Use the programs of the uninterrupted run in all runs."""
    monkeypatch.setattr(loop, "Programs", lambda job: uninterrupted.programs)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the recorder of a run that was never stopped."""
    path = tmp_path_factory.mktemp("uninterrupted") / "book.txt"
    path.write_text(tiny.text())
    experiment = Experiment.build(configs.load(tiny.config(path)))
    recorder = Recorder(experiment)
    recorder.programs = programs = loop.Programs(recorder.job())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Programs", lambda job: programs)
        assert loop.fit(recorder.job(), experiment.initial_state(), loop.LoopState())
    return recorder


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
@pytest.mark.usefixtures("compiled_once")
def test_a_stopped_and_resumed_loop_equals_an_uninterrupted_one(uninterrupted, stop):
    experiment = uninterrupted.experiment
    before = Recorder(experiment, stop=stop)
    assert not loop.fit(before.job(), experiment.initial_state(), loop.LoopState())
    state, loop_state = before.saved[-1]
    assert int(state.step) == 5 * stop
    after = Recorder(experiment)
    loop_state = loop.LoopState.from_json(loop_state.to_json())
    assert loop.fit(after.job(), key_from_data(state), loop_state)

    assert_same_bits(after.saved[-1][0], uninterrupted.saved[-1][0])
    assert before.lines + after.lines == uninterrupted.lines
    assert after.saved[-1][1] == uninterrupted.saved[-1][1]


def test_steps_at_which_the_loop_logs_validates_and_saves(experiment):
    recorder = Recorder(with_training(experiment, steps=37))
    assert loop.fit(recorder.job(), experiment.initial_state(), loop.LoopState())
    assert [line[:2] for line in recorder.lines] == [
        ("train", 10),
        ("train", 20),
        ("validation", 20),
        ("train", 30),
        ("train", 37),
        ("validation", 37),
    ]
    assert [int(state.step) for state, _ in recorder.saved] == [10, 20, 30, 37]


def test_zero_steps_log_and_save_nothing(experiment):
    recorder = Recorder(with_training(experiment, steps=0))
    assert loop.fit(recorder.job(), experiment.initial_state(), loop.LoopState())
    assert recorder.lines == recorder.saved == []


def test_the_best_value_of_an_earlier_checkpoint_is_read():
    written = {"unlogged": [[1.0, 2.0]], "best_step": 20, "waited": 1}
    expected = loop.LoopState(((1.0, 2.0),), 20, 1.5, 1, 1.5)
    for key in ("best_loss", "best_value"):
        assert loop.LoopState.from_json(written | {key: 1.5}) == expected


def test_early_stopping_waits_for_its_patience(experiment):
    patient = EarlyStopping(patience=2, min_delta=0.1)
    recorder = Recorder(
        with_training(experiment, validate_every=5, early_stopping=patient)
    )
    recorder.losses = iter([3.0, 2.0, 1.95, 1.5, 1.45, 1.49, 0.1])
    assert loop.fit(recorder.job(), experiment.initial_state(), loop.LoopState())
    _, loop_state = recorder.saved[-1]
    best = (loop_state.best_step, loop_state.best_value)
    assert (*best, loop_state.waited) == (25, 1.45, 2)
    assert loop_state.reference == 1.5
    assert recorder.at == 30


@pytest.mark.parametrize(("mode", "sign"), [("min", 1.0), ("max", -1.0)])
def test_an_improvement_below_min_delta_is_the_best_but_not_waited_for(mode, sign):
    """Both early stopping and "best" see 1.970, 1.5, 1.158, then NaN, with 0.9."""
    stopping = EarlyStopping(patience=3, min_delta=0.9)
    metric = Metric("loss", mode)
    state = loop.LoopState(best_value=metric.worst)
    for step, value in enumerate([1.970, 1.5, 1.158, math.nan], start=1):
        state = policies.validated(
            state, metric, stopping, step=step, value=sign * value
        )
    assert (state.best_step, state.best_value) == (3, sign * 1.158)
    assert (state.reference, state.waited) == (sign * 1.970, 3)
    assert policies.out_of_patience(state, stopping)
    assert loop.LoopState.from_json(state.to_json()) == state


@pytest.mark.usefixtures("compiled_once")
def test_a_loss_that_is_not_finite_stops_the_loop_and_saves_the_state_before_it(
    uninterrupted,
):
    experiment = uninterrupted.experiment

    class NanDataset:
        steps_per_epoch = experiment.dataset.steps_per_epoch
        batch_axes = experiment.dataset.batch_axes
        batch = experiment.dataset.batch

        @staticmethod
        def batches(first, count):
            batches = experiment.dataset.batches(first, count)
            for k in range(count):
                if first + k == 12:
                    # A token outside the vocabulary makes the loss of row 1 NaN.
                    batches.inputs[k, 3, 1] = 10_000
            return batches

    NanDataset.batch = staticmethod(
        lambda step: jax.tree.map(lambda leaf: leaf[0], NanDataset.batches(step, 1))
    )
    recorder = Recorder(experiment)
    job = recorder.job()._replace(dataset=NanDataset)
    named = r"first bad gradient params/embed/table, batch rows 1\."
    with pytest.raises(Diverged, match=rf"step 13: the loss is not finite; {named}"):
        loop.fit(job, experiment.initial_state(), loop.LoopState())
    state, loop_state = recorder.saved[-1]
    assert int(state.step) == 12
    assert state.healthy
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert len(loop_state.unlogged) == 2

    resumed = Recorder(experiment)
    assert loop.fit(resumed.job(), key_from_data(state), loop_state)
    for a, b in zip(
        jax.tree.leaves(resumed.saved[-1][0].params),
        jax.tree.leaves(uninterrupted.saved[-1][0].params),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_evaluation_is_the_mean_over_all_targets_of_one_long_sequence(experiment):
    from jaxlstm.lab.data import validation_windows

    tokens = experiment.dataset.corpus.validation
    params = experiment.initial_state().params
    windows = validation_windows(tokens, streams=1, window=16)
    found = loop.evaluate(experiment.task, experiment.model, params, windows)["loss"]
    _, logits = experiment.model.apply(params, jnp.asarray(tokens[:-1], jnp.int32))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = -log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_loop_state_round_trips_through_json():
    loop_state = loop.LoopState(((0.1, math.pi), (2 / 3, 1e-30)), 20, 1.25, 3)
    assert loop.LoopState.from_json(loop_state.to_json()) == loop_state
    assert loop.LoopState.from_json(loop.LoopState().to_json()) == loop.LoopState()


# -- gradients that are not finite -----------------------------------------------------


SKIPPING = {
    "apply_if_finite": {
        "inner": {"sgd": {"learning_rate": 0.5, "momentum": 0.9}},
        "max_consecutive_errors": 2,
    }
}


def updated(chain, gradients, *, accumulate=1):
    """Apply gradients of one parameter, and return every state and its metrics."""
    optimizer = optimizers.build(chain, accumulate=accumulate)
    params = {"w": jnp.zeros(())}
    state = state_.TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        carry=(),
        key=jax.random.key(0),
        healthy=jnp.ones((), bool),
    )
    step = jax.jit(functools.partial(state_.update, optimizer))
    for gradient in gradients:
        value = jnp.float32(gradient)
        state, metrics = step(state, value, (), {"w": value})
        yield state, metrics


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_optimizer_with_apply_if_finite_skips_updates_and_gives_up(bad):
    gradients = [1.0, bad, bad, 2.0, bad, bad, bad, 1.0]
    found = list(updated([SKIPPING], gradients))
    healthy = [bool(metrics.healthy) for _, metrics in found]
    skipped = [bool(metrics.skipped) for _, metrics in found]
    assert healthy == [True] * 6 + [False] * 2
    assert skipped == [False, True, True, False, True, True, False, False]
    plain = list(updated([SKIPPING["apply_if_finite"]["inner"]], [1.0, 2.0]))
    for state, _ in found[3:]:  # the state before the third error in a row is kept
        assert float(state.params["w"]) == float(plain[-1][0].params["w"])
    assert int(found[-1][0].step) == 6


def test_without_a_rule_of_the_optimizer_one_bad_gradient_stops():
    found = list(updated([{"sgd": {"learning_rate": 0.5}}], [1.0, math.nan, 1.0]))
    assert [bool(m.healthy) for _, m in found] == [True, False, False]
    assert not any(bool(m.skipped) for _, m in found)
    zeroed = [{"zero_nans": {}}, {"sgd": {"learning_rate": 0.5}}]
    found = list(updated(zeroed, [1.0, math.nan, 1.0]))
    assert all(bool(m.healthy) for _, m in found)
    assert float(found[-1][0].params["w"]) == -1.0


def test_accumulated_gradients_make_one_update_by_their_mean():
    chain = [{"adam": {"learning_rate": 0.1}}]
    found = [float(s.params["w"]) for s, _ in updated(chain, range(6), accumulate=3)]
    plain = [float(s.params["w"]) for s, _ in updated(chain, [1.0, 4.0])]
    assert found[:2] == [0.0, 0.0]
    assert found[2] == found[3] == found[4] == pytest.approx(plain[0])
    assert found[5] == pytest.approx(plain[1])


def test_a_bad_gradient_is_left_out_of_an_accumulated_one():
    bad = [1.0, math.nan, 3.0, 2.0, 2.0]
    found = list(updated([SKIPPING], bad, accumulate=2))
    assert [bool(m.skipped) for _, m in found] == [False, True, False, False, False]
    plain = list(updated([SKIPPING["apply_if_finite"]["inner"]], [2.0, 2.0]))
    assert float(found[2][0].params["w"]) == pytest.approx(-1.0)
    assert float(found[4][0].params["w"]) == pytest.approx(
        float(plain[1][0].params["w"])
    )


def test_the_learning_rate_shown_follows_updates():
    schedule = {"linear_schedule": {"init_value": 1.0, "end_value": 0.0}}
    schedule["linear_schedule"]["transition_steps"] = 10
    rate = optimizers.learning_rate(
        [{"sgd": {"learning_rate": schedule}}], accumulate=4
    )
    assert [rate(step) for step in (0, 3, 4, 7, 8)] == pytest.approx(
        [1.0, 1.0, 0.9, 0.9, 0.8]
    )


def test_skipped_steps_are_counted_and_left_out_of_the_means():
    state = loop.LoopState()
    for loss, skipped in ((1.0, False), (math.nan, True), (3.0, False)):
        state = policies.stepped(state, loss, 0.5, skipped=skipped)
    assert loop.LoopState.from_json(state.to_json()) == state
    state, means = policies.logged(state)
    assert means == {"loss": 2.0, "gradient_norm": 0.5, "skipped_updates": 1}
    assert policies.logged(state) == (state, None)
