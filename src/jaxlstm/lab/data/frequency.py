"""Step between the times of a series: a duration, business days, months or a number."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe

Times = NDArray[Any]

_MICROSECONDS = {
    "us": 1,
    "ms": 1000,
    "s": 10**6,
    "min": 60 * 10**6,
    "h": 3600 * 10**6,
    "D": 86_400 * 10**6,
    "W": 7 * 86_400 * 10**6,
}
_MONTHS = {"MS": 1, "ME": 1, "QS": 3, "QE": 3, "YS": 12, "YE": 12}
_ALIASES = {"H": "h", "T": "min", "S": "s", "d": "D", "M": "ME", "Q": "QE", "Y": "YE"}
DAY = np.timedelta64(1, "D")


class Frequency(NamedTuple):
    """Regular times.

    Attributes:
        name: as in the config and in pandas: "h", "15min", "D", "B", "W", "MS", "ME",
            or a whole number for times that are numbers.
        kind: "duration" in microseconds, "business" days, "months" or "number".
        step: the step in the unit of `kind`.
        month_end: whether the times are ends of months.
        zone: time zone in which dates are meant; the times are then in UTC.

    Example:
        >>> month = frequency("ME")
        >>> month.after(np.datetime64("2024-01-31", "us"), 2).astype("M8[D]").tolist()
        [datetime.date(2024, 2, 29), datetime.date(2024, 3, 31)]
    """

    name: str
    kind: Literal["duration", "business", "months", "number"]
    step: int
    month_end: bool = False
    zone: str | None = None

    def after(self, last: Any, count: int) -> Times:
        """Return the `count` times after `last`."""
        return self.shift(np.asarray([last]), np.arange(1, count + 1))

    def shift(self, times: Times, steps: NDArray[np.int64]) -> Times:
        """Return times that are `steps` steps after `times`, elementwise."""
        if self.kind == "number":
            return times + steps * self.step
        if self.kind == "duration":
            return times + steps * np.timedelta64(self.step, "us")
        days = times.astype("M8[D]")
        clock = times - days
        if self.kind == "business":
            moved = np.busday_offset(days, steps * self.step, roll="forward")
            return (moved + clock).astype("M8[us]")
        months = days.astype("M8[M]") + np.asarray(steps * self.step).astype("m8[M]")
        after = (months + np.timedelta64(1, "M")).astype("M8[D]")
        length = (after - months.astype("M8[D]")).astype(int)
        day = (days - days.astype("M8[M]").astype("M8[D]")).astype(int)
        day = length - 1 if self.month_end else np.minimum(day, length - 1)
        return (months.astype("M8[D]") + day.astype("m8[D]") + clock).astype("M8[us]")

    def steps(self, before: Times, after: Times) -> NDArray[np.int64]:
        """Return the number of steps between times, 0 where it is not whole."""
        if self.kind in ("number", "duration"):
            quotient, rest = np.divmod((after - before).astype(np.int64), self.step)
            return np.where(rest == 0, quotient, 0)
        if self.kind == "business":
            days = np.busday_count(before.astype("M8[D]"), after.astype("M8[D]"))
            count, rest = np.divmod(days, self.step)
        else:
            months = after.astype("M8[M]").astype(int) - before.astype("M8[M]").astype(
                int
            )
            count, rest = np.divmod(months, self.step)
        exact = (rest == 0) & (self.shift(before, count) == after)
        return np.where(exact, count, 0)


def frequency(
    name: str, *, key: str = "data.frequency", zone: str | None = None
) -> Frequency:
    """Return the frequency of a name such as "h", "15min", "D", "B", "MS" or "1".

    Raises:
        BadInput: the name is not known.
    """
    match = re.fullmatch(r"(\d*)([A-Za-z]*)(-[A-Z]{3})?", name.strip())
    count = int(match[1] or 1) if match else 0
    unit = _ALIASES.get(match[2], match[2]) if match else ""
    if count < 1 or (unit and unit not in (*_MICROSECONDS, *_MONTHS, "B")):
        raise BadInput(
            f"{key}: got {describe(name)}, expected a step such as s, 15min, h, D, B "
            "(business days), W, MS or ME (starts or ends of months), QS, YS, or a "
            "whole number."
        )
    plain = f"{count if count > 1 else ''}{unit}"
    if not unit:
        return Frequency(str(count), "number", count)
    if unit == "B":
        return Frequency(plain, "business", count, zone=zone)
    if unit in _MONTHS:
        return Frequency(plain, "months", count * _MONTHS[unit], unit[1] == "E", zone)
    return Frequency(plain, "duration", count * _MICROSECONDS[unit], zone=zone)


def infer(
    times: Times, before: NDArray[np.int64], *, zone: str | None = None
) -> Frequency | None:
    """Return the most common step as a frequency, or None if there is none.

    Args:
        times: times of all series, one after another.
        before: positions whose next position is in the same series.
        zone: time zone in which dates are meant.
    """
    if not before.size:
        return None
    differences = (times[before + 1] - times[before]).astype(np.int64)
    values, counts = np.unique(differences, return_counts=True)
    common = int(values[np.argmax(counts)])
    if times.dtype.kind != "M":
        return Frequency(str(common), "number", common)
    day = _MICROSECONDS["D"]
    if values.min() >= 28 * day and (found := _months(times, before)):
        return found._replace(zone=zone)
    if common == day and _is_business(times, values):
        return Frequency("B", "business", 1, zone=zone)
    for unit, size in reversed(_MICROSECONDS.items()):
        if common % size == 0:
            count = common // size
            return frequency(f"{count if count > 1 else ''}{unit}", zone=zone)
    return None


def _months(times: Times, before: NDArray[np.int64]) -> Frequency | None:
    days = times.astype("M8[D]")
    if len(np.unique((times - days).astype(np.int64))) > 1:
        return None
    starts = days.astype("M8[M]").astype("M8[D]")
    tomorrow = days + np.timedelta64(1, "D")
    ends = bool((tomorrow.astype("M8[M]") > days.astype("M8[M]")).all())
    day = (days - starts).astype(int)
    if not ends and (day.min() != day.max() or day.max() > 27):
        return None
    months = days.astype("M8[M]").astype(int)
    values, counts = np.unique(months[before + 1] - months[before], return_counts=True)
    step = int(values[np.argmax(counts)])
    if not ends and day.max() > 0 and step % 12 and step not in (1, 3):
        return None
    for unit in ("Y", "Q", "M"):
        size = _MONTHS[f"{unit}S"]
        if step % size == 0:
            return frequency(f"{step // size}{unit}{'E' if ends else 'S'}")
    return None


def _is_business(times: Times, differences: NDArray[np.int64]) -> bool:
    """Return whether daily times leave out all weekends."""
    weekday = (times.astype("M8[D]").astype(np.int64) + 3) % 7
    crosses = bool((differences >= 3 * _MICROSECONDS["D"]).any())
    return crosses and int(weekday.max()) < 5


def duration_text(microseconds: int) -> str:
    """Format a duration as in "1 day 2 h".

    Example:
        >>> duration_text(93_600_000_000)
        '1 day 2 h'
    """
    parts: list[str] = []
    units: Sequence[tuple[str, int]] = (
        ("day", _MICROSECONDS["D"]),
        ("h", _MICROSECONDS["h"]),
        ("min", _MICROSECONDS["min"]),
        ("s", _MICROSECONDS["s"]),
        ("us", 1),
    )
    rest = abs(int(microseconds))
    for unit, size in units:
        count, rest = divmod(rest, size)
        if count:
            plural = "s" if unit == "day" and count > 1 else ""
            parts.append(f"{count} {unit}{plural}")
    return " ".join(parts[:2]) or "0 s"
