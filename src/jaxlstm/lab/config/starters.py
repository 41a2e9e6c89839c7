"""Commented starter configs, one per task."""

from importlib import resources

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, did_you_mean, join_names

_TEMPLATES = resources.files("jaxlstm.lab.config") / "templates"

TASKS = tuple(
    sorted(
        file.name.removesuffix(".yaml")
        for file in _TEMPLATES.iterdir()
        if file.name.endswith(".yaml")
    )
)
"""Names of the tasks that have a starter config: one template for each."""


def starter(task: str) -> str:
    """Return the YAML text of a task's commented config.

    Raises:
        BadInput: `task` is not a known task.

    Example:
        >>> starter("language_modelling").startswith("# A language model")
        True
    """
    name = task.replace("-", "_")
    if name not in TASKS:
        expected = join_names(TASKS) + did_you_mean(name, TASKS)
        raise BadInput(f"task: got {describe(task)}, expected {expected}")
    return (_TEMPLATES / f"{name}.yaml").read_text()
