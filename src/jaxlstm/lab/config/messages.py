"""What pydantic found wrong with a config, as sentences that name the place.

Pydantic's record of a problem, and the line that is made of it:

    {"type": "greater_than_equal", "loc": ("model", "layers"), "input": 0, ...}
    configs/a.yaml:7: model.layers: 0 came; at least 1 is wanted
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jaxlstm.lab._util.wording import described, dotted, guess, listed
from jaxlstm.lab.config.optimizer import MisusedError
from jaxlstm.lab.config.schema import Config
from jaxlstm.lab.config.yaml_source import KeyPath, Node, place_of

Section = type[BaseModel]

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "string_pattern_mismatch": 'a size such as "2 GB"',
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters",
    "greater_than": "more than {gt:.10g}",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than": "less than {lt:.10g}",
    "less_than_equal": "at most {le:.10g}",
}


def sentences(error: ValidationError, node: Node) -> list[str]:
    """A line for each problem, in the order of the config's fields.

    Arguments:
        error: what `Config.model_validate` raised.
        node: what was validated; it knows the places.
    """
    found: dict[KeyPath, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_spot(item["loc"]).path, []).append(item)
    return [
        _line(node, at, text)
        for path, items in found.items()
        for at, text in _explained(path, items)
    ]


def _line(node: Node, path: KeyPath, text: str) -> str:
    place = place_of(node, path)
    key = ".".join(str(part) for part in path)
    says_it_already = place.startswith(f'override "{key}=')
    parts = (place, "" if says_it_already else dotted(path), text)
    return ": ".join(part for part in parts if part)


# -- sentences ----------------------------------------------------------------


def _explained(path: KeyPath, items: list[Any]) -> Iterator[tuple[KeyPath, str]]:
    """The sentences for one place; the members of a union speak with one voice."""
    item = items[0]
    spot = _spot(item["loc"])
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, MisusedError):
        yield from (((*path, *at), text) for at, text in cause.problems)
    elif cause is not None:
        yield path, str(cause)
    elif item["type"] in ("extra_forbidden", "invalid_key"):
        yield path, _unknown_key(spot)
    elif item["type"] == "missing":
        yield path, f"this key is missing{_meaning(spot.field)}"
    elif item["type"] == "union_tag_invalid":
        yield (
            (*path, _discriminator(item)),
            _wrong_value(items, spot),
        )
    else:
        yield path, _wrong_value(items, spot)


def _discriminator(item: Any) -> str:
    return item["ctx"]["discriminator"].strip("'")


def _meaning(field: FieldInfo | None) -> str:
    """A field's description, as the end of a sentence."""
    text = field.description if field else None
    return f"; it says: {text[0].lower()}{text[1:].rstrip('.')}" if text else ""


def _wrong_value(items: list[Any], spot: "_Spot") -> str:
    value = items[0]["input"]
    if items[0]["type"] == "union_tag_invalid":
        value = value[_discriminator(items[0])]
    choices = _choices(spot.field)
    kinds = [_KINDS[item["type"]] for item in items if item["type"] in _KINDS]
    limits = items[0].get("ctx", {})
    wanted = [kind.format(**limits) for kind in kinds]
    if any(item["type"] in ("literal_error", "union_tag_invalid") for item in items):
        wanted.append(listed(choices))
    names = [choice for choice in choices if isinstance(choice, str)]
    meant = guess(value, names) if isinstance(value, str) else ""
    if value in names and spot.field is not None:
        meant = f", such as {{{spot.field.discriminator}: {value}}}"
    wish = " or ".join(wanted)
    return (
        f"{described(value)} came; {wish} is wanted{meant}" if wish else items[0]["msg"]
    )


def _choices(field: FieldInfo | None) -> list[Any]:
    """The tags of a union of sections, or the values of a `Literal`."""
    if field is None:
        return []
    tags = [tag for tag in _kinds(field) if tag]
    return tags or _values(field.annotation)


def _values(annotation: Any) -> list[Any]:
    """The values in a `Literal`, however deep in unions it lies."""
    args = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(args)
    return [value for arg in args for value in _values(arg)]


def _unknown_key(spot: "_Spot") -> str:
    """`unknown key`, with the key, or the section, that was probably meant."""
    key = spot.path[-1]
    knowing = [tag for tag, kind in spot.kinds.items() if key in kind.model_fields]
    if knowing:
        return f"unknown key for {described(spot.tag)}; it belongs to {listed(knowing)}"
    fields = spot.owner.model_fields
    elsewhere = [dotted(path) for path in _paths(Config) if path[-1] == key]
    meant = guess(key, fields)
    if elsewhere and not meant:
        meant = f"; did you mean {described(elsewhere[0])}?"
    return f"unknown key{meant or '; the keys here are ' + listed(fields, last='and')}"


def _paths(section: Section) -> Iterator[KeyPath]:
    for name, field in section.model_fields.items():
        yield (name,)
        for kind in _kinds(field).values():
            yield from ((name, *path) for path in _paths(kind))


# -- from pydantic's locations to fields --------------------------------------


class _Spot(NamedTuple):
    """Where a pydantic location leads.

    `path` is the location less the tags and types that pydantic puts into it;
    `owner` the section that holds its last key, one of `kinds`, chosen by `tag`;
    `field` that key's field, None for an unknown key.
    """

    path: KeyPath
    owner: Section
    kinds: dict[str, Section]
    tag: str
    field: FieldInfo | None


def _spot(loc: KeyPath) -> _Spot:
    spot = _Spot((), Config, {}, "", None)
    section: Section | None = Config
    kinds: dict[str, Section] = {}
    tag = ""
    rest = list(loc)
    while rest and section is not None:
        key = rest.pop(0)
        field = section.model_fields.get(str(key))
        spot = _Spot((*spot.path, key), section, kinds, tag, field)
        kinds = _kinds(field)
        tag = str(rest.pop(0)) if rest and len(kinds) > 1 else next(iter(kinds), "")
        section = kinds.get(tag)
    return spot


def _kinds(field: FieldInfo | None) -> dict[str, Section]:
    """The sections a field may hold: by tag, or one under the name ""."""
    if field is None:
        return {}
    tag = field.discriminator if isinstance(field.discriminator, str) else None
    return {
        section.model_fields[tag].default if tag else "": section
        for section in (field.annotation, *get_args(field.annotation))
        if isinstance(section, type) and issubclass(section, BaseModel)
    }
