"""Readers of text: text files, or the source code of the standard library."""

import hashlib
import io
import sysconfig
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import shortened
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.documents import Split, assemble, split_documents, split_text
from jaxlstm.lab.data.encoding import newlines, separator_of
from jaxlstm.lab.data.files import open_data, quoted, require_other_files, size_of
from jaxlstm.lab.data.paths import text_files
from jaxlstm.lab.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import PythonData, TextData

LARGEST_TEXT = 2**31  # bytes


class Text(NamedTuple):
    """A text with the path and SHA-256 of its file."""

    path: str
    sha256: str
    text: str


def read_python(data: "PythonData", *, vocabulary: Vocabulary | None = None) -> Corpus:
    """Read the top folder of the running Python's standard library.

    Each file is a document, decoded by its own encoding declaration. The files are
    ordered by name, and `data.validation_fraction` of them is held out. The SHA-256
    covers all names and contents.

    Raises:
        BadInput: this Python installation has no source files.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = (path for path in folder.glob("*.py") if path.is_file())
    sources = sorted(path for path in files if path.stat().st_size)
    if not sources:
        raise BadInput(
            f"data.source: got no source files in {quoted(folder)}, expected those of "
            "Python's standard library; use source: text with a data.path."
        )
    digest, documents = hashlib.sha256(), []
    for path in sources:
        with open_data(path, key="data.source") as file:
            content = file.read()
        digest.update(f"{path.name}\n{len(content)}\n".encode() + content)
        documents.append(_decode_python(content, path))
    split = split_documents(documents, data.validation_fraction)
    description = {
        "source": "python",
        "paths": [str(folder)],
        "sha256": [digest.hexdigest()],
    }
    return assemble(
        split, data, marked=True, description=description, vocabulary=vocabulary
    )


def read_text(data: "TextData", *, vocabulary: Vocabulary | None = None) -> Corpus:
    """Read `data.path` for training and, if given, `data.validation_path`.

    Line ends are converted to `\\n`. Each of several files is a document, and with
    `data.document_separator` the text between two separators. Whole documents are held
    out; without documents, the last `data.validation_fraction` of the characters is.

    Args:
        data: the section of the config.
        vocabulary: the vocabulary of a run, whose tokenizer is used again.

    Raises:
        BadInput: a file cannot be read or decoded, or none has the separator.
    """
    train, notes = _read_all(data.path, data.encoding, key="data.path")
    validation: list[Text] = []
    if data.validation_path is not None:
        key = "data.validation_path"
        validation, more = _read_all(data.validation_path, data.encoding, key=key)
        require_other_files([text.sha256 for text in train], validation)
        notes += more
    separator = _separator(train, data)
    marked = separator is not None or max(len(train), len(validation)) > 1
    documents = [part for text in train for part in _documents(text, separator)]
    if validation:
        held_out = [part for text in validation for part in _documents(text, separator)]
        split = Split(documents, held_out)
    elif marked:
        split = split_documents(documents, data.validation_fraction)
        if separator is None:  # each file is a document
            chosen = set(split.validation)
            files = [text.path for text in train if text.text in chosen]
            notes.append(f"held out for validation: {shortened(files, most=3)}")
    else:
        split = split_text(train[0].text, data.validation_fraction)
    description: dict[str, Any] = {
        "source": "text",
        "paths": [text.path for text in (*train, *validation)],
        "sha256": [text.sha256 for text in (*train, *validation)],
    }
    if notes:
        description["notes"] = notes
    return assemble(
        split, data, marked=marked, description=description, vocabulary=vocabulary
    )


def _separator(texts: list[Text], data: "TextData") -> str | None:
    """Return the separator of documents, which occurs in a text."""
    separator = separator_of(data)
    if separator is None or any(separator in text.text for text in texts):
        return separator
    remedy = "correct it, or remove the key if the text has no documents"
    if "\\" in separator:
        remedy = "YAML reads escapes in double quotes only, such as '\"\\n\"'"
    where = shortened([quoted(text.path) for text in texts], most=3)
    raise BadInput(
        f"data.document_separator: got {quoted(separator)}, expected text that "
        f"occurs in {where}; {remedy}."
    )


def _documents(text: Text, separator: str | None) -> list[str]:
    """Split a text into its non-empty documents."""
    if separator is None:
        return [text.text]
    return [document for document in text.text.split(separator) if document]


def _read_all(paths: Any, encoding: str, *, key: str) -> tuple[list[Text], list[str]]:
    """Return the texts of a path, pattern, folder or list, and notes on them."""
    found = text_files(paths, key=key, encoding=encoding)
    texts, size = [], 0
    for path in found.paths:
        texts.append(_read(path, encoding, key=key))
        size += len(texts[-1].text)
        if size > LARGEST_TEXT:
            raise BadInput(
                f"{key}: got more than {LARGEST_TEXT:,} characters in "
                f"{len(found.paths):,} files, expected less for source: text; convert "
                "them to token ids for source: tokens."
            )
    return texts, found.notes


def _read(path: str | Path, encoding: str, *, key: str) -> Text:
    with open_data(path, key=key) as file:
        if (size := size_of(file)) > LARGEST_TEXT:
            raise BadInput(
                f"{key}: {quoted(path)}: got {size:,} bytes, expected at most "
                f"{LARGEST_TEXT:,} for source: text; convert it to token ids for "
                "source: tokens."
            )
        content = file.read()
    text = newlines(_decode(content, encoding, path, key).removeprefix("\ufeff"))
    _require_characters(text, encoding, f"{key}: {quoted(path)}")
    return Text(str(path), hashlib.sha256(content).hexdigest(), text)


def _decode(content: bytes, encoding: str, path: str | Path, key: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{key}: {quoted(path)}: got the byte 0x{error.object[error.start]:02x} at "
            f"position {error.start:,}, expected {encoding}; set data.encoding, or "
            "train on its bytes with source: tokens, dtype: uint8, "
            "vocabulary_size: 256."
        ) from None
    except (LookupError, ValueError):
        raise BadInput(
            f"data.encoding: got {quoted(encoding)}, expected a text encoding such as "
            "utf-8, utf-16 or latin-1."
        ) from None


def _require_characters(text: str, encoding: str, name: str) -> None:
    """Refuse halves of surrogate pairs, which no file or terminal can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{name}: got the surrogate U+{ord(text[error.start]):04X} at position "
            f"{error.start:,}, expected characters; data.encoding {quoted(encoding)} "
            "decodes halves of surrogate pairs, choose another."
        ) from None


def _decode_python(content: bytes, path: Path) -> str:
    """Decode a source file as Python does (PEP 263)."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return newlines(content.decode(encoding))
    except (SyntaxError, LookupError, ValueError) as error:
        raise BadInput(
            f"data.source: {quoted(path)}: cannot be decoded ({error}); the Python "
            "installation is damaged, use source: text."
        ) from None
