"""Labelled sequences of every source: files, digits, and generated tasks."""

from collections.abc import Sequence
from typing import Any

import jaxlstm.lab.data.generated_sequences as generated_sequences
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import join_names
from jaxlstm.lab.data.files import quoted
from jaxlstm.lab.data.labelled import UNLABELLED as UNLABELLED
from jaxlstm.lab.data.labelled import LabelledSequences as LabelledSequences
from jaxlstm.lab.data.labelled import Labels as Labels
from jaxlstm.lab.data.labelled import Parts as Parts
from jaxlstm.lab.data.sequence_files import classes_of, encode, read_files


def read_sequences(
    data: Any,
    labels: Labels = "sequence",
    *,
    key: str = "data",
    classes: Sequence[str] | None = None,
) -> Parts:
    """Read the labelled sequences of a `data` section.

    Args:
        data: `SequenceFiles`, `DigitSequences`, `GeneratedTags` or
            `GeneratedTranscripts`.
        labels: what is labelled.
        key: name of the section, for error messages.
        classes: classes of the training data, for new data; others are an error, and a
            table without the column of labels is not.

    Raises:
        BadInput: a file cannot be read, or its sequences cannot be used; the message
            names file, row and column.
    """
    if data.source != "files":
        return generated_sequences.read(data, labels, key=key)
    new = classes is not None
    train = read_files(data, data.path, labels, f"{key}.path", needs_labels=not new)
    test = None
    if data.test_path is not None:
        test = read_files(data, data.test_path, labels, f"{key}.test_path")
    known = tuple(classes) if classes is not None else classes_of(train, labels)
    first = encode(train, labels, known, key=key)
    if test is None:
        return Parts(first, None)
    if list(test.columns) != list(train.columns):
        raise BadInput(
            f"{key}.test_path: got the columns {join_names(test.columns, last='and')}, "
            f"expected {join_names(train.columns, last='and')} as in {key}.path."
        )
    shared = set(train.sha256) & set(test.sha256)
    if shared:
        raise BadInput(
            f"{key}.test_path: {quoted(test.paths[0])}: got the same content as a file "
            f"of {key}.path, expected other sequences."
        )
    return Parts(first, encode(test, labels, known, key=key))
