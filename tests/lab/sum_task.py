"""A task defined outside the package: predict the sum of a random sequence.

After `register()`, configs may have `task: sum`. A process with `SUM_TASK_KILLED_AT` in
its environment ends by SIGKILL when it draws the batches from that step on.
"""

import hashlib
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

import jaxlstm as jl
from jaxlstm.lab import tasks
from jaxlstm.lab.config import RunConfig
from jaxlstm.lab.config.sections import Section, Size
from jaxlstm.lab.tasks import Artifact, Losses, Metric, StepCost


class SumData(Section):
    """Sequences of numbers from 0 to 1."""

    length: Size = Field(default=5, description="Steps of a sequence.")


class SumModel(Section):
    """One LSTM layer and a read-out of its last output."""

    units: Size = Field(default=8, description="Units of the layer.")


class SumConfig(RunConfig):
    """The config of the task."""

    task: Literal["sum"] = Field(default="sum", description="Task to train.")
    data: SumData = Field(default=SumData(), description="Training data.")
    model: SumModel = Field(default=SumModel(), description="Model to train.")


class SumBatch(NamedTuple):
    """Sequences `[T, B, 1]` and their sums `[B]`."""

    xs: Any
    sums: Any


class SumDataset:
    """Batches drawn from the seed and the step."""

    spec = 1
    batch_axes = SumBatch(1, 0)
    steps_per_epoch = 10

    def __init__(self, config: SumConfig) -> None:
        self._shape = (config.data.length, config.training.batch_size, 1)
        self._seed = config.seed
        digest = hashlib.sha256(f"{self._shape} {self._seed}".encode()).hexdigest()
        self.description = {"sha256": [digest]}

    def batch(self, step: int) -> SumBatch:
        draw = np.random.default_rng((self._seed, step))
        xs = draw.random(self._shape, np.float32)
        return SumBatch(xs, xs.sum((0, 2)))

    def batches(self, first_step: int, count: int) -> SumBatch:
        if first_step >= int(os.environ.get("SUM_TASK_KILLED_AT", "1000000000")):
            os.kill(os.getpid(), signal.SIGKILL)
        each = [self.batch(step) for step in range(first_step, first_step + count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def eval_batches(self, *, full: bool = True) -> Iterable[SumBatch]:
        return [self.batch(10**9 + k) for k in range(4 if full else 2)]


class Sum:
    """The task; "best" is the largest share of sums with an error below 0.2."""

    name = "sum"
    primary = Metric("share_close", "max")
    scores = ()

    def data(self, config: SumConfig) -> SumDataset:
        return SumDataset(config)

    def check(self, config: SumConfig, spec: int) -> None:
        pass

    def model(self, config: SumConfig, spec: int) -> jl.Layer:
        rnn = jl.recurrent(jl.lstm(), config.model.units)
        layers = jl.serial(rnn=rnn, head=jl.linear(1))

        def init(key: Any, input_size: int | None = None) -> Any:
            return layers.init(key, spec)

        return layers._replace(init=init)

    def batch_like(self, config: SumConfig, spec: int) -> SumBatch:
        return jax.eval_shape(lambda: SumDataset(config).batch(0))

    def step_cost(self, config: Any) -> StepCost | None:
        return None

    def loss(self, model: Any, params: Any, carry: Any, batch: Any, *, key: Any = None):
        _, ys = model.apply(params, batch.xs, key=key)
        error = jnp.abs(ys[-1, :, 0] - batch.sums)
        close = (error < 0.2).astype(jnp.float32)
        return Losses(error**2, extra={"share_close": close}), ()

    def metrics(self, spec: int, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)

    def conclude(self, trained: Any, dataset: Any) -> list[Artifact]:
        batch = dataset.batch(0)
        _, ys = trained.model.apply(trained.params, batch.xs)
        rows = zip(batch.sums, ys[-1, :, 0], strict=True)
        text = "\n".join(f"{target:.3f} {found:.3f}" for target, found in rows)
        return [Artifact("Sums and predictions", text)]

    def artifacts(self, trained: Any, dataset: Any) -> list[Artifact]:
        return []

    def facts(self, config: SumConfig, dataset: Any) -> dict[str, str]:
        return {"sequences": f"of {config.data.length} numbers"}

    def spec_to_json(self, spec: int) -> Any:
        return spec

    def spec_from_json(self, written: Any) -> int:
        return written


class LargestErrorConfig(RunConfig):
    """The config of the task `largest_error`."""

    task: Literal["largest_error"] = Field(
        default="largest_error", description="Task to train."
    )
    data: SumData = Field(default=SumData(), description="Training data.")
    model: SumModel = Field(default=SumModel(), description="Model to train.")


class LargestError(Sum):
    """The task `sum` with the opposite "best": the largest root mean square error.

    It states the cost of a step, so that `training.shards: auto` splits the batch.
    """

    name = "largest_error"
    primary = Metric("error", "max")
    scores = ("share_close",)

    def metrics(self, spec: int, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means) | {"error": means["loss"] ** 0.5}

    def step_cost(self, config: Any) -> StepCost | None:
        return StepCost(operations=1e9, units=config.model.units)


def register() -> None:
    """Register the task in `jaxlstm.lab`."""
    tasks.register(Sum(), SumConfig)


def config(**training: Any) -> dict[str, Any]:
    """Return a config of 60 steps with a validation every 20."""
    return {
        "task": "sum",
        "name": "sums",
        "optimizer": [{"adam": {"learning_rate": 0.05}}],
        "training": {
            "steps": 60,
            "batch_size": 8,
            "shards": 1,
            "steps_per_dispatch": 10,
            "log_every": 20,
            "validate_every": 20,
            "checkpoint_every": 10,
            **training,
        },
    }


if __name__ == "__main__":
    import sys

    from jaxlstm.lab import cli

    register()
    sys.exit(cli.main())
