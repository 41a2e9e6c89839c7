"""Read a column of times: ISO 8601, a format from the config, or whole numbers."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, shown

if TYPE_CHECKING:
    import polars as pl

_OFFSET = r"(Z|[+-]\d\d:?\d\d)$"
_DAY, _MINUTE, _SECOND = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d", r":\d\d(\.\d+)?"
_ISO = (  # the form of a value, its format, and an example
    (_DAY, "%Y-%m-%d", "2024-01-31"),
    (f"{_DAY} {_MINUTE}", "%Y-%m-%d %H:%M", "2024-01-31 09:30"),
    (f"{_DAY}T{_MINUTE}", "%Y-%m-%dT%H:%M", "2024-01-31T09:30"),
    (f"{_DAY} {_MINUTE}{_SECOND}", "%Y-%m-%d %H:%M:%S%.f", "2024-01-31 09:30:00"),
    (f"{_DAY}T{_MINUTE}{_SECOND}", "%Y-%m-%dT%H:%M:%S%.f", "2024-01-31T09:30:00"),
    (r"\d{4}-\d\d", "%Y-%m", "2024-01"),
)
_ISO += tuple(  # the year first is unambiguous with slashes too
    (form.replace("-", "/"), format.replace("-", "/"), example.replace("-", "/"))
    for form, format, example in _ISO
    if " " in form or form == _DAY
)
_WHOLE = "whole numbers"


class TimeColumn:
    """Reader of a column of times; all values have the form of the first one.

    Args:
        format: format of the times as in `datetime.strptime`, or None for ISO 8601 and
            whole numbers.
        zone: time zone of the times. Times with different offsets from UTC need it.
        section: section of the config, for error messages.

    Times of a time zone are returned in UTC, since they are not regular in the zone.
    """

    def __init__(
        self,
        *,
        format: str | None = None,
        zone: str | None = None,
        section: str = "data",
    ) -> None:
        self.format, self.zone, self._section = format, zone, section
        self._form: tuple[str, str] | None = None  # format and example
        self._offset: str | None = None
        self.notes: list[str] = []

    def read(self, series: "pl.Series", fail: Any) -> NDArray[Any]:
        """Return the times of a block as datetime64[us] or int64."""
        import polars as pl

        if series.null_count():
            at = int(series.is_null().arg_true()[0])
            raise fail(at, "got an empty field, expected a time; complete the row.")
        if series.dtype == pl.String:
            return self._read_text(series.str.strip_chars(), fail)
        if series.dtype.is_integer():
            self._check_form((_WHOLE, "1"), fail, series)
            return series.cast(pl.Int64).to_numpy()
        if series.dtype in (pl.Date, pl.Datetime):
            clock = " %H" * (series.dtype == pl.Datetime)
            self._check_form((f"date{clock}", "2024-01-31"), fail, series)
            zone = getattr(series.dtype, "time_zone", None)
            naive = series.cast(pl.Datetime("us", zone))
            if zone is not None:
                self.zone = self.zone or zone
                return (
                    naive.dt.convert_time_zone("UTC")
                    .dt.replace_time_zone(None)
                    .to_numpy()
                )
            return self._localized(naive, fail)
        raise fail(0, f"got values of type {series.dtype}, expected times.")

    def _read_text(self, series: "pl.Series", fail: Any) -> NDArray[Any]:
        import polars as pl

        if self._form is None:
            self._form = self._detect(series[0], fail) if len(series) else None
        if self._form is None:
            return np.empty(0, "datetime64[us]")
        form, _ = self._form
        if form == _WHOLE:
            parsed = series.cast(pl.Int64, strict=False)
            self._check_parsed(parsed, series, fail)
            return parsed.to_numpy()
        if self.format is None:
            series, offsets = self._without_offset(series, fail)
        else:
            offsets = None
        texts = series + "-01" if form == "%Y-%m" else series
        try:
            parsed = texts.str.to_datetime(
                "%Y-%m-%d" if form == "%Y-%m" else form,
                strict=False,
                time_unit="us",
                time_zone="UTC" if "%z" in form else None,
            )
        except pl.exceptions.PolarsError as error:
            message = shown(str(error).partition("\n")[0])
            raise BadInput(
                f"{self._section}.time_format: got {describe(self.format)}, expected a "
                f"format such as %d/%m/%Y ({message})."
            ) from None
        self._check_parsed(parsed, series, fail)
        if "%z" in form:
            self.zone = self.zone or "UTC"
            return parsed.dt.replace_time_zone(None).to_numpy()
        if offsets is not None:
            return parsed.to_numpy() - offsets
        return self._localized(parsed, fail)

    def _detect(self, text: str, fail: Any) -> tuple[str, str]:
        """Return the format of the first time."""
        if self.format is not None:
            return re.sub(r"\.%f", "%.f", self.format), self.format
        if not text:
            raise fail(0, "got an empty field, expected a time; complete the row.")
        if re.fullmatch(r"[+-]?\d{1,18}", text):
            return _WHOLE, text
        bare = re.sub(_OFFSET, "", text).strip() if ":" in text else text
        for form, format_, example in _ISO:
            if re.fullmatch(form, bare):
                return format_, example
        raise fail(
            0,
            f"got {describe(text)}, expected a time such as 2024-01-31 or 2024-01-31 "
            f"09:30:00; set {self._section}.time_format{_guess(text)}.",
        )

    def _without_offset(self, series: "pl.Series", fail: Any) -> Any:
        """Split the offsets from UTC from times with a time of day."""
        import polars as pl

        if self._form is None or "%H" not in self._form[0]:
            return series, None
        found = series.str.extract(_OFFSET)
        if found.null_count() == len(found):
            if self._offset not in (None, ""):
                raise fail(0, self._mixed(series[0], ""))
            self._offset = ""
            return series, None
        if self._offset is None:
            self._offset = found[0] or ""
        other = found.fill_null("") != self._offset
        if other.any() and (
            self.zone is None or found.null_count() or not self._offset
        ):
            at = int(other.arg_true()[0])
            raise fail(at, self._mixed(series[at], found[at] or ""))
        if self.zone is None:
            self.zone = "UTC"
            self.notes.append(
                f"times have the offset {self._offset} and are read as UTC"
            )
        minutes = {text: _minutes(text) for text in found.unique().to_list()}
        offsets = found.replace_strict(
            list(minutes), list(minutes.values()), return_dtype=pl.Int64
        ).to_numpy()
        bare = series.str.replace(_OFFSET, "").str.strip_chars()
        return bare, offsets * np.timedelta64(60_000_000, "us")

    def _mixed(self, text: str, offset: str) -> str:
        if not offset or not self._offset:
            first = self._offset or "no offset"
            return (
                f"got {describe(text)} with {offset or 'no offset'} from UTC, expected "
                f"{first} as in the first row; write all times with an offset, or none."
            )
        return (
            f"got {describe(text)} with the offset {offset}, expected {self._offset} "
            f"as in the first row; set {self._section}.time_zone, such as "
            "Europe/Berlin or UTC."
        )

    def _localized(self, times: "pl.Series", fail: Any) -> NDArray[Any]:
        """Convert local times of `zone` to UTC.

        When clocks are set back, an hour occurs twice. The first of two equal local
        times is the earlier one.
        """
        import polars as pl

        dated = self._form is not None and "%H" not in self._form[0]
        if self.zone is None or self.zone == "UTC" or dated:
            return times.to_numpy()
        frame = pl.DataFrame({"t": times})
        choices = []
        for choice in ("earliest", "latest"):
            zoned = frame["t"].dt.replace_time_zone(
                self.zone, ambiguous=choice, non_existent="null"
            )
            if zoned.null_count():
                at = int(zoned.is_null().arg_true()[0])
                raise fail(
                    at,
                    f"got {times[at]}, which does not exist in {self.zone}, because "
                    "clocks are set forward; correct the time or the time zone.",
                )
            choices.append(
                zoned.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy()
            )
        earliest, latest = choices
        ambiguous = earliest != latest
        if not ambiguous.any():
            return earliest
        # Times of several series alternate, so the order in the file does not tell the
        # two hours apart in general; an ambiguous hour needs an offset.
        at = int(np.flatnonzero(ambiguous)[0])
        raise fail(
            at,
            f"got {times[at]}, which occurs twice in {self.zone}, because clocks are "
            "set back; write the times with their offset from UTC, such as "
            "2024-10-27T02:30:00+01:00.",
        )

    def _check_form(
        self, form: tuple[str, str], fail: Any, series: "pl.Series"
    ) -> None:
        if self._form is None:
            self._form = form
        elif (self._form[0] == _WHOLE) != (form[0] == _WHOLE):
            raise fail(
                0,
                f"got {shown(str(series[0]))}, expected a time like the first file's.",
            )

    def _check_parsed(
        self, parsed: "pl.Series", series: "pl.Series", fail: Any
    ) -> None:
        if not parsed.null_count():
            return
        at = int(parsed.is_null().arg_true()[0])
        text = series[at]
        assert self._form is not None
        _, example = self._form
        if not text:
            raise fail(at, "got an empty field, expected a time; complete the row.")
        if self.format is not None:
            expected = f"{self._section}.time_format {describe(self.format)}"
        elif self._form[0] == _WHOLE:
            expected = f"a whole number like the first time, {example}"
        else:
            expected = f"a valid time in the form of the first one, {example}"
        raise fail(at, f"got {describe(text)}, expected {expected}; correct the row.")


def _minutes(offset: str) -> int:
    if offset == "Z":
        return 0
    digits = offset[1:].replace(":", "")
    return int(offset[0] + "1") * (60 * int(digits[:2]) + int(digits[2:]))


def _guess(text: str) -> str:
    """Suggest formats for a time that is not ISO 8601."""
    match = re.match(r"(\d{1,2})([/.-])(\d{1,2})\2(\d{2,4})(.*)", text)
    if not match:
        return ", such as %d/%m/%Y"
    first, mark, second, year, rest = match.groups()
    clock = " %H:%M" + ":%S" * (rest.count(":") > 1) if ":" in rest else ""
    y = "%Y" if len(year) == 4 else "%y"
    day = f'"%d{mark}%m{mark}{y}{clock}"'
    month = f'"%m{mark}%d{mark}{y}{clock}"'
    if int(first) > 12:
        return f": {day}"
    if int(second) > 12:
        return f": {month}"
    return f": {day} (day first) or {month} (month first)"
