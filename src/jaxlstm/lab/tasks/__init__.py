"""The tasks that a config may name with `task:`."""

import importlib

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, did_you_mean, join_names
from jaxlstm.lab.config.schema import RunConfig
from jaxlstm.lab.config.schema import register as register_config
from jaxlstm.lab.tasks.base import Artifact as Artifact
from jaxlstm.lab.tasks.base import Dataset as Dataset
from jaxlstm.lab.tasks.base import Losses as Losses
from jaxlstm.lab.tasks.base import Metric as Metric
from jaxlstm.lab.tasks.base import Picture as Picture
from jaxlstm.lab.tasks.base import StepCost as StepCost
from jaxlstm.lab.tasks.base import Sums as Sums
from jaxlstm.lab.tasks.base import Task as Task

# Each task, or the module whose `TASK` it is. The module is imported when the task is
# first used, as it imports what only this task needs.
TASKS: dict[str, Task | str] = {
    "classify": "jaxlstm.lab.tasks.classification.classify",
    "ctc": "jaxlstm.lab.tasks.classification.transcribe",
    "forecast": "jaxlstm.lab.tasks.forecasting",
    "language_modelling": "jaxlstm.lab.tasks.language_modelling",
    "memory": "jaxlstm.lab.tasks.memory",
    "tag": "jaxlstm.lab.tasks.classification.tag",
}


def register(task: Task, config: type[RunConfig]) -> None:
    """Register a task and its config model.

    Args:
        task: an object with the methods of `Task`.
        config: its config model; the default of its field `task` is `task.name`.

    Raises:
        BadInput: the task lacks a member of `Task`, or the config is not its own.
    """
    from jaxlstm.lab.tasks import contract

    contract.require_interface(task)
    contract.require_config(task.name, config, RunConfig)
    TASKS[task.name] = task
    register_config(config)


def get(name: str) -> Task:
    """Return the task of a name.

    Raises:
        BadInput: no task has this name.

    Example:
        >>> get("language_modelling").primary.name
        'loss'
    """
    if name not in TASKS:
        expected = join_names(TASKS) + did_you_mean(name, TASKS)
        raise BadInput(f"task: got {describe(name)}, expected {expected}")
    task = TASKS[name]
    if isinstance(task, str):
        task = TASKS[name] = importlib.import_module(task).TASK
    return task
