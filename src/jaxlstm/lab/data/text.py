"""Text to learn: a file that the user has, or the source of this very Python."""

import hashlib
import io
import sysconfig
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.documents import Split, assemble, split_documents, split_text
from jaxlstm.lab.data.files import open_data, quoted, size_of

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import PythonData, TextData

LARGEST_TEXT = 2**31  # bytes


class Text(NamedTuple):
    """A text and where it came from."""

    path: str
    sha256: str
    text: str


def read_python(data: "PythonData") -> Corpus:
    """The top folder of this interpreter's standard library, a file a document.

    The files are taken in the order of their names, each decoded as its own coding
    line says, and `data.validation_fraction` of them held out. The sha256 is that of
    all names and contents.

    Raises:
      BadInput: if this interpreter carries no source.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = (path for path in folder.glob("*.py") if path.is_file())
    sources = sorted(path for path in files if path.stat().st_size)
    if not sources:
        raise BadInput(
            f"data.source: this Python keeps no source files in {quoted(folder)}, so "
            "there is nothing to learn; use source: text and name a file."
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
    return assemble(split, unit=data.unit, marked=True, description=description)


def read_text(data: "TextData") -> Corpus:
    """A text file, or two: `data.path` to learn and `data.validation_path` to judge.

    Line ends become `\\n`, as Python's `open` does. With `data.document_separator`
    the text between two separators is a document, and whole documents are held out;
    without it the last `data.validation_fraction` of the characters is.

    Raises:
      BadInput: if a file cannot be read or decoded, or a part would be empty.
    """
    texts = [_read(data.path, data.encoding, key="data.path")]
    if data.validation_path is not None:
        key = "data.validation_path"
        texts.append(_read(data.validation_path, data.encoding, key=key))
    split = _split_files(texts, data)
    description = {
        "source": "text",
        "paths": [text.path for text in texts],
        "sha256": [text.sha256 for text in texts],
    }
    marked = data.document_separator is not None
    return assemble(split, unit=data.unit, marked=marked, description=description)


def _split_files(texts: list[Text], data: "TextData") -> Split:
    separator = data.document_separator
    if separator is not None and separator not in texts[0].text:
        raise BadInput(
            f"data.document_separator: {quoted(separator)} is nowhere in "
            f"{quoted(texts[0].path)}; correct it, or leave it out if the text is one "
            "stream."
        )
    documents = [_documents(text, separator) for text in texts]
    if len(documents) == 2:
        return Split(*documents)
    if separator is None:
        return split_text(texts[0].text, data.validation_fraction)
    return split_documents(documents[0], data.validation_fraction)


def _documents(text: Text, separator: str | None) -> list[str]:
    """The documents of a text, without the separators and without empty ones."""
    if separator is None:
        return [text.text]
    return [document for document in text.text.split(separator) if document]


def _read(path: str | Path, encoding: str, *, key: str) -> Text:
    with open_data(path, key=key) as file:
        if (size := size_of(file)) > LARGEST_TEXT:
            raise BadInput(
                f"{key}: {quoted(path)} has {size:,} bytes and text is read whole, up "
                f"to {LARGEST_TEXT:,}; write its tokens to a file for source: tokens."
            )
        content = file.read()
    text = _newlines(_decode(content, encoding, path, key).removeprefix("\ufeff"))
    return Text(str(path), hashlib.sha256(content).hexdigest(), text)


def _decode(content: bytes, encoding: str, path: str | Path, key: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{key}: {quoted(path)} is not {encoding} at byte {error.start:,} "
            f"(0x{error.object[error.start]:02x}); name its encoding in "
            "data.encoding, or learn its bytes as they are with source: tokens, "
            "dtype: uint8, vocabulary_size: 256."
        ) from None
    except (LookupError, ValueError):
        raise BadInput(
            f"data.encoding: {quoted(encoding)} is not a text encoding that Python "
            "has; utf-8, utf-16 and latin-1 are common ones."
        ) from None


def _decode_python(content: bytes, path: Path) -> str:
    """A source file as Python reads it (PEP 263)."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return _newlines(content.decode(encoding))
    except (SyntaxError, LookupError, ValueError) as error:
        raise BadInput(
            f"data.source: {quoted(path)} cannot be decoded ({error}); it is not as "
            "Python ships it, so use source: text."
        ) from None


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
