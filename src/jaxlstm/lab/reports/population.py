"""The results of a population: mean, interval and ranking, as text and as a picture."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxlstm as jl
from jaxlstm.lab.runs import MemberResult
from jaxlstm.lab.sinks.formatting import SCORES, Record
from jaxlstm.lab.tasks.base import Metric, Picture


def mean_record(records: Sequence[Record]) -> dict[str, Any]:
    """Return the mean over members of the records of one step.

    `members` is their number, and `spread` has half the width of the 95 % confidence
    interval of each mean (`interval`).

    Example:
        >>> row = {"step": 9, "split": "train", "member": 0, "loss": 1.0}
        >>> mean_record([row, row | {"member": 1, "loss": 3.0}])["loss"]
        2.0
    """
    first = records[0]
    found: dict[str, Any] = {"step": first["step"], "split": first["split"]}
    found["members"] = len(records)
    spread = {}
    for key in first:
        if key not in ("step", "split", "member"):
            found[key], half = interval([record[key] for record in records])
            if not math.isnan(half):
                spread[key] = half
    return found | {"spread": spread}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % confidence interval.

        mean ± t s / sqrt(n)     t: 97.5 % quantile of Student's t, n - 1 degrees

    The half width is NaN for a single value.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 4)
        (2.0, 2.4841)
    """
    if len(values) < 2:
        return values[0], math.nan
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.975))
    deviation = statistics.stdev(values)
    return statistics.fmean(values), quantile * deviation / math.sqrt(len(values))


def in_shown_unit(
    results: Sequence[MemberResult], records: Sequence[Record], primary: Metric
) -> tuple[list[MemberResult], str]:
    """Return the results with the unit in which their score is shown, and its name.

    A loss is shown in the last unit of `SCORES` that its record has, as in the summary
    of a single run; any other metric as it is.

    Example:
        >>> one = MemberResult("0", 0, {}, 1.5, 9, "finished")
        >>> record = {"member": 0, "split": "validation", "step": 9, "loss": 1.5}
        >>> records = [record | {"bits_per_byte": 2.2}]
        >>> found, name = in_shown_unit([one], records, Metric("loss"))
        >>> found[0].best_value, name
        (2.2, 'bits per byte')
    """
    known = [field.key for field in SCORES]
    validations = {
        (record["member"], record["step"]): record
        for record in records
        if record["split"] == "validation"
    }
    found, name = [], primary.name
    for one in results:
        record = validations.get((int(one.name), one.best_step), {})
        units = [key for key in known if key in record]
        if primary.name in units:
            name, one = units[-1], one._replace(best_value=record[units[-1]])
        found.append(one)
    return found, name.replace("_", " ")


def summary(results: Sequence[MemberResult], score: str) -> dict[str, str]:
    """Return the mean over members, and the best and worst member, as rows of a table.

    Members that diverged do not count; their number is stated. With a grid there is one
    mean for each of its points, over the seeds.
    """
    alive = [
        one for one in results if not one.diverged and not math.isnan(one.best_value)
    ]
    lost = [f"{one.name} ({one.status})" for one in results if one.diverged]
    rows = {"members": f"{len(results)}"}
    if lost:
        rows["diverged"] = ", ".join(sorted(lost))
    label = "best validation"
    for point in dict.fromkeys(tuple(one.values.items()) for one in alive):
        values = [one.best_value for one in alive if tuple(one.values.items()) == point]
        where = ", ".join(f"{_short(key)} {value:g}" for key, value in point)
        rows[f"{label}{f', {where}' if where else ''}"] = _mean(values, score)
    if alive:
        best, worst = alive[0], alive[-1]
        rows["best member"] = (
            f"{best.name}, {best.best_value:.4g} (step {best.best_step})"
        )
        rows["worst member"] = f"{worst.name}, {worst.best_value:.4g}"
    return rows


def ranking_table(results: Sequence[MemberResult], score: str) -> str:
    """Return one line a member, the best first.

    Args:
        results: the members, ranked.
        score: the name of their score.
    """
    keys = list(results[0].values)
    header = ["member", "seed", *map(_short, keys), score, "step", "status"]
    lines = [
        [
            one.name,
            str(one.seed),
            *(f"{one.values[key]:g}" for key in keys),
            "none" if math.isnan(one.best_value) else f"{one.best_value:.5g}",
            "" if one.best_step is None else str(one.best_step),
            one.status,
        ]
        for one in results
    ]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            word.ljust(width) for word, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in [header, *lines]
    )


def pictures(
    results: Sequence[MemberResult], records: Sequence[Record], primary: Metric
) -> list[Picture]:
    """Return the pictures of a population: bands of its training and validation."""
    drawn = []
    for split, key in dict.fromkeys(
        [("train", "loss"), ("validation", "loss"), ("validation", primary.name)]
    ):
        steps, curves = bands(results, records, split, key)
        if not curves:
            continue
        caption = f"{split.capitalize()} {key.replace('_', ' ')} of the members."
        label = f"{split} {key.replace('_', ' ')}"
        drawn.append(
            Picture(
                f"members_{split}_{key}.png",
                caption,
                (8, 4.5),
                lambda ax, s=steps, c=curves, label=label: jl.plots.loss_bands(
                    c, steps=s, label=label, ax=ax
                ),
            )
        )
    return drawn


def bands(
    results: Sequence[MemberResult], records: Sequence[Record], split: str, key: str
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Return the steps, and the values `[seeds, steps]` of each point of the grid.

    A member that stopped early keeps its last value; one that diverged has NaN from
    there on.
    """
    rows = [r for r in records if r.get("split") == split and r.get(key) is not None]
    steps = sorted({record["step"] for record in rows})
    found: dict[int, dict[int, float]] = {}
    for record in rows:
        found.setdefault(record["member"], {})[record["step"]] = record[key]
    curves: dict[str, list[list[float]]] = {}
    for one in sorted(results, key=lambda result: result.name):
        where = ", ".join(f"{_short(k)} {v:g}" for k, v in one.values.items())
        own, values, last = found.get(int(one.name), {}), [], math.nan
        for step in steps:
            last = own.get(step, math.nan if one.diverged else last)
            values.append(last)
        curves.setdefault(where or "members", []).append(values)
    arrays = {name: np.array(each, float) for name, each in curves.items()}
    return steps, arrays if steps else {}


def _mean(values: Sequence[float], score: str) -> str:
    mean, half = interval(values)
    if math.isnan(half):
        return f"{score} {mean:.4g} (1 member)"
    return f"{score} {mean:.4g} ± {half:.2g} (mean of {len(values)}, 95 % interval)"


def _short(key: str) -> str:
    """Return the last part of a key, which names it in a table."""
    return key.rpartition(".")[2]
