"""The interface between a task and the rest of `lab`.

    Config ──> Task.data ──> Dataset ──> Batch ──> Task.loss ──> Losses ──> one update
               Task.model ─> Layer                 Task.metrics ──> metrics.jsonl
               Task.conclude ──> Artifacts ──> report.md

Everything that differs between two tasks is a method of `Task`, and the rest of `lab`
calls only these methods. A new task is one package in this folder, one config model,
and one entry each in `jaxlstm.lab.tasks` and `jaxlstm.lab.config.schema`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from jaxlstm.lab.parallel.costs import StepCost as StepCost
from jaxlstm.lab.parallel.means import divide
from jaxlstm.layers.base import Layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Params = Any
Carry = Any
Batch = Any
"""A NamedTuple of arrays; `Dataset.batch_axes` names the batch axis of each field."""

Spec = Any
"""Facts about the data that the model depends on: a vocabulary, a feature count."""


class Metric(NamedTuple):
    """A key of the metrics, and whether less or more of it is better."""

    name: str
    mode: Literal["min", "max"] = "min"

    def better(self, value: float, than: float, *, margin: float = 0.0) -> bool:
        """Return whether `value` improves on `than` by more than `margin`.

        Example:
            >>> Metric("loss").better(1.0, 1.2), Metric("accuracy", "max").better(1, 2)
            (True, False)
        """
        return value < than - margin if self.mode == "min" else value > than + margin

    @property
    def worst(self) -> float:
        """The value that every finite one improves on."""
        return float("inf") if self.mode == "min" else float("-inf")


class Sums(NamedTuple):
    """Weighted sums over examples: of the losses, the weights, and extra numbers."""

    loss: Array
    weight: Array
    extra: Mapping[str, Array]


class Losses(NamedTuple):
    """The loss of each example.

    Attributes:
        values: `[..., B]`, in float32, the batch axis last. The speed of training is
            their number per second: of tokens if there are axes before the batch axis,
            else of sequences.
        weights: the weight of each value, at least 0 and in the same shape; 0 or False
            excludes a value. None gives all values the weight 1. The mean of a training
            batch is the same for any number of shards, up to rounding; if all its
            weights are 0, loss and gradient are 0 and the optimizer still makes a step.
            A gradient is not finite where the derivative of an excluded value is not.
        extra: other numbers of each example, in the same shape, for `Task.metrics`.
    """

    values: Array
    weights: Array | None = None
    extra: Mapping[str, Array] = {}

    def mean(self) -> Array:
        """Return the weighted mean; 0, with a gradient of 0, if all weights are 0."""
        value, weight = self.part()
        return value if weight is None else divide(value, weight)

    def part(self) -> tuple[Array, Array | None]:
        """Return the numbers of one shard that give the mean of the whole batch.

        Returns:
            The mean and None if there are no weights, otherwise the weighted sum and
            the sum of the weights.
        """
        if self.weights is None:
            return self.values.mean(), None
        return self._sum(self.values), self.weights.sum().astype(self.values.dtype)

    def sums(self) -> Sums:
        """Return the weighted sums.

        A value with weight 0 has no effect, even if it is NaN.
        """
        size = jnp.asarray(self.values.size)
        weight = size if self.weights is None else self.weights.sum()
        extra = {name: self._sum(values) for name, values in self.extra.items()}
        return Sums(self._sum(self.values), weight, extra)

    def _sum(self, values: Array) -> Array:
        if self.weights is None:
            return values.sum()
        if self.weights.dtype == bool:
            return jnp.where(self.weights, values, 0.0).sum()
        return jnp.where(self.weights > 0, values * self.weights, 0.0).sum()


class Dataset(Protocol):
    """Batches as pure functions of the step, so that the step is the data position.

    One member is optional: `with_seed(seed) -> Dataset` returns the same data in the
    order of another seed. It serves populations, which then read the data once and
    validate all members on the same batches, those of any seed. Without it, `Task.data`
    is called for each seed.
    """

    @property
    def spec(self) -> Spec:
        """Facts about the data that the model depends on, such as a vocabulary."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """JSON: `sha256`, a list of hashes that identify the data, and sizes."""
        ...

    @property
    def batch_axes(self) -> Batch:
        """The batch axis of each field, as in `jax.vmap(in_axes=...)`."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of one pass over the training part."""
        ...

    def batches(self, first_step: int, count: int) -> Batch:
        """Return `count` training batches, stacked along a leading axis."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the training batch of one step."""
        ...

    def eval_batches(self, *, full: bool = True) -> Iterable[Batch]:
        """Return the validation batches, in order.

        Args:
            full: whether to return the whole validation part; False for the amount
                that the config specifies for validation during training.
        """
        ...


class Picture(NamedTuple):
    """A file name, a caption, a size in inches, and a function that draws on Axes."""

    name: str
    caption: str
    size: tuple[float, float]
    draw: Callable[["Axes"], object]


class Artifact(NamedTuple):
    """A result of a finished run, shown in `report.md`.

    Attributes:
        title: the heading of its section; empty for pictures alone.
        text: shown in a code block, and on the screen at the end of a run.
        pictures: written to `plots/`.
    """

    title: str = ""
    text: str = ""
    pictures: Sequence[Picture] = ()


class Task(Protocol):
    """Definition of what is trained: data, model, loss and the final artifacts.

    More members are optional:

    - `sample(trained, ...)`, with the arguments of `Trained.sample`, generates text for
      `jaxlstm sample`.
    - `score(trained, text)` returns the log-probability of each token of a text.
    - `stream(trained, model, slots=...)` returns the `Stream` of `Trained.stream`, if
      it does more than to apply the model.
    - `predict(trained, data)` returns the columns of a table, all of one length, for
      `jaxlstm predict`. `data` is a path, a frame, or None for the run's own data.
    - `backtest(trained, windows=...)` returns artifacts with the scores of forecasts
      from several origins, for `jaxlstm backtest`.
    - `data_of_run(config, spec)` reads the data of a run again, with what the spec says
      was fitted to it, such as a tokenizer; without it `data` is called.
    - `files(spec)` returns texts by file name, such as `tokenizer.json`, which are
      written into a run directory for other programs.
    - `inspect(trained)` returns artifacts that describe the model, for `jaxlstm
      inspect`; language models are described without it.
    - `positions`, the names of the layers of `model` in order, makes checkpoints
      readable that were written before layers had names.
    """

    name: str
    primary: Metric
    """The metric that decides which validation is the best."""

    scores: Sequence[str]
    """Names of the metrics that a report states before the loss, such as
    `perplexity`; `primary` needs no entry."""

    def data(self, config: Any) -> Dataset:
        """Read the data of a config.

        Raises:
            BadInput: the data cannot be used; the message names the file and the
                remedy.
        """
        ...

    def check(self, config: Any, spec: Spec) -> None:
        """Raise `BadInput` for errors that would only occur after the last step."""
        ...

    def model(self, config: Any, spec: Spec) -> Layer:
        """Return the model; its layers have names."""
        ...

    def batch_like(self, config: Any, spec: Spec) -> Batch:
        """Return the types of a training batch, as `jax.ShapeDtypeStruct`."""
        ...

    def step_cost(self, config: Any) -> StepCost | None:
        """Return the cost of a training step, which decides `training.shards: auto`.

        None trains with one shard.
        """
        ...

    def loss(
        self,
        model: Layer,
        params: Params,
        carry: Carry,
        batch: Batch,
        *,
        key: Array | None = None,
    ) -> tuple[Losses, Carry]:
        """Return the loss of each example, and the state carried to the next batch.

        Args:
            model: the result of `model`.
            params: its parameters.
            carry: the state returned with the previous batch, whose arrays all have the
                batch on axis 0. It is zeros with the first batch of training or
                validation, not the initial state of a cell; a task whose initial state
                is learned or not 0 must reset the state in these batches. None is
                passed once, to find the shapes and dtypes of the carry.
            batch: a batch of the dataset.
            key: key of the noise; None for no noise, as in evaluation.
        """
        ...

    def metrics(self, spec: Spec, means: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers that are logged: `loss`, and in validation `primary`.

        Training passes the mean of `loss` alone, so look up no other there;
        `dict(means)` returns the means of both as they are.

        Args:
            spec: the spec of the dataset.
            means: `loss`, and in validation the mean of each of `Losses.extra`.
        """
        ...

    def conclude(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return the artifacts of a finished run."""
        ...

    def artifacts(self, trained: Any, dataset: Any) -> list[Artifact]:
        """Return only the artifacts with pictures, for `jaxlstm plot`."""
        ...

    def facts(self, config: Any, dataset: Any) -> dict[str, str]:
        """Return rows for `check` and for the report: sizes of the data."""
        ...

    def spec_to_json(self, spec: Spec) -> Any:
        """Return the spec as JSON, which is stored in every checkpoint."""
        ...

    def spec_from_json(self, written: Any) -> Spec:
        """Return the spec that `spec_to_json` wrote.

        Raises:
            BadInput: it is not the JSON of a spec.
        """
        ...


def data_of(task: Task, config: Any, spec: Spec | None) -> Dataset:
    """Return the data of a config, and of the run that has a spec already."""
    read_again = getattr(task, "data_of_run", None)
    if spec is None or read_again is None:
        return task.data(config)
    return read_again(config, spec)


def files_of(task: Task, spec: Spec) -> Mapping[str, str]:
    """Return the files that a task has for other programs, by name."""
    files = getattr(task, "files", None)
    return {} if files is None else files(spec)


def zero_carry(task: Task, model: Layer, params: Params, batch: Batch) -> Carry:
    """Return a carry of zeros, which the first batch of a stream resets."""

    def after(params: Params, batch: Batch) -> Carry:
        return task.loss(model, params, None, batch)[1]

    like = jax.eval_shape(after, params, batch)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
