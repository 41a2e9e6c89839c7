"""Read a CSV file in blocks of whole records, which polars parses.

The bytes are read once. Hash, encoding, quotes and the number of fields of every record
are checked before a block is parsed, so that no record is dropped, padded or shifted
without an error, and so that an error can name the line. Memory is bounded by the
block. Row numbers are those that a spreadsheet shows: the header is row 1.
"""

import codecs
import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, join_names, shown
from jaxlstm.lab.data.files import open_data, quoted, size_of

if TYPE_CHECKING:
    import polars as pl

    from jaxlstm.lab.config.tables import TableFormat

BLOCK = 1 << 24  # bytes
LONGEST_RECORD = 1 << 26  # bytes
_SEPARATORS = (",", ";", "\t", "|")
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34

Report = Callable[[int, int], None]
"""Receives the bytes read so far, and the bytes of the file."""


class Header(NamedTuple):
    """The names of the columns, and the character between two fields."""

    names: tuple[str, ...]
    separator: str
    lines: int  # lines that the header takes


class Block(NamedTuple):
    """Consecutive records.

    Attributes:
        frame: a polars frame of text columns.
        rows: line number of each record in the file, the first line being 1.
        blank: line numbers of blank lines between the records.
    """

    frame: "pl.DataFrame"
    rows: NDArray[np.int64] | range
    blank: list[int]


class Delimited:
    """A CSV file that is read in blocks.

    Args:
        path: the file; gzip and zstd are recognized by their first bytes.
        form: the config section.
        key: key of the path in the config, such as `data.path`.
        report: function that receives the progress.

    Raises:
        BadInput: the file cannot be read, or is not a table; the message names file,
            row and column.
    """

    def __init__(
        self,
        path: str | Path,
        form: "TableFormat",
        *,
        key: str,
        report: Report | None = None,
    ) -> None:
        self.path, self.form, self.key, self.report = path, form, key, report
        self.name = f"{key}: {quoted(path)}"
        self.section = key.rpartition(".")[0] or "data"
        self.sha256 = ""
        self.header = self._read_header()

    def blocks(self, columns: "tuple[str, ...]") -> Iterator[Block]:
        """Yield the records after the header; `sha256` is known after the last."""
        positions = [self.header.names.index(column) for column in columns]
        with self._open() as (stream, digest):
            text = self._utf8(stream)
            line, first = 1, True
            for records in _whole_records(text, self.name):
                body, at = records, line
                line += records.count(b"\n")
                if first:
                    end = _end_of_header(records)
                    body, at = records[end:], line - records[end:].count(b"\n")
                    first = False
                if body:
                    yield self._parse(body, at, columns, positions)
            self.sha256 = digest.hexdigest()

    def fail(self, row: int, message: str) -> BadInput:
        """Return an error that names the file and the row."""
        return BadInput(f"{self.name}: row {row:,}: {message}")

    # -- header -----------------------------------------------------------------

    def _read_header(self) -> Header:
        with self._open(count=False) as (stream, _):
            start = b""
            for piece in self._utf8(stream, size=1 << 16):
                start += piece
                if b"\n" in start or len(start) > 1 << 20:
                    break
        end = _end_of_header(start)
        self._check_bytes(start[:end], 1)
        record = start[:end].decode().rstrip("\r\n")
        if "\r" in record.strip() and '"' not in record:
            raise BadInput(
                f"{self.name}: got line ends of old Mac systems (carriage returns), "
                "expected line feeds; save the file with Unix or Windows line ends."
            )
        if not record.strip():
            raise self.fail(1, "got a blank line, expected the names of the columns.")
        if record.lower().startswith("sep=") and len(record) == 5:
            raise self.fail(
                1, f"got {describe(record)}, expected the names of the columns; remove "
                f"this line, and set {self.section}.separator."
            )  # fmt: skip
        separator = self._separator(record)
        try:
            reader = csv.reader([record], delimiter=separator, strict=True)
            fields = [field.strip() for field in next(reader)]
        except csv.Error as error:
            raise self.fail(1, f"got invalid quotes ({shown(str(error))}).") from None
        self._check_names(fields)
        return Header(tuple(fields), separator, start[:end].count(b"\n"))

    def _separator(self, record: str) -> str:
        if self.form.separator is not None:
            if self.form.separator not in record and (
                other := [s for s in _SEPARATORS if s in record]
            ):
                raise self.fail(
                    1,
                    f"got no {describe(self.form.separator)} between the column names "
                    f"{describe(record)}, expected {self.section}.separator "
                    f"{describe(self.form.separator)}; set it to {describe(other[0])}.",
                )
            return self.form.separator
        found = [s for s in _SEPARATORS if s in _unquoted(record)]
        if len(found) > 1:
            raise self.fail(
                1,
                f"got {join_names(found, last='and')} in the column names, expected "
                f"one separator; set {self.section}.separator.",
            )
        return found[0] if found else ","

    def _check_names(self, fields: list[str]) -> None:
        seen: dict[str, int] = {}
        for position, field in enumerate(fields, 1):
            if field and field in seen:
                raise self.fail(
                    1,
                    f"got the column name {describe(field)} twice, in columns "
                    f"{seen[field]} and {position}, expected different names; rename "
                    "one.",
                )
            seen[field] = position

    # -- bytes ------------------------------------------------------------------

    @contextmanager
    def _open(self, *, count: bool = True) -> "Iterator[tuple[BinaryIO, Any]]":
        with open_data(self.path, key=self.key) as file:
            digest = hashlib.sha256()
            magic = file.read(4)
            file.seek(0)
            hashed = _Hashed(file, digest, self.report if count else None)
            stream: Any = hashed
            try:
                if magic[:2] == b"\x1f\x8b":
                    stream = gzip.GzipFile(fileobj=hashed)  # pyright: ignore
                elif magic == b"\x28\xb5\x2f\xfd":
                    stream = _zstd().ZstdFile(hashed)
                yield stream, digest
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise BadInput(
                    f"{self.name}: the compressed data is damaged or cut off "
                    f"({shown(str(error))}); copy or download the file again."
                ) from None
            except Exception as error:
                if type(error).__name__ != "ZstdError":
                    raise
                raise BadInput(
                    f"{self.name}: the compressed data is damaged "
                    f"({shown(str(error))}); copy or download the file again."
                ) from None

    def _utf8(self, stream: BinaryIO, *, size: int = BLOCK) -> Iterator[bytes]:
        """Yield the content as UTF-8, without a byte order mark."""
        encoding = codecs.lookup(self.form.encoding).name
        if encoding in ("utf-8", "ascii", "utf-8-sig"):
            first = True
            while piece := stream.read(size):
                if first:
                    self._refuse_utf16(piece)
                yield piece.removeprefix(codecs.BOM_UTF8) if first else piece
                first = False
            return
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        first = True
        try:
            while piece := stream.read(size):
                text = decoder.decode(piece)
                yield (text.removeprefix("\ufeff") if first else text).encode()
                first = False
            yield decoder.decode(b"", True).encode()
        except UnicodeError as error:
            raise BadInput(
                f"{self.name}: got bytes that are not {self.form.encoding} "
                f"({shown(str(getattr(error, 'reason', error)))}); correct "
                f"{self.section}.encoding."
            ) from None

    def _refuse_utf16(self, piece: bytes) -> None:
        if piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadInput(
                f"{self.name}: got a file in UTF-16, expected UTF-8; set "
                f"{self.section}.encoding: utf-16."
            )
        if piece.startswith(b"PK\x03\x04"):
            raise BadInput(
                f"{self.name}: got a zip archive or an Excel file, expected CSV; save "
                "the sheet as CSV, or unpack the archive."
            )

    # -- records ----------------------------------------------------------------

    def _parse(
        self, body: bytes, line: int, columns: tuple[str, ...], positions: list[int]
    ) -> Block:
        self._check_bytes(body, line)
        self._check_returns(body, line)
        self._check_quotes(body, line)
        body, rows, blank = self._records(body, line)
        import polars as pl

        names = self.header.names
        schema = {str(n): pl.String for n in range(len(names))}
        if not len(rows):
            empty = {column: pl.Series([], dtype=pl.String) for column in columns}
            return Block(pl.DataFrame(empty), rows, blank)
        try:
            frame = pl.read_csv(
                io.BytesIO(body),
                has_header=False,
                separator=self.header.separator,
                schema=schema,
                columns=sorted(positions),
                infer_schema=False,
                empty_string_is_null=False,
            )
        except pl.exceptions.PolarsError as error:
            self._explain(body, rows)
            message = str(error).partition("\n")[0]
            raise self.fail(
                int(rows[0]), f"cannot be parsed ({shown(message)})."
            ) from None
        if frame.height != len(rows):
            self._explain(body, rows)
            raise self.fail(
                int(rows[0]),
                f"got {frame.height:,} records from {len(rows):,}; check the quotes.",
            )
        order = [str(position) for position in positions]
        return Block(
            frame.select(order).rename(dict(zip(order, columns, strict=True))),
            rows,
            blank,
        )

    def _check_bytes(self, body: bytes, line: int) -> None:
        if not body.isascii():
            try:
                body.decode()
            except UnicodeDecodeError as error:
                row = line + body.count(b"\n", 0, error.start)
                raise self.fail(
                    row,
                    f"got the byte 0x{body[error.start]:02x}, expected UTF-8; set "
                    f"{self.section}.encoding, such as cp1252 or latin-1.",
                ) from None
        if (at := body.find(b"\0")) >= 0:
            raise self.fail(
                line + body.count(b"\n", 0, at),
                "got a null byte, expected text; the file is damaged, or is no CSV "
                "file.",
            )

    def _check_returns(self, body: bytes, line: int) -> None:
        if (at := _bare_return(body)) is not None:
            raise self.fail(
                line + body.count(b"\n", 0, at),
                "got a carriage return inside the row, expected line feeds alone or "
                "after carriage returns as ends of rows; correct the line ends.",
            )

    def _check_quotes(self, body: bytes, line: int) -> None:
        at = _misplaced_quote(body, self.header.separator.encode())
        if at is not None:
            around = body[max(at - 5, 0) : at + 6].decode("utf-8", "replace")
            raise self.fail(
                line + body.count(b"\n", 0, at),
                f"got a misplaced quote in {quoted(around)}, expected quotes around "
                "the whole field; write a quote inside a text twice.",
            )

    def _records(
        self, body: bytes, line: int
    ) -> "tuple[bytes, NDArray[np.int64] | range, list[int]]":
        """Return the records without blank lines, and their line numbers."""
        separator = self.header.separator.encode()
        width = len(self.header.names)
        simple = b'"' not in body and not _has_blank_line(body)
        if simple:
            count = body.count(b"\n") + (not body.endswith(b"\n"))
            if body.count(separator) == count * (width - 1):
                return body, range(line, line + count), []
        layout = _layout(body, separator)
        rows = line + layout.lines
        blank = rows[layout.blank].tolist()
        keep = ~layout.blank
        wrong = np.flatnonzero(keep & (layout.separators != width - 1))
        if wrong.size:
            self._ragged(int(rows[wrong[0]]), int(layout.separators[wrong[0]]) + 1)
        if blank:
            pieces = [
                body[a:b]
                for a, b in zip(layout.starts[keep], layout.ends[keep], strict=True)
            ]
            body = b"\n".join([*pieces, b""])
        return body, rows[keep], blank

    def _ragged(self, row: int, fields: int) -> None:
        width, separator = len(self.header.names), self.header.separator
        hint = "correct the row"
        if fields > width and separator == ",":
            hint = (
                "a number with a decimal comma or a text with a comma needs quotes, or "
                f"another {self.section}.separator"
            )
        elif fields == 1 and row == self.header.lines + 1:
            hint = f"set {self.section}.separator"
        elif fields == width + 1:
            hint = "the header lacks a name, or a field has a separator in it"
        elif fields < width:
            hint = "complete the row; the file may be cut off here"
        raise self.fail(
            row, f"got {fields} fields, expected {width} as in the header; {hint}."
        )

    def _explain(self, body: bytes, rows: "NDArray[np.int64] | range") -> None:
        """Raise an error for the first record that is not valid CSV, if any."""
        text = io.StringIO(body.decode("utf-8", "replace"), newline="")
        reader = csv.reader(text, delimiter=self.header.separator, strict=True)
        number = -1
        try:
            for number, fields in enumerate(reader):
                if len(fields) != len(self.header.names):
                    self._ragged(int(rows[min(number, len(rows) - 1)]), len(fields))
        except csv.Error as error:
            row = int(rows[min(number + 1, len(rows) - 1)])
            raise self.fail(row, f"got invalid quotes ({shown(str(error))}).") from None


class _Layout(NamedTuple):
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]  # lines before each record
    separators: NDArray[np.int64]  # separators in each record, outside quotes
    blank: NDArray[np.bool_]


def _layout(body: bytes, separator: bytes) -> _Layout:
    """Find the records of `body`, with respect to quotes."""
    data = np.frombuffer(body, np.uint8)
    outside = (np.cumsum(data == _QUOTE, dtype=np.int64) & 1) == 0
    newlines = np.flatnonzero(data == _NEWLINE)
    ends = newlines[outside[newlines]]
    if not body.endswith(b"\n"):
        ends = np.append(ends, len(body))
    starts = np.concatenate([[0], ends[:-1] + 1])
    found = np.flatnonzero((data == separator[0]) & outside)
    separators = np.searchsorted(found, ends) - np.searchsorted(found, starts)
    size = ends - starts
    first = data[np.minimum(starts, len(data) - 1)]
    blank = (size == 0) | ((size == 1) & (first == _RETURN))
    return _Layout(starts, ends, np.searchsorted(newlines, starts), separators, blank)


def _bare_return(body: bytes) -> int | None:
    """Return the position of the first carriage return inside a record, if any.

    One before a line feed ends the record, and one in quotes is text.
    """
    if body.count(b"\r") == body.count(b"\r\n"):
        return None
    data = np.frombuffer(body, np.uint8)
    outside = (np.cumsum(data == _QUOTE, dtype=np.int64) & 1) == 0
    before_newline = np.append(data[1:] == _NEWLINE, False)
    found = np.flatnonzero((data == _RETURN) & outside & ~before_newline)
    last = len(body.rstrip(b"\r"))  # a file may end in one
    return int(found[0]) if found.size and found[0] < last else None


def _misplaced_quote(body: bytes, separator: bytes) -> int | None:
    """Return the position of the first quote that parsers read differently, if any.

    It closes a text and is followed by more, or it begins inside a field and encloses a
    separator or a line end. Other quotes inside a field are text.

    Example:
        >>> [_misplaced_quote(row, b",") for row in (b'"a,b",1', b'5"x6",1')]
        [None, None]
        >>> [_misplaced_quote(row, b",") for row in (b'x,"a"b,1', b'a"b,c",1')]
        [4, 1]
    """
    if b'"' not in body:
        return None
    data = np.frombuffer(body, np.uint8)
    is_quote = data == _QUOTE
    outside = (np.cumsum(is_quote, dtype=np.int64) & 1) == 0
    is_end = (data == separator[0]) | (data == _NEWLINE)
    opening, closing = (
        np.flatnonzero(is_quote & ~outside),
        np.flatnonzero(is_quote & outside),
    )
    ends = np.flatnonzero(is_end & outside)
    place = np.searchsorted(ends, opening)
    start = np.where(place > 0, ends[place - 1] + 1 if ends.size else 0, 0)
    quoted_field = data[start] == _QUOTE
    opening, whole = opening[: len(closing)], quoted_field[: len(closing)]
    after = data[np.minimum(closing + 1, len(data) - 1)]
    allowed = np.frombuffer(separator + b'"\r\n', np.uint8)
    more = (closing < len(data) - 1) & ~np.isin(after, allowed)
    inside = np.flatnonzero(is_end & ~outside)
    encloses = np.searchsorted(inside, closing) > np.searchsorted(inside, opening)
    wrong = np.where(whole, more, encloses)
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    return int(closing[first] if whole[first] else opening[first])


def _has_blank_line(body: bytes) -> bool:
    return (
        b"\n\n" in body or b"\n\r\n" in body or body[:1] == b"\n" or body[:2] == b"\r\n"
    )


def _whole_records(pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Cut a stream of bytes at ends of records."""
    rest, line = b"", 1
    for piece in pieces:
        data = rest + piece
        end = _last_record(data)
        if end == 0 and len(data) > LONGEST_RECORD:
            raise BadInput(
                f"{name}: row {line:,}: got no end of the record in "
                f"{len(data) >> 20} MiB; a quoted text is not closed, or the file is "
                "no CSV file."
            )
        if end:
            yield data[:end]
            line += data.count(b"\n", 0, end)
        rest = data[end:]
    if rest:
        if rest.count(b'"') % 2:
            row = line + rest.count(b"\n", 0, _odd_line(rest))
            raise BadInput(
                f"{name}: row {row:,}: got a quote that is not closed; close it, or "
                "write a quote inside a text twice."
            )
        yield rest


def _last_record(data: bytes) -> int:
    """Return the position after the last record that ends in `data`."""
    if b'"' not in data:
        return data.rfind(b"\n") + 1
    layout = np.frombuffer(data, np.uint8)
    outside = (np.cumsum(layout == _QUOTE, dtype=np.int64) & 1) == 0
    ends = np.flatnonzero((layout == _NEWLINE) & outside)
    return int(ends[-1]) + 1 if ends.size else 0


def _odd_line(data: bytes) -> int:
    """Return the start of the first line with an odd number of quotes."""
    at = 0
    for line in data.split(b"\n"):
        if line.count(b'"') % 2:
            return at
        at += len(line) + 1
    return 0


def _end_of_header(data: bytes) -> int:
    """Return the position after the first record."""
    if b'"' not in data.partition(b"\n")[0]:
        return data.find(b"\n") + 1 or len(data)
    layout = np.frombuffer(data[: 1 << 20], np.uint8)
    outside = (np.cumsum(layout == _QUOTE, dtype=np.int64) & 1) == 0
    ends = np.flatnonzero((layout == _NEWLINE) & outside)
    return int(ends[0]) + 1 if ends.size else len(data)


def _unquoted(text: str) -> str:
    return "".join(text.split('"')[::2])


class _Hashed:
    """A file that hashes and reports what is read from it."""

    def __init__(self, file: BinaryIO, digest: Any, report: Report | None) -> None:
        self._file, self._digest, self._report = file, digest, report
        self._size, self._done = size_of(file), 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self._done += len(data)
        if self._report is not None:
            self._report(self._done, self._size)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def _zstd() -> Any:
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]
    except ImportError:
        try:
            from backports import zstd  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise BadInput(
                "reading a .zst file needs backports.zstd; install it with: pip "
                'install "jaxlstm[data]".'
            ) from None
    return zstd
