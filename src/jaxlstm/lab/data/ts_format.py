"""Read files in the `.ts` format of the UCR and UEA archives of time series.

    # comment
    @problemName Vowels
    @dimensions 2
    @classLabel true a b
    @data
    1.0,2.0,3.0:4.0,5.0,6.0:a

A line is a sequence. Its dimensions are separated by colons, the values of a dimension
by commas, and the class is last. "?" is a missing value. The lengths may differ.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, join_names
from jaxlstm.lab.data.files import open_data, quoted


class TSFile(NamedTuple):
    """Sequences of a `.ts` file.

    Attributes:
        values: float32 `[steps, D]` of each sequence, NaN is missing.
        labels: the class of each sequence, as written.
        rows: the line of each sequence.
        classes: classes of the header, in its order.
        sha256: hash of the bytes.
    """

    values: list[NDArray[np.float32]]
    labels: list[str]
    rows: list[int]
    classes: tuple[str, ...]
    sha256: str


def read_ts(path: str | Path, *, key: str) -> TSFile:
    """Read a `.ts` file.

    Raises:
        BadInput: the file is not valid; the message names the row and the dimension.
    """
    name = f"{key}: {quoted(path)}"
    with open_data(path, key=key) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{name}: row {row:,}: got the byte 0x{content[error.start]:02x}, expected "
            "UTF-8."
        ) from None
    header: dict[str, list[str]] = {}
    values: list[Any] = []
    labels: list[str] = []
    rows: list[int] = []
    in_data = False
    for row, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if in_data:
            dimensions, label = _sequence(line, header, f"{name}: row {row:,}")
            if values and len(dimensions) != values[0].shape[1]:
                raise BadInput(
                    f"{name}: row {row:,}: got {len(dimensions)} dimensions, expected "
                    f"{values[0].shape[1]} as in row {rows[0]:,}."
                )
            values.append(np.stack(dimensions, 1))
            labels.append(label)
            rows.append(row)
        elif line.startswith("@"):
            tag, *words = line[1:].split() or [""]
            in_data = tag.lower() == "data"
            header[tag.lower()] = words
            if in_data:
                _check_header(header, name, row)
        else:
            raise BadInput(
                f"{name}: row {row:,}: got {describe(line)}, expected a line that "
                "begins with @ or #, or @data before the values."
            )
    if not values:
        what = "sequences after @data" if in_data else "line @data"
        raise BadInput(f"{name}: got no {what}, expected a file in the .ts format.")
    classes = tuple(header.get("classlabel", ["", ""])[1:])
    sha256 = hashlib.sha256(content).hexdigest()
    return TSFile(values, labels, rows, classes, sha256)


def _check_header(header: dict[str, list[str]], name: str, row: int) -> None:
    def is_true(tag: str) -> bool:
        return header.get(tag, ["false"])[:1] == ["true"]

    if is_true("timestamps"):
        raise BadInput(
            f"{name}: row {row:,}: got @timeStamps true, expected values without "
            "times; write the values at regular times."
        )
    if not is_true("classlabel"):
        raise BadInput(
            f"{name}: row {row:,}: got no @classLabel true, expected a class for each "
            "sequence."
        )


def _sequence(
    line: str, header: dict[str, list[str]], place: str
) -> tuple[list[NDArray[np.float32]], str]:
    *dimensions, label = line.split(":")
    label = label.strip()
    classes = header.get("classlabel", [])[1:]
    if not dimensions:
        raise BadInput(
            f"{place}: got no colon, expected values, a colon and the class."
        )
    if classes and label not in classes:
        raise BadInput(
            f"{place}: got the class {describe(label)}, expected "
            f"{join_names(classes[:20])} as in @classLabel."
        )
    if not label or label == "?":
        raise BadInput(f"{place}: got no class, expected one after the last colon.")
    expected = (header.get("dimensions") or [""])[0]
    if expected.isdigit() and len(dimensions) != int(expected):
        raise BadInput(
            f"{place}: got {len(dimensions)} dimensions, expected {expected} as in "
            "@dimensions."
        )
    found = [
        _values(part, f"{place}, dimension {n}") for n, part in enumerate(dimensions, 1)
    ]
    for number, values in enumerate(found[1:], 2):
        if len(values) != len(found[0]):
            raise BadInput(
                f"{place}, dimension {number}: got {len(values)} values, expected "
                f"{len(found[0])} as in dimension 1."
            )
    return found, label


def _values(text: str, place: str) -> NDArray[np.float32]:
    words = text.split(",")
    try:
        values = np.array(list(map(float, words)))
        if "_" in text:  # Python reads 1_000, and no other reader of the format does
            raise ValueError
    except ValueError:
        values = np.array([_value(word, n, place) for n, word in enumerate(words, 1)])
    if np.isinf(values.astype(np.float32)).any():
        number = int(np.flatnonzero(np.isinf(values.astype(np.float32)))[0])
        raise BadInput(
            f"{place}: got {words[number].strip()} as value {number + 1}, expected a "
            "finite number of float32."
        )
    return values.astype(np.float32)


def _value(word: str, number: int, place: str) -> float:
    word = word.strip()
    if word in ("?", "NaN", "nan"):
        return float("nan")
    try:
        return float(word if "_" not in word else "")
    except ValueError:
        raise BadInput(
            f"{place}: got {describe(word)} as value {number}, expected a number, or ? "
            "for a missing value."
        ) from None
