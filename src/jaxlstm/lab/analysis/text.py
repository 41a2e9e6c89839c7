"""The text that a trained model is run on."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import shortened
from jaxlstm.lab.analysis.features import symbol_name
from jaxlstm.lab.data import encoding
from jaxlstm.lab.data.files import open_data, quoted

if TYPE_CHECKING:
    from jaxlstm.lab.runs.trained import Trained

LONGEST = 1 << 19  # symbols
SHORTEST = 16  # symbols
SEARCHABLE = 3000  # symbols; a shorter text is shown, but not searched


class Text(NamedTuple):
    """Tokens `[M]`, the symbol of each, and the name of their source."""

    tokens: NDArray[np.int32]
    symbols: list[str]
    source: str


def choose(
    trained: "Trained",
    path: str | Path | None,
    text: str | None,
    report: Callable[[str], object],
) -> tuple[Text, Text]:
    """Return the text that is searched for findings, and the text of the pictures.

    Both are the user's text if it is long enough to be searched. Otherwise the
    validation text is searched, if it is available.

    Raises:
        BadInput: The user's text cannot be used, or there is none and the validation
            text is missing or has changed.
    """
    given = None
    if text is not None:
        given = from_string(trained, text, "--text", report=report)
    elif path is not None:
        given = from_file(trained, path, report=report)
    if given is not None and len(given.symbols) >= SEARCHABLE:
        return given, given
    try:
        validation = trained.corpus().validation[:LONGEST]
    except BadInput as error:
        if given is None:
            raise BadInput(f"{error} (or give a text with --input or --text)") from None
        reason = str(error).rstrip(".")
        report(f"{reason}; only {given.source} is shown, and nothing is searched")
        return given, given
    tokens = np.asarray(validation, np.int32)
    searched = _with_symbols(trained, tokens, "the validation text")
    return searched, given or searched


def from_string(
    trained: "Trained",
    text: str,
    source: str,
    *,
    report: Callable[[str], object] = warnings.warn,
) -> Text:
    """Encode a text.

    Symbols that are not in the vocabulary, such as those that only the held-out part of
    the run's text has, are read as the unknown symbol, as in validation.

    Args:
        trained: the model.
        text: the text.
        source: its name, for messages.
        report: receives a message about unknown symbols.

    Raises:
        BadInput: The text is too short, or most of it is not in the vocabulary.
    """
    vocabulary, data = trained.vocabulary, trained.config.data
    tokens = encoding.encode(text, data, vocabulary)
    if unknown := vocabulary.unknown("".join(encoding.split(text, data))):
        count = int((tokens == vocabulary.unknown_id).sum())
        names = shortened([symbol_name(symbol) for symbol in unknown], most=5)
        if 2 * count > len(tokens):
            raise BadInput(
                f"{source}: {count:,} of {len(tokens):,} symbols are not in the "
                f"model's vocabulary ({names}), expected at most half"
            )
        report(
            f"{source}: {names} (in {count:,} of {len(tokens):,} places) not in the "
            "model's vocabulary; read as the unknown symbol"
        )
    if len(tokens) < SHORTEST:
        raise BadInput(
            f"{source}: got {len(tokens)} symbols, expected at least {SHORTEST}"
        )
    return _with_symbols(trained, tokens[:LONGEST], source)


def from_file(
    trained: "Trained",
    path: str | Path,
    *,
    report: Callable[[str], object] = warnings.warn,
) -> Text:
    """Read and encode a file, in the character encoding of the run's data.

    Raises:
        BadInput: The file cannot be read, or as for `from_string`.
    """
    encoding = getattr(trained.config.data, "encoding", "utf-8")
    with open_data(path, key="--input") as file:
        try:
            with io.TextIOWrapper(file, encoding) as reader:
                text = reader.read(LONGEST)
        except UnicodeDecodeError as error:
            raise BadInput(
                f"--input: {quoted(path)} is not {encoding} ({error.reason}); convert "
                f"it to {encoding}"
            ) from None
    text, vocabulary = text.removeprefix("\ufeff"), trained.vocabulary
    if vocabulary.kind == "character" and "\n" not in vocabulary.symbols:
        text = text.removesuffix("\n")
    return from_string(trained, text, f"--input {path}", report=report)


def _with_symbols(trained: "Trained", tokens: NDArray[np.int32], source: str) -> Text:
    vocabulary, different = trained.vocabulary, np.unique(tokens).tolist()
    if vocabulary.kind == "tokens":  # never of length 1, which would be a letter
        names = {token: f"#{token}" for token in different}
    else:
        names = {token: vocabulary.decode([token]) for token in different}
    return Text(tokens, [names[token] for token in tokens.tolist()], source)
