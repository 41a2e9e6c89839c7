"""The parts of a run, built from its config: task, data, model, optimizer."""

import dataclasses
import functools
import os
from typing import Any

import jax
import optax

from jaxlstm.lab import native, tasks
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.optimizer import climbs
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.tasks import contract
from jaxlstm.lab.tasks.base import Dataset, Losses, Spec, Task, data_of
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.state import TrainState, initial_state
from jaxlstm.layers.base import Layer


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run. Building them detects every error of a config."""

    config: Any
    task: Task
    dataset: Dataset
    model: Layer
    optimizer: optax.GradientTransformation

    @classmethod
    def build(cls, config: RunConfig, *, spec: Spec | None = None) -> "Experiment":
        """Read the data and build the model.

        Args:
            config: the config.
            spec: the spec of the run that is resumed; None for a new run.

        Raises:
            BadInput: the data cannot be used, Optax rejects the optimizer, its updates
                raise the loss, the model does not fit the memory of this machine, or
                the task does not keep to `Task`.
        """
        devices.require_jax_settings(config)
        _require_descent(config)
        task = tasks.get(config.task)
        dataset = data_of(task, config, spec)
        contract.require_dataset(task, dataset)
        task.check(config, dataset.spec)
        try:
            if getattr(config.model, "engine", None) == "native":
                native.load_kernel()
            model = task.model(config, dataset.spec)
            optimizer = optimizers.build(
                config.optimizer,
                accumulate=config.training.gradient_accumulation_steps,
            )
            experiment = cls(config, task, dataset, model, optimizer)
            experiment.require_memory()
            extra = experiment.losses_like.extra
        except (ValueError, NotImplementedError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"model: {error}") from error
        contract.require_metrics(task, dataset.spec, extra)
        return experiment

    def initial_state(self) -> TrainState:
        """Return the state before the first step."""
        return initial_state(
            self.task,
            self.model,
            self.optimizer,
            self.task.batch_like(self.config, self.dataset.spec),
            seed=self.config.seed,
        )

    @functools.cached_property
    def state_like(self) -> TrainState:
        """The shapes and dtypes of the training state."""
        return jax.eval_shape(self.initial_state)

    @functools.cached_property
    def losses_like(self) -> Losses:
        """The shapes and dtypes of the losses of a training batch."""
        batch = self.task.batch_like(self.config, self.dataset.spec)
        state = self.state_like
        loss = functools.partial(self.task.loss, self.model)
        return jax.eval_shape(loss, state.params, state.carry, batch)[0]

    def parameters(self) -> int:
        """Return the number of parameters."""
        params = self.state_like.params
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    def epochs(self) -> float:
        """Return the number of epochs."""
        return self.config.training.steps / self.dataset.steps_per_epoch

    def shard_bytes(self) -> int:
        """Return the bytes that shards add: copies of parameters and gradients."""
        shards = splits.shard_count(self.config.training)
        params = self.state_like.params
        return 2 * shards * _bytes(params) if shards > 1 else 0

    def require_memory(self) -> None:
        """Raise `BadInput` if the state exceeds the memory of this machine."""
        states = 2 * _bytes(self.state_like)  # before and after a step
        needed = states + self.shard_bytes()
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise BadInput(
                f"model: got {self.parameters():,} parameters, which need "
                f"{needed / 1e9:,.0f} GB for training; expected at most "
                f"{available / 1e9:,.0f} GB, the memory of this machine; lower "
                "model.hidden_size or model.layers"
            )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _require_descent(config: RunConfig) -> None:
    """Raise `BadInput` if the updates of the optimizer raise the loss."""
    if climbs(config.optimizer):
        raise BadInput(
            "optimizer: got transformations whose updates raise the loss, expected "
            "exactly one with a learning_rate, such as sgd or scale_by_learning_rate"
        )
