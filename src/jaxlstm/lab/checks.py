"""Check a config without training a model."""

from typing import Any

import jax

from jaxlstm.engines import memory
from jaxlstm.lab import native, tasks
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.recurrent import WRAPPERS
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.state import train_step


def check(config: RunConfig) -> dict[str, str]:
    """Return the device, data sizes, parameters and memory that a config leads to.

    Raises:
        BadInput: training would fail before its first step.
    """
    if config.sweep is not None:
        configs.require_space(config)
    cost = tasks.get(config.task).step_cost(config)
    reason = splits.split(config, cost).reason
    config = native.resolve_engine(splits.resolve_shards(config, cost))
    cpu_devices = splits.cpu_devices(config)
    with devices.default_device(config.device, cpu_devices=cpu_devices) as device:
        experiment, members = _build(config)
        training = config.training
        return {
            "device": device.device_kind,
            "shards": f"{splits.describe(config, device)} ({reason})",
            **experiment.task.facts(config, experiment.dataset),
            "cell": _cell(config.model),
            "parameters": f"{experiment.parameters():,}",
            "memory": _memory(experiment),
            "steps": f"{training.steps:,}, {experiment.epochs():.1f} epochs",
            **members,
        }


def _build(config: RunConfig) -> tuple[Experiment, dict[str, str]]:
    """Return the parts of the run, of a population those of one member, and a row."""
    if config.population is None:
        return Experiment.build(config), {}
    from jaxlstm.lab.training.population import PopulationExperiment

    population = PopulationExperiment.build(config, Experiment.build)
    seeds = {member.seed for member in population.members}
    points = len(population.members) // len(seeds)
    count = f"{len(population.members)}: {len(seeds)} seeds"
    if config.population.grid:
        count += f" for each of {points} points of the grid"
    return population.first, {"members": f"{count}; the rest is of one member"}


def _cell(model: Any) -> str:
    """Return the cell's name and its wrappers."""
    wrappers = [key for key in WRAPPERS if getattr(model, key, None)]
    name = model.cell.name if hasattr(model, "cell") else "chosen by the task"
    return ", ".join([name, *(f"{key} {getattr(model, key)}" for key in wrappers)])


def _memory(experiment: Experiment) -> str:
    """Return the memory of one training step, from XLA's analysis of the program."""
    batch = experiment.dataset.batch(0)
    state = experiment.state_like
    step = jax.jit(train_step, static_argnums=(0, 1, 2), donate_argnums=3)
    static = (experiment.task, experiment.model, experiment.optimizer)
    analysis = step.lower(*static, state, batch).compile().memory_analysis()
    if analysis is None:
        return "unknown: this device has no memory analysis"
    size = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    size += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    size += experiment.shard_bytes()
    return f"{memory.show(size)} for a training step, by XLA's analysis"
