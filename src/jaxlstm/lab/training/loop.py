"""Training: validation, and the loop of a run around many steps in one dispatch.

    batches ──> train_steps ──> state, metrics
                or its shards
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

from jaxlstm.lab._util.errors import Diverged
from jaxlstm.lab.config import schema
from jaxlstm.lab.data import Batch, Streams, Window
from jaxlstm.lab.parallel import shards, splits
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training.state import StepMetrics as StepMetrics
from jaxlstm.lab.training.state import TrainState as TrainState
from jaxlstm.lab.training.state import initial_state as initial_state
from jaxlstm.lab.training.state import noise_key
from jaxlstm.lab.training.state import train_step as train_step
from jaxlstm.lab.training.state import train_steps as train_steps
from jaxlstm.lab.training.state import zero_carry as zero_carry
from jaxlstm.layers import Layer


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

    @property
    def shards(self) -> int:
        """Into how many a batch is split."""
        return splits.number(self.training)


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
            raise Diverged(diagnose(job.model, state, batch, shards=job.shards))
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


def diagnose(model: Layer, state: TrainState, batch: Batch, *, shards: int = 1) -> str:
    """Why the step after the state has no finite gradient: which leaf, which rows."""
    step = int(state.step)
    losses, gradient = _examine(model, state, batch, shards)
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


@functools.partial(jax.jit, static_argnums=(0, 3))
def _examine(
    model: Layer, state: TrainState, batch: Batch, count: int
) -> tuple[Array, Any]:
    """The loss of each token `[T, B]`, and the gradient of their mean."""

    def losses(params: Any, shard: int) -> Array:
        part = shards.of_shard(batch, shard, count, axis=1)
        _, logits = model.apply(
            params,
            part.inputs,
            shards.of_shard(state.carry, shard, count, axis=0),
            key=noise_key(state, None if count == 1 else shard),
            resets=part.resets,
        )
        return task.cross_entropy(logits, jnp.asarray(part.targets))

    def mean(params: Any) -> tuple[Array, Array]:
        parts = [losses(params, shard) for shard in range(count)]
        each = jnp.concatenate(parts, axis=1)
        return each.mean(), each

    gradient, each = jax.grad(mean, has_aux=True)(state.params)
    return each, gradient


class _Programs:
    """The programs of a dispatch, compiled ahead for each number of steps in it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._compiled: dict[int, Any] = {}
        self._jitted = jax.jit(
            functools.partial(train_steps, job.model, job.optimizer), donate_argnums=0
        )

    def of(self, state: TrainState, batches: Batch) -> Any:
        """The program for these batches; the seconds that compiling took are told."""
        count = len(batches.inputs) if self._job.shards == 1 else 0  # 0: any number
        if count not in self._compiled:
            began = time.perf_counter()
            self._compiled[count] = self._compile(state, batches)
            self._job.hooks.compiled(time.perf_counter() - began)
        return self._compiled[count]

    def _compile(self, state: TrainState, batches: Batch) -> Any:
        job = self._job
        if job.shards == 1:
            return self._jitted.lower(state, batches).compile()
        made = (job.model, job.optimizer, state, batches)
        return shards.program(*made, shards=job.shards)


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
