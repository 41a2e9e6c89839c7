"""Number of shards that a batch is split into, and its description."""

from typing import NamedTuple

import jax

from jaxlstm.lab.config import schema
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.parallel import devices
from jaxlstm.lab.parallel.devices import Device

# Measured on 2 and 4 cores with the shipped configs and around them: below so much work
# a step, calling several programs takes the time that they save; with fewer sequences a
# shard, or weights larger than a core's cache, each core is kept waiting for weights.
LEAST_WORK = 3e8
FEWEST_SEQUENCES = 4
MOST_UNITS = 512


class Split(NamedTuple):
    """A number of shards, and why it is that."""

    shards: int
    why: str


def choose(config: Config, at_most: int) -> Split:
    """The number of shards that `auto` stands for, with so many devices at hand.

    The largest divisor of the batch size that leaves each shard enough sequences, or 1
    where splitting does not pay.

    >>> choose(Config(), 4)
    Split(shards=4, why='4 can compute side by side')
    >>> choose(Config(), 3).shards
    2
    """
    size, model = config.training.batch_size, config.model
    if at_most < 2:
        return Split(1, "there is one device")
    if not hasattr(model, "embedding_size"):
        return Split(1, "auto knows the work of language models only")
    if model.engine == "native":
        return Split(1, "the native engine uses all cores by itself")
    if model.hidden_size > MOST_UNITS:
        return Split(1, f"more than {MOST_UNITS} units are faster unsplit")
    if _work(config) < LEAST_WORK:
        return Split(1, "a step is too little work to be split")
    largest = min(at_most, size // FEWEST_SEQUENCES)
    divisors = [n for n in range(2, largest + 1) if size % n == 0]
    if not divisors:
        return Split(
            1, f"a batch of {size} has no shards of {FEWEST_SEQUENCES} or more"
        )
    return Split(divisors[-1], f"{at_most} can compute side by side")


def number(training: schema.Training) -> int:
    """Return the number of shards; 1 for an `auto` that no run has resolved."""
    return 1 if training.shards == "auto" else training.shards


def split(config: Config) -> Split:
    """Return the number of shards; `auto` depends on the available devices.

    Raises:
        BadInput: The config's device is not available.
    """
    if config.training.shards != "auto":
        return Split(config.training.shards, "training.shards says so")
    hoped = choose(config, devices.cores())
    devices.provide(hoped.shards)
    device = devices.find(config.device)
    if device.platform == "cpu" and hoped.shards == 1:
        return hoped
    return choose(config, devices.side_by_side(device))


def settled(config: Config) -> Config:
    """The config with a number in the place of `training.shards: auto`.

    Errors: `BadInput`, as for `split`.
    """
    shards = split(config).shards
    training = config.training.model_copy(update={"shards": shards})
    return config.model_copy(update={"training": training})


def described(config: Config, device: Device) -> str:
    """The split in words: so many shards of so many sequences, on what."""
    shards, size = number(config.training), config.training.batch_size
    if shards == 1:
        return f"1, the whole batch of {size} sequences"
    there = len(jax.local_devices(backend=device.platform))
    words = f"{shards} of {size // shards} sequences"
    if there < shards:
        return f"{words}, in turn on {there}, as JAX began with no more devices"
    if device.platform != "cpu":
        return f"{words} on {shards} of {there} devices"
    return f"{words} on {min(shards, devices.cores())} of {devices.cores()} cores"


def _work(config: Config) -> float:
    """Floating-point operations of a training step, of an LSTM of these sizes."""
    model, training = config.model, config.training
    tokens = training.batch_size * training.window
    below = [model.embedding_size] + [model.hidden_size] * (model.layers - 1)
    return 24.0 * tokens * model.hidden_size * sum(d + model.hidden_size for d in below)
