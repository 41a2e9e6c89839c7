"""Training: one step, many steps in one dispatch, validation, and the loop of a run.

    batches ──> train_steps ──> state, metrics
                                   │
                            the loop looks at them one dispatch later, so that
                            looking never slows the device down

Everything that decides the next bit is in `TrainState`; everything that decides the
next line of the log is in `Ledger`. A checkpoint holds both, which is why a run that
was killed goes on to the same bits.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxlstm.lab import schema
from jaxlstm.lab.data import Batch, Streams, Window
from jaxlstm.lab.errors import Diverged
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.layers import Layer


class TrainState(NamedTuple):
    """All that the next update depends on; the position in the data is `step`.

    `healthy` turns False at the first step whose loss or gradient is not finite. From
    there on the state stands still, as it was before that step.
    """

    step: Array
    params: Any
    opt_state: optax.OptState
    carry: Any
    key: Array
    healthy: Array


class StepMetrics(NamedTuple):
    """What a step reports: loss in nats per token, gradient norm before clipping."""

    loss: Array
    gradient_norm: Array
    healthy: Array


def initial_state(
    model: Layer,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    seed: int,
) -> TrainState:
    """The state before the first step, drawn from the seed."""
    key, init_key = jax.random.split(jax.random.key(seed))
    params, _ = model.init(init_key)
    params = jax.tree.map(jnp.copy, params)  # to be donated, each leaf once
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        carry=zero_carry(model, params, batch_size),
        key=key,
        healthy=jnp.ones((), bool),
    )


def zero_carry(model: Layer, params: Any, batch_size: int) -> Any:
    """A state of the model to be reset before it is used."""
    tokens = jnp.zeros((1, batch_size), jnp.int32)
    carry = jax.eval_shape(lambda params: model.apply(params, tokens)[0], params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)


def train_step(
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, StepMetrics]:
    """One update of the parameters, or none if the loss or gradient is not finite."""
    key = jax.random.fold_in(state.key, state.step)

    def loss(params: Any) -> tuple[Array, Any]:
        return task.loss(model, params, state.carry, batch, key=key)

    (nats, carry), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    norm = optax.tree.norm(gradient)
    healthy = state.healthy & jnp.isfinite(nats) & jnp.isfinite(norm)

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.step + 1, params, opt_state, carry, state.key, healthy)
    before = state._replace(healthy=healthy)
    state = jax.tree.map(functools.partial(jnp.where, healthy), after, before)
    return state, StepMetrics(nats, norm, healthy)


def train_steps(
    model: Layer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batches: Batch,
) -> tuple[TrainState, StepMetrics]:
    """As many steps as there are batches `[K, T, B]`, in one dispatch."""
    return jax.lax.scan(functools.partial(train_step, model, optimizer), state, batches)


@functools.partial(jax.jit, static_argnames="model")
def _score(model: Layer, params: Any, carry: Any, window: Window) -> Any:
    return task.score(model, params, carry, window)


def evaluate(model: Layer, params: Any, windows: Iterable[Window]) -> float:
    """Mean loss of all the tokens of the windows, in nats, the state carried along."""
    carry, scores = None, []
    for window in windows:
        if carry is None:
            carry = zero_carry(model, params, window.inputs.shape[1])
        carry, score = _score(model, params, carry, window)
        scores.append(score)
    nats = math.fsum(float(score.nats) for score in scores)
    return nats / sum(int(score.tokens) for score in scores)


class Ledger(NamedTuple):
    """What the log depends on and the state does not: plain numbers, as JSON.

    unlogged    (loss, gradient norm) of the steps since the last line of the log
    best_step   the step of the best validation so far, None before the first
    best_loss   its loss in nats per token
    waited      validations since then
    """

    unlogged: tuple[tuple[float, float], ...] = ()
    best_step: int | None = None
    best_loss: float = math.inf
    waited: int = 0

    def after_validation(self, step: int, loss: float, min_delta: float) -> "Ledger":
        """The ledger after a validation: a better one, or one more that was not."""
        if loss < self.best_loss - min_delta:
            return self._replace(best_step=step, best_loss=loss, waited=0)
        return self._replace(waited=self.waited + 1)

    def to_json(self) -> dict[str, Any]:
        """Lossless: floats are written with all their digits, infinity as null."""
        finite = math.isfinite(self.best_loss)
        return self._asdict() | {"best_loss": self.best_loss if finite else None}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Ledger":
        """The ledger that `to_json` wrote."""
        loss = fields["best_loss"]
        return cls(
            unlogged=tuple((loss, norm) for loss, norm in fields["unlogged"]),
            best_step=fields["best_step"],
            best_loss=math.inf if loss is None else loss,
            waited=fields["waited"],
        )


class Hooks(NamedTuple):
    """What the loop tells the world; the world is `lab.experiments`.

    log        (split, step, loss in nats, other numbers, what only the clock knows)
    validate   the parameters -> validation loss in nats per token
    save       state and ledger, to be kept as the checkpoint of the state's step
    compiled   the seconds that compiling took
    stopping   True when the run is asked to stop
    """

    log: Callable[[str, int, float, dict[str, Any], dict[str, Any]], None]
    validate: Callable[[Any], float]
    save: Callable[[TrainState, Ledger], None]
    compiled: Callable[[float], None]
    stopping: Callable[[], bool]


class Job(NamedTuple):
    """What is trained, on what, how, and who is told."""

    model: Layer
    optimizer: optax.GradientTransformation
    streams: Streams
    training: schema.Training
    learning_rate: Callable[[int], float] | None
    hooks: Hooks


def fit(job: Job, state: TrainState, ledger: Ledger) -> bool:
    """Train on from the state, to the last step or until it is time to stop.

    Dispatches begin and end at multiples of `steps_per_dispatch`, wherever the run was
    interrupted, so that a resumed run computes the same programs on the same data.

    Returns: True when all is done, False when the run was asked to stop before.

    Errors: `Diverged` where a loss or a gradient is not finite; the state before that
    step has been saved.
    """
    training, hooks = job.training, job.hooks
    programs, clock = _Programs(job), _Clock(int(state.step))
    step, flying = int(state.step), None
    done = step >= training.steps or _out_of_patience(training, ledger)
    while not done:
        with clock.waiting():
            batches = job.streams.batches(step, _until_boundary(training, step))
        with clock.paused():
            program = programs.of(state, batches)
        state, metrics = program(state, batches)
        if flying is not None:
            ledger = _look(job, state, ledger, clock, *flying)
        flying, step = (step, metrics), step + len(batches.inputs)

        last, stopping = step == training.steps, hooks.stopping()
        validating = last or step % training.validate_every == 0
        if not (validating or stopping or step % training.checkpoint_every == 0):
            continue
        ledger, flying = _look(job, state, ledger, clock, *flying), None
        with clock.paused():
            if validating:
                ledger = _validate(job, state, ledger, step)
            hooks.save(state, ledger)
        done = last or _out_of_patience(training, ledger)
        if stopping:
            break
    return done


def _until_boundary(training: schema.Training, step: int) -> int:
    size = training.steps_per_dispatch
    return min(size - step % size, training.steps - step)


def _out_of_patience(training: schema.Training, ledger: Ledger) -> bool:
    stopping = training.early_stopping
    return stopping is not None and ledger.waited >= stopping.patience


def _validate(job: Job, state: TrainState, ledger: Ledger, step: int) -> Ledger:
    nats = job.hooks.validate(state.params)
    job.hooks.log("validation", step, nats, {}, {})
    stopping = job.training.early_stopping
    min_delta = 0.0 if stopping is None else stopping.min_delta
    return ledger.after_validation(step, nats, min_delta)


def _look(
    job: Job,
    state: TrainState,
    ledger: Ledger,
    clock: "_Clock",
    first: int,
    metrics: StepMetrics,
) -> Ledger:
    """Wait for a dispatch that began at step `first`, and write down what it did."""
    for step, row in enumerate(_rows(metrics), start=first + 1):
        if not row.healthy:
            job.hooks.save(state._replace(healthy=jnp.ones((), bool)), ledger)
            batch = job.streams.batch(int(state.step))
            raise Diverged(diagnose(job.model, state, batch))
        seen = (*ledger.unlogged, (float(row.loss), float(row.gradient_norm)))
        ledger = ledger._replace(unlogged=seen)
        if step % job.training.log_every == 0 or step == job.training.steps:
            _log(job, ledger, clock, step)
            ledger = ledger._replace(unlogged=())
    return ledger


def _rows(metrics: StepMetrics) -> Iterator[StepMetrics]:
    host = jax.device_get(metrics)
    return (StepMetrics(*row) for row in zip(*host, strict=True))


def _log(job: Job, ledger: Ledger, clock: "_Clock", step: int) -> None:
    """One line: means over the steps since the line before it."""
    losses, norms = zip(*ledger.unlogged, strict=True)
    numbers: dict[str, Any] = {"gradient_norm": math.fsum(norms) / len(norms)}
    if job.learning_rate is not None:
        numbers["learning_rate"] = job.learning_rate(step - 1)
    tokens = job.training.batch_size * job.training.window
    pace = clock.pace(step, left=job.training.steps - step, tokens=tokens)
    job.hooks.log("train", step, math.fsum(losses) / len(losses), numbers, pace)


def diagnose(model: Layer, state: TrainState, batch: Batch) -> str:
    """Why the step after the state has no finite gradient: which leaf, which rows."""
    step = int(state.step)
    losses, gradient = _examine(model, state, batch)
    rows = jnp.flatnonzero(~jnp.isfinite(losses).all(0)).tolist()
    leaves = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not jnp.isfinite(leaf).all()
    ]
    what = "loss" if rows else "gradient"
    first = f"; first bad gradient params/{leaves[0]}" if leaves else ""
    where = f", batch rows {', '.join(map(str, rows))}" if rows else ""
    return (
        f"step {step + 1}: the {what} is not finite{first}{where}. The state before it "
        f"is kept as checkpoint {step:06d}. Try a lower learning rate, or "
        "clip_by_global_norm as the first entry of optimizer."
    )


@functools.partial(jax.jit, static_argnums=0)
def _examine(model: Layer, state: TrainState, batch: Batch) -> tuple[Array, Any]:
    """The loss of each token `[T, B]`, and the gradient of their mean."""

    def mean(params: Any) -> tuple[Array, Array]:
        _, logits = model.apply(
            params,
            batch.inputs,
            state.carry,
            key=jax.random.fold_in(state.key, state.step),
            resets=batch.resets,
        )
        each = task.cross_entropy(logits, jnp.asarray(batch.targets))
        return each.mean(), each

    gradient, losses = jax.grad(mean, has_aux=True)(state.params)
    return losses, gradient


class _Programs:
    """`train_steps`, compiled ahead for each number of steps in a dispatch."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._compiled: dict[int, Any] = {}
        self._jitted = jax.jit(
            functools.partial(train_steps, job.model, job.optimizer), donate_argnums=0
        )

    def of(self, state: TrainState, batches: Batch) -> Any:
        """The program for these batches; the seconds that compiling took are told."""
        count = len(batches.inputs)
        if count not in self._compiled:
            began = time.perf_counter()
            self._compiled[count] = self._jitted.lower(state, batches).compile()
            self._job.hooks.compiled(time.perf_counter() - began)
        return self._compiled[count]


class _Clock:
    """Time spent on training, apart from compiling, validating and saving."""

    def __init__(self, step: int) -> None:
        self._began, self._step = time.perf_counter(), step
        self._away = self._waited = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens here is not training."""
        began = time.perf_counter()
        yield
        self._away += time.perf_counter() - began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens here is waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def pace(self, step: int, *, left: int, tokens: int) -> dict[str, float]:
        """Speed since the last call, `tokens` being those of one step."""
        now = time.perf_counter()
        seconds = max(now - self._began - self._away, 1e-9)
        each = seconds / max(step - self._step, 1)
        share = self._waited / seconds
        self._began, self._away, self._waited, self._step = now, 0.0, 0.0, step
        return {
            "tokens_per_second": tokens / each,
            "milliseconds_per_step": 1e3 * each,
            "data_wait_share": share,
            "eta_seconds": left * each,
        }
