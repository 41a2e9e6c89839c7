"""Learning curves of one run or several."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from jaxlstm.plots import bands
from jaxlstm.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    STYLES,
    VERMILION,
    add_legend,
    new_axes,
    plain_log_ticks,
    prefix_errors,
    split_panels,
    style_axes,
)

# A line of `metrics.jsonl`: a mapping with `step`, `split`, `loss` and other metrics.
# None stands for a number that is not finite.
Record = Mapping[str, Any]

# A metric and whether its smallest or largest value is the best.
Best = tuple[str, Literal["min", "max"]]


class _Score(NamedTuple):
    """Metric to plot: its key in a record, its axis label and its unit."""

    key: str
    label: str
    unit: str


_SCORES = (
    _Score("bits_per_character", "bits per character", "bits"),
    _Score("bits_per_byte", "bits per byte", "bits"),
    _Score("perplexity", "perplexity per token", ""),
    _Score("loss", "loss", ""),
)


@prefix_errors
def loss_curve(
    records: Sequence[Record],
    *,
    best: tuple[str, Literal["min", "max"]] | None = None,
    label: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """Plot training and validation against the step, with the best validation marked.

    The plotted metric is the first of bits per character, bits per byte, perplexity and
    loss that training and validation have. If the first steps are much worse than the
    rest, the y axis is cut off above and the first value is written there.

    The training curve may rise while the model improves: each point is about other
    data, which may be harder. Validation is about the same data each time.

    Args:
        records: the records of a run, as in `metrics.jsonl`.
        best: the metric that selects the best validation, and "min" or "max", such as
            `("accuracy", "max")`; None for the lowest value of the plotted metric.
        label: name and unit of the loss, where the loss is plotted.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: no record has the metric of training or validation, or `best` is
            not such a pair.

    Example:
        >>> records = [{"step": n, "split": "train", "loss": 9 / n} for n in (1, 2, 3)]
        >>> loss_curve(records).get_xlabel()
        'step'
    """
    score = _score(records, loss=label, splits=("train", "validation"))
    train = _series(records, "train", score.key)
    validation = _series(records, "validation", score.key)
    if not train.values.size + validation.values.size:
        raise ValueError(
            f"records: got {len(records)} without {score.key} of training or "
            'validation, expected records such as {"step": 1, "split": "train", '
            '"loss": 2.3}.'
        )
    ax = new_axes(ax)
    dot = "." if train.values.size == 1 else None
    name = "training (batches as they are read)"
    ax.plot(*train, color=BLUE, lw=1.0, marker=dot, label=name)
    if validation.values.size:
        name = "validation (always the same data)"
        ax.plot(*validation, color=INK, lw=1.8, marker="o", ms=4, label=name)
    _mark_best(ax, validation, _best(records, score, best), score)
    _cut_descent(ax, [train, validation])
    ax.set(xlabel="step", ylabel=score.label)
    # Above the axes, where no curve is: a rising one would end below it.
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    return style_axes(ax)


@prefix_errors
def compare_runs(
    runs: Mapping[str, Sequence[Record]],
    *,
    best: tuple[str, Literal["min", "max"]] | None = None,
    label: str = "loss",
    ax: Axes | None = None,
) -> Axes:
    """Plot the validation curves of several runs, each labelled with its best value.

    All runs are drawn in the same metric: the first of bits per character, bits per
    byte, perplexity and loss that the validations of every run have.

    Args:
        runs: the records of each run by name.
        best: as for `loss_curve`.
        label: as for `loss_curve`.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: runs is empty, or `best` is not a pair as for `loss_curve`.

    Example:
        >>> run = [{"step": 9, "split": "validation", "loss": 1.5}]
        >>> compare_runs({"a": run, "b": run}).get_ylabel()
        'validation loss'
    """
    bands.check_mapping("runs", runs, '{"one": records, "other": records}')
    ax = new_axes(ax)
    score = _score(*runs.values(), loss=label, splits=("validation",))
    colours = (INK, VERMILION, BLUE, GREEN, PURPLE, ORANGE)
    curves = [_series(run, "validation", score.key) for run in runs.values()]
    for index, (name, curve) in enumerate(zip(runs, curves, strict=True)):
        found = _best(runs[name], score, best)
        words = f"{name}: best {found.words('.4g')}" if curve.values.size else name
        style = STYLES[index % len(STYLES)]
        colour = colours[index % len(colours)]
        ax.plot(*curve, color=colour, ls=style, lw=1.6, marker="o", ms=3, label=words)
    _cut_descent(ax, curves)
    ax.set(xlabel="step", ylabel=f"validation {score.label}")
    add_legend(ax, len(curves), loc="upper right")
    return style_axes(ax)


@prefix_errors
def training_health(records: Sequence[Record], *, ax: Axes | None = None) -> Axes:
    """Plot the gradient norm and the learning rate against the step.

    If the norm grows while the loss does not fall, lower the learning rate or clip
    gradients.

    Args:
        records: the records of a run, as in `metrics.jsonl`.
        ax: the axes to split into panels; None for a new figure.

    Returns:
        The axes of the gradient norm.

    Raises:
        ValueError: the axes cannot be split.

    Example:
        >>> record = {"step": 1, "gradient_norm": 0.5, "learning_rate": 1e-3}
        >>> training_health([record]).get_ylabel()
        'gradient norm'
    """
    top, bottom = split_panels(new_axes(ax), [3, 2])
    norm = _series(records, "train", "gradient_norm")
    top.plot(*norm, color=BLUE, lw=1.0)
    top.set(ylabel="gradient norm")
    if (norm.values > 0).any():
        top.set_yscale("log")
        plain_log_ticks(top.yaxis)
    bottom.plot(*_series(records, "train", "learning_rate"), color=INK, lw=1.5)
    bottom.set(xlabel="step", ylabel="learning rate")
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    style_axes(bottom)
    return style_axes(top)


@prefix_errors
def loss_bands(
    runs: Mapping[str, ArrayLike],
    *,
    steps: ArrayLike | None = None,
    within: tuple[float, float] = (0.25, 0.75),
    label: str = "loss",
    logarithmic: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Plot the loss of several seeds as a band, for several models.

    The line is the median of the seeds at each step; by default the band leaves out
    the best and the worst quarter. A seed that diverged counts as the worst, and the
    legend shows how many did.

    Args:
        runs: by name, the losses `[seeds, steps]`; `[steps]` is one seed.
        steps: `[steps]`, the step of each loss; None for 1, 2, 3, ...
        within: the quantiles of the seeds that limit the band.
        label: name and unit of the loss.
        logarithmic: draw the losses on a logarithmic axis, for losses above 0.
        ax: the axes; None for a new figure.

    Raises:
        ValueError: runs is empty, an array has another shape, or the steps do not fit.

    Example:
        >>> losses = [[3.0, 2.0], [3.1, 2.2]]
        >>> loss_bands({"LSTM": losses}, label="loss (nats)").get_ylabel()
        'loss (nats)'
    """
    ax = new_axes(ax)
    curves = {}
    for name, run in bands.check_mapping("runs", runs, '{"LSTM": losses}').items():
        values = bands.as_rows(f'runs["{name}"]', run, "[steps] or [seeds, steps]")
        xs = _loss_steps(steps, values.shape[1], name)
        diverged = int((~np.isfinite(values[:, -1])).sum())
        note = f" ({diverged} of {len(values)} diverged)" if diverged else ""
        curves[f"{name}{note}"] = xs, values
    bands.draw(ax, curves, within, logarithmic=logarithmic)
    ax.set(xlabel="step", ylabel=label)
    return style_axes(ax)


def _loss_steps(steps: ArrayLike | None, count: int, name: str) -> NDArray[np.float64]:
    if steps is None:
        return np.arange(1, count + 1, dtype=np.float64)
    array = np.asarray(steps, float)
    if array.shape != (count,):
        raise ValueError(
            f"steps: got shape {list(array.shape)}, expected [{count}], one step for "
            f'each loss of runs["{name}"].'
        )
    return array


class _Curve(NamedTuple):
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def _series(records: Sequence[Record], split: str, key: str) -> _Curve:
    """Return steps and values of `key` in one split; None becomes NaN, a gap."""
    rows = [
        (record["step"], np.nan if record[key] is None else record[key])
        for record in records
        if record.get("split", "train") == split and key in record
    ]
    return _Curve(*np.array(rows, dtype=float).reshape(-1, 2).T)


def _score(*runs: Sequence[Record], loss: str, splits: Sequence[str]) -> _Score:
    """Return the first metric that every run has in each split it has records of.

    Args:
        runs: the records of each run.
        loss: the label of the loss.
        splits: the splits that are plotted.
    """
    parts = [
        [record for record in run if record.get("split", "train") == split]
        for run in runs
        for split in splits
    ]
    for score in _SCORES[:-1]:
        has = [any(score.key in record for record in part) for part in parts if part]
        if has and all(has):
            return score
    return _SCORES[-1]._replace(label=loss)


class _Validation(NamedTuple):
    """The best validation: its step, its plotted value, and the metric that chose it.

    Numbers that are missing or not finite are NaN.
    """

    step: float
    plotted: float
    metric: str
    value: float

    def words(self, precision: str, unit: str = "") -> str:
        """Return the plotted value if it is a unit of the metric, else its own value.

        Bits per character and perplexity are units of the loss.
        """
        if any(score.key == self.metric for score in _SCORES):
            return f"{self.plotted:{precision}} {unit}".rstrip()
        return f"{self.metric.replace('_', ' ')} {self.value:.4g}"


def _best(records: Sequence[Record], score: _Score, best: Best | None) -> _Validation:
    """Return the best validation; the first one if several are equal."""
    metric, mode = _checked(best) if best is not None else (score.key, "min")
    found = [
        record
        for record in records
        if record.get("split", "train") == "validation" and _finite(record.get(metric))
    ]
    if not found:
        return _Validation(math.nan, math.nan, metric, math.nan)
    choose = min if mode == "min" else max
    record = choose(found, key=lambda record: record[metric])
    plotted = record.get(score.key)
    if not _finite(plotted):
        plotted = math.nan
    return _Validation(record["step"], plotted, metric, record[metric])


def _checked(best: Best) -> Best:
    if len(best) != 2 or best[1] not in ("min", "max"):
        raise ValueError(
            f'best: got {best!r:.60}, expected a pair such as ("accuracy", "max").'
        )
    return best


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _mark_best(ax: Axes, curve: _Curve, best: _Validation, score: _Score) -> None:
    step, value = best.step, best.plotted
    if math.isnan(value):
        return
    ax.plot(step, value, marker="*", ms=13, color=VERMILION, mec=INK, ls="none")
    right = step > 0.4 * curve.steps.max()
    ax.annotate(
        f"best {best.words('.3f', score.unit)}\nat step {step:.0f}",
        (step, value),
        xytext=(-10 if right else 10, 26),
        textcoords="offset points",
        ha="right" if right else "left",
        bbox={"color": "white", "alpha": 0.8, "pad": 1},
    )


def _cut_descent(ax: Axes, curves: Sequence[_Curve]) -> None:
    """Limit the y axis to the values after the first 5 % of the steps."""
    steps, values = np.concatenate(curves, axis=1)
    finite = np.isfinite(values)
    if finite.sum() < 20:
        return
    low, first = values[finite].min(), values[finite].max()
    high = values[finite & (steps >= 0.05 * steps.max())].max()
    if first - low > 1.5 * (high - low):
        ax.set_ylim(low - 0.08 * (high - low), high + 0.05 * (high - low))
        ax.annotate(
            f"\u2191 first value {first:.3g}",
            (0.05 * steps.max(), 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(8, -4),
            textcoords="offset points",
            va="top",
            color=GREY,
        )
