"""What a config asks for, found out without training: data, parameters, memory."""

import jax

from jaxlstm.lab.config import Config, schema
from jaxlstm.lab.parallel import devices, splits
from jaxlstm.lab.training.experiment import Workbench
from jaxlstm.lab.training.loop import train_step


def check(config: Config) -> dict[str, str]:
    """The facts of a config as rows: tokens, parameters, memory, epochs.

    Errors: `BadInput` for whatever would stop the run before its first step.
    """
    why = splits.split(config).why
    config = splits.settled(config)
    hosts = splits.number(config.training)
    with devices.using(config.device, hosts=hosts) as device:
        bench = Workbench.of(config)
        parts, training = bench.corpus.description, config.training
        return {
            "device": device.device_kind,
            "shards": f"{splits.described(config, device)} ({why})",
            "data": f"{parts['source']}, {', '.join(parts['paths'])}",
            "training tokens": f"{parts['train']['tokens']:,}",
            "validation tokens": f"{parts['validation']['tokens']:,}",
            "vocabulary": f"{bench.corpus.vocabulary.size:,}",
            "cell": _cell(config.model),
            "parameters": f"{bench.parameters():,}",
            "memory": _memory(bench),
            "steps": f"{training.steps:,}, {bench.epochs():.1f} epochs",
        }


def _cell(model: schema.Model) -> str:
    """The cell's name, and what the config puts around it."""
    around = [key for key in schema.WRAPPERS if getattr(model, key)]
    return ", ".join(
        [model.cell.name, *(f"{key} {getattr(model, key)}" for key in around)]
    )


def _memory(bench: Workbench) -> str:
    """One training step: state, gradients and all that lies between."""
    batch = bench.streams.batch(0)
    state = jax.eval_shape(bench.start)
    step = jax.jit(train_step, static_argnums=(0, 1), donate_argnums=2)
    compiled = step.lower(bench.model, bench.optimizer, state, batch).compile()
    found = compiled.memory_analysis()
    if found is None:
        return "not told by this device"
    size = found.argument_size_in_bytes + found.output_size_in_bytes
    size += found.temp_size_in_bytes - found.alias_size_in_bytes + bench.copies()
    return f"{size / 1e6:,.0f} MB for a training step, by XLA's own analysis"
