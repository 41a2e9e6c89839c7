"""Select the reader of `data.source`."""

from typing import TYPE_CHECKING

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data.corpus import Corpus
from jaxlstm.lab.data.files import quoted
from jaxlstm.lab.data.text import read_python, read_text
from jaxlstm.lab.data.tokens import read_tokens
from jaxlstm.lab.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from jaxlstm.lab.config.schema import Data


def read(data: "Data", *, vocabulary: Vocabulary | None = None) -> Corpus:
    """Read the corpus described by the `data` section of a config.

    Args:
        data: the section.
        vocabulary: the vocabulary of a run on this data, whose tokenizer is used again;
            None for a new one.

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
        corpus = read_python(data, vocabulary=vocabulary)
    elif data.source == "text":
        corpus = read_text(data, vocabulary=vocabulary)
    else:
        corpus = read_tokens(data, vocabulary=vocabulary)
    _check_parts(corpus)
    return corpus


def _check_parts(corpus: Corpus) -> None:
    paths = corpus.description["paths"]
    parts = {"training": len(corpus.train), "validation": len(corpus.validation)}
    for part, size in parts.items():
        if size < 2:
            raise BadInput(
                f"data: got {size} {part} tokens from {quoted(paths[0])}, expected at "
                "least 2; change data.validation_fraction, provide more text, or use "
                "another data.validation_path."
            )
