"""Read the time series of CSV and Parquet files.

    rows of a table -> series in order of time -> regular times -> no missing values

A row that is missing between two others is filled in, and its values are missing. The
policy of a column says what replaces these: an error (the default), the value before, a
line between the values on both sides, or zero and a 0/1 column.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, join_names
from jaxlstm.lab.data.calendar import calendar_features, local_times
from jaxlstm.lab.data.files import quoted
from jaxlstm.lab.data.frequency import Frequency, Times, duration_text, frequency, infer
from jaxlstm.lab.data.paths import expand
from jaxlstm.lab.data.series_set import Array, SeriesNames, SeriesSet, fill, time_text
from jaxlstm.lab.data.tables import (
    Table,
    check_names,
    header,
    is_frame,
    read_table,
)
from jaxlstm.lab.data.times import TimeColumn

if TYPE_CHECKING:
    from jaxlstm.lab.config.tables import SeriesFiles

RUN = 3  # equal gaps in a row that are a change of the frequency


class _Rows(NamedTuple):
    """Rows in order of series and time.

    Attributes:
        codes: int64 `[N + 1]`, offsets of the series.
        source: row of the table, -1 for a row that was filled in.
    """

    ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    times: Times
    source: NDArray[np.int64]
    values: dict[str, Array]


class SeriesReader:
    """Reader of `SeriesFiles`."""

    def __init__(self, data: "SeriesFiles", key: str, like: SeriesNames | None) -> None:
        self.data, self.key, self.like = data, key, like
        self.notes: list[str] = []
        self.tables: list[Table] = []

    def read(self, frame: Any, report: Any) -> SeriesSet:
        """Return the series of `data.path`, or of `frame` unless it is None."""
        data = self.data
        path = data.path if frame is None else frame
        targets = self._targets(path)
        self._check_roles(targets)
        rows, static = self._table(path, targets, report)
        rows = self._in_order(rows)
        self.step = step = self._frequency(rows)
        rows = self._regular(rows, step)
        rows, lengths = self._trimmed(rows, targets)
        return self._series(rows, lengths, static, step, targets)

    # -- columns ----------------------------------------------------------------

    def _targets(self, path: Any) -> tuple[str, ...]:
        """Return the target columns; each is a series if there is no id."""
        data = self.data
        if isinstance(data.target, str):
            return (data.target,)
        if data.target is not None:
            if data.id is not None and len(data.target) != 1:
                raise BadInput(
                    f"{self.key}.target: got {len(data.target)} columns, expected one "
                    f"with {self.key}.id; set {self.key}.id: null if each column is a "
                    "series."
                )
            return data.target
        if data.id is not None:
            return ("y",)
        first = path if is_frame(path) else expand(path, key=f"{self.key}.path")[0]
        named = {
            data.time,
            *data.past,
            *data.future,
            *data.static,
            *data.static_categories,
        }
        names = header(first, data, key=f"{self.key}.path")
        found = tuple(name for name in names if name and name not in named)
        if not found:
            raise BadInput(f"{self.key}.target: got no column besides the time.")
        if "unique_id" in found:
            raise BadInput(
                f'{self.key}.id: got null, but there is a column "unique_id"; set '
                f"{self.key}.id: unique_id, or name the columns in {self.key}.target."
            )
        self.notes.append(
            f"each of {len(found)} columns is a series: "
            f"{join_names(found[:10], last='and')}"
        )
        return found

    def _check_roles(self, targets: Sequence[str]) -> None:
        data = self.data
        roles: dict[str, str] = {}
        groups = {
            "id": [data.id] if data.id else [],
            "time": [data.time],
            "target": targets,
            "past": data.past,
            "future": data.future,
            "static": data.static,
            "static_categories": data.static_categories,
        }
        for role, columns in groups.items():
            for column in columns:
                if column in roles:
                    raise BadInput(
                        f"{self.key}.{role}: got the column {describe(column)}, which "
                        f"is also in {self.key}.{roles[column]}; name it once."
                    )
                roles[column] = role
        self.roles = roles
        if data.id is None and (data.static or data.static_categories):
            raise BadInput(
                f"{self.key}.static: static columns need {self.key}.id, a column that "
                "names the series."
            )
        policies = data.missing if isinstance(data.missing, dict) else {}
        for column in policies:
            if column != "*" and roles.get(column) not in ("target", "past", "future"):
                raise BadInput(
                    f"{self.key}.missing: got a policy for {describe(column)}, "
                    'expected a column in target, past or future, or "*".'
                )

    def _policy(self, column: str) -> str:
        missing = self.data.missing
        if isinstance(missing, str):
            return missing
        return missing.get(column, missing.get("*", "error"))

    def _table(self, path: Any, targets: Sequence[str], report: Any) -> Any:
        data, key = self.data, self.key
        times = TimeColumn(format=data.time_format, zone=data.time_zone, section=key)
        kinds: dict[str, Any] = {data.time: "time"}
        if data.id is not None:
            kinds[data.id] = "text"
        shared = {**kinds, **dict.fromkeys(data.future, "number")}
        numbers = (*targets, *data.past, *data.future, *data.static)
        kinds |= dict.fromkeys(numbers, "number")
        kinds |= dict.fromkeys(data.static_categories, "text")
        keys = {column: f"{key}.{role}" for column, role in self.roles.items()}
        if data.id is not None:
            keys[data.id] = f"{key}.id (null if each column is a series)"
        options: dict[str, Any] = {"times": times, "keys": keys, "report": report}
        table = read_table(path, kinds, data, key=f"{key}.path", **options)
        self.tables.append(table)
        if data.future_path is not None:
            more = read_table(
                data.future_path, shared, data, key=f"{key}.future_path", **options
            )
            self.tables.append(more)
        self.zone = times.zone
        self.notes += dict.fromkeys(
            note for table in self.tables for note in table.notes
        )
        unused = [name for name in table.names if name and name not in kinds]
        if unused:
            self.notes.append(
                f"columns not used: {join_names(unused[:20], last='and')}"
            )
        static = {
            name: table.columns[name]
            for name in (*data.static, *data.static_categories)
        }
        return self._joined(targets), static

    def _joined(self, targets: Sequence[str]) -> _Rows:
        """Return the rows of all tables, not yet in order."""
        data, tables = self.data, self.tables
        values = {}
        for name in (*targets, *data.past, *data.future):
            parts = [
                table.columns.get(name, np.full(len(table), np.nan, np.float32))
                for table in tables
            ]
            values[name] = np.concatenate(parts) if parts[1:] else parts[0]
        times = np.concatenate([table.columns[data.time] for table in tables])
        if self.zone is not None and times.dtype.kind == "M":
            times = self._dates(times)
        if data.id is None:
            ids, codes = ("",), np.zeros(len(times), np.int32)
        else:
            ids, codes = self._ids(data.id)
        offsets = np.concatenate(
            [[0], np.cumsum(np.bincount(codes, minlength=len(ids)))]
        )
        order = np.arange(len(times))
        if (np.diff(codes) < 0).any():
            order = np.argsort(codes, kind="stable")
        return _Rows(ids, offsets, times, order, values)

    def _dates(self, times: Times) -> Times:
        """Return local dates, if all times are midnight in their zone.

        Days are not regular in UTC if clocks change.
        """
        local = times if self.zone == "UTC" else local_times(times, self.zone)
        if (local.astype("M8[D]") == local).all():
            if self.zone != "UTC":
                self.notes.append(f"times are dates of {self.zone}")
            self.zone = None
            return local
        self.notes.append(f"times are in UTC (time zone {self.zone})")
        return times

    def _ids(self, column: str) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        first = self.tables[0]
        ids, codes = first.texts[column], first.columns[column]
        check_names(first, column)
        for table in self.tables[1:]:
            known = {name: code for code, name in enumerate(ids)}
            for code, name in enumerate(table.texts[column]):
                if name not in known:
                    at = int(np.flatnonzero(table.columns[column] == code)[0])
                    raise BadInput(
                        f"{table.place(at, column)}: got the series {quoted(name)}, "
                        f"which has no rows in {self.key}.path."
                    )
            moved = np.array([known[name] for name in table.texts[column]], np.int32)
            codes = np.concatenate([codes, moved[table.columns[column]]])
        return ids, codes

    def _place(self, row: int, column: str | None = None) -> str:
        """Return file and row of a row of the tables."""
        for table in self.tables:
            if row < len(table):
                return table.place(row, column)
            row -= len(table)
        raise IndexError(row)

    def _number(self, row: int) -> str:
        """Return the row number of a row of the tables."""
        return self._place(row).rpartition("row ")[2]

    def _before(self, order: NDArray[np.int64], at: int) -> str:
        """Return the row number at `at`, and its file if the next row has another."""
        name, _, number = self._place(int(order[at])).rpartition(": row ")
        if self._place(int(order[at + 1])).startswith(f"{name}: row "):
            return number
        return f"{number} of {name}"

    # -- order and regularity -----------------------------------------------------

    def _in_order(self, rows: _Rows) -> _Rows:
        """Return the rows in order of series and time."""
        order = rows.source
        times = _take(rows.times, order)
        before = _pairs(rows.offsets)
        differences = (times[1:] - times[:-1]).astype(np.int64)[before]
        if (differences < 0).any():
            at = int(before[np.flatnonzero(differences < 0)[0]])
            if not self.data.sort:
                raise BadInput(
                    f"{self._place(int(order[at + 1]), self.data.time)}: "
                    f"{self._of(rows, at)}got {time_text(times[at + 1])} after "
                    f"{time_text(times[at])} (row {self._before(order, at)}), "
                    "expected ascending times; sort the file, or set "
                    f"{self.key}.sort: true."
                )
            series = np.repeat(np.arange(len(rows.ids)), np.diff(rows.offsets))
            moved = np.lexsort((times, series))
            order, times = order[moved], times[moved]
            self.notes.append("sorted the rows by time")
            differences = (times[1:] - times[:-1]).astype(np.int64)[before]
        if (differences == 0).any():
            at = int(before[np.flatnonzero(differences == 0)[0]])
            count = int((differences == 0).sum())
            more = f" ({count:,} such rows)" if count > 1 else ""
            hint = (
                f"; if each column is not one series, set {self.key}.id"
                if self.data.id is None
                else ""
            )
            raise BadInput(
                f"{self._place(int(order[at + 1]), self.data.time)}: "
                f"{self._of(rows, at)}got {time_text(times[at])} again, as in row "
                f"{self._before(order, at)}{more}, expected each time once; remove or "
                f"add up the duplicates{hint}."
            )
        values = {name: _take(column, order) for name, column in rows.values.items()}
        return rows._replace(times=times, source=order, values=values)

    def _of(self, rows: _Rows, at: int) -> str:
        if self.data.id is None:
            return ""
        k = int(np.searchsorted(rows.offsets, at, side="right")) - 1
        return f"series {quoted(rows.ids[k])}: "

    def _frequency(self, rows: _Rows) -> Frequency:
        data, before = self.data, _pairs(rows.offsets)
        if data.frequency is not None:
            step = frequency(
                data.frequency, key=f"{self.key}.frequency", zone=self.zone
            )
            is_number = rows.times.dtype.kind != "M"
            if is_number != (step.kind == "number"):
                expected = (
                    "a whole number such as 1" if is_number else "a step such as D"
                )
                raise BadInput(
                    f"{self.key}.frequency: got {describe(data.frequency)}, expected "
                    f"{expected}, because the times are "
                    f"{'whole numbers' if is_number else 'dates'}."
                )
            return step
        step = infer(rows.times, before, zone=self.zone)
        if step is None:
            raise BadInput(
                f"{self.key}.frequency: cannot be inferred, because no series has two "
                "rows; set it, such as D."
            )
        self.notes.append(f"frequency {step.name} (inferred)")
        return step

    def _regular(self, rows: _Rows, step: Frequency) -> _Rows:
        """Fill in the rows that are missing between two others."""
        before = _pairs(rows.offsets)
        steps = step.steps(rows.times[before], rows.times[before + 1])
        if (steps < 1).any():
            self._irregular(rows, step, int(before[np.flatnonzero(steps < 1)[0]]))
        missing = int(steps.sum()) - len(steps)
        if not missing:
            return rows
        if self.data.frequency is None:
            self._check_change(rows, step, before, steps)
            if missing > len(rows.times):
                at = int(before[np.argmax(steps)])
                raise BadInput(
                    f"{self._place(int(rows.source[at + 1]), self.data.time)}: "
                    f"{self._of(rows, at)}got {missing:,} gaps in {len(rows.times):,} "
                    f"rows with the inferred frequency {step.name}, the longest before "
                    f"this row; set {self.key}.frequency."
                )
        at = int(before[np.flatnonzero(steps > 1)[0]])
        count = int((steps > 1).sum())
        self.notes.append(
            f"filled in {missing:,} missing row{'s' * (missing > 1)} in {count:,} "
            f"gap{'s' * (count > 1)}, "
            f"the first {self._of(rows, at).replace(': ', ' ')}between "
            f"{time_text(rows.times[at])} and {time_text(rows.times[at + 1])} (row "
            f"{self._number(int(rows.source[at + 1]))})"
        )
        gaps = np.ones(len(rows.times), np.int64)
        gaps[before + 1] = steps
        gaps[rows.offsets[:-1]] = 1
        position = np.cumsum(gaps) - 1
        total = int(position[-1]) + 1
        offsets = np.append(position[rows.offsets[:-1]], total)
        source = np.full(total, -1)
        source[position] = rows.source
        filled = {}
        for name, column in rows.values.items():
            filled[name] = np.full(total, np.nan, np.float32)
            filled[name][position] = column
        times = np.empty(total, rows.times.dtype)
        times[position] = rows.times
        holes = np.flatnonzero(source < 0)
        known = position[np.searchsorted(position, holes) - 1]
        times[holes] = step.shift(times[known], holes - known)
        return _Rows(rows.ids, offsets, times, source, filled)

    def _irregular(self, rows: _Rows, step: Frequency, at: int) -> None:
        a, b = rows.times[at], rows.times[at + 1]
        got = str(b - a)
        if step.kind != "number":
            got = duration_text(int((b - a).astype(np.int64)))
        said = "" if self.data.frequency else " (inferred)"
        raise BadInput(
            f"{self._place(int(rows.source[at + 1]), self.data.time)}: "
            f"{self._of(rows, at)}got {time_text(b)}, {got} after row "
            f"{self._number(int(rows.source[at]))}, expected a multiple of the "
            f"frequency {step.name}{said}; correct the time, resample the series, or "
            f"set {self.key}.frequency."
        )

    def _check_change(
        self,
        rows: _Rows,
        step: Frequency,
        before: NDArray[np.int64],
        steps: NDArray[np.int64],
    ) -> None:
        """Refuse several equal gaps in a row: the frequency changes there."""
        wide = steps[: len(steps) - RUN + 1] > 1
        for k in range(1, RUN):
            last = len(steps) - RUN + 1 + k
            wide &= (steps[k:last] == steps[: len(wide)]) & (
                before[k:last] == before[: len(wide)] + k
            )
        if not wide.any():
            return
        first = int(np.flatnonzero(wide)[0])
        at, count = int(before[first]), int(steps[first])
        got = (
            f"{count} steps"
            if step.kind != "duration"
            else duration_text(count * step.step)
        )
        raise BadInput(
            f"{self._place(int(rows.source[at + 1]), self.data.time)}: "
            f"{self._of(rows, at)}the frequency changes from {step.name} (inferred) to "
            f"{got} between rows {self._number(int(rows.source[at]))} and "
            f"{self._number(int(rows.source[at + 1]))}; resample the series, or set "
            f"{self.key}.frequency: {step.name} to fill in the rows between."
        )

    def _trimmed(
        self, rows: _Rows, targets: Sequence[str]
    ) -> tuple[_Rows, NDArray[np.int64]]:
        """Cut each series at its first target; return the lengths up to the last.

        Rows after the last target are kept if there are future covariates.
        """
        if self.data.id is None:
            rows = _stacked(rows, targets)
        known = ~np.isnan(rows.values["target" if self.data.id is None else targets[0]])
        position = np.where(known, np.arange(len(known)), -1)
        first = np.minimum.reduceat(
            np.where(known, position, len(known)), rows.offsets[:-1]
        )
        last = np.maximum.reduceat(position, rows.offsets[:-1])
        for k in np.flatnonzero(last < 0)[:1]:
            name = targets[k] if self.data.id is None else targets[0]
            of = "" if self.data.id is None else f"series {quoted(rows.ids[k])}: "
            row = int(rows.source[rows.offsets[k]])
            raise BadInput(
                f"{self._place(row, str(name))}: {of}got no value in any of "
                f"{rows.offsets[k + 1] - rows.offsets[k]:,} rows, expected a target; "
                "remove the series."
            )
        end = rows.offsets[1:] if self.data.future else last + 1
        lead, trail = first - rows.offsets[:-1], rows.offsets[1:] - end
        for cut, what in ((lead, "before their first"), (trail, "after their last")):
            if cut.any():
                k = int(np.flatnonzero(cut)[0])
                count = int((cut > 0).sum())
                self.notes.append(
                    f"left out {int(cut.sum()):,} rows of {count:,} series {what} "
                    f"target, first of {quoted(rows.ids[k])}"
                )
        if lead.any() or trail.any():
            keep = np.zeros(len(known) + 1, np.int64)
            np.add.at(keep, first, 1)
            np.add.at(keep, end, -1)
            which = np.flatnonzero(np.cumsum(keep[:-1]))
            rows = _Rows(
                rows.ids,
                np.concatenate([[0], np.cumsum(end - first)]),
                rows.times[which],
                rows.source[which],
                {name: column[which] for name, column in rows.values.items()},
            )
        return rows, last + 1 - first

    # -- values -------------------------------------------------------------------

    def _series(
        self,
        rows: _Rows,
        lengths: NDArray[np.int64],
        static: Mapping[str, NDArray[Any]],
        step: Frequency,
        targets: Sequence[str],
    ) -> SeriesSet:
        data = self.data
        total = len(rows.times)
        ends = rows.offsets[:-1] + lengths
        inside = np.zeros(total + 1, np.int8)
        inside[rows.offsets[:-1]] += 1
        inside[ends] -= 1
        inside = np.cumsum(inside[:-1], dtype=np.int8).astype(bool)
        wide = data.id is None
        name = "target" if wide else targets[0]
        past: dict[str, Array] = {}
        future: dict[str, Array] = {}
        target, flag = self._target(rows, inside, name, targets)
        if flag is not None:
            past[f"{'value' if wide else name}_missing"] = flag
        for column in data.past:
            values, missing = self._covariate(rows, column, inside)
            past[column] = values
            if missing is not None:
                past[f"{column}_missing"] = missing
        for column in data.future:
            values, missing = self._covariate(rows, column, np.ones(total, bool))
            future[column] = values
            if missing is not None:
                future[f"{column}_missing"] = missing
        calendar = None
        if data.calendar:
            calendar = calendar_features(rows.times, data.calendar, zone=step.zone)
        names = tuple(calendar.names) if calendar else ()
        columns = [*future.values(), *(calendar.values.T if calendar else ())]
        statics, static_names, categories = self._static(rows, static)
        self._report_constant(rows, target)
        return SeriesSet(
            rows.ids,
            rows.offsets,
            rows.times,
            target,
            lengths,
            _columns(list(past.values()), total),
            _columns(columns, total),
            statics,
            SeriesNames(
                "value" if wide else name,
                tuple(past),
                (*future, *names),
                static_names,
                categories,
                data.calendar,
            ),
            step,
            tuple(self.notes),
            {
                "source": "files",
                "paths": [s.path for table in self.tables for s in table.sources],
                "sha256": [s.sha256 for table in self.tables for s in table.sources],
                "series": len(rows.ids),
                "rows": total,
                "frequency": step.name,
            },
        )

    def _target(
        self, rows: _Rows, inside: NDArray[np.bool_], name: str, targets: Sequence[str]
    ) -> tuple[Array, Array | None]:
        if self.data.id is not None:
            return self._filled(rows, name, inside, self._policy(name), target=True)
        values, flags = rows.values[name], np.zeros(len(inside), np.float32)
        result = values.copy()
        for k, column in enumerate(targets):
            part = slice(int(rows.offsets[k]), int(rows.offsets[k + 1]))
            one = _Rows(
                (rows.ids[k],),
                np.array([0, part.stop - part.start]),
                rows.times[part],
                rows.source[part],
                {column: values[part]},
            )
            policy = self._policy(column)
            result[part], flag = self._filled(
                one, column, inside[part], policy, target=True
            )
            if flag is not None:
                flags[part] = flag
        flagged = any(self._policy(column) == "flag" for column in targets)
        return result, flags if flagged else None

    def _covariate(
        self, rows: _Rows, column: str, inside: NDArray[np.bool_]
    ) -> tuple[Array, Array | None]:
        values, flag = self._filled(rows, column, inside, self._policy(column))
        return np.where(inside, values, np.float32(0)), flag

    def _filled(
        self,
        rows: _Rows,
        column: str,
        inside: NDArray[np.bool_],
        policy: str,
        *,
        target: bool = False,
    ) -> tuple[Array, Array | None]:
        """Return a column without missing values, and its 0/1 column or None."""
        values = rows.values[column]
        missing = np.isnan(values) & inside
        count = int(missing.sum())
        if policy == "flag":
            flag = missing.astype(np.float32)
            if count:
                self._report_filled(column, count, "flagged")
            return values if target else np.where(missing, np.float32(0), values), flag
        if not count:
            return values, None
        at = int(np.flatnonzero(missing)[0])
        if policy == "error":
            self._refuse(rows, column, at, count)
        filled = fill(values, rows.offsets, inside, policy)
        left = np.isnan(filled) & inside
        if left.any():
            at = int(np.flatnonzero(left)[0])
            sides = "no value before it" if policy == "forward_fill" else (
                "no values on both sides"
            )  # fmt: skip
            raise BadInput(
                f"{self._at(rows, at, column)}got a missing value with {sides} in the "
                f"series, expected one for {self.key}.missing: {policy}; complete it, "
                f"or use flag for {describe(column)}."
            )
        self._report_filled(column, count, policy)
        return filled, None

    def _report_filled(self, column: str, count: int, policy: str) -> None:
        some = "a missing value" if count == 1 else f"{count:,} missing values"
        self.notes.append(f"column {quoted(column)}: {some} ({policy})")

    def _refuse(self, rows: _Rows, column: str, at: int, count: int) -> None:
        more = f" ({count:,} missing values)" if count > 1 else ""
        policies = "zero, forward_fill, interpolate or flag"
        setting = f"set {self.key}.missing for {describe(column)} to {policies}"
        if rows.source[at] >= 0:
            raise BadInput(
                f"{self._at(rows, at, column)}got no value at "
                f"{time_text(rows.times[at])}{more}, expected a number; complete it, "
                f"or {setting}."
            )
        before, after = at - 1, at + 1
        while rows.source[after] < 0:
            after += 1
        raise BadInput(
            f"{self._at(rows, after, self.data.time)}got no row for "
            f"{time_text(rows.times[at])} between {time_text(rows.times[before])} (row "
            f"{self._number(int(rows.source[before]))}) and "
            f"{time_text(rows.times[after])}{more}, expected one every "
            f"{self.step.name}; add it, or {setting}."
        )

    def _at(self, rows: _Rows, at: int, column: str) -> str:
        source = int(rows.source[at])
        while source < 0:
            at += 1
            source = int(rows.source[at])
        return f"{self._place(source, column)}: {self._of(rows, at)}"

    def _static(
        self, rows: _Rows, static: Mapping[str, NDArray[Any]]
    ) -> tuple[Array, tuple[str, ...], dict[str, tuple[str, ...]]]:
        """Return one row of static values for each series."""
        data, table = self.data, self.tables[0]
        columns: list[Array] = []
        names: list[str] = []
        categories: dict[str, tuple[str, ...]] = {}
        known = np.flatnonzero((rows.source >= 0) & (rows.source < len(table)))
        source = rows.source[known]
        series = np.searchsorted(rows.offsets, known, side="right") - 1
        firsts = np.searchsorted(series, np.arange(len(rows.ids)))
        for column in (*data.static, *data.static_categories):
            values = static[column][source]
            if column in data.static and np.isnan(values).any():
                at = int(np.flatnonzero(np.isnan(values))[0])
                raise BadInput(
                    f"{self._place(int(source[at]), column)}: got no value, expected a "
                    "number; complete it."
                )
            changed = values != values[firsts][series]
            if changed.any():
                at = int(np.flatnonzero(changed)[0])
                first = int(source[firsts[series[at]]])
                texts = table.texts.get(column)
                show: Any = texts.__getitem__ if texts else str
                raise BadInput(
                    f"{self._place(int(source[at]), column)}: series "
                    f"{quoted(rows.ids[series[at]])}: got {show(values[at])}, expected "
                    f"{show(values[firsts[series[at]]])} as in row "
                    f"{self._number(first)}, because the column is static; correct it, "
                    f"or list it under {self.key}.past or {self.key}.future."
                )
            if column in data.static:
                columns.append(values[firsts].astype(np.float32))
                names.append(column)
                continue
            texts = [table.texts[column][code] for code in values[firsts]]
            categories[column] = self._categories(column, texts, source[firsts])
            for text in categories[column]:
                columns.append(np.array([t == text for t in texts], np.float32))
                names.append(f"{column}={text}")
        return _columns(columns, len(rows.ids)), tuple(names), categories

    def _categories(
        self, column: str, texts: Sequence[str], source: NDArray[np.int64]
    ) -> tuple[str, ...]:
        if self.like is None:
            return tuple(sorted(set(texts)))
        known = self.like.categories[column]
        for text, row in zip(texts, source, strict=True):
            if text not in known:
                raise BadInput(
                    f"{self._place(int(row), column)}: got {describe(text)}, expected "
                    f"one of the training data: {join_names(known[:20])}."
                )
        return known

    def _report_constant(self, rows: _Rows, target: Array) -> None:
        low = np.fmin.reduceat(target, rows.offsets[:-1])
        high = np.fmax.reduceat(target, rows.offsets[:-1])
        constant = np.flatnonzero(low == high)
        if constant.size:
            k = int(constant[0])
            some = (
                "1 series has"
                if len(constant) == 1
                else f"{len(constant):,} series have"
            )
            self.notes.append(
                f"{some} a constant target, first {quoted(rows.ids[k])} ({low[k]:g})"
            )


def _pairs(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions whose next position is in the same series."""
    keep = np.ones(int(offsets[-1]), bool)
    keep[offsets[1:] - 1] = False
    return np.flatnonzero(keep)


def _take(values: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    if len(order) and (order[0] != 0 or (np.diff(order) != 1).any()):
        return values[order]
    return values


def _stacked(rows: _Rows, targets: Sequence[str]) -> _Rows:
    """Return one series for each target column."""
    count, length = len(targets), len(rows.times)
    values = {"target": np.concatenate([rows.values[name] for name in targets])}
    for name, column in rows.values.items():
        if name not in targets:
            values[name] = np.tile(column, count)
    return _Rows(
        tuple(targets),
        np.arange(count + 1) * length,
        np.tile(rows.times, count),
        np.tile(rows.source, count),
        values,
    )


def _columns(columns: Sequence[Array], rows: int) -> Array:
    if not columns:
        return np.empty((rows, 0), np.float32)
    return np.stack(columns, 1).astype(np.float32)
