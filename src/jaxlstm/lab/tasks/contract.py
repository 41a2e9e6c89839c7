"""Checks that a task and its dataset keep to `Task` and `Dataset`.

They are made when a task is registered and before its first step, because most mistakes
would otherwise appear at the first validation or when a run is resumed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.tasks.base import Dataset, Metric, Spec, Task


def require_interface(task: Any) -> None:
    """Raise `BadInput` unless a task has the members of `Task`."""
    name = getattr(task, "name", None)
    if isinstance(task, type) or not isinstance(name, str):
        kind = task.__name__ if isinstance(task, type) else type(task).__name__
        got = f"the class {kind}" if isinstance(task, type) else f"{kind} without name"
        raise BadInput(f"task: got {got}, expected an object with a name; see Task")
    public = {key: value for key, value in vars(Task).items() if key[0] != "_"}
    methods = [key for key, value in public.items() if callable(value)]
    missing = [key for key in Task.__annotations__ if not hasattr(task, key)]
    missing += [key for key in methods if not callable(getattr(task, key, None))]
    if missing:
        raise _error(
            name, f"an object without {', '.join(missing)}", "every member of Task"
        )
    if not isinstance(task.primary, Metric) or task.primary.mode not in ("min", "max"):
        expected = 'a Metric with the mode "min" or "max"'
        raise _error(name, f"primary {task.primary!r:.60}", expected)


def require_config(name: str, config: Any, base: type) -> None:
    """Raise `BadInput` unless `config` derives from `base` and names the task."""
    if not (isinstance(config, type) and issubclass(config, base)):
        expected = f"a subclass of {base.__name__}"
        raise _error(name, f"the config {config!r:.60}", expected)
    field = getattr(config, "model_fields")["task"]  # noqa: B009
    default = "no default" if field.is_required() else describe(field.default)
    if field.default != name:
        got = f"{config.__name__}, whose field task has {default}"
        raise _error(name, got, f"the default {describe(name)}")


def require_dataset(task: Task, dataset: Dataset) -> None:
    """Raise `BadInput` unless a dataset has hashes and a validation batch."""
    found = dataset.description
    hashes = found.get("sha256") if isinstance(found, Mapping) else None
    if isinstance(hashes, str) or not isinstance(hashes, Sequence) or not hashes:
        raise _error(
            task.name,
            f"a description of the data with sha256 {describe(hashes)}",
            "a list of hashes, by which a resumed run recognizes its data",
        )
    if next(iter(dataset.eval_batches(full=False)), None) is None:
        raise _error(task.name, "no validation batches", "at least one")


def require_metrics(task: Task, spec: Spec, extra: Iterable[str]) -> None:
    """Raise `BadInput` unless the metrics of training and validation are complete.

    Args:
        task: the task.
        spec: the spec of its dataset.
        extra: the names in `Losses.extra`.
    """
    for split, means, needed in (
        ("training", ["loss"], "loss"),
        ("validation", ["loss", *extra], task.primary.name),
    ):
        try:
            found = task.metrics(spec, dict.fromkeys(means, 0.5))
        except KeyError as error:
            got = f"KeyError {error} from metrics in {split}"
            expected = f"metrics of the only means in {split}: {', '.join(means)}"
            raise _error(task.name, got, expected) from error
        except (ArithmeticError, ValueError):
            continue  # The made-up means may be outside of the domain of a function.
        if needed not in found:
            got = f"the metrics {', '.join(found) or 'of no name'} in {split}"
            raise _error(task.name, got, f"{needed} among them")


def _error(name: str, got: str, expected: str) -> BadInput:
    return BadInput(f"task {name}: got {got}, expected {expected}")
