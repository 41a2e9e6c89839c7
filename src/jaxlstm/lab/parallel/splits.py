"""Number of shards that a batch is split into, and its description."""

from typing import NamedTuple

import jax

from jaxlstm.lab import native
from jaxlstm.lab.config.base import RunConfig, Training
from jaxlstm.lab.config.population import members
from jaxlstm.lab.parallel import devices
from jaxlstm.lab.parallel.costs import StepCost
from jaxlstm.lab.parallel.devices import Device

# Limits measured on 2 and 4 cores with the shipped configs and similar ones.
# With less work per step, calling several programs costs as much time as it saves.
LEAST_WORK = 3e8  # floating-point operations per step
# With fewer sequences per shard, or with weights that exceed a core's cache, the cores
# wait for weights.
FEWEST_SEQUENCES = 4
MOST_UNITS = 512


class Split(NamedTuple):
    """A number of shards, and the reason for it."""

    shards: int
    reason: str


def choose(
    config: RunConfig,
    cost: StepCost | None,
    devices_available: int,
    *,
    platform: str = "cpu",
) -> Split:
    """Return the number of shards for `training.shards: auto`.

    It is the largest divisor of the batch size that leaves each shard enough sequences,
    or 1 if shards would not be faster.

    Args:
        config: the config of the run.
        cost: the cost of a step, from `Task.step_cost`; None is one shard.
        devices_available: the number of devices that compute in parallel.
        platform: the platform of these devices.

    Example:
        >>> from jaxlstm.lab.config import Config
        >>> config = Config(model={"engine": "adjoint"})
        >>> cost = StepCost(operations=1e9, units=128)
        >>> choose(config, cost, 4)
        Split(shards=4, reason='4 devices compute in parallel')
        >>> choose(config, cost, 3).shards
        2
    """
    size = config.training.batch_size
    if config.population is not None:
        return Split(1, "the members of a population are not split")
    if devices_available < 2:
        return Split(1, "there is one device")
    if cost is None:
        return Split(1, f"the task {config.task} states no cost of a step")
    if platform == "cpu" and native.is_chosen(config):
        return Split(1, "the native engine uses all cores by itself")
    if cost.units > MOST_UNITS:
        return Split(1, f"more than {MOST_UNITS} units are faster in one shard")
    if cost.operations < LEAST_WORK:
        return Split(1, "a step is too little work for several shards")
    largest = min(devices_available, size // FEWEST_SEQUENCES)
    divisors = [n for n in range(2, largest + 1) if size % n == 0]
    if not divisors:
        return Split(
            1,
            f"a batch of {size} has no equal shards of {FEWEST_SEQUENCES} or more",
        )
    return Split(divisors[-1], f"{devices_available} devices compute in parallel")


def shard_count(training: Training) -> int:
    """Return the number of shards, or 1 for `auto`; see `resolve_shards`."""
    return 1 if training.shards == "auto" else training.shards


def cpu_devices(config: RunConfig) -> int:
    """Return as how many devices a run presents the CPU: one for each core it uses."""
    if config.population is None:
        return shard_count(config.training)
    count = len(members(config.population, config.seed))
    return min(count, devices.cores())


def split(config: RunConfig, cost: StepCost | None) -> Split:
    """Return the number of shards of a run; `auto` depends on the available devices.

    Args:
        config: the config of the run.
        cost: as for `choose`.

    Raises:
        BadInput: the config's device is not available.
    """
    if config.training.shards != "auto":
        return Split(config.training.shards, "set by training.shards")
    on_cores = choose(config, cost, devices.cores())
    devices.request_cpu_devices(max(on_cores.shards, cpu_devices(config)))
    device = devices.find(config.device)
    if device.platform == "cpu" and on_cores.shards == 1:
        return on_cores
    available = devices.parallel_count(device)
    return choose(config, cost, available, platform=device.platform)


def resolve_shards(config: RunConfig, cost: StepCost | None) -> RunConfig:
    """Return the config with `training.shards: auto` replaced by a number.

    Args:
        config: the config of the run.
        cost: as for `choose`.

    Raises:
        BadInput: as for `split`.
    """
    shards = split(config, cost).shards
    training = config.training.model_copy(update={"shards": shards})
    return config.model_copy(update={"training": training})


def describe(config: RunConfig, device: Device) -> str:
    """Describe the number of shards, their size, and the devices that compute them."""
    shards, size = shard_count(config.training), config.training.batch_size
    if shards == 1:
        return f"1, the whole batch of {size} sequences"
    available = len(jax.local_devices(backend=device.platform))
    words = f"{shards} of {size // shards} sequences"
    if available < shards:
        return (
            f"{words}, in turn on {available}; JAX was initialised with no more devices"
        )
    if device.platform != "cpu":
        return f"{words} on {shards} of {available} devices"
    return f"{words} on {min(shards, devices.cores())} of {devices.cores()} cores"
