"""Windows of time series: the split in time, scalers, and batches.

    train | validation | test                    times, the same for all series
    [--- context ---][-- horizon --]             a window belongs to the part in which
                                                 its whole horizon lies

The scaler of a series is fitted on its training part. A context may begin in the part
before: these values are known when the forecast is made.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.forecasting import ForecastConfig, Split
from jaxlstm.lab.data.frequency import Frequency
from jaxlstm.lab.data.series import (
    SeriesNames,
    SeriesSet,
    enough_rows,
    read_series,
    time_text,
)
from jaxlstm.lab.tasks.forecasting.models import Sizes, Windows

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

EVALUATION_ROWS = 512  # windows of a batch that is only evaluated


class Batch(NamedTuple):
    """Windows `[L + H, B]` and the weight of each `[B]`; 0 fills up a last batch."""

    windows: Windows
    weights: Any


class Spec(NamedTuple):
    """Facts about the data that a model and its forecasts depend on.

    Attributes:
        ids: names of the series.
        center: of the scaler of each series.
        scale: likewise; `scaled = (y - center) / scale`.
        season: steps of a season.
        missing: whether targets are missing, so that a model reads where.
        ends: the times at which training, validation and test end.
        names: names of the columns, as in a `SeriesSet`.
        covariates: center and scale of each column of `past`, `future` and `static`.
        frequency: name of the frequency.
        naive_error: mean absolute error of seasonal naive on the training part, one a
            series, for MASE.
    """

    ids: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    season: int
    missing: bool
    ends: tuple[str, str, str]
    names: Mapping[str, Any]
    covariates: Mapping[str, Any]
    frequency: str
    naive_error: tuple[float, ...]

    def sizes(self, horizon: int) -> Sizes:
        """Return the sizes of a model's inputs."""
        past, future, static = (
            len(self.names[key]) for key in ("past", "future", "static")
        )
        return Sizes(horizon, past, future, static, len(self.ids), self.missing)

    def series_names(self) -> SeriesNames:
        """Return the columns as the reader of series takes them."""
        names: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in self.names.items()
        }
        return SeriesNames(**names)


class Origins(NamedTuple):
    """Windows by their series `[n]` and the row of their first forecast `[n]`."""

    series: Ints
    row: Ints

    def __len__(self) -> int:
        """Return the number of windows, not of fields."""
        return len(self.series)


# -- split --------------------------------------------------------------------


def part_ends(times: np.ndarray, split: Split) -> tuple[Any, Any, Any]:
    """Return the first times after training, validation and test.

    Args:
        times: all times of all series, in any order.
        split: the section of a config.

    Raises:
        BadInput: a part is empty, or the parts do not fit in the times.

    Example:
        >>> ends = part_ends(np.arange(10), Split(train=0.5, validation=2))
        >>> [int(end) for end in ends]
        [5, 7, 10]
    """
    axis = np.unique(times)
    ends, begin = [], 0
    after = axis[-1] + (axis[-1] - axis[-2]) if len(axis) > 1 else axis[-1] + 1
    for name in PARTS:
        value = getattr(split, name)
        key = f"windows.split.{name}"
        if isinstance(value, str):
            end = int(np.searchsorted(axis, _time(key, value, axis)))
        elif value is None:
            end = len(axis)
        elif isinstance(value, float):
            end = begin + int(value * len(axis) + 1e-9)
        else:
            end = begin + value
        if end > len(axis):
            raise BadInput(
                f"{key}: got {describe(value)}, which ends {end - len(axis):,} times "
                f"after the last of {len(axis):,} ({time_text(axis[-1])}); reduce it "
                "or the parts before"
            )
        if end <= begin:
            until = time_text(axis[begin]) if begin < len(axis) else "the end"
            raise BadInput(
                f"{key}: got {describe(value)}, which leaves no times from {until} on, "
                "expected at least one"
            )
        ends.append(axis[end] if end < len(axis) else after)
        begin = end
    return (ends[0], ends[1], ends[2])


def _time(key: str, text: str, axis: np.ndarray) -> Any:
    try:
        if not np.issubdtype(axis.dtype, np.datetime64):
            return int(text)
        return np.datetime64(text.replace(" ", "T")).astype(axis.dtype)
    except ValueError:
        raise BadInput(
            f"{key}: got {describe(text)}, expected a fraction, a number of times or a "
            f"time such as {describe(time_text(axis[len(axis) // 2]))}"
        ) from None


def part_rows(series: SeriesSet, ends: tuple[Any, Any, Any]) -> Ints:
    """Return `[N, 4]`: the rows at which each series begins and its parts end.

    A part ends with the last target at the latest.
    """
    found = np.empty((len(series.ids), 4), np.int64)
    for k, begin in enumerate(series.offsets[:-1]):
        end = begin + series.target_lengths[k]
        times = series.times[begin:end]
        found[k] = begin, *(begin + np.searchsorted(times, list(ends)))
    return found


def origins(rows: Ints, part: Part, *, context: int, horizon: int) -> Origins:
    """Return the windows of a part, by series and then by time.

    The horizon of a window lies in the part as a whole, and its context in the series.

    Args:
        rows: of `part_rows`.
        part: the part.
        context: L.
        horizon: H.

    Example:
        >>> rows = np.array([[0, 8, 12, 20]])
        >>> origins(rows, "train", context=4, horizon=3).row
        array([4, 5])
        >>> origins(rows, "validation", context=4, horizon=3).row
        array([8, 9])
    """
    at = PARTS.index(part)
    first = np.maximum(rows[:, at], rows[:, 0] + context)
    counts = np.maximum(rows[:, at + 1] - horizon + 1 - first, 0)
    series = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return Origins(series, np.repeat(first, counts) + within)


# -- scaling ------------------------------------------------------------------


def fit_scaler(
    target: Floats, rows: Ints, kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return center and scale of each series, from its training part only.

    A series that is constant there has the scale 1.

    Args:
        target: `[rows]`.
        rows: of `part_rows`.
        kind: "standard", "mean" or "none".

    Example:
        >>> target = np.array([1.0, 3.0, 100.0, 100.0], np.float32)
        >>> fit_scaler(target, np.array([[0, 2, 3, 4]]), "standard")
        (array([2.]), array([1.]))
    """
    center, scale = np.zeros(len(rows)), np.ones(len(rows))
    for k, (begin, end, *_) in enumerate(rows):
        seen = target[begin:end].astype(np.float64)
        seen = seen[~np.isnan(seen)]
        if not seen.size or kind == "none":
            continue
        if kind == "standard":
            center[k], scale[k] = seen.mean(), seen.std()
        else:
            scale[k] = np.abs(seen).mean()
        if scale[k] < 1e-8 * max(1.0, np.abs(seen).max()):
            scale[k] = 1.0
    return center, scale


def fit_covariates(series: SeriesSet, rows: Ints) -> dict[str, Any]:
    """Return center and scale of each covariate, over the training parts of all series.

    A column that is constant there has the scale 1.
    """
    training = np.zeros(len(series.times), bool)
    for begin, end, *_ in rows:
        training[begin:end] = True
    columns = {
        "past": series.past[training],
        "future": series.future[training],
        "static": series.static,
    }
    found = {}
    for name, values in columns.items():
        center, scale = values.mean(0, np.float64), values.std(0, np.float64)
        scale[scale < 1e-8 * np.maximum(1.0, np.abs(center))] = 1.0
        found[name] = [center.tolist(), scale.tolist()]
    return found


def scale_covariates(series: SeriesSet, scalers: Mapping[str, Any]) -> SeriesSet:
    """Return the series with scaled covariates, as `fit_covariates` found them."""
    changed = {}
    for name, (center, scale) in scalers.items():
        values = getattr(series, name)
        changed[name] = ((values - np.array(center)) / scale).astype(np.float32)
    return series._replace(**changed)


def naive_errors(target: Floats, rows: Ints, season: int) -> NDArray[np.float64]:
    """Return the mean of `|y_t - y_t-season|` in the training part of each series.

    NaN if there is no such pair.
    """
    found = np.full(len(rows), np.nan)
    for k, (begin, end, *_) in enumerate(rows):
        seen = target[begin:end].astype(np.float64)
        errors = np.abs(seen[season:] - seen[:-season])
        errors = errors[~np.isnan(errors)]
        if errors.size:
            found[k] = errors.mean()
    return found


# -- windows ------------------------------------------------------------------


class WindowSource:
    """Scaled series, from which windows are cut.

    Args:
        series: the series.
        center: of the scaler of each series `[N]`.
        scale: likewise.
        numbers: the number of each series in the spec `[N]`.
        context: L.
        horizon: H.
    """

    def __init__(
        self,
        series: SeriesSet,
        center: Any,
        scale: Any,
        *,
        numbers: Ints | None = None,
        context: int,
        horizon: int,
    ) -> None:
        self.series, self.context, self.horizon = series, context, horizon
        lengths = np.diff(series.offsets)
        at = np.repeat(np.asarray(center, np.float64), lengths)
        by = np.repeat(np.asarray(scale, np.float64), lengths)
        scaled = ((series.target - at) / by).astype(np.float32)
        self._observed = ~np.isnan(scaled)
        self._scaled = np.where(self._observed, scaled, np.float32(0))
        count = len(series.ids)
        self._numbers = np.arange(count) if numbers is None else numbers

    def cut(self, origins: Origins) -> Windows:
        """Return the windows of some origins, `[L + H, B]`."""
        steps = np.arange(-self.context, self.horizon)[:, None]
        rows = origins.row[None] + steps
        return Windows(
            target=self._scaled[rows],
            observed=self._observed[rows],
            past=self.series.past[rows[: self.context]],
            future=self.series.future[rows],
            static=self.series.static[origins.series],
            series=self._numbers[origins.series].astype(np.int32),
        )

    def batches(self, origins: Origins, size: int) -> Iterator[tuple[Origins, Batch]]:
        """Yield windows in order, all in batches of one size.

        The last batch is filled up with its first window, at the weight 0. The origins
        that are yielded are without these.
        """
        for begin in range(0, len(origins), size):
            chosen = Origins(*(part[begin : begin + size] for part in origins))
            count = len(chosen)
            at = np.concatenate([np.arange(count), np.zeros(size - count, np.int64)])
            filled = Origins(chosen.series[at], chosen.row[at])
            weights = (np.arange(size) < count).astype(np.float32)
            yield chosen, Batch(self.cut(filled), weights)


class ForecastDataset:
    """The windows of a config; see `Dataset`.

    Raises:
        BadInput: the files cannot be read, a part of the split is empty, or a series is
            too short.
    """

    def __init__(self, config: ForecastConfig) -> None:
        windows, training = config.windows, config.training
        self.config = config
        context, horizon = windows.context, windows.horizon
        series = read_series(config.data)
        ends = part_ends(_target_times(series), windows.split)
        rows = part_rows(series, ends)
        kept = np.flatnonzero(_windows_of(rows, "train", context, horizon) > 0)
        if len(kept) < len(rows):
            series = _without_short(config, series, rows, kept)
            rows = part_rows(series, ends)
        self.series, self.rows = series, rows
        season = windows.season or season_of(series.frequency)
        center, scale = fit_scaler(series.target, rows, windows.scaling)
        covariates = fit_covariates(series, rows)
        self.parts = {
            part: origins(rows, part, context=context, horizon=horizon)
            for part in PARTS
        }
        for part in PARTS:
            if not len(self.parts[part]):
                raise BadInput(
                    f"windows.split.{part}: got no window, expected at least one; the "
                    f"part needs {horizon:,} times in a row (windows.horizon) after "
                    f"{context:,} (windows.context)"
                )
        missing = bool(np.isnan(_targets(series)).any())
        naive = naive_errors(series.target, rows, season)
        self._spec = Spec(
            series.ids,
            tuple(center.tolist()),
            tuple(scale.tolist()),
            season,
            missing,
            tuple(time_text(end) for end in ends),  # pyright: ignore
            series.names._asdict(),
            covariates,
            series.frequency.name,
            tuple(naive.tolist()),
        )
        self.source = WindowSource(
            scale_covariates(series, covariates),
            center,
            scale,
            context=context,
            horizon=horizon,
        )
        self._seed, self._size = config.seed, training.batch_size
        if len(self.parts["train"]) < self._size:
            raise BadInput(
                f"training.batch_size: got {self._size:,}, expected at most "
                f"{len(self.parts['train']):,}, the windows of the training part"
            )
        self._limit = training.validation_windows
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def spec(self) -> Spec:
        """Names, scalers and season of the series."""
        return self._spec

    @property
    def description(self) -> dict[str, Any]:
        """The files and their hashes, and the number of windows of each part."""
        windows = {part: len(found) for part, found in self.parts.items()}
        return {**self.series.description, "windows": windows}

    @property
    def batch_axes(self) -> Batch:
        """The batch is the last axis of targets and the first of static values."""
        return Batch(Windows(1, 1, 1, 1, 0, 0), 0)

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches of training windows."""
        return len(self.parts["train"]) // self._size

    def batch(self, step: int) -> Batch:
        """Return the training batch of one step: each epoch has a new random order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            draw = np.random.default_rng((self._seed, epoch))
            self._order = epoch, draw.permutation(len(self.parts["train"]))
        at = self._order[1][place * self._size : (place + 1) * self._size]
        chosen = Origins(*(part[at] for part in self.parts["train"]))
        return Batch(self.source.cut(chosen), np.ones(self._size, np.float32))

    def batches(self, first_step: int, count: int) -> Batch:
        """Return `count` batches along a new first axis."""
        import jax

        each = [self.batch(step) for step in range(first_step, first_step + count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def eval_batches(self, *, full: bool = True) -> Iterator[Batch]:
        """Yield all validation windows, or evenly spaced ones during training."""
        found = self.parts["validation"]
        if not full and self._limit is not None and self._limit < len(found):
            at = np.linspace(0, len(found) - 1, self._limit).astype(np.int64)
            found = Origins(found.series[at], found.row[at])
        size = min(EVALUATION_ROWS, len(found))
        for _, batch in self.source.batches(found, size):
            yield batch


def season_of(frequency: Frequency) -> int:
    """Return the steps of the season that is usual for a frequency.

    A day of hours or minutes, a week of days, a year of weeks, months or quarters, and
    1 for others.

    Example:
        >>> season_of(Frequency("h", "duration", 3600 * 10**6))
        24
    """
    day, step = 86_400 * 10**6, frequency.step
    if frequency.kind == "business":
        return 5 // step if 5 % step == 0 else 1
    if frequency.kind == "months":
        return 12 // step if 12 % step == 0 else 1
    if frequency.kind == "number":
        return 1
    if step < day:
        return day // step if day % step == 0 else 1
    return {day: 7, 7 * day: 52}.get(step, 1)


def batch_like(config: ForecastConfig, spec: Spec) -> Batch:
    """Return the types of a training batch."""
    import jax

    windows, rows = config.windows, config.training.batch_size
    context, sizes = windows.context, spec.sizes(windows.horizon)
    total = context + windows.horizon

    def floats(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.float32)

    found = Windows(
        floats(total, rows),
        jax.ShapeDtypeStruct((total, rows), np.bool_),
        floats(context, rows, sizes.past),
        floats(total, rows, sizes.future),
        floats(rows, sizes.static),
        jax.ShapeDtypeStruct((rows,), np.int32),
    )
    return Batch(found, floats(rows))


def spec_to_json(spec: Spec) -> Any:
    """Return the spec as JSON."""
    return json.loads(json.dumps(spec._asdict()))


def spec_from_json(written: Any) -> Spec:
    """Return the spec that `spec_to_json` wrote.

    Raises:
        BadInput: it is not the JSON of a spec.
    """
    if not isinstance(written, Mapping) or set(written) != set(Spec._fields):
        raise BadInput(f"spec: got {describe(written)}, expected that of a forecast")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in written.items()
    }
    return Spec(**fields)


def _target_rows(series: SeriesSet) -> NDArray[np.bool_]:
    within = np.arange(len(series.target)) - np.repeat(
        series.offsets[:-1], np.diff(series.offsets)
    )
    return within < np.repeat(series.target_lengths, np.diff(series.offsets))


def _targets(series: SeriesSet) -> Floats:
    return series.target[_target_rows(series)]


def _target_times(series: SeriesSet) -> Any:
    return series.times[_target_rows(series)]


def _windows_of(rows: Ints, part: Part, context: int, horizon: int) -> Ints:
    found = origins(rows, part, context=context, horizon=horizon)
    return np.bincount(found.series, minlength=len(rows))


def _without_short(
    config: ForecastConfig, series: SeriesSet, rows: Ints, kept: Ints
) -> SeriesSet:
    """Return the series with training windows, or raise as the config says."""
    needed = config.windows.context + config.windows.horizon
    in_training = rows[:, 1] - rows[:, 0]
    found = enough_rows(
        series._replace(target_lengths=in_training),
        needed,
        policy=config.data.short_series,
    )
    lengths = dict(zip(series.ids, series.target_lengths, strict=True))
    return found._replace(
        target_lengths=np.array([lengths[name] for name in found.ids])
    )
