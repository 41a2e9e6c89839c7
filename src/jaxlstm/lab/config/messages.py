"""Turn pydantic's validation errors into messages with file and line.

{"type": "greater_than_equal", "loc": ("model", "layers"), "input": 0, ...}
configs/a.yaml:7: model.layers: got 0, expected at least 1
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import describe, did_you_mean, dotted, join_names
from jaxlstm.lab.config.optimizer import OptimizerError
from jaxlstm.lab.config.yaml_source import KeyPath, Node, place_of

Section = type[BaseModel]

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "string_pattern_mismatch": 'a size such as "2 GB"',
    "string_too_short": "non-empty text",
    "string_too_long": "text of at most {max_length} characters",
    "greater_than": "more than {gt:.10g}",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than": "less than {lt:.10g}",
    "less_than_equal": "at most {le:.10g}",
}

_TASK: KeyPath = ("task",)


class ConfigError(BadInput):
    """An invalid config; `problems` has one line per error."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def format_errors(
    error: ValidationError, node: Node, root: Section, *, tasks: Sequence[str]
) -> list[str]:
    """Return one line per error, in the order of the config's fields.

    An unknown task is the only error that is reported.

    Args:
        error: the exception that `root.model_validate` raised.
        node: the validated config with its places in the source.
        root: the config model of the task.
        tasks: the names that `task` may have.
    """
    found: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_locate(item["loc"], root).path, []).append(item)
    if _TASK in found:
        # The task decides which other keys are valid.
        found = {_TASK: found[_TASK]}
    return [
        _line(node, at, text)
        for path, items in found.items()
        for at, text in _explained(path, items, root, tasks)
    ]


def _line(node: Node, path: KeyPath, text: str) -> str:
    place = place_of(node, path)
    key = ".".join(str(part) for part in path)
    in_override = place.startswith(f'override "{key}=')
    parts = (place, "" if in_override else dotted(path), text)
    return ": ".join(part for part in parts if part)


# -- messages -----------------------------------------------------------------


def _explained(
    path: KeyPath, items: list[Any], root: Section, tasks: Sequence[str]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield the messages for one place; errors of a union's members become one."""
    item = items[0]
    location = _locate(item["loc"], root)
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, OptimizerError):
        yield from (((*path, *at), text) for at, text in cause.problems)
    elif cause is not None:
        yield path, str(cause)
    elif item["type"] in ("extra_forbidden", "invalid_key"):
        yield path, _unknown_key(location)
    elif item["type"] == "missing":
        yield path, f"required key is missing{_meaning(location.field)}"
    elif item["type"] == "union_tag_invalid":
        yield (
            (*path, _discriminator(item)),
            _wrong_value(items, location, tasks),
        )
    else:
        yield path, _wrong_value(items, location, tasks)


def _discriminator(item: Any) -> str:
    return item["ctx"]["discriminator"].strip("'")


def _meaning(field: FieldInfo | None) -> str:
    """Return a field's description as a suffix of a message."""
    text = field.description if field else None
    return f" ({text[0].lower()}{text[1:].rstrip('.')})" if text else ""


def _wrong_value(items: list[Any], location: "_Location", tasks: Sequence[str]) -> str:
    value = items[0]["input"]
    if items[0]["type"] == "union_tag_invalid":
        value = value[_discriminator(items[0])]
    is_task = location.path == _TASK
    choices = list(tasks) if is_task else _choices(location.field)
    kinds = [_KINDS[item["type"]] for item in items if item["type"] in _KINDS]
    limits = items[0].get("ctx", {})
    expected = [kind.format(**limits) for kind in kinds]
    if any(item["type"] in ("literal_error", "union_tag_invalid") for item in items):
        expected.append(join_names(choices))
    names = [choice for choice in choices if isinstance(choice, str)]
    meant = did_you_mean(value, names) if isinstance(value, str) else ""
    if is_task and not meant:
        meant = "; a task of your own must be registered first (docs/own-task.md)"
    if value in names and location.field is not None:
        meant = f", such as {{{location.field.discriminator}: {value}}}"
    if not expected:
        return items[0]["msg"]
    return f"got {describe(value)}, expected {' or '.join(expected)}{meant}"


def _choices(field: FieldInfo | None) -> list[Any]:
    """Return the tags of a union of sections, or the values of a `Literal`."""
    if field is None:
        return []
    tags = [tag for tag in _kinds(field) if tag]
    return tags or _values(field.annotation)


def _values(annotation: Any) -> list[Any]:
    """Return the values of all `Literal`s in an annotation."""
    args = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(args)
    return [value for arg in args for value in _values(arg)]


def _unknown_key(location: "_Location") -> str:
    """Return the message for an unknown key, with the key probably meant."""
    key = location.path[-1]
    knowing = [tag for tag, kind in location.kinds.items() if key in kind.model_fields]
    if knowing:
        belongs = f"it belongs to {join_names(knowing)}"
        if "source" in location.owner.model_fields:
            belongs += f"; write {dotted(location.path[:-1])}.source={knowing[0]}"
        return f"unknown key for {describe(location.tag)}; {belongs}"
    fields = location.owner.model_fields
    key = str(key).replace("-", "_")
    elsewhere = [dotted(path) for path in key_paths(location.root) if path[-1] == key]
    if key in ("learning_rate", "lr"):
        meant = "; it belongs to a transformation of optimizer, such as adamw"
    elif elsewhere and key not in fields:
        meant = f"; did you mean {describe(elsewhere[0])}?"
    else:
        meant = did_you_mean(key, fields)
        if not meant:
            paths = {str(path[-1]): dotted(path) for path in key_paths(location.root)}
            close = get_close_matches(key, paths, n=1, cutoff=0.8)
            meant = f"; did you mean {describe(paths[close[0]])}?" if close else ""
    return f"unknown key{meant or '; expected ' + join_names(fields)}"


def key_paths(section: Section) -> Iterator[KeyPath]:
    """Yield the path of every key of a section, of all kinds that it may be."""
    for name, field in section.model_fields.items():
        yield (name,)
        for kind in _kinds(field).values():
            yield from ((name, *path) for path in key_paths(kind))


# -- pydantic's locations -----------------------------------------------------


class _Location(NamedTuple):
    """The field at a pydantic location.

    Attributes:
        path: the location without the tags and types that pydantic inserts.
        owner: the section that contains the last key.
        kinds: the sections that are possible in place of `owner`, by tag.
        tag: the tag of `owner`.
        field: the field of the last key, None for an unknown key.
        root: the config model that contains all of this.
    """

    path: KeyPath
    owner: Section
    kinds: dict[str, Section]
    tag: str
    field: FieldInfo | None
    root: Section


def _locate(loc: KeyPath, root: Section) -> _Location:
    location = _Location((), root, {}, "", None, root)
    section: Section | None = root
    kinds: dict[str, Section] = {}
    tag = ""
    rest = list(loc)
    while rest and section is not None:
        key = rest.pop(0)
        field = section.model_fields.get(str(key))
        location = _Location((*location.path, key), section, kinds, tag, field, root)
        kinds = _kinds(field)
        tag = str(rest.pop(0)) if rest and len(kinds) > 1 else next(iter(kinds), "")
        section = kinds.get(tag)
    return location


def _kinds(field: FieldInfo | None) -> dict[str, Section]:
    """Return the sections of a field by tag, or a single one under the key ""."""
    if field is None:
        return {}
    tag = field.discriminator if isinstance(field.discriminator, str) else None
    return {
        section.model_fields[tag].default if tag else "": section
        for section in (field.annotation, *get_args(field.annotation))
        if isinstance(section, type) and issubclass(section, BaseModel)
    }
