"""CSV and Parquet files are read exactly, in whatever form they are written."""

import csv
import gzip
import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pl = pytest.importorskip("polars")

from jaxlstm.lab._util.errors import BadInput  # noqa: E402
from jaxlstm.lab.config.tables import TableFormat  # noqa: E402
from jaxlstm.lab.data import delimited, tables  # noqa: E402
from jaxlstm.lab.data.tables import read_table  # noqa: E402
from jaxlstm.lab.data.times import TimeColumn  # noqa: E402

KINDS = {"name": "text", "x": "number"}
ROWS = [("a", 1.5), ("b", -2.0), ("a", 1000.25)]
NAMES = ["a", "b", "a"]


def read(path, kinds=KINDS, **form):
    return read_table(path, kinds, TableFormat(**form), key="data.path")


def texts(table, column="name"):
    return [table.texts[column][code] for code in table.columns[column]]


def plain(separator=",", decimal=".", end="\n", last=True):
    lines = [separator.join(["name", "x"])]
    lines += [f"{name}{separator}{x}".replace(".", decimal) for name, x in ROWS]
    return (end.join(lines) + end * last).encode()


FORMS = {
    "plain": (plain(), {}),
    "without a last line end": (plain(last=False), {}),
    "Windows line ends": (plain(end="\r\n"), {}),
    "a byte order mark": (b"\xef\xbb\xbf" + plain(), {}),
    "semicolons": (plain(";"), {}),
    "tabs": (plain("\t"), {}),
    "bars": (plain("|"), {"separator": "|"}),
    "decimal commas": (plain(";", ","), {"decimal": ","}),
    "decimal commas in quotes": (
        b'name,x\na,"1,5"\nb,"-2,0"\na,"1000,25"\n',
        {"decimal": ","},
    ),
    "thousands": (b'name,x\na,1.5\nb,-2\na,"1,000.25"\n', {"thousands": ","}),
    "points for thousands": (
        b"name;x\na;1,5\nb;-2\na;1.000,25\n",
        {"thousands": ".", "decimal": ","},
    ),
    "spaces for thousands": (b"name,x\na,1.5\nb,-2\na,1 000.25\n", {"thousands": " "}),
    "quotes": (b'"name","x"\n"a","1.5"\n"b","-2"\n"a","1000.25"\n', {}),
    "spaces": (b" name , x \n a , 1.5\nb,-2 \na,1000.25\n", {}),
    "powers of ten": (b"name,x\na,15e-1\nb,-2E0\na,+1.00025e3\n", {}),
    "blank lines": (plain().replace(b"\n", b"\n\n"), {}),
    "blank lines and quotes": (b'name,x\n\n"a",1.5\r\n\r\nb,-2\na,1000.25\n\n', {}),
    "UTF-16": (plain().decode().encode("utf-16"), {"encoding": "utf-16"}),
    "latin-1": (plain(), {"encoding": "latin-1"}),
    "gzip": (gzip.compress(plain()), {}),
    "more columns": (b"z,x,name\n,1.5,a\n?,-2,b\nq,1000.25,a\n", {}),
    "an index without a name": (b",name,x\n0,a,1.5\n1,b,-2\n2,a,1000.25\n", {}),
}


@pytest.mark.parametrize("block", [7, 1 << 24], ids=["small blocks", "one block"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_gives_the_same_table(form, block, tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK", block)
    content, options = FORMS[form]
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    table = read(path, **options)
    assert texts(table) == NAMES
    assert table.columns["x"].tolist() == [x for _, x in ROWS]
    assert table.columns["x"].dtype == np.float32


def test_another_separator_is_noted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(plain(";"))
    assert read(path).notes == ('fields are separated by ";"',)
    assert read(path, separator=";").notes == ()


def test_zstd_is_read(tmp_path):
    zstd = pytest.importorskip(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    )
    path = tmp_path / "a.csv.zst"
    path.write_bytes(zstd.compress(plain()))
    assert texts(read(path)) == NAMES
    path.write_bytes(zstd.compress(plain())[:-3])
    with pytest.raises(BadInput, match="damaged or cut off"):
        read(path)


def test_rows_are_those_of_a_spreadsheet(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('name,x\na,1\n\n"two\nlines",2\nb,3\n')
    table = read(path)
    assert [table.row(k) for k in range(3)] == [2, 4, 6]
    assert texts(table) == ["a", "two\nlines", "b"]
    assert table.place(2, "x").endswith('a.csv": row 6, column "x"')
    assert table.notes == (f'data.path: "{path}": skipped a blank line (row 3)',)


def test_rows_of_several_files_are_counted_in_each(tmp_path):
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        path.write_bytes(plain())
    table = read(tmp_path / "*.csv")
    assert [table.row(k) for k in range(6)] == [2, 3, 4, 2, 3, 4]
    assert texts(table) == NAMES * 2
    assert len({source.sha256 for source in table.sources}) == 1


def test_missing_values_are_nan_and_a_number_may_mean_missing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,x\na,\nb,na\nc,-999\nd,-999.0\ne,5\n")
    table = read(path, missing_values=("", "NA", "-999"))
    assert np.isnan(table.columns["x"]).tolist() == [True] * 4 + [False]
    assert "5" not in str(table.notes) or "all values are 5" in str(table.notes)


def test_booleans_are_numbers_with_a_note(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,x\na,True\nb,FALSE\n")
    table = read(path)
    assert table.columns["x"].tolist() == [1, 0]
    assert table.notes == ('column "x": read true as 1 and false as 0',)


def test_a_constant_column_is_reported(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,x\na,3\nb,3\n")
    assert read(path).notes == ('column "x": all values are 3',)


def test_parquet_and_frames_give_the_same_table(tmp_path):
    frame = pl.DataFrame(ROWS, schema=["name", "x"], orient="row")
    path = tmp_path / "a.parquet"
    frame.write_parquet(path)
    renamed = tmp_path / "b.data"  # recognized by its first bytes
    renamed.write_bytes(path.read_bytes())
    sources = [path, renamed, frame, frame.lazy()]
    if pandas := sys.modules.get("pandas"):
        sources.append(pandas.DataFrame(ROWS, columns=["name", "x"]))
    for source in sources:
        table = read(source)
        assert texts(table) == NAMES
        assert table.columns["x"].tolist() == [x for _, x in ROWS]
        assert table.row(2) == 3
    changed = frame.with_columns(pl.col("x") + 1)
    assert read(changed).sources[0].sha256 != read(frame).sources[0].sha256


def test_kinds_of_numbers_in_parquet(tmp_path):
    frame = pl.DataFrame(
        {
            "whole": pl.Series([1, None, 3], dtype=pl.Int16),
            "flag": [True, False, None],
            "text": ["1.5", "NA", "2"],
            "id": pl.Series([7, 8, 7], dtype=pl.UInt32),
        }
    )
    kinds = {"whole": "number", "flag": "number", "text": "number", "id": "text"}
    table = read(frame, kinds)
    np.testing.assert_array_equal(table.columns["whole"], [1, np.nan, 3])
    np.testing.assert_array_equal(table.columns["flag"], [1, 0, np.nan])
    np.testing.assert_array_equal(table.columns["text"], [1.5, np.nan, 2])
    assert texts(table, "id") == ["7", "8", "7"]


# -- times ------------------------------------------------------------------------


def times(values, **options):
    frame = pl.DataFrame({"t": values})
    column = TimeColumn(**options)
    found = read_table(
        frame, {"t": "time"}, TableFormat(), key="data.path", times=column
    )
    return found.columns["t"], column


@pytest.mark.parametrize(
    ("written", "options", "expected"),
    [
        ("2024-02-29", {}, "2024-02-29"),
        ("2024/02/29", {}, "2024-02-29"),
        ("2024-02", {}, "2024-02-01"),
        ("2024-02-29 13:05", {}, "2024-02-29T13:05"),
        ("2024-02-29T13:05:07.25", {}, "2024-02-29T13:05:07.25"),
        ("2024-02-29T13:05:07Z", {}, "2024-02-29T13:05:07"),
        ("2024-02-29 13:05:07+0530", {}, "2024-02-29T07:35:07"),
        ("29.02.2024", {"format": "%d.%m.%Y"}, "2024-02-29"),
        ("02/29/24 13:05", {"format": "%m/%d/%y %H:%M"}, "2024-02-29T13:05"),
        ("2024-07-01 12:00", {"zone": "Europe/Berlin"}, "2024-07-01T10:00"),
        ("2024-07-01", {"zone": "Europe/Berlin"}, "2024-07-01"),
    ],
)
def test_forms_of_times(written, options, expected):
    found, _ = times([written], **options)
    assert found[0] == np.datetime64(expected, "us")


def test_whole_numbers_are_times():
    found, _ = times(["0", "-5", "45292"])
    assert found.tolist() == [0, -5, 45292]
    assert found.dtype == np.int64


def test_offsets_that_change_need_a_zone_and_give_utc():
    written = ["2024-03-31T01:00:00+01:00", "2024-03-31T03:00:00+02:00"]
    found, column = times(written, zone="Europe/Berlin")
    assert (found[1] - found[0]) == np.timedelta64(1, "h")
    assert found[0] == np.datetime64("2024-03-31T00:00", "us")
    assert column.zone == "Europe/Berlin"


# -- arbitrary content ------------------------------------------------------------


def check_against_csv_module(content: bytes) -> None:
    """Read a file of any bytes: a `BadInput`, or the rows that Python's csv reads."""
    kinds = {"unique_id": "text", "y": "number"}
    path = Path(check_against_csv_module.folder, "a.csv")  # pyright: ignore
    path.write_bytes(content)
    refused = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = read(path, kinds)
    except BadInput as error:
        refused = str(error)
    if refused:
        assert refused.isprintable()
        assert "a.csv" in refused
        return
    text = content.decode("utf-8-sig")
    names = [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")))]
    if len(names) == 1 or "," not in text.partition("\n")[0]:
        return  # another separator
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row][1:]
    assert len(table) == len(rows)
    for k, row in enumerate(rows):
        assert len(row) == len(names)
        name = texts(table, "unique_id")[k].strip()
        assert name == row[names.index("unique_id")].strip()
        value, written = table.columns["y"][k], row[names.index("y")].strip().lower()
        if np.isnan(value):
            assert written in ("", "na", "n/a", "nan", "null", "none")
        elif written not in ("true", "false"):
            assert np.isclose(value, np.float32(written), rtol=1e-6)


SAMPLE = b'unique_id,ds,y\na,2024-01-01,1\n"b,c",2024-01-02,-2.5\nd,2024-01-03,\n'
PIECES = [b"\n", b",", b'"', b"\r\n", b";", b"\0", b"\xff", b"nan", b"-", b"1e5", b""]
edits = st.lists(
    st.tuples(
        st.integers(0, len(SAMPLE)),
        st.integers(0, 3),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)),
    ),
    max_size=5,
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Give the files of random content one folder."""
    check_against_csv_module.folder = tmp_path_factory.mktemp("random")  # pyright: ignore


def edited(changes) -> bytes:
    content = SAMPLE
    for at, removed, inserted in changes:
        content = content[:at] + inserted + content[at + removed :]
    return content


@given(edits)
@example([(14, 0, b"\n\n")])
@example([(30, 0, b'"')])
@example([(32, 1, b'"'), (15, 0, b'"')])
@example([(32, 0, b'"'), (15, 0, b'"')])
@example([(10, 0, b"\x01"), (38, 3, b'"'), (49, 3, b""), (50, 0, b'"')])
def test_edited_files_are_refused_or_read_without_loss(changes):
    check_against_csv_module(edited(changes))


@given(st.binary(max_size=60))
def test_random_bytes_are_refused(content):
    check_against_csv_module(b"unique_id,y\n" + content)


@pytest.mark.thorough
@settings(max_examples=5000)
@given(edits, st.integers(4, 40))
def test_many_edited_files_in_blocks_of_any_size(changes, block):
    before, delimited.BLOCK = delimited.BLOCK, block
    try:
        check_against_csv_module(edited(changes))
    finally:
        delimited.BLOCK = before


def test_an_option_may_not_be_missing_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r'pip install "jaxlstm\[data\]"'):
        read(tmp_path / "a.csv")
