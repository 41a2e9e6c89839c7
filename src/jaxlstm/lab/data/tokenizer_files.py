"""Files of tokenizers: a `tokenizer.json`, or a list of tokens."""

import json
from pathlib import Path
from typing import Any

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.data.files import open_data, quoted, size_of
from jaxlstm.lab.data.tokenizer import UNKNOWN, require

LARGEST_FILE = 1 << 25  # bytes; the JSON is stored in each checkpoint


def read(path: str | Path, *, key: str) -> str:
    """Read a `tokenizer.json`, or a list of tokens, and return the JSON.

    A list of tokens is a text file with one token a line, a JSON list, or a JSON
    mapping from tokens to ids. Tokens of one character are joined as they are, others
    by blanks.

    Args:
        path: the file.
        key: its key in the config, for messages.

    Raises:
        BadInput: the file cannot be read, or is not of one of these forms.
    """
    require()
    name = f"{key}: {quoted(path)}"
    with open_data(path, key=key) as file:
        if (size := size_of(file)) > LARGEST_FILE:
            raise BadInput(
                f"{name}: got {size:,} bytes, expected a tokenizer of at most "
                f"{LARGEST_FILE:,}."
            )
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(
            f"{name}: got a file that is not UTF-8, expected a tokenizer.json or a "
            "list of tokens."
        ) from None
    is_json = Path(path).suffix == ".json"
    data = _json(text, name) if is_json else text.splitlines()
    if isinstance(data, dict) and "model" in data and "version" in data:
        return _canonical(text, name)
    return _of_tokens(_ids(data, name), name)


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{name}: got no valid JSON ({error}), expected a tokenizer.json of the "
            "library tokenizers, or a list of tokens."
        ) from None


def _canonical(text: str, name: str) -> str:
    """Return the JSON of a tokenizer that encodes every text alike and to its end."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no subclass of it
        raise BadInput(
            f"{name}: cannot be read by the library tokenizers ({error}); write it "
            "again with Tokenizer.save."
        ) from None
    if not tokenizer.get_vocab_size():
        raise BadInput(f"{name}: got a tokenizer without tokens, expected some.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    data = json.loads(tokenizer.to_str())
    if data["model"].get("dropout"):
        data["model"]["dropout"] = None  # merges would be left out at random
    return json.dumps(data, ensure_ascii=False)


def _ids(data: Any, name: str) -> dict[str, int]:
    """Return the id of each token of a list or mapping."""
    ids = {token: n for n, token in enumerate(data)} if isinstance(data, list) else data
    is_list = isinstance(ids, dict) and len(ids) == len(data)
    if (
        not is_list
        or not all(isinstance(token, str) and token for token in ids)
        or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids))))
        or not ids
    ):
        raise BadInput(
            f"{name}: expected a tokenizer.json of the library tokenizers, a list of "
            "different tokens, or a mapping from tokens to the ids 0, 1, 2, ..."
        )
    return ids


def _of_tokens(ids: dict[str, int], name: str) -> str:
    """Return the JSON of a tokenizer of words, or of characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    known = [UNKNOWN, "<unk>", "[UNK]", "<UNK>", "UNK"]
    unknown = next((token for token in known if token in ids), UNKNOWN)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    if all(len(token) == 1 for token in ids if token not in known):
        each = Regex(r"[\s\S]")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(each, behavior="isolated")
        tokenizer.decoder = decoders.Fuse()
    elif any(len(token.split()) != 1 for token in ids):
        token = next(token for token in ids if len(token.split()) != 1)
        raise BadInput(
            f"{name}: got the token {describe(token)}, expected words without blanks; "
            "tokens of other kinds need a tokenizer.json."
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()
