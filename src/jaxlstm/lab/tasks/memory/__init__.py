"""Memory tasks: problems that need information from many steps ago.

    adding           the sum of two marked numbers        mean squared error
    temporal_order   the order of two symbols             cross entropy
    copying          ten symbols after a long delay       cross entropy

A model succeeds when it solves every one of `data.test_sequences` fresh sequences: the
error of the sum is below 0.04, or every symbol is right. The sources ask the same of
the 2,000 most recent training sequences. The cost is the number of training sequences
until then, counted in whole intervals of validation.

Reference:
    Hochreiter and Schmidhuber, "Long short-term memory", 1997, experiments 4 and 6a,
    https://doi.org/10.1162/neco.1997.9.8.1735
    Arjovsky, Shah and Bengio, "Unitary evolution recurrent neural networks", 2016,
    https://arxiv.org/abs/1511.06464 (copying)
"""

import functools
import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import jaxlstm as jl
from jaxlstm.lab.config.memory import MemoryConfig
from jaxlstm.lab.tasks import recurrent
from jaxlstm.lab.tasks.base import (
    Artifact,
    Carry,
    Losses,
    Metric,
    Params,
    StepCost,
)
from jaxlstm.lab.tasks.memory.problems import PROBLEMS, Batch
from jaxlstm.layers.base import Layer

_TEST = 2**63 - 1  # the stream of test sequences, which no training step reaches


class MemoryDataset:
    """Batches drawn from the seed and the step; see `Dataset`."""

    steps_per_epoch = 1000

    def __init__(self, config: MemoryConfig) -> None:
        self._config, self._problem = config, PROBLEMS[config.data.problem]
        text = f"{config.data.problem} {config.data.length}"
        self.description = {
            "source": config.data.problem,
            "sha256": [hashlib.sha256(text.encode()).hexdigest()],
        }

    def with_seed(self, seed: int) -> "MemoryDataset":
        """Return the training sequences of another seed, with the same test."""
        return MemoryDataset(self._config.model_copy(update={"seed": seed}))

    @property
    def spec(self) -> str:
        """The name of the problem."""
        return self._config.data.problem

    @property
    def batch_axes(self) -> Batch:
        """Every field is `[T, B, ...]`."""
        return Batch(1, 1, 1, 1)

    def batch(self, step: int) -> Batch:
        """Return the training batch of one step."""
        return self._draw((self._config.seed, step))

    def batches(self, first_step: int, count: int) -> Batch:
        """Return the batches of several steps, stacked."""
        drawn = [self.batch(first_step + k) for k in range(count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)

    def eval_batches(self, *, full: bool = True) -> Iterable[Batch]:
        """Return the test sequences, which are the same for every seed."""
        size = self._config.training.batch_size
        count = -(-self._config.data.test_sequences // size)
        return (self._draw((_TEST, k)) for k in range(count))

    def _draw(self, seed: tuple[int, int]) -> Batch:
        data, size = self._config.data, self._config.training.batch_size
        return self._problem.draw(np.random.default_rng(seed), data.length, size)


class Memory:
    """The task `memory`; see `jaxlstm.lab.tasks.base.Task`."""

    name = "memory"
    primary = Metric("solved", "max")
    scores: Sequence[str] = ()

    def data(self, config: MemoryConfig) -> MemoryDataset:
        """Return the generator of the sequences."""
        return MemoryDataset(config)

    def check(self, config: MemoryConfig, spec: str) -> None:
        """Do nothing: every config has a conclusion."""

    def model(self, config: MemoryConfig, spec: str) -> Layer:
        """Return recurrent layers and a read-out."""
        problem = PROBLEMS[spec]
        layers = jl.serial(
            rnn=recurrent.rnn(config.model), head=jl.linear(problem.classes or 1)
        )
        init = functools.partial(layers.init, input_size=problem.inputs)
        return layers._replace(init=init)

    def batch_like(self, config: MemoryConfig, spec: str) -> Batch:
        """Return the types of a training batch."""
        return jax.eval_shape(lambda: MemoryDataset(config).batch(0))

    def step_cost(self, config: MemoryConfig) -> StepCost:
        """Return the cost of a step of the recurrent layers."""
        units, problem = config.model.hidden_size, PROBLEMS[config.data.problem]
        sizes = [problem.inputs] + [units] * (config.model.layers - 1)
        tokens = config.training.batch_size * config.data.length
        return StepCost(24.0 * tokens * units * sum(d + units for d in sizes), units)

    def loss(
        self,
        model: Layer,
        params: Params,
        carry: Carry,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> tuple[Losses, Carry]:
        """Return the mean loss `[B]` of each sequence, and whether it is solved."""
        _, ys = model.apply(params, batch.inputs, mask=batch.active, key=key)
        if ys.shape[-1] == 1:
            error = jnp.abs(ys[..., 0] - batch.targets)
            values, right = error**2, error < PROBLEMS["adding"].tolerance
        else:
            labels = batch.targets.astype(jnp.int32)
            values = optax.softmax_cross_entropy_with_integer_labels(ys, labels)
            right = ys.argmax(-1) == labels
        count = batch.weights.sum(0)
        wrong = jnp.where(right, 0.0, batch.weights).sum(0)
        solved = (wrong == 0).astype(jnp.float32)
        mean = (values * batch.weights).sum(0) / count
        return Losses(mean, extra={"solved": solved}), ()

    def metrics(self, spec: str, means: Mapping[str, float]) -> dict[str, float]:
        """Return the loss, and in validation the share of solved sequences."""
        return dict(means)

    def conclude(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return the number of sequences until success beside the published one."""
        rows = self.compare(trained.config, [trained.metrics()])
        return [Artifact("Success", "\n".join(f"{k}: {v}" for k, v in rows.items()))]

    def artifacts(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return nothing: there are no pictures."""
        return []

    def compare(
        self, config: MemoryConfig, members: Sequence[Sequence[Mapping[str, Any]]]
    ) -> dict[str, str]:
        """Return success rate and cost of several runs; see `Task`."""
        size = config.training.batch_size
        costs = [found for found in map(_steps_to_success, members) if found]
        rows = {"all sequences solved by": f"{len(costs)} of {len(members)} runs"}
        if costs:
            found = [cost * size for cost in costs]
            median = statistics.median(found)
            words = f"median {median:,.0f}, from {min(found):,} to {max(found):,}"
            words = words if len(found) > 1 else f"{median:,.0f}"
            rows["sequences until success"] = words
        problem = PROBLEMS[config.data.problem]
        published = problem.published.get(config.data.length)
        rows["published"] = f"{published:,}" if published else "none for this length"
        return rows

    def facts(self, config: MemoryConfig, dataset: Any) -> dict[str, str]:
        """Return the problem and its lengths."""
        length = config.data.length
        problem = config.data.problem.replace("_", " ")
        return {"problem": f"{problem}, lengths from {length}"}

    def spec_to_json(self, spec: str) -> Any:
        """Return the name of the problem."""
        return spec

    def spec_from_json(self, written: Any) -> str:
        """Return the name of the problem."""
        return written


def _steps_to_success(records: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the step of the first validation that solved every sequence."""
    return next((r["step"] for r in records if r.get("solved") == 1), None)


TASK = Memory()
