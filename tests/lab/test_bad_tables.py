"""Files with mistakes: each is an error that names file, row and column, or is read.

Row numbers are those of a spreadsheet: the header is row 1.
"""
# ruff: noqa: E501 -- messages on one line are easier to compare

import gzip
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest

pl = pytest.importorskip("polars")

from jaxlstm.lab._util.errors import BadInput  # noqa: E402
from jaxlstm.lab.config.tables import SequenceFiles, SeriesFiles  # noqa: E402
from jaxlstm.lab.data.sequences import read_sequences  # noqa: E402
from jaxlstm.lab.data.series import (  # noqa: E402
    enough_rows,
    read_series,
    require_future,
)

HEAD = "unique_id,ds,y\n"


def days(values, *, name="a", first=1):
    """Return rows of a series of daily values."""
    rows = [f"{name},2024-01-{k:02d},{y}\n" for k, y in enumerate(values, first)]
    return "".join(rows)


GOOD = HEAD + days([1, 2, 3, 4])


def message(folder: Path, files, **fields):
    """Return the message of the error that files cause, without the folder."""
    files = {"a.csv": files} if isinstance(files, str | bytes) else files
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        folder.joinpath(name).write_bytes(content)
    paths = [str(folder / name) for name in files]
    fields = {"path": paths[0] if len(paths) == 1 else paths} | fields
    with pytest.raises(BadInput) as caught:
        read_series(SeriesFiles(**fields))
    text = str(caught.value)
    assert text.isprintable()
    assert text.endswith((".", "?"))
    return text.replace(f"{folder}{os.sep}", "")


UNREADABLE = {
    "an empty file": ("", "got an empty file, expected data"),
    "a header only": (HEAD, "got no rows, expected rows of values"),
    "a header without a line end": (HEAD.strip(), "got no rows"),
    "a blank first line": ("\n" + GOOD, "row 1: got a blank line, expected the names"),
    "a line sep=": ("sep=;\n" + GOOD, 'row 1: got "sep=;", expected the names'),
    "a name twice": (
        "unique_id,ds,y,y\n" + "a,2024-01-01,1,2\n",
        'row 1: got the column name "y" twice, in columns 3 and 4',
    ),
    "no such column": (
        "unique_id,ds,Y\na,2024-01-01,1\n",
        'data.target: got no column "y" among "unique_id", "ds" and "Y"; did you mean "Y"?',
    ),
    "a misspelled column": (
        "uniqe_id,ds,y\na,2024-01-01,1\n",
        'data.id: got no column "unique_id" among "uniqe_id", "ds" and "y"; did you',
    ),
    "names of another convention": (
        "shop,date,sales\na,2024-01-01,1\n",
        'got no column "ds", "unique_id" or "y" among "shop", "date" and "sales"; set '
        "data.time, data.id (null if each column is a series), data.target to names of "
        "columns",
    ),
    "no header": (
        "1,2024-01-01,5\n1,2024-01-02,2\n",
        "the file seems to have no header",
    ),
    "two separators in the header": (
        "unique_id,ds;y\na,2024-01-01;1\n",
        'row 1: got "," and ";" in the column names, expected one separator; set '
        "data.separator",
    ),
    "a row too short": (
        GOOD + "a,2024-01-05\n",
        "row 6: got 2 fields, expected 3 as in the header; complete the row",
    ),
    "a row too long": (
        GOOD + "a,2024-01-05,5,6\n" + "a,2024-01-06,6\n",
        "row 6: got 4 fields, expected 3 as in the header",
    ),
    "decimal commas without quotes": (
        HEAD + "a,2024-01-01,1,5\n",
        "row 2: got 4 fields, expected 3 as in the header; a number with a decimal comma",
    ),
    "one short and one long row": (
        HEAD + "a,2024-01-01,1,5\na,2024-01-02\n",
        "row 2: got 4 fields",
    ),
    "a decimal comma in quotes": (
        HEAD + 'a,2024-01-01,"1,5"\n',
        'row 2, column "y": got "1,5", expected a number with a decimal point; set '
        'data.decimal: ","',
    ),
    "semicolons and decimal commas": (
        "unique_id;ds;y\na;2024-01-01;1,5\n",
        'row 2, column "y": got "1,5", expected a number with a decimal point',
    ),
    "thousands": (
        HEAD + 'a,2024-01-01,"1,500"\n',
        'row 2, column "y": got "1,500", expected a number; set data.thousands: ","',
    ),
    "points for thousands": (
        "unique_id;ds;y\na;2024-01-01;1.234.567,8\n",
        'set data.thousands: "." and data.decimal: ","',
    ),
    "text in a number": (
        HEAD + days([1, 2, "closed", "closed"]),
        'row 4, column "y": got "closed", expected a number; correct it, write '
        "categories as numbers such as 0 and 1, or add it to data.missing_values",
    ),
    "a unit in a number": (HEAD + days([1, "2 EUR"]), 'row 3, column "y": got "2 EUR"'),
    "a date in a number": (
        HEAD + days([1, "2024-01-01"]),
        'row 3, column "y": got "2024-',
    ),
    "an infinite value": (
        HEAD + days([1, 2, "inf"]),
        'row 4, column "y": got inf, expected a finite number',
    ),
    "an infinite value in words": (
        HEAD + days([1, "-Infinity"]),
        "got -Infinity, expected",
    ),
    "a number too large": (
        HEAD + days([1, 2, "1e60"]),
        'row 4, column "y": got 1e60, expected at most 3.4e+38 (float32)',
    ),
    "an infinite power": (HEAD + days([1, "1e999"]), 'row 3, column "y": got 1e999'),
    "numbers that float32 cannot tell apart": (
        HEAD + days([1700000000, 1700000001, 1700000002]),
        'column "y": got values from 1700000000 to 1700000002, which float32 cannot',
    ),
    "a missing value": (
        HEAD + days([1, "", 3]),
        'row 3, column "y": series "a": got no value at 2024-01-02, expected a number',
    ),
    "a missing value in words": (
        HEAD + days([1, "NA", "null", "nan", 3]),
        'row 3, column "y": series "a": got no value at 2024-01-02 (3 missing values)',
    ),
    "no value at all": (
        HEAD + days(["", ""]),
        'row 2, column "y": series "a": got no value in any of 2 rows',
    ),
    "an empty id": (
        GOOD + ",2024-01-05,5\n",
        'row 6, column "unique_id": got an empty field, expected text',
    ),
    "an empty time": (
        GOOD + "a,,5\n",
        'row 6, column "ds": got an empty field, expected a time',
    ),
    "an ambiguous date": (
        HEAD + "a,01/02/2024,1\n",
        'row 2, column "ds": got "01/02/2024", expected a time such as 2024-01-31 or '
        '2024-01-31 09:30:00; set data.time_format: "%d/%m/%Y" (day first) or '
        '"%m/%d/%Y" (month first)',
    ),
    "a date with the day first": (
        HEAD + "a,31.01.2024,1\n",
        'set data.time_format: "%d.%m.%Y".',
    ),
    "a month in words": (HEAD + "a,Jan 2024,1\n", 'column "ds": got "Jan 2024"'),
    "two forms of dates": (
        HEAD + "a,2024-01-01,1\na,2024/01/02,1\n",
        'row 3, column "ds": got "2024/01/02", expected a valid time in the form of the '
        "first one, 2024-01-31",
    ),
    "a date and a time": (
        HEAD + "a,2024-01-01 10:00,1\na,2024-01-02,1\n",
        'row 3, column "ds": got "2024-01-02", expected a valid time in the form of',
    ),
    "no such day": (
        HEAD + "a,2024-02-29,1\na,2024-02-30,1\n",
        'row 3, column "ds": got "2024-02-30", expected a valid time',
    ),
    "a number among dates": (
        HEAD + "a,2024-01-01,1\na,45292,1\n",
        'row 3, column "ds": got "45292"',
    ),
    "a date among numbers": (
        HEAD + "a,1,1\na,2024-01-01,1\n",
        'row 3, column "ds": got "2024-01-01", expected a whole number like the first',
    ),
    "two offsets from UTC": (
        HEAD + "a,2024-01-01T00:00:00+01:00,1\na,2024-01-01T01:00:00+02:00,2\n",
        'row 3, column "ds": got "2024-01-01T01:00:00+02:00" with the offset +02:00, '
        "expected +01:00 as in the first row; set data.time_zone",
    ),
    "an offset in some rows": (
        HEAD + "a,2024-01-01T00:00:00Z,1\na,2024-01-01T01:00:00,2\n",
        "with no offset from UTC, expected Z as in the first row",
    ),
    "an offset in later rows": (
        HEAD + "a,2024-01-01T00:00:00,1\na,2024-01-01T01:00:00Z,2\n",
        "with Z from UTC, expected no offset as in the first row",
    ),
    "a time twice": (
        HEAD + days([1, 2]) + "a,2024-01-02,3\n",
        'row 4, column "ds": series "a": got 2024-01-02 again, as in row 3, expected '
        "each time once",
    ),
    "times not in order": (
        HEAD + days([1, 2]) + days([5], name="b") + "a,2023-12-31,3\n",
        'row 5, column "ds": series "a": got 2023-12-31 after 2024-01-02 (row 3), '
        "expected ascending times; sort the file, or set data.sort: true",
    ),
    "a missing row": (
        HEAD + days([1, 2]) + days([4, 5], first=4),
        'row 4, column "ds": series "a": got no row for 2024-01-03 between 2024-01-02 '
        "(row 3) and 2024-01-04, expected one every D; add it, or set data.missing",
    ),
    "a frequency that changes": (
        HEAD
        + days(range(10))
        + days([1], first=12)
        + days([1], first=14)
        + days([1], first=16)
        + days([1], first=18),
        'row 12, column "ds": series "a": the frequency changes from D (inferred) to 2 '
        "days between rows 11 and 12",
    ),
    "an irregular time": (
        HEAD + "a,2024-01-01 00:00,1\na,2024-01-01 01:00,1\na,2024-01-01 02:00,1\n"
        "a,2024-01-01 03:07,1\n",
        'row 5, column "ds": series "a": got 2024-01-01 03:07, 1 h 7 min after row 4, '
        "expected a multiple of the frequency h (inferred)",
    ),
    "one row for each series": (
        HEAD + "a,2024-01-01,1\nb,2024-01-01,1\n",
        "data.frequency: cannot be inferred, because no series has two rows",
    ),
    "bytes that are not UTF-8": (
        GOOD.encode() + "caf\xe9,2024-01-01,1\n".encode("latin-1"),
        "row 6: got the byte 0xe9, expected UTF-8; set data.encoding",
    ),
    "UTF-16": (
        GOOD.encode("utf-16"),
        "got a file in UTF-16, expected UTF-8; set data.",
    ),
    "a null byte": (
        GOOD.encode() + b"a,2024-01-05,\x005\n",
        "row 6: got a null byte, expected text",
    ),
    "an open quote": (
        GOOD + '"a,2024-01-05,5\na,2024-01-06,6\n',
        "row 6: got a quote that is not closed",
    ),
    "text after a quote": (
        GOOD + '"a"x,2024-01-05,5\n',
        "row 6: got a misplaced quote in",
    ),
    "an Excel file": (b"PK\x03\x04" + bytes(60), "got a zip archive or an Excel file"),
    "old Mac line ends": (
        GOOD.replace("\n", "\r"),
        "got line ends of old Mac systems",
    ),
    "a carriage return in a row": (
        GOOD + "a\r,2024-01-05,5\n",
        "row 6: got a carriage return inside the row",
    ),
    "a truncated gzip": (
        gzip.compress((HEAD + days(range(28)) * 50).encode())[:-20],
        "the compressed data is damaged or cut off",
    ),
    "a damaged zstd": (
        b"\x28\xb5\x2f\xfd" + bytes(40),
        "the compressed data is damaged",
    ),
    "an id with and without zeros": (
        HEAD + days([1, 2], name="7") + days([1, 2], name="007"),
        'row 4, column "unique_id": got "007", the same number as "7"',
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_mistake_in_a_csv_file_is_named(name, tmp_path):
    content, expected = UNREADABLE[name]
    text = message(tmp_path, content)
    assert expected in text
    assert text.startswith('data.path: "a.csv": ') or expected.startswith("data.freq")


def parquet(frame):
    """Return the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pl.DataFrame(frame).write_parquet(buffer)
    return buffer.getvalue()


TIMES = [f"2024-01-{k:02d}" for k in range(1, 5)]
COLUMNS = {"unique_id": ["a"] * 4, "ds": TIMES, "y": [1.0, 2.0, 3.0, 4.0]}

FILES = {
    "a wrong magic": ({"a.parquet": b"PAR2" + bytes(50)}, "does not begin with PAR1"),
    "a damaged footer": (
        {"a.parquet": parquet(COLUMNS)[:-9] + bytes(9)},
        "cannot be read as Parquet",
    ),
    "a cut Parquet file": (
        {"a.parquet": parquet(COLUMNS)[:200]},
        "cannot be read as Parquet",
    ),
    "an infinite value": (
        {"a.parquet": parquet(COLUMNS | {"y": [1.0, 2.0, float("inf"), 4.0]})},
        '"a.parquet": row 3, column "y": got inf, expected a finite number',
    ),
    "a missing value": (
        {"a.parquet": parquet(COLUMNS | {"y": [1.0, None, 3.0, 4.0]})},
        '"a.parquet": row 2, column "y": series "a": got no value at 2024-01-02',
    ),
    "ids with a fraction": (
        {"a.parquet": parquet(COLUMNS | {"unique_id": [1.0, 1.0, None, 1.0]})},
        'row 1, column "unique_id": got 1.0, a number with a fraction, expected text',
    ),
    "a missing id": (
        {"a.parquet": parquet(COLUMNS | {"unique_id": ["a", "a", None, "a"]})},
        'row 3, column "unique_id": got an empty field, expected text',
    ),
    "lists in a number column": (
        {"a.parquet": parquet(COLUMNS | {"y": [[1.0]] * 4})},
        'column "y": got values of type List',
    ),
    "an id that is a number in one file and text in another": (
        {
            "a.csv": HEAD + days([1, 2], name="7"),
            "b.csv": HEAD + days([3], name="shop7"),
        },
        '"b.csv": row 2, column "unique_id": got "shop7", expected a number like "7" in '
        'data.path: "a.csv"',
    ),
    "an id that is text in one file and a number in another": (
        {
            "a.csv": HEAD + days([1, 2], name="shop7"),
            "b.csv": HEAD + days([3], name="7"),
        },
        '"b.csv": row 2, column "unique_id": got "7", expected text like "shop7"',
    ),
    "times that overlap in two files": (
        {"a.csv": GOOD, "b.csv": HEAD + days([3, 4, 5], first=3)},
        '"b.csv": row 2, column "ds": series "a": got 2024-01-03 after 2024-01-04 (row 5 of '
        'data.path: "a.csv"), expected ascending times',
    ),
    "another header in the second file": (
        {"a.csv": GOOD, "b.csv": "id,ds,y\na,2024-01-05,1\n"},
        '"b.csv": data.id: got no column "unique_id"',
    ),
    "an empty second file": (
        {"a.csv": GOOD, "b.csv": b""},
        '"b.csv": got an empty file',
    ),
    "another form of dates in the second file": (
        {"a.csv": GOOD, "b.csv": HEAD + "a,05.01.2024,5\n"},
        '"b.csv": row 2, column "ds": got "05.01.2024", expected a valid time',
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_parquet_file_or_in_one_of_several_is_named(name, tmp_path):
    files, expected = FILES[name]
    assert expected in message(tmp_path, files)


OPTIONS = {
    "a policy that cannot fill the beginning": (
        "unique_id,ds,y,x\na,2024-01-01,1,\na,2024-01-02,2,5\n",
        {"past": ["x"], "missing": "forward_fill"},
        'row 2, column "x": series "a": got a missing value with no value before it',
    ),
    "a policy that cannot fill the end": (
        "unique_id,ds,y,x\na,2024-01-01,1,5\na,2024-01-02,2,\n",
        {"past": ["x"], "missing": "interpolate"},
        'row 3, column "x": series "a": got a missing value with no values on both sides',
    ),
    "a static column that changes": (
        "unique_id,ds,y,x\na,2024-01-01,1,5\na,2024-01-02,2,6\n",
        {"static": ["x"]},
        'row 3, column "x": series "a": got 6.0, expected 5.0 as in row 2, because the '
        "column is static",
    ),
    "a category that changes": (
        "unique_id,ds,y,x\na,2024-01-01,1,u\na,2024-01-02,2,v\n",
        {"static_categories": ["x"]},
        'row 3, column "x": series "a": got v, expected u as in row 2',
    ),
    "a column in two roles": (
        GOOD,
        {"past": ["y"]},
        'data.past: got the column "y", which is also in data.target',
    ),
    "static columns without series": (
        GOOD,
        {"id": None, "target": "y", "static": ["unique_id"]},
        "static columns need",
    ),
    "wide, but with ids": (GOOD, {"id": None}, "set data.id: unique_id"),
    "a policy for no column": (
        GOOD,
        {"missing": {"z": "flag"}},
        'data.missing: got a policy for "z"',
    ),
    "an unknown frequency": (
        GOOD,
        {"frequency": "fortnight"},
        'data.frequency: got "fortnight", expected a step',
    ),
    "a frequency of numbers for dates": (
        GOOD,
        {"frequency": "1"},
        "expected a step such as D, because the times are dates",
    ),
    "a frequency that does not fit": (
        GOOD,
        {"frequency": "2D"},
        "1 day after row 2, expected a multiple of the frequency 2D;",
    ),
    "a separator that does not occur": (
        GOOD,
        {"separator": ";"},
        'got no ";" between the column names',
    ),
    "a point among decimal commas": (
        "unique_id;ds;y\na;2024-01-01;1,5\na;2024-01-02;2.5\n",
        {"decimal": ","},
        'row 3, column "y": got "2.5", expected a number with a decimal comma',
    ),
    "groups that are not thousands": (
        HEAD + 'a,2024-01-01,"1,23"\n',
        {"thousands": ","},
        'column "y": got "1,23"',
    ),
    "a format of times that does not fit": (
        GOOD,
        {"time_format": "%d.%m.%Y"},
        'row 2, column "ds": got "2024-01-01", expected data.time_format "%d.%m.%Y"',
    ),
    "a format with a month of 13": (
        HEAD + "a,12/01/2024,1\na,13/01/2024,1\n",
        {"time_format": "%m/%d/%Y"},
        'row 3, column "ds": got "13/01/2024", expected data.time_format "%m/%d/%Y"',
    ),
    "a time that clocks skip": (
        HEAD + "a,2024-03-31 01:30,1\na,2024-03-31 02:30,1\n",
        {"time_zone": "Europe/Berlin"},
        'row 3, column "ds": got 2024-03-31 02:30:00, which does not exist in Europe/Berlin',
    ),
    "a time that clocks repeat": (
        HEAD + "a,2024-10-27 01:30,1\na,2024-10-27 02:30,1\n",
        {"time_zone": "Europe/Berlin"},
        'row 3, column "ds": got 2024-10-27 02:30:00, which occurs twice in Europe/Berlin',
    ),
    "a calendar of numbers": (
        HEAD + "a,1,1\na,2,1\n",
        {"calendar": ["hour"]},
        'data.calendar: got "hour", but the times',
    ),
    "a wrong encoding": (
        "unique_id,ds,y\ncaf\xe9,2024-01-01,1\n".encode("latin-1"),
        {"encoding": "utf-16"},
        "got bytes that are not utf-16",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_mistake_in_a_file_or_in_the_options_is_named(name, tmp_path):
    content, fields, expected = OPTIONS[name]
    assert expected in message(tmp_path, content, **fields)


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path, expected in (
        (tmp_path, "got a directory, expected a file"),
        (tmp_path / "pipe.csv", "got a pipe or a device"),
        (tmp_path / "no.csv", "does not exist"),
        (tmp_path / "*.csv.gz", "matches no file"),
        ("a\0b.csv", "got an invalid path"),
    ):
        with pytest.raises(BadInput, match=expected):
            read_series(SeriesFiles(path=str(path)))


@pytest.mark.parametrize(
    "name", ["two words.csv", "naïve.csv", "two\nlines.csv", "[x].csv"]
)
def test_names_of_files_are_taken_as_they_are(name, tmp_path):
    (tmp_path / name).write_text(GOOD)
    data = SeriesFiles(path=str(tmp_path / name))
    assert read_series(data).target.tolist() == [1, 2, 3, 4]
    assert message(tmp_path, {name: HEAD}).isprintable()


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(GOOD)
    with pytest.raises(BadInput, match="twice, expected each file once"):
        read_series(SeriesFiles(path=[str(path), str(tmp_path / "*.csv")]))


def test_short_series_are_an_error_or_left_out_with_a_note(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(HEAD + days(range(9)) + days(range(3), name="b"))
    series = read_series(SeriesFiles(path=str(path)))
    with pytest.raises(BadInput, match=r'1 series has fewer than 5 rows: "b" \(3\)'):
        enough_rows(series, 5)
    kept = enough_rows(series, 5, policy="drop")
    assert kept.ids == ("a",)
    assert kept.notes[-1] == 'left out 1 series with fewer than 5 rows: "b" (3)'
    with pytest.raises(BadInput, match="2 series have fewer than 50 rows"):
        enough_rows(series, 50, policy="drop")


def test_a_future_covariate_that_ends_too_early_is_named(tmp_path):
    path = tmp_path / "a.csv"
    rows = "".join(
        f"a,2024-01-{k:02d},{k if k < 5 else ''},{k % 2}\n" for k in range(1, 8)
    )
    path.write_text("unique_id,ds,y,x\n" + rows)
    series = read_series(SeriesFiles(path=str(path), future=("x",)))
    assert series.target_lengths.tolist() == [4]
    require_future(series, 3)
    expected = (
        r'data\.future: series "a": "x" end at 2024-01-07, expected values until '
        r"2024-01-09 \(5 steps after the last target\)"
    )
    with pytest.raises(BadInput, match=expected):
        require_future(series, 5)


SEQUENCE_HEAD = "sequence_id,step,x,label\n"
SEQUENCES = {
    "two labels in a sequence": (
        SEQUENCE_HEAD + "a,1,1,u\na,2,2,v\n",
        'row 3, column "label": sequence "a": got the label "v", expected "u" as in row 2',
    ),
    "no label": (
        SEQUENCE_HEAD + "a,1,1,u\nb,1,2,\n",
        'row 3, column "label": sequence "b": got no label',
    ),
    "a step twice": (
        SEQUENCE_HEAD + "a,1,1,u\na,1,2,u\n",
        'row 3, column "step": sequence "a": got the step of row 2 again',
    ),
    "steps not in order": (
        SEQUENCE_HEAD + "a,2,1,u\na,1,2,u\n",
        'row 3, column "step": sequence "a": got a step before that of row 2',
    ),
    "a missing value": (
        SEQUENCE_HEAD + "a,1,1,u\na,2,,u\n",
        'row 3, column "x": got a missing value, expected a number',
    ),
    "text in a number": (
        SEQUENCE_HEAD + "a,1,high,u\n",
        'row 2, column "x": got "high", expected a number',
    ),
    "a step that is no number": (
        SEQUENCE_HEAD + "a,1,1,u\na,x,2,u\n",
        'row 3, column "step": got "x", expected a number that orders the rows',
    ),
    "only labels": ("sequence_id,step,label\na,1,u\n", "data.features: got no column"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_mistake_in_labelled_sequences_is_named(name, tmp_path):
    content, expected = SEQUENCES[name]
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        read_sequences(SequenceFiles(path=str(path)))
    assert expected in str(caught.value)


TS_HEAD = "@problemName p\n@dimensions 2\n@classLabel true a b\n@data\n"
TS = {
    "an unknown class": (
        TS_HEAD + "1,2:3,4:c\n",
        'row 5: got the class "c", expected "a"',
    ),
    "no class": (TS_HEAD + "1,2:3,4:\n", 'row 5: got the class ""'),
    "a missing dimension": (TS_HEAD + "1,2:a\n", "row 5: got 1 dimensions, expected 2"),
    "dimensions of two lengths": (
        TS_HEAD + "1,2:3:a\n",
        "row 5, dimension 2: got 1 values, expected 2 as in",
    ),
    "text in a number": (
        TS_HEAD + "1,2:3,x:a\n",
        'row 5, dimension 2: got "x" as value 2, expected a number',
    ),
    "an infinite value": (
        TS_HEAD + "1,2:inf,1:a\n",
        "row 5, dimension 2: got inf as value 1",
    ),
    "a missing value": (
        TS_HEAD + "1,2:?,1:a\n",
        'row 5, step 1, column "dimension_2": got a',
    ),
    "an @ alone": ("@\n@data\n", "row 2: got no @classLabel true"),
    "no data": (TS_HEAD, "got no sequences after @data"),
    "no header": ("1,2:3,4:a\n", 'row 1: got "1,2:3,4:a", expected a line that begins'),
    "no classes": ("@classLabel false\n@data\n1:2\n", "row 2: got no @classLabel true"),
    "times": ("@timeStamps true\n@data\n(0,1):a\n", "row 2: got @timeStamps true"),
}


@pytest.mark.parametrize("name", TS)
def test_a_mistake_in_a_ts_file_is_named(name, tmp_path):
    content, expected = TS[name]
    path = tmp_path / "a.ts"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        read_sequences(SequenceFiles(path=str(path)))
    assert expected in str(caught.value)


ONES = np.ones((2, 3, 1), np.float32)
NPZ = {
    "no labels": (
        {"values": ONES},
        'got the arrays "values", expected one named "labels"',
    ),
    "labels of another length": (
        {"values": ONES, "labels": np.arange(3)},
        "labels: got the shape [3], expected [2]",
    ),
    "a length of 0": (
        {"values": ONES, "labels": np.arange(2), "lengths": np.array([3, 0])},
        "lengths[1]: got 0, expected 1 to 3",
    ),
    "a length beyond the steps": (
        {"values": ONES, "labels": np.arange(2), "lengths": np.array([3, 4])},
        "lengths[1]: got 4, expected 1 to 3",
    ),
    "lengths with a fraction": (
        {"values": ONES, "labels": np.arange(2), "lengths": np.array([3.0, 2.5])},
        "lengths: got float64 [2], expected whole numbers [2]",
    ),
    "offsets that end too early": (
        {"values": ONES[0], "labels": np.arange(1), "offsets": np.array([0, 2])},
        "offsets: got int64 [2], expected whole numbers that ascend from 0 to 3",
    ),
    "labels with a fraction": (
        {"values": ONES, "labels": np.array([0.5, 1.0])},
        "labels: got float64, expected whole",
    ),
    "an infinite value": (
        {"values": ONES * np.inf, "labels": np.arange(2)},
        "sequence 1, step 1, column",
    ),
    "a label beyond the classes": (
        {"values": ONES, "labels": np.array([0, 2]), "classes": np.array(["u", "v"])},
        "labels[1]: got 2, expected 0 to 1",
    ),
}


@pytest.mark.parametrize("name", NPZ)
def test_a_mistake_in_an_npz_file_is_named(name, tmp_path):
    arrays, expected = NPZ[name]
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(BadInput) as caught:
        read_sequences(SequenceFiles(path=str(path)))
    assert expected in str(caught.value)


def test_objects_and_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    ragged = np.array([[1], [1, 2]], dtype=object)
    np.savez(path, values=ragged, labels=np.arange(2))
    with pytest.raises(BadInput, match="got an array of Python objects"):
        read_sequences(SequenceFiles(path=str(path)))
    np.savez(path, values=ONES, labels=np.arange(2))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"cannot be read as \.npz"):
        read_sequences(SequenceFiles(path=str(path)))


def test_an_unknown_class_and_the_same_file_are_refused_for_testing(tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text(SEQUENCE_HEAD + "a,1,1,u\nb,1,1,v\n")
    test.write_text(SEQUENCE_HEAD + "c,1,1,w\n")
    data = SequenceFiles(path=str(train), test_path=str(test))
    expected = re.escape('row 2, column "label": got the label "w", expected one of')
    with pytest.raises(BadInput, match=expected):
        read_sequences(data)
    test.write_text(train.read_text())
    with pytest.raises(BadInput, match="got the same content"):
        read_sequences(data)
