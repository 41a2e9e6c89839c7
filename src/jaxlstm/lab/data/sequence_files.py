"""Read labelled sequences of `.ts`, `.npz`, CSV and Parquet files."""

import itertools
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, did_you_mean, join_names, shown
from jaxlstm.lab.data.files import open_data, quoted
from jaxlstm.lab.data.labelled import UNLABELLED, LabelledSequences, Labels
from jaxlstm.lab.data.paths import expand
from jaxlstm.lab.data.series_set import fill
from jaxlstm.lab.data.tables import (
    Table,
    check_names,
    digest,
    header,
    is_frame,
    read_table,
)
from jaxlstm.lab.data.times import TimeColumn
from jaxlstm.lab.data.ts_format import read_ts

if TYPE_CHECKING:
    from jaxlstm.lab.config.tables import SequenceFiles


class Raw(NamedTuple):
    """Sequences of one source, with the labels as texts.

    Attributes:
        labels: a text for each sequence or step, None for a step without a label, or a
            list of symbols for each sequence.
        place: function that returns file and row of the label of a sequence or step.
        classes: classes that the source declares, if it does.
    """

    ids: Sequence[str]
    offsets: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: Sequence[Any]
    place: Callable[[int], str]
    classes: Sequence[str]
    columns: Sequence[str]
    notes: list[str]
    paths: list[str]
    sha256: list[str]


def encode(
    raw: Raw, labels: Labels, classes: Sequence[str], *, key: str = "data"
) -> LabelledSequences:
    """Return sequences with numbers of classes as labels.

    Raises:
        BadInput: a label is not one of the classes.
    """
    number = {name: k for k, name in enumerate(classes)}

    def encoded(label: str | None, at: int) -> int:
        if label is None:
            return UNLABELLED
        if label not in number:
            raise BadInput(
                f"{raw.place(at)}: got the label {describe(label)}, expected one of "
                f"the {len(classes)} classes of the training data: "
                f"{join_names(classes[:20])}{did_you_mean(label, classes)}."
            )
        return number[label]

    offsets = None
    if labels == "transcript":
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in raw.labels])])
        found = [encoded(s, k) for k, text in enumerate(raw.labels) for s in text]
    else:
        found = [encoded(label, k) for k, label in enumerate(raw.labels)]
    return LabelledSequences(
        tuple(raw.ids),
        raw.offsets,
        raw.values,
        np.array(found, np.int32),
        offsets,
        tuple(classes),
        tuple(raw.columns),
        tuple(raw.notes),
        {
            "source": "files",
            "paths": raw.paths,
            "sha256": raw.sha256,
            "sequences": len(raw.ids),
            "rows": len(raw.values),
            "classes": len(classes),
        },
    )


def classes_of(raw: Raw, labels: Labels) -> tuple[str, ...]:
    """Return the classes in order: as declared, as numbers, or as texts."""
    if raw.classes:
        return tuple(raw.classes)
    if labels == "transcript":
        found = {symbol for text in raw.labels for symbol in text}
    else:
        found = {label for label in raw.labels if label is not None}
    if not found:
        raise BadInput(f"{raw.place(0)}: got no label in any row, expected labels.")
    if all(label.removeprefix("-").isdecimal() for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def read_files(
    data: "SequenceFiles",
    paths: Any,
    labels: Labels,
    key: str,
    *,
    needs_labels: bool = True,
) -> Raw:
    """Read the files of a path, a pattern or a list; the suffix decides how.

    Args:
        data: the section.
        paths: the path, pattern or list, or a frame.
        labels: what is labelled.
        key: name of the paths, for error messages.
        needs_labels: whether a table without the column of labels is an error.
    """
    if is_frame(paths):
        return _from_table(data, paths, labels, key, needs_labels)
    files = expand(paths, key=key)
    suffixes = {file.rpartition(".")[2].lower() for file in files}
    if len(suffixes & {"ts", "npz"}) and len(suffixes) > 1:
        raise BadInput(
            f"{key}: got files with the suffixes "
            f"{join_names(sorted(suffixes), last='and')}, expected one kind of file."
        )
    if suffixes == {"ts"}:
        return _joined([_from_ts(data, file, labels, key) for file in files], key)
    if suffixes == {"npz"}:
        return _joined([_from_npz(data, file, labels, key) for file in files], key)
    return _from_table(data, files, labels, key, needs_labels)


def _from_ts(data: "SequenceFiles", path: str, labels: Labels, key: str) -> Raw:
    name = f"{key}: {quoted(path)}"
    if labels != "sequence":
        raise BadInput(
            f"{name}: got a .ts file, which has one label for each sequence; use CSV, "
            "Parquet or .npz for a label for each step or a transcript."
        )
    file = read_ts(path, key=key)
    lengths = [len(values) for values in file.values]
    columns = tuple(f"dimension_{k + 1}" for k in range(file.values[0].shape[1]))

    def place(k: int) -> str:
        return f"{name}: row {file.rows[k]:,}"

    raw = Raw(
        [str(k + 1) for k in range(len(lengths))],
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate(file.values),
        file.labels,
        place,
        file.classes,
        columns,
        [],
        [path],
        [file.sha256],
    )
    return complete(raw, data, lambda k, row: f"{place(k)}, step {row + 1}", key)


def _from_table(
    data: "SequenceFiles", paths: Any, labels: Labels, key: str, needs_labels: bool
) -> Raw:
    section = key.rpartition(".")[0]
    first = paths if is_frame(paths) else expand(paths, key=key)[0]
    is_labelled = needs_labels or data.label in header(first, data, key=key)
    if data.features is None:
        named = {data.id, data.step, data.label}
        features = tuple(
            n for n in header(first, data, key=key) if n and n not in named
        )
    else:
        features = data.features
    if not features:
        raise BadInput(f"{section}.features: got no column of numbers.")
    if is_frame(paths) and None in (data.id, data.label):
        raise BadInput(f"{section}.id: a data frame needs columns of ids and labels.")
    if data.label is None and data.id is not None:
        raise BadInput(
            f"{section}.label: got null, the folder of a file, expected {section}.id: "
            "null too, because a file is a sequence then."
        )
    if data.label is None and labels != "sequence":
        raise BadInput(
            f"{section}.label: got null, the folder of a file, expected a column of "
            f"labels, because there is one for each {labels}."
        )
    kinds: dict[str, Any] = {}
    keys: dict[str, str] = dict.fromkeys(features, f"{section}.features")
    for name, kind in (("id", "text"), ("label", "label"), ("step", "order")):
        column = getattr(data, name)
        if column is not None and (name != "label" or is_labelled):
            kinds[column], keys[column] = kind, f"{section}.{name}"
    kinds |= dict.fromkeys(features, "number")
    times = TimeColumn(section=section)
    table = read_table(paths, kinds, data, key=key, keys=keys, times=times)
    rows = _grouped(table, data)
    order, offsets = rows.order, rows.offsets

    def place(row: int) -> str:
        return table.place(int(order[row]), data.label)

    label_place = place
    if not is_labelled:
        nothing: Any = [] if labels == "transcript" else None
        found = [nothing] * len(order if labels == "step" else rows.ids)
    elif labels == "step":
        assert data.label is not None
        texts = [*table.texts[data.label], None]
        found = [texts[k] for k in table.columns[data.label][order]]
    else:
        found = _one_each(table, data, rows)
        label_place = lambda k: place(int(offsets[k]))  # noqa: E731
        if labels == "transcript":
            found = [text.split() for text in found]
    raw = Raw(
        rows.ids,
        offsets,
        np.stack([table.columns[name][order] for name in features], 1),
        found,
        label_place,
        (),
        features,
        list(table.notes),
        [source.path for source in table.sources],
        [source.sha256 for source in table.sources],
    )

    def value_place(k: int, row: int) -> str:
        return table.place(int(order[offsets[k] + row]))

    return complete(raw, data, value_place, section)


class _Grouped(NamedTuple):
    """Rows of a table in order of sequences and steps."""

    ids: Sequence[str]
    order: NDArray[np.int64]
    offsets: NDArray[np.int64]


def _grouped(table: Table, data: "SequenceFiles") -> _Grouped:
    """Return the rows of each sequence, and check that its steps ascend."""
    ids: Sequence[str]
    if data.id is None:
        ids = [source.path for source in table.sources]
        firsts = [source.first for source in table.sources]
        codes = np.repeat(np.arange(len(ids)), np.diff([*firsts, len(table)]))
    else:
        check_names(table, data.id)
        ids, codes = table.texts[data.id], table.columns[data.id]
    order = np.argsort(codes, kind="stable")
    if data.step is not None:
        steps = table.columns[data.step]
        if data.sort:
            order = np.lexsort((steps, codes))
        difference = np.diff(steps[order])
        same = np.diff(codes[order]) == 0
        for at in np.flatnonzero(same & (difference <= 0))[:1]:
            before, row = int(order[at]), int(order[at + 1])
            what = f"a step before that of row {table.row(before):,}"
            remedy = "sort the file, or set data.sort: true"
            if difference[at] == 0:
                what = f"the step of row {table.row(before):,} again"
                remedy = "remove the duplicate"
            raise BadInput(
                f"{table.place(row, data.step)}: sequence {quoted(ids[codes[row]])}: "
                f"got {what}, expected ascending steps; {remedy}."
            )
    counts = np.bincount(codes, minlength=len(ids))
    return _Grouped(ids, order, np.concatenate([[0], np.cumsum(counts)]))


def _one_each(table: Table, data: "SequenceFiles", rows: _Grouped) -> list[str]:
    """Return the label of each sequence, which is the same in all its rows."""
    if data.label is None:
        return [Path(source.path).absolute().parent.name for source in table.sources]
    order, offsets = rows.order, rows.offsets
    numbers, texts = table.columns[data.label][order], table.texts[data.label]
    first = np.repeat(numbers[offsets[:-1]], np.diff(offsets))
    for at in np.flatnonzero((numbers != first) | (numbers < 0))[:1]:
        k = int(np.searchsorted(offsets, at, side="right")) - 1
        start = int(order[offsets[k]])
        place = table.place(int(order[at]), data.label)
        of = f"sequence {quoted(rows.ids[k])}"
        if numbers[at] < 0:
            raise BadInput(
                f"{place}: {of}: got no label, expected one; complete the row."
            )
        raise BadInput(
            f"{place}: {of}: got the label {describe(texts[numbers[at]])}, expected "
            f"{describe(texts[first[at]])} as in row {table.row(start):,}, because a "
            "sequence has one label; correct it, or train the task for a label for "
            "each step."
        )
    return [texts[k] for k in numbers[offsets[:-1]]]


def _from_npz(data: "SequenceFiles", path: str, labels: Labels, key: str) -> Raw:
    """Read one of two layouts.

    Padded: `values` [N, T, D] or [N, T], `lengths` [N], `labels` [N] or [N, T].
    Flat: `values` [rows, D], `offsets` [N + 1], `labels` [N] or [rows], or, for
    transcripts, [symbols] with `label_offsets` [N + 1]. `ids`, `classes` and `columns`
    are optional texts.
    """
    name = f"{key}: {quoted(path)}"
    with open_data(path, key=key) as file:
        sha256 = digest(file)
        file.seek(0)
        arrays = _arrays(file, name)
    values = _required(arrays, "values", name)
    written = _required(arrays, "labels", name)
    if values.dtype.kind not in "fiub" or values.ndim not in (2, 3):
        raise BadInput(
            f"{name}: values: got {values.dtype} {list(values.shape)}, expected "
            "numbers [N, T, D], or [rows, D] with offsets."
        )
    steps = labels == "step"
    if "offsets" in arrays:
        offsets = _offsets(arrays["offsets"], len(values), name, "offsets")
        flat = values.reshape(len(values), -1)
    else:
        flat, offsets, keep = _unpadded(values, arrays.get("lengths"), name)
        if steps and written.ndim == 2 and written.shape == keep.shape:
            written = written[keep]
    count = len(offsets) - 1
    expected = len(flat) if steps else count
    found: Sequence[Any]
    texts = _label_texts(written, name)
    if labels == "transcript":
        ends = _offsets(
            _required(arrays, "label_offsets", name),
            len(texts),
            name,
            "label_offsets",
            empty=True,
        )
        if len(ends) != count + 1:
            raise BadInput(
                f"{name}: label_offsets: got {len(ends)}, expected {count + 1}."
            )
        found = [texts[a:b] for a, b in itertools.pairwise(ends)]
    elif len(texts) != expected or written.ndim != 1:
        what = "row" if steps else "sequence"
        raise BadInput(
            f"{name}: labels: got the shape {list(written.shape)}, expected "
            f"[{expected}], one for each {what}."
        )
    else:
        found = [None if steps and text == str(UNLABELLED) else text for text in texts]
    columns = _texts(arrays, "columns", flat.shape[1], name) or [
        f"value_{k + 1}" for k in range(flat.shape[1])
    ]
    ids = _texts(arrays, "ids", count, name) or [str(k + 1) for k in range(count)]
    classes = _texts(arrays, "classes", None, name) or []
    if classes and written.dtype.kind in "iu":
        found = _named(found, classes, name)
    raw = Raw(
        ids, offsets, flat.astype(np.float32), found,
        lambda k: f"{name}: labels[{k}]", classes, columns, [], [path], [sha256],
    )  # fmt: skip
    return complete(
        raw, data, lambda k, row: f"{name}: sequence {k + 1}, step {row + 1}", key
    )


def _named(found: Sequence[Any], classes: Sequence[str], name: str) -> list[Any]:
    """Return the names of labels that are numbers of classes."""

    def named(text: Any, k: int) -> Any:
        if text is None:
            return None
        if isinstance(text, list):
            return [named(one, k) for one in text]
        if not 0 <= int(text) < len(classes):
            raise BadInput(
                f"{name}: labels[{k}]: got {text}, expected 0 to {len(classes) - 1}, "
                f"a number of one of the {len(classes)} classes."
            )
        return classes[int(text)]

    return [named(text, k) for k, text in enumerate(found)]


def _arrays(file: Any, name: str) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise BadInput(
                f"{name}: got a single array, expected an .npz file with values and "
                "labels; write it with numpy.savez."
            )
        return {key: loaded[key] for key in loaded.files}
    except (
        ValueError,
        OSError,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if isinstance(error, BadInput):
            raise
        if "allow_pickle" in str(error):
            raise BadInput(
                f"{name}: got an array of Python objects, expected arrays of numbers "
                "and texts; sequences of unequal length need one of the layouts with "
                "lengths or offsets."
            ) from None
        message = shown(str(error).partition("\n")[0])
        raise BadInput(
            f"{name}: cannot be read as .npz ({message}); the file is damaged or "
            "incomplete."
        ) from None


def _required(arrays: Mapping[str, Any], key: str, name: str) -> NDArray[Any]:
    if key not in arrays:
        raise BadInput(
            f"{name}: got the arrays {join_names(arrays, last='and') or 'none'}, "
            f'expected one named "{key}"{did_you_mean(key, arrays)}.'
        )
    return arrays[key]


def _offsets(
    offsets: NDArray[Any], rows: int, name: str, key: str, *, empty: bool = False
) -> NDArray[np.int64]:
    ok = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
    if ok:
        offsets = offsets.astype(np.int64)
        smallest = 0 if empty else 1
        ok = (
            offsets[0] == 0
            and offsets[-1] == rows
            and np.diff(offsets).min() >= smallest
        )
    if not ok:
        raise BadInput(
            f"{name}: {key}: got {offsets.dtype} {list(offsets.shape)}, expected whole "
            f"numbers that ascend from 0 to {rows:,}, the number of rows."
        )
    return offsets


def _unpadded(values: NDArray[Any], lengths: Any, name: str) -> Any:
    """Return padded values one after another, their offsets, and the mask of steps."""
    if values.ndim == 2:
        values = values[:, :, None]
    count, steps, _ = values.shape
    lengths = np.full(count, steps) if lengths is None else lengths
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
        raise BadInput(
            f"{name}: lengths: got {lengths.dtype} {list(lengths.shape)}, expected "
            f"whole numbers [{count}]."
        )
    for k in np.flatnonzero((lengths < 1) | (lengths > steps))[:1]:
        raise BadInput(
            f"{name}: lengths[{k}]: got {lengths[k]}, expected 1 to {steps}, the steps "
            "of values."
        )
    lengths = lengths.astype(np.int64)
    keep = np.arange(steps) < lengths[:, None]
    return values[keep], np.concatenate([[0], np.cumsum(lengths)]), keep


def _label_texts(labels: NDArray[Any], name: str) -> list[str]:
    if labels.dtype.kind not in "iuU":
        raise BadInput(
            f"{name}: labels: got {labels.dtype}, expected whole numbers or texts."
        )
    return [str(label) for label in labels.ravel().tolist()]


def _texts(
    arrays: Mapping[str, Any], key: str, count: int | None, name: str
) -> list[str]:
    if key not in arrays:
        return []
    found = [str(text) for text in arrays[key].ravel().tolist()]
    if (count is not None and len(found) != count) or len(set(found)) < len(found):
        raise BadInput(
            f"{name}: {key}: got {len(found)} texts, expected "
            f"{len(set(found)) if count is None else count} different ones."
        )
    return found


def _joined(parts: list[Raw], key: str) -> Raw:
    """Return the sequences of several files as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for part in parts[1:]:
        if list(part.columns) != list(first.columns):
            raise BadInput(
                f"{key}: {quoted(part.paths[0])}: got {len(part.columns)} columns, "
                f"expected the {len(first.columns)} of {quoted(first.paths[0])}."
            )
    counts = np.cumsum([0] + [len(part.labels) for part in parts])
    rows = np.cumsum([0] + [len(part.values) for part in parts])

    def place(k: int) -> str:
        part = int(np.searchsorted(counts, k, side="right")) - 1
        return parts[part].place(k - int(counts[part]))

    classes = list(dict.fromkeys(name for part in parts for name in part.classes))
    return Raw(
        [f"{part.paths[0]}:{name}" for part in parts for name in part.ids],
        np.concatenate(
            [[0], *(p.offsets[1:] + a for p, a in zip(parts, rows[:-1], strict=True))]
        ),
        np.concatenate([part.values for part in parts]),
        [label for part in parts for label in part.labels],
        place,
        classes if all(part.classes for part in parts) else [],
        first.columns,
        [note for part in parts for note in part.notes],
        [path for part in parts for path in part.paths],
        [sha for part in parts for sha in part.sha256],
    )


def complete(
    raw: Raw, data: "SequenceFiles", place: Callable[[int, int], str], key: str
) -> Raw:
    """Return sequences whose missing values are replaced as `data.missing` says."""
    missing = np.isnan(raw.values)
    infinite = np.isinf(raw.values)
    section = key.partition(".")[0]
    for row, column in np.argwhere(infinite)[:1]:
        k = int(np.searchsorted(raw.offsets, row, side="right")) - 1
        raise BadInput(
            f"{place(k, int(row - raw.offsets[k]))}, column "
            f"{quoted(raw.columns[column])}: got {raw.values[row, column]}, "
            "expected a finite number."
        )
    notes = list(raw.notes)
    values, columns = raw.values, tuple(raw.columns)
    if data.missing == "flag":
        values = np.where(missing, np.float32(0), values)
        values = np.concatenate([values, missing.astype(np.float32)], 1)
        columns += tuple(f"{name}_missing" for name in columns)
    elif missing.any():
        values = values.copy()
        inside = np.ones(len(values), bool)
        if data.missing != "error":
            for column in np.flatnonzero(missing.any(0)):
                values[:, column] = fill(
                    values[:, column], raw.offsets, inside, data.missing
                )
        for row, column in np.argwhere(np.isnan(values))[:1]:
            k = int(np.searchsorted(raw.offsets, row, side="right")) - 1
            why = "" if data.missing == "error" else (
                f" that {section}.missing: {data.missing} cannot replace at an end of "
                "the sequence"
            )  # fmt: skip
            others = "flag"
            if data.missing == "error":
                others = "zero, forward_fill, interpolate or flag"
            raise BadInput(
                f"{place(k, int(row - raw.offsets[k]))}, column "
                f"{quoted(raw.columns[column])}: got a missing value{why}"
                f"{_count(int(missing.sum()))}, expected a number; complete it, or set "
                f"{section}.missing to {others}."
            )
    if missing.any():
        notes.append(f"{int(missing.sum()):,} missing values ({data.missing})")
    constant = [
        name
        for name, column in zip(columns, values.T, strict=True)
        if column.min() == column.max() and not name.endswith("_missing")
    ]
    if constant:
        notes.append(f"constant columns: {join_names(constant[:20], last='and')}")
    return raw._replace(values=values.astype(np.float32), columns=columns, notes=notes)


def _count(count: int) -> str:
    return f" ({count:,} missing values)" if count > 1 else ""
