"""Commented configs to start from, one for each task."""

from importlib import resources

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import guess

TASKS = ("language_modelling",)


def starter(task: str) -> str:
    """The YAML text of a task's commented config.

    Errors: `BadInput` for a task that is not known.

    >>> starter("language_modelling").startswith("# A language model")
    True
    """
    name = task.replace("-", "_")
    if name not in TASKS:
        tasks = ", ".join(TASKS)
        raise BadInput(
            f'no task is called "{task}"{guess(name, TASKS) or "."} There is {tasks}.'
        )
    return (
        resources.files("jaxlstm.lab.config") / "templates" / f"{name}.yaml"
    ).read_text()
