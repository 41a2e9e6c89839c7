"""YAML read into values that remember where they stand.

    text  --read-->  Node(value, place)       place: "configs/a.yaml:7", or ""

A `Node` holds a scalar, a list of nodes or a dict of nodes. Because the place
travels with the value, files can be merged and values overridden, and a message
still names the line, or the override, that is to blame.

Only plain data is read: YAML 1.2 through ruamel.yaml (`1e-3` is a number), one
document, no aliases, no tags, every key once.
"""

import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as Parsed
from ruamel.yaml.reader import ReaderError

from jaxlstm.lab._util.wording import described, dotted, guess, listed, shown

Key = str | int
KeyPath = tuple[Key, ...]
LARGEST_FILE = 256_000
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "null", "bool", "int", "float")}


class Node(NamedTuple):
    """A value and the place it was read from; `value` may hold further nodes."""

    value: Any
    place: str


class SourceError(ValueError):
    """What keeps a text from being read: one line, its place included."""


# -- nodes --------------------------------------------------------------------


def plain(node: Node) -> Any:
    """The value without its places: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def planted(value: Any, place: str) -> Node:
    """The opposite of `plain`: every part of `value` is said to stand at `place`."""
    if isinstance(value, Mapping):
        return Node({key: planted(item, place) for key, item in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([planted(item, place) for item in value], place)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return Node(value, place)


def place_of(node: Node, path: KeyPath) -> str:
    """Where `path` stands; the nearest enclosing place if it stands nowhere."""
    for key in path:
        try:
            node = node.value[key]
        except (LookupError, TypeError):
            break
    return node.place


def merged(
    below: Node, above: Node, tags: Mapping[KeyPath, str], *, path: KeyPath = ()
) -> Node:
    """`above` on top of `below`: mappings key by key, all else replaced whole.

    `tags` names, for the mappings that are one of several kinds, the key that says
    which kind: a mapping of another kind replaces the one below.
    """
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    tag = tags.get(path)
    if (
        tag in above.value
        and above.value[tag].value != below.value.get(tag, above).value
    ):
        return above
    both = {
        key: merged(below.value[key], item, tags, path=(*path, key))
        for key, item in above.value.items()
        if key in below.value
    }
    return Node({**below.value, **above.value, **both}, above.place)


# -- overrides ----------------------------------------------------------------


def overridden(node: Node, text: str, *, defaults: Mapping[str, Any]) -> Node:
    """The node with one `key.path=value` set.

    A list that is not there yet begins as the one in `defaults`, so that
    `optimizer.1.adamw.b1=0.8` changes the default chain.

    Errors: `SourceError` where the text is no override, or its path leads nowhere.
    """
    place = f"override {described(text)}"
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SourceError(f"{place}: write key=value, as in model.hidden_size=256")
    keys = path.strip().split(".")
    try:
        return _set(node, keys, _override_value(value, place), defaults)
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from None


def _set(node: Node, keys: list[str], value: Node, defaults: Any) -> Node:
    """The node with `value` at the end of the key path."""
    if not keys:
        return value
    key, *rest = keys
    inside, below = node.value, None
    if inside is None:
        listlike = isinstance(defaults, list | tuple)
        inside = planted(defaults if listlike else {}, node.place).value
    if isinstance(inside, list):
        at = _index(key, inside)
        changed = _set(inside[at], rest, value, None)
        return Node([*inside[:at], changed, *inside[at + 1 :]], node.place)
    if not isinstance(inside, dict):
        raise SourceError(
            f"{described(inside)} stands where {described(key)} is sought"
        )
    if isinstance(defaults, Mapping):
        below = defaults.get(key)
    name = {str(known): known for known in inside}.get(key, key)
    begin = inside.get(name, Node(None, value.place))
    return Node({**inside, name: _set(begin, rest, value, below)}, node.place)


def _index(key: str, items: list[Node]) -> int:
    if key not in map(str, range(len(items))):
        raise SourceError(
            f"{described(key)} numbers no entry of the list there; its entries are "
            f"0 to {len(items) - 1}"
        )
    return int(key)


def _override_value(text: str, place: str) -> Node:
    """A number, true, false or null; a flow list or mapping; all else is text."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        node, problems = read(text, "value")
        if problems:
            raise SourceError(problems[0])
        return planted(plain(node), place)
    try:
        node, problems = read(text, "value")
    except SourceError:
        return Node(text, place)
    is_compound = isinstance(node.value, str | list | dict)
    is_text = problems or is_compound or "#" in text or text.isspace()
    return Node(text if is_text else node.value, place)


# -- text ---------------------------------------------------------------------


def read(text: str, name: str) -> tuple[Node, list[str]]:
    """Reads one YAML document.

    Returns: the node, and a line for each part that is not plain data and was left
    out. An empty document is `Node(None, name)`.

    Errors: `SourceError` where the text is not YAML at all.
    """
    parser = YAML(typ="safe", pure=True)
    reading = _Reading(name, parser.constructor, [], set())
    try:
        root = parser.compose(text)
        node = None if root is None else _built(root, (), reading)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        message = f"{name}:{line}: the character {code} may not stand in YAML"
        raise SourceError(message) from None
    except MarkedYAMLError as error:
        raise SourceError(_not_yaml(text, name, error)) from None
    except RecursionError:
        raise SourceError(f"{name}: the file is nested too deeply") from None
    except YAMLError as error:
        raise SourceError(f"{name}: not YAML: {shown(str(error))}") from None
    return node or Node(None, name), reading.problems


class _Reading(NamedTuple):
    """What is needed all the way down a document, and what was wrong so far."""

    name: str
    constructor: SafeConstructor
    problems: list[str]
    seen: set[int]

    def refuse(self, parsed: Parsed, path: KeyPath, sentence: str) -> None:
        where = f"{dotted(path)}: " if path else ""
        self.problems.append(f"{self.place(parsed)}: {where}{sentence}")

    def place(self, parsed: Parsed) -> str:
        return f"{self.name}:{parsed.start_mark.line + 1}"


def _built(parsed: Parsed, path: KeyPath, reading: _Reading) -> Node | None:
    """The node; None, and a problem, for what is not plain data."""
    place = reading.place(parsed)
    if id(parsed) in reading.seen:
        return reading.refuse(parsed, path, "an alias is used; write the value out")
    reading.seen.add(id(parsed))
    if isinstance(parsed, ScalarNode):
        return _scalar(parsed, path, reading)
    if isinstance(parsed, MappingNode) and parsed.tag == _TAG + "map":
        return Node(_entries(parsed, path, reading), place)
    if isinstance(parsed, SequenceNode) and parsed.tag == _TAG + "seq":
        items = [
            _built(item, (*path, i), reading) for i, item in enumerate(parsed.value)
        ]
        return Node([item for item in items if item is not None], place)
    return reading.refuse(
        parsed, path, f"the tag {_short(parsed.tag)} is not read here"
    )


def _entries(parsed: MappingNode, path: KeyPath, reading: _Reading) -> dict[Key, Node]:
    """The entries of a mapping, each with the place of its key."""
    entries: dict[Key, Node] = {}
    for parsed_key, parsed_value in parsed.value:
        key = _key(parsed_key, path, reading)
        if key in entries:
            first = entries[key].place.rpartition(":")[2]
            sentence = f"the key stands here again, after line {first}; keep one"
            reading.refuse(parsed_key, (*path, key), sentence)
        elif key is not None:
            value = _built(parsed_value, (*path, key), reading)
            if value is not None:
                entries[key] = Node(value.value, reading.place(parsed_key))
    return entries


def _key(parsed: Parsed, path: KeyPath, reading: _Reading) -> Key | None:
    if parsed.tag == _TAG + "merge":
        return reading.refuse(parsed, path, "<< is not read; write the keys out")
    node = _scalar(parsed, path, reading) if isinstance(parsed, ScalarNode) else None
    if node is not None and type(node.value) in (str, int):
        return node.value
    return reading.refuse(parsed, path, "a key must be a name; put it in quotes")


def _scalar(parsed: ScalarNode, path: KeyPath, reading: _Reading) -> Node | None:
    if parsed.tag == _TAG + "timestamp":
        sentence = f"{shown(parsed.value)} is a date to YAML; put it in quotes"
        return reading.refuse(parsed, path, sentence)
    if parsed.tag not in _SCALARS:
        sentence = f"the tag {_short(parsed.tag)} is not read here"
        return reading.refuse(parsed, path, sentence)
    try:
        value = reading.constructor.construct_object(parsed)
    except (ValueError, LookupError):
        kind = _short(parsed.tag).strip("!")
        sentence = f"{described(parsed.value)} cannot be read as {kind}"
        return reading.refuse(parsed, path, sentence)
    return Node(value, reading.place(parsed))


def _short(tag: Any) -> str:
    return shown(str(tag).replace(_TAG, "!!"))


_HINTS = {
    "mapping values are not allowed": 'text with ": " in it needs quotes',
    "could not find expected ':'": "a line is key: value, with a space after the colon",
    "cannot start any token": "put the value in quotes",
    "another document": "one document is wanted, without a second ---",
    "expected <block end>": "check the indentation",
    "unexpected end of stream": "a quote is not closed",
    "<stream end>": "a bracket is not closed",
}


def _not_yaml(text: str, name: str, error: MarkedYAMLError) -> str:
    """The parser's complaint as a line, with what usually is the matter."""
    mark = error.problem_mark or error.context_mark
    number = mark.line if mark else 0
    if re.match(r"[ -]*\t", "".join(text.split("\n")[number : number + 1])):
        return f"{name}:{number + 1}: a tab indents this line; YAML wants spaces"
    problem = shown(str(error.problem or error.context))
    hints = (f"; {hint}" for part, hint in _HINTS.items() if part in problem)
    return f"{name}:{number + 1}: not YAML: {problem}{next(hints, '')}"


# -- files --------------------------------------------------------------------


def read_file(path: Path) -> tuple[Node, list[str]]:
    """Reads a config file, which must hold a mapping of keys.

    Errors: `SourceError` where there is no such file, or no YAML in it, or no mapping.
    """
    name = shown(str(path))
    node, problems = read(_text(path, name), name)
    if node.value is None:
        raise SourceError(
            f"{name}: the file holds no keys; a config has sections such as model: "
            "and training:, and {} alone stands for all defaults"
        )
    if not isinstance(node.value, dict):
        raise SourceError(
            f"{node.place}: {described(node.value)} came; a config is a mapping, with "
            "keys such as model: and training:"
        )
    return node, problems


def stem(path: Path, length: int) -> str:
    """The file's name without its ending, fit for a directory's name."""
    return re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-")[:length] or "run"


def _text(path: Path, name: str) -> str:
    """The file's text, or the sentence why not."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1).decode("utf-8-sig")
    except IsADirectoryError:
        raise SourceError(f"{name}: this is a directory{_files_in(path)}") from None
    except FileNotFoundError:
        raise SourceError(f"{name}: there is no such file{_nearby(path)}") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{name}: {reason}") from None
    if len(text) >= LARGEST_FILE:
        size = LARGEST_FILE // 1000
        raise SourceError(f"{name}: the file is larger than {size} kB; no config is")
    return text


def _files_in(folder: Path) -> str:
    names = sorted(str(path) for path in folder.glob("*.y*ml"))
    return (
        f"; did you mean {listed(names[:5])}?" if names else "; a YAML file is wanted"
    )


def _nearby(path: Path) -> str:
    """The YAML file that may have been meant, there or in configs/."""
    if not path.parent.is_dir():
        return f", nor a directory {shown(str(path.parent))}"
    files = [*path.parent.glob("*.y*ml"), *Path("configs").glob("*.y*ml")]
    same = [str(file) for file in files if file.stem == path.stem]
    return guess(path, same or [str(file) for file in files])
