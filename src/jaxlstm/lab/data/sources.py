"""Select the reader of `data.source`."""

from typing import TYPE_CHECKING

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.files import quoted
from jaxlstm.lab.data.text import read_python, read_text
from jaxlstm.lab.data.tokens import read_tokens

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import Data


def read(data: "Data") -> Corpus:
    """Read the corpus described by the `data` section of a config.

    Raises:
        BadInput: a file does not match the config, a part has no token to predict, or
            both parts are the same text.

    Example:
        >>> from jaxlstm.lab import config
        >>> corpus = read(config.load().data)
        >>> corpus.vocabulary.kind, corpus.document_token
        ('character', 1)
    """
    if data.source == "python":
        corpus = read_python(data)
    elif data.source == "text":
        corpus = read_text(data)
    else:
        corpus = read_tokens(data)
    _check_parts(corpus)
    return corpus


def _check_parts(corpus: Corpus) -> None:
    paths, hashes = corpus.description["paths"], corpus.description["sha256"]
    if len(set(hashes)) < len(hashes):
        raise BadInput(
            f"data.validation_path: {quoted(paths[1])}: got the same content as the "
            "training text, expected another text; use another file, or remove the "
            "key to hold out data.validation_fraction."
        )
    parts = {"training": len(corpus.train), "validation": len(corpus.validation)}
    for part, size in parts.items():
        if size < 2:
            raise BadInput(
                f"data: got {size} {part} tokens from {quoted(paths[0])}, expected at "
                "least 2; change data.validation_fraction, provide more text, or use "
                "another data.validation_path."
            )
