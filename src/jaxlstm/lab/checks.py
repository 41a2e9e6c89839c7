"""Check a config without training: data, parameters, memory."""

import jax

from jaxlstm.lab.config import schema
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.training.experiment import Experiment
from jaxlstm.lab.training.state import train_step


def check(config: Config) -> dict[str, str]:
    """Return the facts of a config without training: data, parameters, memory.

    Raises:
        BadInput: for whatever would stop the run before its first step.
    """
    why = splits.split(config).why
    config = splits.settled(config)
    hosts = splits.number(config.training)
    with devices.using(config.device, hosts=hosts) as device:
        experiment, training = Experiment.build(config), config.training
        return {
            "device": device.device_kind,
            "shards": f"{splits.described(config, device)} ({why})",
            **experiment.task.facts(config, experiment.dataset),
            "cell": _cell(config.model),
            "parameters": f"{experiment.parameters():,}",
            "memory": _memory(experiment),
            "steps": f"{training.steps:,}, {experiment.epochs():.1f} epochs",
        }


def _cell(model: schema.Model) -> str:
    """Return the cell's name and the wrappers that the config puts around it."""
    around = [key for key in schema.WRAPPERS if getattr(model, key, None)]
    name = model.cell.name if hasattr(model, "cell") else "chosen by the task"
    return ", ".join([name, *(f"{key} {getattr(model, key)}" for key in around)])


def _memory(experiment: Experiment) -> str:
    """Return the memory of one training step by XLA's analysis of the program."""
    batch = experiment.dataset.batch(0)
    state = jax.eval_shape(experiment.initial_state)
    step = jax.jit(train_step, static_argnums=(0, 1, 2), donate_argnums=3)
    made = (experiment.task, experiment.model, experiment.optimizer)
    found = step.lower(*made, state, batch).compile().memory_analysis()
    if found is None:
        return "unknown: this device has no memory analysis"
    size = found.argument_size_in_bytes + found.output_size_in_bytes
    size += found.temp_size_in_bytes - found.alias_size_in_bytes
    size += experiment.shard_bytes()
    return f"{size / 1e6:,.0f} MB for a training step, by XLA's own analysis"
