"""Read CSV files, Parquet files and data frames into typed NumPy columns.

A column is read as numbers (float32, NaN is missing), as text (codes and names) or as
times. Nothing is guessed silently: a value that is not of its kind is an error that
names file, row and column. The rows of a CSV file are its lines, so the header is row
1; those of Parquet files and frames are counted from 1.
"""

import bisect
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, did_you_mean, join_names, shown
from jaxlstm.lab.data.delimited import Delimited, Report
from jaxlstm.lab.data.files import open_data, quoted, size_of
from jaxlstm.lab.data.paths import expand
from jaxlstm.lab.data.progress import Progress
from jaxlstm.lab.data.times import TimeColumn

if TYPE_CHECKING:
    import polars as pl

    from jaxlstm.lab.config.tables import TableFormat

Kind = Literal["number", "text", "label", "time", "order"]
"""A label is a text that may be missing, with the code -1. An order is a number or a
time, read as float64."""
Fail = Callable[[int, str], BadInput]
"""Makes an error from the position of a value in its block, and a message."""

LARGEST_FLOAT = float(np.finfo(np.float32).max)
COARSEST_STEP = 1e-3  # of the range of a column, lost by rounding to float32


class Source(NamedTuple):
    """One file of a table.

    Attributes:
        name: path and key for error messages, such as `data.path: "sales.csv"`.
        path: the path as written in the config; empty for a frame.
        sha256: hash of the bytes of the file, or of the values of a frame.
        first: number of the table's row that is the first of the file.
        rows: for each block, the table's row and the row numbers in the file.
    """

    name: str
    path: str
    sha256: str
    first: int
    rows: list[tuple[int, "NDArray[np.int64] | range"]]


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Attributes:
        columns: numbers as float32, texts as int32 codes, times as datetime64[us] or
            int64.
        texts: the distinct values of each text column, in order of their codes.
        sources: the files, in order.
        names: all columns of the first file, those that were not read included.
        notes: sentences on what was inferred or skipped.
    """

    columns: Mapping[str, NDArray[Any]]
    texts: Mapping[str, tuple[str, ...]]
    sources: tuple[Source, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def row(self, position: int) -> int:
        """Return the row number, in its file, of a row of the table."""
        source = self._source(position)
        starts = [start for start, _ in source.rows]
        start, rows = source.rows[bisect.bisect_right(starts, position) - 1]
        return int(rows[position - start])

    def place(self, position: int, column: str | None = None) -> str:
        """Return file, row and column of a value, for an error message."""
        at = f"{self._source(position).name}: row {self.row(position):,}"
        return f"{at}, column {quoted(column)}" if column else at

    def _source(self, position: int) -> Source:
        firsts = [source.first for source in self.sources]
        return self.sources[bisect.bisect_right(firsts, position) - 1]


def header(path: str | Path, form: "TableFormat", *, key: str) -> tuple[str, ...]:
    """Return the names of the columns of a file."""
    return _open(path, form, key=key, report=None).names


def read_table(
    paths: Any,
    kinds: Mapping[str, Kind],
    form: "TableFormat",
    *,
    key: str,
    times: TimeColumn | None = None,
    keys: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> Table:
    """Read columns of one or several files, or of a data frame.

    Args:
        paths: a path, a pattern, a sequence of them, or a pandas, polars or other
            frame that narwhals knows.
        kinds: the kind of each column to read.
        form: the config section that says how a CSV file is written.
        key: key of the path in the config, for error messages.
        times: reader of the columns of kind "time".
        keys: key in the config that names each column, for error messages.
        report: function that receives the bytes read so far and the bytes of the file;
            None shows the progress on stderr, once it takes 2 seconds.

    Raises:
        BadInput: a file cannot be read, lacks a column, or has a value that is not of
            the kind of its column.
    """
    reading = _Reading(kinds, form, times)
    notes: list[str] = []
    names: tuple[str, ...] = ()
    for path in [paths] if is_frame(paths) else expand(paths, key=key):
        shown_progress = report or Progress("table" if is_frame(path) else str(path))
        opened = _open(path, form, key=key, report=shown_progress)
        names = names or opened.names
        _check_columns(opened, kinds, keys or {})
        blank: list[int] = []
        source = Source(opened.name, opened.path, "", reading.rows, [])
        for block in opened.blocks(tuple(kinds)):
            blank += block.blank
            source.rows.append((reading.rows, block.rows))
            reading.add(block.frame, block.rows, opened.name)
        if isinstance(shown_progress, Progress):
            shown_progress.close()
        if reading.rows == source.first:
            raise BadInput(f"{opened.name}: got no rows, expected rows of values.")
        reading.sources.append(source._replace(sha256=opened.sha256()))
        if isinstance(opened, _CSV) and form.separator is None:
            separator = opened.file.header.separator
            if separator != ",":
                notes.append(f"fields are separated by {describe(separator)}")
        if "" in opened.names:
            at = opened.names.index("") + 1
            notes.append(f"{opened.name}: column {at} has no name and is not used")
        if blank:
            some = f"{len(blank)} blank lines" if len(blank) > 1 else "a blank line"
            notes.append(f"{opened.name}: skipped {some} (row {blank[0]:,})")
    return reading.table(names, notes)


# -- the values of a block ------------------------------------------------------


class _Reading:
    """The columns read so far."""

    def __init__(
        self, kinds: Mapping[str, Kind], form: "TableFormat", times: TimeColumn | None
    ) -> None:
        self.kinds, self.form, self.times = kinds, form, times
        self.rows = 0
        self.sources: list[Source] = []
        self.parts: dict[str, list[NDArray[Any]]] = {name: [] for name in kinds}
        self.numbers = {
            name: Numbers(form) for name in kinds if kinds[name] == "number"
        }
        self.codes: dict[str, dict[str, int]] = {
            name: {} for name in kinds if kinds[name] in ("text", "label")
        }

    def add(self, frame: "pl.DataFrame", rows: Any, name: str) -> None:
        """Convert a block."""
        for column, kind in self.kinds.items():
            place = f"column {quoted(column)}"

            def fail(at: int, message: str, place: str = place) -> BadInput:
                return BadInput(f"{name}: row {int(rows[at]):,}, {place}: {message}")

            series = frame[column]
            if kind == "number":
                values = self.numbers[column].read(series, fail)
            elif kind in ("text", "label"):
                missing = -1 if kind == "label" else None
                values = read_texts(
                    series, self.codes[column], self.form, fail, missing=missing
                )
            elif kind == "order":
                values = self._order(series, fail)
            else:
                assert self.times is not None
                values = self.times.read(series, fail)
            self.parts[column].append(values)
        self.rows += frame.height

    def _order(self, series: "pl.Series", fail: Fail) -> NDArray[np.float64]:
        """Return numbers, or the microseconds of times."""
        import polars as pl

        if series.dtype == pl.String:
            numbers = series.str.strip_chars().cast(pl.Float64, strict=False)
        elif series.dtype.is_numeric():
            numbers = series.cast(pl.Float64)
        else:
            numbers = None
        if numbers is None or (len(numbers) and numbers[0] is None):
            assert self.times is not None
            return self.times.read(series, fail).astype(np.int64).astype(np.float64)
        values = numbers.fill_null(np.nan).to_numpy()
        for at in np.flatnonzero(~np.isfinite(values))[:1]:
            got = describe(series[int(at)]) if series[int(at)] else "an empty field"
            raise fail(int(at), f"got {got}, expected a number that orders the rows.")
        return values

    def table(self, names: tuple[str, ...], notes: list[str]) -> Table:
        """Return the table."""
        columns = {}
        for name in self.kinds:
            columns[name] = np.concatenate(self.parts.pop(name))
        table = Table(
            columns,
            {name: tuple(codes) for name, codes in self.codes.items()},
            tuple(self.sources),
            names,
            (),
        )
        for name, numbers in self.numbers.items():
            numbers.check_range(table.sources[0].name, name)
            notes += numbers.notes(name)
        if self.times is not None:
            notes += self.times.notes
        return replace(table, notes=tuple(dict.fromkeys(notes)))


class Numbers:
    """Reader of a column of numbers, with the range of its values."""

    def __init__(self, form: "TableFormat") -> None:
        self.form = form
        self.low, self.high = np.inf, -np.inf
        self.booleans = 0
        self._missing = {text.strip().casefold() for text in form.missing_values}
        self._sentinels = [
            float(text)
            for text in self._missing
            if re.fullmatch(r"-?\d+(\.\d+)?", text)
        ]

    def read(self, series: "pl.Series", fail: Fail) -> NDArray[np.float32]:
        """Return the values of a block, NaN where they are missing."""
        import polars as pl

        if series.dtype == pl.String:
            values = self._parse(series, fail)
        elif series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.Null):
            values = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
        else:
            raise fail(0, f"got values of type {series.dtype}, expected numbers.")
        for number in self._sentinels:
            values = np.where(values == number, np.nan, values)
        infinite = np.isinf(values)
        if infinite.any():
            at = int(np.flatnonzero(infinite)[0])
            raise fail(
                at,
                f"got {shown(str(series[at]))}, expected a finite number; correct it, "
                "or leave it empty and choose a policy for missing values.",
            )
        known = values[~np.isnan(values)]
        if known.size:
            self.low = min(self.low, float(known.min()))
            self.high = max(self.high, float(known.max()))
            if max(-self.low, self.high) > LARGEST_FLOAT:
                at = int(np.nanargmax(np.abs(values)))
                raise fail(
                    at,
                    f"got {shown(str(series[at]))}, expected at most "
                    f"{LARGEST_FLOAT:.3g} (float32); scale the column.",
                )
        return values.astype(np.float32)

    def _parse(self, series: "pl.Series", fail: Fail) -> NDArray[np.float64]:
        import polars as pl

        texts = series
        if self.form.decimal == ",":
            clean = ~series.str.contains(".", literal=True)
            texts = series.str.replace(",", ".", literal=True)
            texts = pl.select(pl.when(clean).then(texts)).to_series()
        values = texts.cast(pl.Float64, strict=False).to_numpy(writable=True)
        # A text such as "nan" or "inf" is parsed as a number too.
        left = np.flatnonzero(~np.isfinite(values))
        if not left.size:
            return values
        texts = series.gather(left)
        distinct = texts.unique(maintain_order=True)
        numbers: dict[Any, float] = {}
        for text in distinct.to_list():
            number = self._number(text)
            if number is None:
                at = int(left[(texts == text).arg_true()[0]])
                raise fail(at, self._expected(text))
            numbers[text] = number
        values[left] = texts.replace_strict(
            list(numbers), list(numbers.values()), return_dtype=pl.Float64
        ).to_numpy()
        return values

    def _number(self, text: str | None) -> float | None:
        """Return the number of a text that polars did not read, or None."""
        stripped = (text or "").strip()
        folded = stripped.casefold()
        if folded in self._missing:
            return float("nan")
        if folded in ("true", "false"):
            self.booleans += 1
            return float(folded == "true")
        if folded.lstrip("+-") in ("inf", "infinity"):
            return float("inf")
        plain = self._plain(stripped)
        return None if plain is None else float(plain)

    def _plain(self, text: str) -> str | None:
        """Return a number in the notation of Python, None if it is not a number."""
        decimal, thousands = re.escape(self.form.decimal), self.form.thousands
        whole = r"\d*"
        if thousands is not None:
            group = r"[ \u00a0\u202f]" if thousands == " " else re.escape(thousands)
            if match := re.fullmatch(
                rf"([+-]?\d{{1,3}}(?:{group}\d{{3}})+)({decimal}\d*)?", text
            ):
                return re.sub(r"[^\d+-]", "", match[1]) + (
                    (match[2] or "").replace(self.form.decimal, ".")
                )
        pattern = rf"[+-]?{whole}(?:{decimal}\d*)?(?:[eE][+-]?\d+)?"
        if not re.fullmatch(pattern, text, re.ASCII) or not re.search(r"\d", text):
            return None
        plain = text.replace(self.form.decimal, ".")
        try:
            float(plain)
        except ValueError:
            return None
        return plain

    def _expected(self, text: str | None) -> str:
        text = (text or "").strip()
        section = "data"
        got = f"got {describe(text)}, expected a number"
        if not text:
            return (
                'got an empty field, expected a number; add "" to '
                f"{section}.missing_values to treat it as missing."
            )
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):
            return f'{got}; set {section}.thousands: "," or {section}.decimal: ",".'
        if re.fullmatch(r"[+-]?\d*,\d+", text):
            return f'{got} with a decimal point; set {section}.decimal: ",".'
        if re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?", text):
            return f'{got}; set {section}.thousands: "." and {section}.decimal: ",".'
        if re.fullmatch(r"[+-]?\d*\.\d+", text) and self.form.decimal == ",":
            return f'{got} with a decimal comma; set {section}.decimal: ".".'
        return (
            f"{got}; correct it, write categories as numbers such as 0 and 1, or add "
            f"it to {section}.missing_values if it means that the value is missing."
        )

    def check_range(self, name: str, column: str) -> None:
        """Refuse a column whose values float32 cannot tell apart."""
        size, spread = max(-self.low, self.high), self.high - self.low
        if spread > 0 and size * 2**-24 > COARSEST_STEP * spread:
            raise BadInput(
                f"{name}: column {quoted(column)}: got values from {self.low:.17g} to "
                f"{self.high:.17g}, which float32 cannot tell apart; subtract "
                f"{self.low:.17g} from the column."
            )

    def notes(self, column: str) -> list[str]:
        """Return sentences on how values were read, and on a constant column."""
        found = []
        if self.booleans:
            found.append(f"column {quoted(column)}: read true as 1 and false as 0")
        if self.low == self.high:
            found.append(f"column {quoted(column)}: all values are {self.low:g}")
        return found


def read_texts(
    series: "pl.Series",
    codes: dict[str, int],
    form: "TableFormat",
    fail: Fail,
    *,
    missing: int | None = None,
) -> NDArray[np.int32]:
    """Return the codes of the texts of a block, and extend `codes`.

    A missing text has the code `missing`, or is an error if that is None.
    """
    import polars as pl

    if series.dtype.is_float():
        raise fail(
            0,
            f"got {shown(str(series[0]))}, a number with a fraction, expected text or "
            "a whole number; convert the column, which may have missing values.",
        )
    if series.dtype.is_integer() or series.dtype in (
        pl.Categorical,
        pl.Enum,
        pl.Boolean,
    ):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        raise fail(0, f"got values of type {series.dtype}, expected text.")
    texts = series.str.strip_chars()
    distinct = texts.unique(maintain_order=True)
    absent = {text.strip().casefold() for text in form.missing_values}
    numbers = []
    for text in distinct.to_list():
        if text is None or text.casefold() in absent:
            if missing is not None:
                numbers.append(missing)
                continue
            at = (texts.is_null() if text is None else texts == text).arg_true()[0]
            got = "an empty field" if not text else describe(text)
            raise fail(int(at), f"got {got}, expected text; complete the row.")
        numbers.append(codes.setdefault(text, len(codes)))
    return texts.replace_strict(distinct, numbers, return_dtype=pl.Int32).to_numpy()


def check_names(table: Table, column: str) -> None:
    """Refuse ids that are numbers in one file and text in another, or differ in zeros.

    Raises:
        BadInput: as said; the message names two rows.
    """
    texts, codes = table.texts[column], table.columns[column]
    number = np.array([_is_number(text) for text in texts])

    def place(code: int, rows: slice) -> str:
        at = int(np.flatnonzero(codes[rows] == code)[0]) + rows.start
        return f"{table.place(at, column)}: got {describe(texts[code])}"

    ends = [source.first for source in table.sources[1:]] + [len(codes)]
    parts = [slice(s.first, end) for s, end in zip(table.sources, ends, strict=True)]
    kinds = [number[np.unique(codes[part])] for part in parts]
    for part, kind in zip(parts[1:], kinds[1:], strict=True):
        if kinds[0].all() != kind.all() and kinds[0].any() != kind.any():
            here, there = int(codes[part.start]), int(codes[0])
            raise BadInput(
                f"{place(here, part)}, expected "
                f"{'a number' if kinds[0].all() else 'text'} like "
                f"{describe(texts[there])} in {table.sources[0].name}; write the ids "
                "of all files in the same way."
            )
    seen: dict[float, int] = {}
    for code in np.flatnonzero(number):
        value = float(texts[code])
        if value in seen:
            raise BadInput(
                f"{place(int(code), slice(0, len(codes)))}, the same number as "
                f"{describe(texts[seen[value]])}; write the ids in the same way."
            )
        seen[value] = int(code)


def _is_number(text: str) -> bool:
    try:
        return text.isascii() and np.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


# -- the kinds of files ---------------------------------------------------------


class _Block(NamedTuple):
    frame: "pl.DataFrame"
    rows: Any
    blank: list[int]


class _CSV:
    def __init__(self, path: str, form: Any, *, key: str, report: Any) -> None:
        self.file = Delimited(path, form, key=key, report=report)
        self.name, self.path, self.names = self.file.name, path, self.file.header.names

    def blocks(self, columns: tuple[str, ...]) -> Iterator[Any]:
        return self.file.blocks(columns)

    def sha256(self) -> str:
        return self.file.sha256


class _Parquet:
    def __init__(self, path: str, *, key: str, report: Any) -> None:
        import polars as pl

        self.name, self.path, self.report = f"{key}: {quoted(path)}", path, report
        self._key = key
        with open_data(path, key=key) as file:
            if file.read(4) != b"PAR1":
                raise BadInput(
                    f"{self.name}: got a file that does not begin with PAR1, expected "
                    "a Parquet file; correct its suffix, or write it again."
                )
        with self._errors():
            self._scan = pl.scan_parquet(Path(path).expanduser(), glob=False)
            self.names = tuple(self._scan.collect_schema().names())

    def blocks(self, columns: tuple[str, ...]) -> Iterator[_Block]:
        import polars as pl

        with self._errors():
            done = 0
            total = int(self._scan.select(pl.len()).collect().item())
            batches = self._scan.select(columns).collect_batches(maintain_order=True)
            for frame in batches:
                yield _Block(frame, range(done + 1, done + frame.height + 1), [])
                done += frame.height
                if self.report is not None:
                    self.report(done, total)

    def sha256(self) -> str:
        with open_data(self.path, key=self._key) as file:
            return digest(file)

    def _errors(self) -> Any:
        return _PolarsErrors(self.name)


class _PolarsErrors:
    """Translates errors of polars."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import polars as pl

        # polars panics on some damaged files; a panic is no subclass of Exception.
        is_panic = type(error).__name__ == "PanicException"
        if is_panic or isinstance(error, pl.exceptions.PolarsError | OSError):
            message = shown(str(error).partition("\n")[0])
            raise BadInput(
                f"{self._name}: cannot be read as Parquet ({message}); the file is "
                "damaged or incomplete."
            ) from None


class _Frame:
    def __init__(self, frame: Any, *, key: str) -> None:
        import narwhals as nw

        self.name, self.path = f"{key}: data frame", ""
        try:
            native: Any = nw.from_native(frame)
            eager = native.collect() if isinstance(native, nw.LazyFrame) else native
            self._frame = _to_polars(eager)
        except Exception as error:
            raise BadInput(
                f"{self.name}: cannot be converted ({shown(str(error))})."
            ) from None
        self.names = tuple(self._frame.columns)

    def blocks(self, columns: tuple[str, ...]) -> Iterator[_Block]:
        frame = self._frame.select(columns)
        yield _Block(frame, range(1, frame.height + 1), [])

    def sha256(self) -> str:
        digest = hashlib.sha256()
        digest.update(repr(self._frame.schema).encode())
        rows = self._frame.hash_rows()
        digest.update(rows.to_numpy().tobytes())
        return digest.hexdigest()


def _to_polars(frame: Any) -> Any:
    """Return a frame of narwhals as one of polars, also without pyarrow."""
    import polars as pl

    try:
        return frame.to_polars()
    except ImportError:  # pandas needs pyarrow to convert texts
        columns = {
            name: [None if value != value else value for value in frame[name].to_list()]
            for name in frame.columns
        }
        return pl.DataFrame(columns)


def digest(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file."""
    found = hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    return found.hexdigest()


def is_frame(value: Any) -> bool:
    """Return whether `data.path` is replaced by a data frame."""
    return not isinstance(value, str | Path | tuple | list)


def _open(path: Any, form: Any, *, key: str, report: Report | None) -> Any:
    _require()
    if is_frame(path):
        return _Frame(path, key=key)
    if str(path).endswith((".parquet", ".pq")):
        return _Parquet(str(path), key=key, report=report)
    with open_data(path, key=key) as file:
        if size_of(file) >= 4 and file.read(4) == b"PAR1":
            return _Parquet(str(path), key=key, report=report)
    return _CSV(str(path), form, key=key, report=report)


def _require() -> None:
    for package in ("polars", "narwhals"):
        if importlib.util.find_spec(package) is None:
            raise BadInput(
                f"reading tables needs {package}; install it with: pip install "
                '"jaxlstm[data]".'
            )


def _check_columns(
    opened: Any, kinds: Mapping[str, Kind], keys: Mapping[str, str]
) -> None:
    missing = [column for column in kinds if column not in opened.names]
    if not missing:
        return
    known = [name for name in opened.names if name]
    listed = join_names(known[:20], last="and") if known else "no names"
    if len(known) > 20:
        listed += f" and {len(known) - 20} more"
    if all(re.fullmatch(r"[\d.,:T +-]*", name) for name in known):
        hint = "; the file seems to have no header, add one."
    elif len(missing) == 1:
        folded = {name.casefold(): name for name in known}
        same = folded.get(missing[0].casefold())
        similar = did_you_mean(missing[0], known)
        hint = f"; did you mean {describe(same)}?" if same else similar
    else:
        hint = ""
    roles = [keys[column] for column in missing if column in keys]
    place = f"{roles[0].partition(' (')[0]}: " if len(missing) == 1 and roles else ""
    setting = f"set {', '.join(roles)} to names of columns" if roles else "correct it"
    raise BadInput(
        f"{opened.name}: {place}got no column {join_names(missing)} among {listed}"
        f"{hint or f'; {setting}, or rename the columns of the file.'}"
    )
