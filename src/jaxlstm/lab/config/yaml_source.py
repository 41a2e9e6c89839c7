"""Read YAML into values that keep their place in the source.

    text  --read-->  Node(value, place)       place: "configs/a.yaml:7", or ""

A `Node` holds a scalar, a list of nodes or a dict of nodes. After files are merged and
values overridden, each message can still name the line or override that it concerns.

The reader accepts plain data only: YAML 1.2 through ruamel.yaml (`1e-3` is a number),
one document, no aliases, no tags, no duplicate keys.
"""

import numbers
import os
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

from jaxlstm.lab._util.wording import describe, did_you_mean, dotted, join_names, shown

Key = str | int
KeyPath = tuple[Key, ...]
LARGEST_FILE = 256_000
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "null", "bool", "int", "float")}


class Node(NamedTuple):
    """A value, possibly of further nodes, and the place that it was read from."""

    value: Any
    place: str


class SourceError(ValueError):
    """A text that cannot be read; the message is one line with its place."""


# -- nodes --------------------------------------------------------------------


def plain(node: Node) -> Any:
    """Return the value as dicts, lists and scalars, without places."""
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def with_place(value: Any, place: str) -> Node:
    """Convert dicts, lists and scalars to nodes that all have the same place."""
    if isinstance(value, Mapping):
        return Node(
            {key: with_place(item, place) for key, item in value.items()}, place
        )
    if isinstance(value, list | tuple):
        return Node([with_place(item, place) for item in value], place)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    return Node(value, place)


def place_of(node: Node, path: KeyPath) -> str:
    """Return the place of `path`, or of the innermost existing node on it."""
    for key in path:
        try:
            node = node.value[key]
        except (LookupError, TypeError):
            break
    return node.place


def merge(
    below: Node, above: Node, tags: Mapping[KeyPath, str], *, path: KeyPath = ()
) -> Node:
    """Merge two nodes: mappings key by key, other values replaced by `above`.

    Args:
        below: the node with lower precedence.
        above: the node with higher precedence.
        tags: for mappings of one of several kinds, the key that selects the kind. A
            mapping of another kind replaces the one below.
        path: the path of both nodes.
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
        key: merge(below.value[key], item, tags, path=(*path, key))
        for key, item in above.value.items()
        if key in below.value
    }
    return Node({**below.value, **above.value, **both}, above.place)


def expand_tags(node: Node, tags: Mapping[KeyPath, str]) -> Node:
    """Replace text in place of a tagged mapping by a mapping with this tag.

    `cell: gru` becomes `cell: {name: gru}`.

    Args:
        node: a config.
        tags: as for `merge`.
    """
    for path, tag in tags.items():
        node = _expand_tag(node, path, tag)
    return node


def _expand_tag(node: Node, path: KeyPath, tag: str) -> Node:
    if not path:
        is_text = isinstance(node.value, str)
        return Node({tag: node}, node.place) if is_text else node
    key, *rest = path
    if not (isinstance(node.value, dict) and key in node.value):
        return node
    expanded = _expand_tag(node.value[key], tuple(rest), tag)
    return Node({**node.value, key: expanded}, node.place)


# -- overrides ----------------------------------------------------------------


# Mappings whose keys are keys of a config, such as model.hidden_size.
_BY_KEY = ("population", "grid"), ("sweep", "space")


def apply_override(node: Node, text: str, *, defaults: Mapping[str, Any]) -> Node:
    """Apply one override `key.path=value`.

    A missing list is taken from `defaults`, so that `optimizer.1.adamw.b1=0.8` changes
    the default optimizer.

    Raises:
        SourceError: the text is not an override, or its path does not exist.
    """
    place = f"override {describe(text)}"
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        got = "no key" if equals else "no value"
        raise SourceError(
            f"{place}: got {got}, expected key=value, such as model.hidden_size=256"
        )
    keys = path.strip().split(".")
    if tuple(keys[:2]) in _BY_KEY and keys[2:]:
        keys = [*keys[:2], ".".join(keys[2:])]
    try:
        return _set(node, keys, _override_value(value, place), defaults, path=())
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from None


def _set(
    node: Node, keys: list[str], value: Node, defaults: Any, *, path: KeyPath
) -> Node:
    """Set `value` at `keys` below `node`, whose own path is `path`."""
    if not keys:
        return value
    key, *rest = keys
    inside, below = node.value, None
    if inside is None:
        listlike = isinstance(defaults, list | tuple)
        inside = with_place(defaults if listlike else {}, node.place).value
    if isinstance(inside, list):
        at = _index(key, inside, path)
        changed = _set(inside[at], rest, value, None, path=(*path, at))
        return Node([*inside[:at], changed, *inside[at + 1 :]], node.place)
    if not isinstance(inside, dict):
        raise SourceError(
            f"{dotted(path)}: got {describe(inside)}, expected a mapping with the key "
            f"{describe(key)}"
        )
    if isinstance(defaults, Mapping):
        below = defaults.get(key)
    name = {str(known): known for known in inside}.get(key, key)
    begin = inside.get(name, Node(None, value.place))
    changed = _set(begin, rest, value, below, path=(*path, name))
    return Node({**inside, name: changed}, node.place)


def _index(key: str, items: list[Node], path: KeyPath) -> int:
    if key in map(str, range(len(items))):
        return int(key)
    here = ".".join(map(str, path))
    mappings = ((i, item.value) for i, item in enumerate(items))
    named = [i for i, value in mappings if isinstance(value, dict) and key in value]
    if named:
        raise SourceError(f"{here} is a list; write {here}.{named[0]}.{shown(key)}")
    if not items:
        raise SourceError(
            f"{here}: got the index {describe(key)}, expected none, as the list is "
            f"empty; write {here}=[...]"
        )
    raise SourceError(
        f"{here}: got {describe(key)}, expected an index of the list, 0 to "
        f"{len(items) - 1}"
    )


def _override_value(text: str, place: str) -> Node:
    """Read a number, true, false, null, or flow list or mapping; else use the text."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        node, problems = read(text, "value")
        if problems:
            raise SourceError(problems[0])
        return with_place(plain(node), place)
    try:
        node, problems = read(text, "value")
    except SourceError:
        return Node(text, place)
    is_compound = isinstance(node.value, str | list | dict)
    is_text = problems or is_compound or "#" in text or text.isspace()
    return Node(text if is_text else node.value, place)


# -- text ---------------------------------------------------------------------


def read(text: str, name: str) -> tuple[Node, list[str]]:
    """Read one YAML document.

    Returns:
        The node, and one message for each part that is not plain data and was left
        out. An empty document is `Node(None, name)`.

    Raises:
        SourceError: the text is not YAML.
    """
    parser = YAML(typ="safe", pure=True)
    reading = _Reading(name, parser.constructor, [], set())
    try:
        root = parser.compose(text)
        node = None if root is None else _built(root, (), reading)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise SourceError(
            f"{name}:{line}: invalid YAML: got the character {code}, expected "
            "printable text; remove it"
        ) from None
    except MarkedYAMLError as error:
        raise SourceError(_invalid_yaml(text, name, error)) from None
    except RecursionError:
        raise SourceError(f"{name}: the file is nested too deeply") from None
    except YAMLError as error:
        raise SourceError(f"{name}: invalid YAML: {shown(str(error))}") from None
    return node or Node(None, name), reading.problems


class _Reading(NamedTuple):
    """State of reading one document, with the problems found so far."""

    name: str
    constructor: SafeConstructor
    problems: list[str]
    seen: set[int]

    def refuse(self, parsed: Parsed, path: KeyPath, message: str) -> None:
        where = f"{dotted(path)}: " if path else ""
        self.problems.append(f"{self.place(parsed)}: {where}{message}")

    def place(self, parsed: Parsed) -> str:
        return f"{self.name}:{parsed.start_mark.line + 1}"


def _built(parsed: Parsed, path: KeyPath, reading: _Reading) -> Node | None:
    """Build a node; return None and record a problem if it is not plain data."""
    place = reading.place(parsed)
    if id(parsed) in reading.seen:
        return reading.refuse(
            parsed, path, "got an alias, expected a value; write the value out"
        )
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
    return reading.refuse(parsed, path, _refused_tag(parsed))


def _entries(parsed: MappingNode, path: KeyPath, reading: _Reading) -> dict[Key, Node]:
    """Build the entries of a mapping, each with the place of its key."""
    entries: dict[Key, Node] = {}
    for parsed_key, parsed_value in parsed.value:
        key = _key(parsed_key, path, reading)
        if key in entries:
            first = entries[key].place.rpartition(":")[2]
            message = f"duplicate key, first used on line {first}; keep one"
            reading.refuse(parsed_key, (*path, key), message)
        elif key is not None:
            value = _built(parsed_value, (*path, key), reading)
            if value is not None:
                entries[key] = Node(value.value, reading.place(parsed_key))
    return entries


def _key(parsed: Parsed, path: KeyPath, reading: _Reading) -> Key | None:
    if parsed.tag == _TAG + "merge":
        return reading.refuse(
            parsed, path, "got a merge key (<<), expected keys; write the keys out"
        )
    node = _scalar(parsed, path, reading) if isinstance(parsed, ScalarNode) else None
    if node is not None and type(node.value) in (str, int):
        return node.value
    got = "a key of another type" if node is None else f"the key {describe(node.value)}"
    message = f"got {got}, expected text or a whole number; quote this key"
    return reading.refuse(parsed, path, message)


def _scalar(parsed: ScalarNode, path: KeyPath, reading: _Reading) -> Node | None:
    if parsed.tag == _TAG + "timestamp":
        date = shown(parsed.value)
        message = f"got the date {date}, expected text or a number; quote it"
        return reading.refuse(parsed, path, message)
    if parsed.tag not in _SCALARS:
        return reading.refuse(parsed, path, _refused_tag(parsed))
    try:
        value = reading.constructor.construct_object(parsed)
    except (ValueError, LookupError):
        kind = _short(parsed.tag).strip("!")
        message = f"got {describe(parsed.value)}, expected a value of type {kind}"
        return reading.refuse(parsed, path, message)
    return Node(value, reading.place(parsed))


def _refused_tag(parsed: Parsed) -> str:
    return f"got the tag {_short(parsed.tag)}, expected plain data; remove the tag"


def _short(tag: Any) -> str:
    return shown(str(tag).replace(_TAG, "!!"))


_HINTS = {
    "mapping values are not allowed": 'text with ": " in it needs quotes',
    "could not find expected ':'": "a line is key: value, with a space after the colon",
    "cannot start any token": "quote the value",
    "another document": "a config is one document, without a second ---",
    "expected <block end>": "check the indentation",
    "unexpected end of stream": "a quote is not closed",
    "<stream end>": "a bracket is not closed",
}


def _invalid_yaml(text: str, name: str, error: MarkedYAMLError) -> str:
    """Return the parser's message in one line, with a hint at the usual cause."""
    mark = error.problem_mark or error.context_mark
    number = mark.line if mark else 0
    if re.match(r"[ -]*\t", "".join(text.split("\n")[number : number + 1])):
        return f"{name}:{number + 1}: got a tab, expected spaces as indentation"
    problem = shown(str(error.problem or error.context))
    hints = (f"; {hint}" for part, hint in _HINTS.items() if part in problem)
    return f"{name}:{number + 1}: invalid YAML: {problem}{next(hints, '')}"


# -- files --------------------------------------------------------------------


def read_file(path: Path) -> tuple[Node, list[str]]:
    """Read a config file.

    Raises:
        SourceError: the file cannot be read, is not YAML or is not a mapping.
    """
    name = shown(str(path))
    node, problems = read(_text(path, name), name)
    if node.value is None:
        raise SourceError(
            f"{name}: got a file without keys, expected sections such as model: and "
            "training:, or {} for all defaults"
        )
    if not isinstance(node.value, dict):
        raise SourceError(
            f"{node.place}: got {describe(node.value)}, expected a mapping with keys "
            "such as model: and training:"
        )
    return node, problems


def stem(path: Path, length: int) -> str:
    """Return the file name without its suffix, valid as a directory name."""
    return re.sub(r"[^\w.-]+", "-", path.stem).lstrip(".-")[:length] or "run"


def _text(path: Path, name: str) -> str:
    """Return the text of a file; raise `SourceError` if it cannot be read."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            text = file.read(LARGEST_FILE + 1).decode("utf-8-sig")
    except IsADirectoryError:
        raise SourceError(
            f"{name}: got a directory, expected a YAML file{_files_in(path)}"
        ) from None
    except FileNotFoundError:
        raise SourceError(f"{name}: file not found{_nearby(path)}") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{name}: got the byte 0x{error.object[error.start]:02x} at position "
            f"{error.start}, expected UTF-8; save the file as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{name}: {reason}") from None
    if len(text) >= LARGEST_FILE:
        size = LARGEST_FILE // 1000
        raise SourceError(
            f"{name}: got {size} kB or more, expected less than {size} kB"
        )
    return text


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe that no process writes to is then empty."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _files_in(folder: Path) -> str:
    names = sorted(str(path) for path in folder.glob("*.y*ml"))
    return f"; did you mean {join_names(names[:5])}?" if names else ""


def _nearby(path: Path) -> str:
    """Suggest a YAML file with a similar name, in the same directory or configs/."""
    if not path.parent.is_dir():
        return f"; there is no directory {shown(str(path.parent))}"
    files = [*path.parent.glob("*.y*ml"), *Path("configs").glob("*.y*ml")]
    same = [str(file) for file in files if file.stem == path.stem]
    return did_you_mean(path, same or [str(file) for file in files])
