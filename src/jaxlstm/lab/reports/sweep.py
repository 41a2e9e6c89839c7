"""The report of a sweep: a table of its trials, and a picture of each searched key."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jaxlstm as jl
from jaxlstm.lab.tasks.base import Metric, Picture


class Trial(NamedTuple):
    """One trial of a sweep.

    Attributes:
        number: its number, which names its run directory.
        values: the value of each key of the space.
        value: its best validation, None if it did not finish.
        status: "finished", "pruned", "diverged: ..." or "failed: ...".
        validations: the primary metric by step.
    """

    number: int
    values: Mapping[str, Any]
    value: float | None
    status: str
    validations: Mapping[int, float]


def ranked(trials: Sequence[Trial], primary: Metric) -> list[Trial]:
    """Return the trials, the best first and those without a value last."""
    sign = 1 if primary.mode == "min" else -1

    def rank(trial: Trial) -> tuple[bool, float]:
        return trial.value is None, 0.0 if trial.value is None else sign * trial.value

    return sorted(trials, key=rank)


def table(trials: Sequence[Trial], primary: Metric) -> str:
    """Return one line a trial."""
    keys = list(trials[0].values)
    lines = [["trial", *(key.rpartition(".")[2] for key in keys), primary.name]]
    for one in trials:
        value = one.status.split(":")[0] if one.value is None else f"{one.value:.5g}"
        row = [_text(one.values.get(key)) for key in keys]
        lines.append([str(one.number), *row, value])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True))
        for line in lines
    )


def page(
    name: str, trials: Sequence[Trial], primary: Metric, drawn: Sequence[Picture]
) -> str:
    """Return the text of `report.md`.

    Args:
        name: the name of the sweep.
        trials: its trials, the best first.
        primary: the metric that ranks them.
        drawn: pictures in `plots/`.
    """
    shown = [f"![{p.caption}](plots/{p.name})\n\n{p.caption}" for p in drawn]
    body = f"```text\n{table(trials, primary)}\n```"
    failed = [f"- trial {t.number}: {t.status}" for t in trials if ":" in t.status]
    parts = [f"# {name}", body, *shown, "\n".join(failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def pictures(trials: Sequence[Trial], primary: Metric) -> list[Picture]:
    """Return a picture of the validations of all trials by step."""
    runs = {
        f"trial {one.number}": [
            {"step": step, "split": "validation", primary.name: value, "loss": value}
            for step, value in sorted(one.validations.items())
        ]
        for one in trials[:6]
        if one.validations
    }
    if not runs:
        return []
    label = primary.name.replace("_", " ")

    def draw(ax: Any) -> None:
        jl.plots.compare_runs(runs, best=("loss", primary.mode), label=label, ax=ax)

    caption = f"Validation {label} of the best trials."
    return [Picture("trials.png", caption, (8, 4.5), draw)]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
