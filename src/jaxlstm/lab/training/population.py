"""Training of a population: many members, one compiled program for each device.

    seeds, values of a grid ──vmap──> states [N]
    states [N], batches [N, K] ──K steps of each──> states [N], metrics [N, K]

A member is one slice of a `TrainState` with a leading axis. It has its own parameters,
order of data, noise, optimizer, early stopping and best state. A member that diverged
or stopped early stands still: its `healthy` is False, and its arrays keep their bits
while the others go on.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlstm.lab._util.errors import BadInput, Diverged
from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config import population as sections
from jaxlstm.lab.config.base import RunConfig, Training
from jaxlstm.lab.config.population import Member
from jaxlstm.lab.config.rates import learning_rate_paths
from jaxlstm.lab.config.yaml_source import SourceError
from jaxlstm.lab.parallel import members as split
from jaxlstm.lab.parallel import splits
from jaxlstm.lab.parallel.devices import Device
from jaxlstm.lab.tasks.base import Batch, Carry, Dataset, Params, Sums, Task, zero_carry
from jaxlstm.lab.training import diagnosis, policies, state
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.clock import Clock
from jaxlstm.lab.training.policies import PopulationLoop
from jaxlstm.lab.training.state import StepMetrics, TrainState
from jaxlstm.layers.base import Layer

if TYPE_CHECKING:
    from jaxlstm.lab.training.experiment import Experiment


class PopulationState(NamedTuple):
    """Everything that the next dispatch depends on.

    Attributes:
        step: int32 `[]`, the number of steps that the population has made.
        members: the state of each member, with a leading axis N. A member that stands
            still keeps the step at which it stopped.
        best: the state of each member at its best validation, with a leading axis N;
            its initial state before the first.
    """

    step: Array
    members: TrainState
    best: TrainState


@dataclasses.dataclass(frozen=True)
class PopulationExperiment:
    """The parts of a population. Building them detects every error of a config.

    Attributes:
        config: the config of the population.
        members: its members, in the order of the leading axes.
        configs: the config of each member, as of a run alone.
        first: the parts of the first member; task and model are those of all.
        datasets: the data of each member.
        paths: the paths in the optimizer of each key of the grid.
    """

    config: Any
    members: tuple[Member, ...]
    configs: tuple[Any, ...]
    first: "Experiment"
    datasets: tuple[Dataset, ...]
    paths: tuple[tuple[sections.KeyPath, ...], ...]

    @classmethod
    def build(
        cls, config: RunConfig, build: "Callable[[RunConfig], Experiment]"
    ) -> "PopulationExperiment":
        """Read the data and build the model.

        Args:
            config: the config of the population.
            build: `Experiment.build`, which builds the parts of the first member.

        Raises:
            BadInput: as for `Experiment.build`; or a key of the grid is not a number of
                the optimizer that can differ between the members of one program.
        """
        section = config.population
        assert section is not None
        if splits.shard_count(config.training) > 1:
            raise BadInput(
                f"training.shards: got {config.training.shards}, expected 1 or auto; "
                "the members of a population are not split"
            )
        members = tuple(sections.members(section, config.seed))
        paths = tuple(_paths(config, key) for key in section.grid)
        alone = config.model_copy(update={"population": None})
        own = tuple(configs.load(alone, overrides=each.overrides()) for each in members)
        first = build(own[0])
        found = cls(config, members, own, first, _datasets(first, own), paths)
        found._require_same_shapes()
        found._require_memory()
        return found

    @property
    def task(self) -> Task:
        """The task of all members."""
        return self.first.task

    @property
    def shares_validation(self) -> bool:
        """True if all members are validated on the same batches."""
        seeds = {member.seed for member in self.members}
        return len(seeds) == 1 or hasattr(self.first.dataset, "with_seed")

    def optimizer(self, values: Array) -> Any:
        """Return the optimizer of one member from its values of the grid `[P]`."""
        config, grid = self.config, self.config.population.grid
        varied = {
            path: optimizers.Varied(values[k], choices)
            for k, choices in enumerate(grid.values())
            for path in self.paths[k]
        }
        accumulate = config.training.gradient_accumulation_steps
        return optimizers.build(config.optimizer, accumulate=accumulate, varied=varied)

    @functools.cached_property
    def values(self) -> np.ndarray:
        """The values of the grid `[N, P]`."""
        rows = [list(member.values.values()) for member in self.members]
        return np.array(rows, np.float32).reshape(len(rows), -1)

    def initial_state(self) -> PopulationState:
        """Return the state before the first step."""
        seeds = np.array([each.seed for each in self.members], np.uint32)
        members = jax.jit(jax.vmap(self._initial))(seeds, self.values)
        best = jax.tree.map(jnp.copy, members)  # Donated buffers must not be shared.
        return PopulationState(jnp.zeros((), jnp.int32), members, best)

    def _initial(self, seed: Array, values: Array) -> TrainState:
        first = self.first
        batch = first.task.batch_like(first.config, first.dataset.spec)
        return state.initial_state(
            first.task, first.model, self.optimizer(values), batch, seed=seed
        )

    @functools.cached_property
    def state_like(self) -> PopulationState:
        """The shapes and dtypes of the state."""
        try:
            return jax.eval_shape(self.initial_state)
        except Exception as error:
            if not self.paths or isinstance(error, BadInput):
                raise
            raise _cannot_vary(self.config, error) from error

    def train_member(
        self, member: TrainState, values: Array, batches: Batch
    ) -> tuple[TrainState, StepMetrics]:
        """Make the steps of a dispatch for one member that trains."""
        first, optimizer = self.first, self.optimizer(values)
        return state.train_steps(first.task, first.model, optimizer, member, batches)

    def batches(self, first_step: int, count: int) -> Batch:
        """Return the batches of `count` steps, stacked to `[N, K, ...]`."""
        drawn = [dataset.batches(first_step, count) for dataset in self.datasets]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)

    def evaluate(self, params: Params) -> list[dict[str, float]]:
        """Return the validation means of every member, from one program."""
        shared = self.shares_validation
        datasets = self.datasets[:1] if shared else self.datasets
        batches = zip(*(d.eval_batches(full=False) for d in datasets), strict=True)
        carry, sums = None, []
        for group in batches:
            batch = group[0] if shared else _stacked(group)
            static = (self.task, self.first.model, shared)
            if carry is None:
                carry = _zero_carries(*static, params, batch)
            carry, found = _sums(*static, params, carry, batch)
            sums.append({"loss": found.loss, "weight": found.weight, **found.extra})
        host = jax.device_get(sums)
        return [_means(host, k) for k in range(len(self.members))]

    def descriptions(self) -> list[dict[str, Any]]:
        """Return the description of the data of each member."""
        return [dict(dataset.description) for dataset in self.datasets]

    def take(self, members: TrainState, index: int) -> TrainState:
        """Return the state of one member as that of a run alone."""
        taken = jax.tree.map(lambda leaf: leaf[index], members)
        return taken._replace(healthy=jnp.ones((), bool))

    def _require_same_shapes(self) -> None:
        """Raise `BadInput` if the members' data lead to different models."""
        spec = self.task.spec_to_json(self.first.dataset.spec)
        for member, dataset in zip(self.members, self.datasets, strict=True):
            if self.task.spec_to_json(dataset.spec) != spec:
                raise BadInput(
                    f"population: got another model for the data of seed {member.seed}"
                    f" than for seed {self.members[0].seed}, expected the same; train "
                    "these seeds one by one"
                )

    def _require_memory(self) -> None:
        needed = sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((self.state_like, self.state_like.members))
        )
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise BadInput(
                f"population: got {len(self.members)} members, which need "
                f"{needed / 1e9:,.0f} GB; expected at most {available / 1e9:,.0f} GB, "
                "the memory of this machine; train fewer members"
            )


class PopulationJob(NamedTuple):
    """The parts of a population that its loop uses.

    Attributes:
        experiment: the parts of the population.
        log: `(step, rows, pace)`: for each active member its mean loss and numbers
            since the last call, None for the others; and the speed of all together.
        message: receives messages.
        compiled: receives the seconds that a compilation took.
        stopping: returns True once a stop has been requested.
        validate: `(state, loop) -> (state, loop)`; selects the best of each member.
        save: writes a checkpoint.
    """

    experiment: PopulationExperiment
    log: Callable[[int, list[dict[str, float] | None], dict[str, float]], None]
    message: Callable[[str], None]
    compiled: Callable[[float], None]
    stopping: Callable[[], bool]
    validate: Callable[
        [PopulationState, PopulationLoop], tuple[PopulationState, PopulationLoop]
    ]
    save: Callable[[PopulationState, PopulationLoop], None]


def fit(job: PopulationJob, population: PopulationState, loop: PopulationLoop) -> bool:
    """Train from a state until no member trains any more, or a stop is requested.

    Dispatches begin and end at multiples of `steps_per_dispatch`, and metrics are read
    one dispatch later, as in `jaxlstm.lab.training.loop`.

    Args:
        job: the parts of the population.
        population: the state to start from.
        loop: the loop state that belongs to it.

    Returns:
        True if training is complete, False if it was stopped before.

    Raises:
        Diverged: every member diverged.
    """
    experiment: PopulationExperiment = job.experiment
    training: Training = experiment.config.training
    (device,) = population.step.devices()
    programs = _Programs(experiment, device, job.compiled)
    step, in_flight = int(population.step), None
    clock = Clock(step)
    done = step >= training.steps or not any(member.active for member in loop)
    while not done:
        size = training.steps_per_dispatch
        count = min(size - step % size, training.steps - step)
        with clock.waiting():
            batches = experiment.batches(step, count)
        members = _with_active(population.members, loop)
        with clock.paused():
            programs.compile(members, batches)
        members, metrics = programs.run(members, batches)
        if in_flight is not None:
            loop = _read(job, members, loop, clock, *in_flight)
        in_flight, step = (step, metrics), step + count
        population = population._replace(step=jnp.int32(step), members=members)

        last, stopping = step == training.steps, job.stopping()
        validates = last or step % training.validate_every == 0
        saves = validates or stopping or step % training.checkpoint_every == 0
        if not saves:
            continue
        loop, in_flight = _read(job, members, loop, clock, *in_flight), None
        with clock.paused():
            if validates:
                population, loop = job.validate(population, loop)
            population = population._replace(
                members=_with_active(population.members, loop)
            )
            job.save(population, loop)
        done = last or not any(member.active for member in loop)
        if stopping:
            break
    _require_a_survivor(experiment, loop)
    return done


def validated(
    experiment: PopulationExperiment,
    population: PopulationState,
    loop: PopulationLoop,
    values: Sequence[float],
) -> tuple[PopulationState, PopulationLoop]:
    """Return the states after a validation: the best of each, and who stops early.

    Args:
        experiment: the parts of the population.
        population: the state that was validated.
        loop: the loop state that belongs to it.
        values: the primary metric of each member; those of members that stand still
            are ignored.
    """
    task, stopping = experiment.task, experiment.config.training.early_stopping
    step, after, better = int(population.step), [], []
    for member, value in zip(loop, values, strict=True):
        found = member.loop
        if member.active:
            found = policies.validated(
                found, task.primary, stopping, step=step, value=value
            )
        better.append(member.active and found.best_step == step)
        stops = member.active and policies.out_of_patience(found, stopping)
        stopped = step if stops else member.stopped
        after.append(member._replace(loop=found, stopped=stopped))
    best = _select(np.array(better), population.members, population.best)
    return population._replace(best=best), tuple(after)


class _Programs:
    """Compiled training steps, for each number of steps in a dispatch and each device.

    Attributes:
        device: the device of the states between dispatches.
        groups: the devices that train, and the members that each one trains.
    """

    def __init__(
        self,
        experiment: PopulationExperiment,
        device: Device,
        compiled: Callable[[float], None],
    ) -> None:
        self.device = device
        self.groups = split.groups(len(experiment.members), device)
        self._values, self._report = experiment.values, compiled
        train = split.for_each(experiment.train_member, device)
        self._jitted = jax.jit(train, donate_argnums=0)
        self._compiled: dict[int, list[Any]] = {}

    def compile(self, members: TrainState, batches: Batch) -> None:
        """Compile the programs for these batches, and report the time it takes."""
        count = _steps(batches)
        if count in self._compiled:
            return
        start = time.perf_counter()
        parts = [self._part(members, batches, *group) for group in self.groups]
        lowered = [self._jitted.lower(*part) for part in parts]
        with ThreadPoolExecutor(len(lowered)) as pool:
            programs = pool.map(jax.stages.Lowered.compile, lowered)
            self._compiled[count] = list(programs)
        self._report(time.perf_counter() - start)

    def run(
        self, members: TrainState, batches: Batch
    ) -> tuple[TrainState, StepMetrics]:
        """Make the steps of a dispatch: batches and metrics are `[N, K, ...]`."""
        programs = zip(self._compiled[_steps(batches)], self.groups, strict=True)
        parts = [
            program(*self._part(members, batches, *group))
            for program, group in programs
        ]
        return split.join(parts, self.device)

    def _part(
        self, members: TrainState, batches: Batch, device: Device, which: slice
    ) -> tuple[TrainState, Any, Batch]:
        return split.take((members, self._values, batches), which, device)


def _steps(batches: Batch) -> int:
    """Return K of batches `[N, K, ...]`."""
    return jax.tree.leaves(batches)[0].shape[1]


def _read(
    job: PopulationJob,
    members: TrainState,
    loop: PopulationLoop,
    clock: Clock,
    first: int,
    metrics: StepMetrics,
) -> PopulationLoop:
    """Wait for the metrics of a dispatch that began at step `first`, and log them."""
    losses, norms, healthy, skipped = jax.device_get(metrics)
    training = job.experiment.config.training
    for k in range(losses.shape[1]):
        step, after = first + k + 1, []
        for n, member in enumerate(loop):
            if member.active and not healthy[n, k]:
                member = member._replace(diverged=step)
                job.message(_diagnosis(job.experiment, members, n))
            elif member.active:
                numbers = (float(losses[n, k]), float(norms[n, k]))
                seen = policies.stepped(
                    member.loop, *numbers, skipped=bool(skipped[n, k])
                )
                member = member._replace(loop=seen)
                if skipped[n, k]:
                    name = job.experiment.members[n].name
                    said = diagnosis.skipped(step, seen.skipped)
                    job.message(f"member {name}: {said}")
            after.append(member)
        loop = tuple(after)
        if step % training.log_every == 0 or step == training.steps:
            loop = _log(job, loop, clock, step)
    return loop


def _log(
    job: PopulationJob, loop: PopulationLoop, clock: Clock, step: int
) -> PopulationLoop:
    rows: list[dict[str, float] | None] = []
    after = []
    for member in loop:
        state, means = policies.logged(member.loop)
        rows.append(means if member.active else None)
        after.append(member._replace(loop=state))
    values = job.experiment.first.losses_like.values
    pace = clock.pace(
        step,
        left=job.experiment.config.training.steps - step,
        count=values.size * sum(row is not None for row in rows),
        unit="tokens" if values.ndim > 1 else "sequences",
    )
    job.log(step, rows, pace)
    return tuple(after)


def _diagnosis(
    experiment: PopulationExperiment, members: TrainState, index: int
) -> str:
    """Return a message about the step at which a member diverged."""

    class Parts(NamedTuple):
        task: Task
        model: Layer
        dataset: Dataset
        shards: int = 1

    first = experiment.first
    parts = Parts(first.task, first.model, experiment.datasets[index])
    found = diagnosis.diagnose(parts, experiment.take(members, index))  # pyright: ignore
    name = experiment.members[index].name
    return f"member {name} diverged and stands still; the others go on: {found}"


def _require_a_survivor(experiment: PopulationExperiment, loop: PopulationLoop) -> None:
    """Raise `Diverged` if no member is left."""
    if all(member.diverged is not None for member in loop):
        pairs = zip(experiment.members, loop, strict=True)
        steps = ", ".join(f"{one.name} at step {each.diverged}" for one, each in pairs)
        raise Diverged(
            f"every member of the population diverged ({steps}). Try lower learning "
            "rates, or clip_by_global_norm as the first entry of optimizer."
        )


def _with_active(members: TrainState, loop: PopulationLoop) -> TrainState:
    """Return the states in which members that are not active stand still."""
    active = jnp.asarray([member.active for member in loop])
    return members._replace(healthy=members.healthy & active)


@jax.jit
def _select(which: Array, new: Any, old: Any) -> Any:
    """Return the members of `new` where `which`, and of `old` elsewhere."""

    def select(one: Array, other: Array) -> Array:
        return jnp.where(which.reshape(-1, *(1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(select, new, old)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(
    task: Task, model: Layer, shared: bool, params: Params, carry: Carry, batch: Batch
) -> tuple[Carry, Sums]:
    """Return the carry `[N, ...]` and the sums `[N]` of a validation batch."""

    def of_member(params: Params, carry: Carry, batch: Batch) -> tuple[Carry, Sums]:
        losses, carry = task.loss(model, params, carry, batch)
        return carry, losses.sums()

    return jax.vmap(of_member, in_axes=(0, 0, None if shared else 0))(
        params, carry, batch
    )


def _zero_carries(
    task: Task, model: Layer, shared: bool, params: Params, batch: Batch
) -> Carry:
    def of_member(params: Params, batch: Batch) -> Carry:
        return zero_carry(task, model, params, batch)

    axes = (0, None if shared else 0)
    size = len(jax.tree.leaves(params)[0])
    return jax.vmap(of_member, in_axes=axes, axis_size=size)(params, batch)


def _stacked(batches: Iterable[Batch]) -> Batch:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _means(sums: Sequence[Mapping[str, Any]], index: int) -> dict[str, float]:
    """Return the weighted means of one member."""
    total = {
        name: math.fsum(float(row[name][index]) for row in sums) for name in sums[0]
    }
    weight = total.pop("weight")
    if weight == 0:
        raise BadInput(
            "validation: got the weight 0 for all losses, expected at least one loss "
            "with a weight; check the weights that the task returns"
        )
    return {name: value / weight for name, value in total.items()}


def _datasets(first: "Experiment", own: Sequence[RunConfig]) -> tuple[Dataset, ...]:
    """Return the data of each member; members of one seed share it."""
    by_seed: dict[int, Dataset] = {first.config.seed: first.dataset}
    with_seed = getattr(first.dataset, "with_seed", None)
    for config in own:
        if config.seed not in by_seed:
            by_seed[config.seed] = (
                with_seed(config.seed) if with_seed else first.task.data(config)
            )
    return tuple(by_seed[config.seed] for config in own)


def _paths(config: RunConfig, key: str) -> tuple[sections.KeyPath, ...]:
    """Return the paths in the optimizer of the numbers that a key of the grid sets.

    Raises:
        BadInput: there are none.
    """
    if key == sections.LEARNING_RATE:
        try:
            return tuple(learning_rate_paths(config.optimizer))
        except SourceError as error:
            raise BadInput(f"population.grid: {key}: {error}") from None
    value: Any = config.optimizer
    for part in sections.key_path(key):
        try:
            value = value[part]
        except (LookupError, TypeError):
            value = None
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = "no number" if value is None else describe(value)
        raise BadInput(
            f"population.grid: got {key}, which is {found} in the config, expected a "
            "key of optimizer with a number; write one there, for example "
            "optimizer=[{adam: {learning_rate: 0.01}}] for the key "
            "optimizer.0.adam.learning_rate, or use jaxlstm sweep"
        )
    return (sections.key_path(key),)


def _cannot_vary(config: RunConfig, error: Exception) -> BadInput:
    assert config.population is not None
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BadInput(
        f"population.grid: Optax needs fixed numbers for "
        f"{', '.join(config.population.grid)} ({first}); vary them with jaxlstm sweep"
    )
