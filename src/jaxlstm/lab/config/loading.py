"""Load a config from YAML, a mapping and overrides, and write it back.

    extended file  <-  file  <-  overrides such as "model.hidden_size=256"

All errors are reported together, one line each:

    configs/a.yaml:7: model.hiden_size: unknown key; did you mean "hidden_size"?

This module does not import JAX.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.messages import ConfigError, format_errors, key_paths
from jaxlstm.lab.config.rates import (
    Length,
    with_learning_rate,
    with_lengths,
    without_lengths,
)
from jaxlstm.lab.config.schema import CONFIGS, NAME_LENGTH, Config, RunConfig
from jaxlstm.lab.config.sweep import Range
from jaxlstm.lab.config.yaml_source import (
    KeyPath,
    Node,
    SourceError,
    apply_override,
    expand_tags,
    merge,
    plain,
    read,
    read_file,
    stem,
    with_place,
)

__all__ = ["Config", "ConfigError", "digest", "dump", "json_schema", "load"]

VERSION = 2


def _without_shards(node: Node) -> Node:
    """Set `training.shards` to 1, since version 1 had no such key and no shards."""
    training = node.value.get("training", Node({}, ""))
    if not isinstance(training.value, dict):
        return node
    shards = {"shards": Node(1, training.place)}
    training = Node(shards | training.value, training.place)
    return Node({**node.value, "training": training}, node.place)


# MIGRATIONS[v] converts a file of version v to version v + 1. A file without a version
# has the newest.
MIGRATIONS: dict[int, Callable[[Node], Node]] = {1: _without_shards}


def load(
    source: str | Path | Mapping[str, Any] | RunConfig | None = None,
    *,
    overrides: Sequence[str] = (),
) -> Any:
    """Load and validate a config.

    Args:
        source: path of a YAML file, a mapping with the same keys, a config, or None
            for the quickstart. A file may contain `extends: other.yaml`, relative to
            its own directory; its own keys take precedence.
        overrides: key paths and YAML values such as `"model.hidden_size=256"` or
            `"optimizer.1.adamw.weight_decay=0.1"`. They take precedence over `source`.

    Raises:
        ConfigError: the config is invalid; the message has one line per error.

    Example:
        >>> load(overrides=["model.hidden_size=512"]).model.hidden_size
        512
        >>> load({"model": {"hiden_size": 512}})
        Traceback (most recent call last):
        jaxlstm.lab.config.messages.ConfigError: model.hiden_size: unknown key; did \
you mean "hidden_size"?
    """
    try:
        node, problems = _read(source)
        node = expand_tags(node, _model_of(node).tags)
        return _validated(_override(node, overrides, problems), problems)
    except SourceError as error:
        raise ConfigError([str(error)]) from None
    except RecursionError:
        raise ConfigError(["the config is nested too deeply"]) from None


def content(path: Path) -> Any:
    """Return the values in a config file as written, without validation.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return plain(read_file(path)[0])
    except SourceError as error:
        raise ConfigError([str(error)]) from None


def content_of(text: str) -> Any:
    """Return the values in the text of a config file, without validation."""
    return plain(read(text, "config")[0])


def dump(config: RunConfig) -> str:
    """Return the config as YAML, including defaults; `load` reads an equal config.

    Example:
        >>> dump(load()).splitlines()[:2]
        ['config_version: 2', 'task: language_modelling']
    """
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # pyright: ignore
    writer.width = 10_000
    writer.allow_unicode = False  # YAML normalizes some Unicode line ends
    text = io.StringIO()
    writer.dump(config.model_dump(), text)
    return text.getvalue()


def keys_named(name: str) -> list[str]:
    """Return the keys of all tasks that end in a name, as overrides write them.

    Example:
        >>> keys_named("hidden_size")
        ['model.hidden_size']
    """
    if name == "learning_rate":
        return [name]
    paths = (path for config in CONFIGS.values() for path in key_paths(config))
    found = {".".join(map(str, path)) for path in paths if path[-1] == name}
    return sorted(found, key=lambda key: (key.count("."), key))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file."""
    schemas = [_json_schema(config) for config in CONFIGS.values()]
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    if len(schemas) == 1:
        return dialect | schemas[0]
    definitions: dict[str, Any] = {}
    for name, schema in zip(CONFIGS, schemas, strict=True):
        own = schema.pop("$defs", {})
        definitions |= {f"{name}-{model}": found for model, found in own.items()}
    # A config without `task` is of the default task, or of the task of its parent.
    for schema in schemas[1:]:
        schema["anyOf"] = [{"required": ["task"]}, {"required": ["extends"]}]
    return dialect | {"anyOf": schemas, "$defs": definitions}


def _json_schema(config: type[RunConfig]) -> dict[str, Any]:
    """Return the schema of one task; of several, its references name the task."""
    name = config.model_fields["task"].default
    where = "#/$defs/{model}" if len(CONFIGS) == 1 else f"#/$defs/{name}-{{model}}"
    schema = config.model_json_schema(ref_template=where)
    extends = {"description": "Config file that provides the keys missing here."}
    schema["properties"]["extends"] = extends | {"type": "string"}
    for path in config.tags:
        _allow_tag(schema, path)
    return schema


def _allow_tag(schema: dict[str, Any], path: KeyPath) -> None:
    """Allow a tag as text in place of the mapping at `path`, as `expand_tags` does."""
    task, field = schema["properties"]["task"]["default"], schema["properties"][path[0]]
    for key in path[1:]:
        model = field.get("$ref", "").rpartition("/")[2].removeprefix(f"{task}-")
        field = schema["$defs"].get(model, {}).get("properties", {}).get(key, {})
    if "discriminator" in field:
        kinds = sorted(field.pop("discriminator")["mapping"])
        field["anyOf"] = [*field.pop("oneOf"), {"enum": kinds, "type": "string"}]


def digest(config: RunConfig) -> str:
    """Return the SHA-256 of the config in hexadecimal."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def require_space(config: RunConfig) -> None:
    """Raise `BadInput` unless every value of the space gives a valid config."""
    assert config.sweep is not None
    for key, values in config.sweep.space.items():
        ends = [values.low, values.high] if isinstance(values, Range) else values
        for value in ends:
            trial_config(config, {key: value})


def trial_config(config: RunConfig, values: Mapping[str, Any]) -> Any:
    """Return the config of a trial with these values."""
    base = config.model_copy(update={"sweep": None})
    changes = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load(base, overrides=changes)


# -- steps of `load` ----------------------------------------------------------


def _read(source: Any) -> tuple[Node, list[str]]:
    """Return the migrated and merged source, and the errors in its text."""
    if isinstance(source, str | Path):
        return _read_with_parent(Path(source))
    if source is None:
        return with_place({}, ""), []
    if isinstance(source, RunConfig):
        return with_place(source.model_dump(), ""), []
    if isinstance(source, Mapping):
        return _migrated(with_place(source, "")), []
    raise ConfigError(
        [f"got {describe(source)}, expected a path, a mapping or a Config"]
    )


def _read_with_parent(path: Path) -> tuple[Node, list[str]]:
    """Read a file and merge it into the file that it extends."""
    child, problems = read_file(path)
    child = _migrated(child)
    child.value.setdefault("name", Node(stem(path, NAME_LENGTH), child.place))
    extends = child.value.pop("extends", None)
    if extends is None:
        return child, problems
    if not isinstance(extends.value, str):
        raise SourceError(
            f"{extends.place}: extends: got {describe(extends.value)}, expected the "
            "path of a YAML file"
        )
    try:
        parent, more = read_file(path.parent / extends.value)
    except SourceError as error:
        raise SourceError(f"{extends.place}: extends: {error}") from None
    if "extends" in parent.value:
        further = parent.value["extends"].place
        raise SourceError(
            f"{further}: extends: {path} already extends this file, and only one level "
            "is supported; write the keys out"
        )
    parent = _migrated(parent)
    tags = _model_of(parent if _task(child) is None else child).tags
    parent, child = (expand_tags(each, tags) for each in (parent, child))
    return merge(parent, child, tags), problems + more


def _migrated(node: Node) -> Node:
    """Convert a config of an older version to `VERSION`."""
    while (version := _version(node)) in MIGRATIONS:
        migrated = MIGRATIONS[version](node)
        place = migrated.value.get("config_version", migrated).place
        node = Node(
            {**migrated.value, "config_version": Node(version + 1, place)}, node.place
        )
    if version is not None and version > VERSION:
        place = node.value["config_version"].place
        raise SourceError(
            f"{place + ': ' if place else ''}config_version: got {version}, expected "
            f"at most {VERSION}; upgrade jaxlstm"
        )
    return node


def _version(node: Node) -> int | None:
    version = node.value.get("config_version", Node(VERSION, "")).value
    return version if type(version) is int else None


def _override(node: Node, overrides: Sequence[str], problems: list[str]) -> Node:
    """Apply the overrides; those that cannot be read are added to `problems`."""
    if isinstance(overrides, str):
        raise ConfigError(['overrides: got text, expected a list such as ["seed=1"]'])
    for text in overrides:
        try:
            model = _model_of(node)
            after = expand_tags(_overridden(node, text, model), model.tags)
            node = _of_other_kind(node, after, text, model)
        except SourceError as error:
            problems.append(str(error))
    return node


def _of_other_kind(
    before: Node, after: Node, text: str, model: type[RunConfig]
) -> Node:
    """Remove the keys of a section whose kind an override changes, as `merge` does.

    Keys of other overrides stay: `data.path=a.csv data.source=files` has any order.
    """
    key = text.partition("=")[0].strip()
    for path, tag in model.tags.items():
        if key != ".".join(map(str, (*path, tag))):
            continue
        old, new = ({**_section(each, path)} for each in (before, after))
        if old.get(tag, Node(None, "")).value == new[tag].value:
            continue
        kept = {k: v for k, v in new.items() if v.place.startswith("override ")}
        return _with_section(after, path, Node(kept, new[tag].place))
    return after


def _section(node: Node, path: KeyPath) -> Mapping[Any, Node]:
    for key in path:
        inside = node.value if isinstance(node.value, dict) else {}
        node = inside.get(key, Node({}, ""))
    return node.value if isinstance(node.value, dict) else {}


def _with_section(node: Node, path: KeyPath, section: Node) -> Node:
    if not path:
        return section
    inner = _with_section(node.value[path[0]], path[1:], section)
    return Node({**node.value, path[0]: inner}, node.place)


def _overridden(node: Node, text: str, model: type[RunConfig]) -> Node:
    """Apply one override, which may be of the learning rate wherever that is."""
    key, defaults = text.partition("=")[0].strip(), _defaults(model)
    if key in _NO_RATE and key not in model.model_fields:
        known = f'did you mean "{_RATE}"?'
        raise SourceError(f"override {describe(text)}: unknown key; {known}")
    if key != _RATE or key in model.model_fields:
        return apply_override(node, text, defaults=defaults)
    rate = apply_override(Node({}, ""), text, defaults={}).value[_RATE]
    chain = node.value.get("optimizer")
    if chain is None:
        chain = with_place(defaults.get("optimizer"), rate.place)
        if "steps" in _given_training(node):
            chain = without_lengths(chain)
    try:
        chain = with_learning_rate(chain, rate)
    except SourceError as error:
        raise SourceError(f"{rate.place}: {error}") from None
    return Node({**node.value, "optimizer": chain}, node.place)


_RATE = "learning_rate"
_NO_RATE = {
    "learning-rate",
    "lr",
    *(f"{section}.lr" for section in ("model", "optimizer", "training")),
    *(f"{section}.{_RATE}" for section in ("model", "optimizer", "training")),
}
"""Keys that are not those of the learning rate, and that people try."""


def _with_schedules(node: Node, model: type[RunConfig]) -> Node:
    """Fill in the steps of schedules that follow those of the training."""
    given, defaults = _given_training(node), _defaults(model)
    chain = node.value.get("optimizer")
    if chain is None and "steps" in given:
        place = given["steps"].place
        chain = without_lengths(with_place(defaults.get("optimizer"), place))
    if chain is None:
        return node
    training = defaults.get("training") or {}

    def number(key: str, low: int, default: int) -> int:
        value = given[key].value if key in given else training.get(key)
        if isinstance(value, int | float) and low <= value < 2**31:
            return int(value)
        return default

    steps, accumulate = number("steps", 0, 1), number(_ACCUMULATE, 1, 1)
    chain = with_lengths(chain, Length(steps, accumulate))
    return Node({**node.value, "optimizer": chain}, node.place)


_ACCUMULATE = "gradient_accumulation_steps"


def _given_training(node: Node) -> dict[Any, Node]:
    """Return the keys of the section training that a config gives."""
    training = node.value.get("training", Node({}, "")).value
    return training if isinstance(training, dict) else {}


def _validated(node: Node, problems: list[str]) -> Any:
    model = _model_of(node)
    node = _with_schedules(node, model)
    try:
        config = model.model_validate(plain(node))
    except ValidationError as error:
        found = format_errors(error, node, model, tasks=list(CONFIGS))
        raise ConfigError(problems + found) from None
    if problems:
        raise ConfigError(problems)
    return config


def _task(node: Node) -> Any:
    """Return the value of `task`, None where the config does not have it."""
    is_mapping = isinstance(node.value, dict) and "task" in node.value
    return node.value["task"].value if is_mapping else None


def _model_of(node: Node) -> type[RunConfig]:
    """Return the config model of a task; `Config` refuses an unknown one."""
    task = _task(node)
    return CONFIGS.get(task, Config) if isinstance(task, str) else Config


def _defaults(model: type[RunConfig]) -> dict[str, Any]:
    """Return the values of the keys that have a fixed default, as plain data."""
    fields = {k: field for k, field in model.model_fields.items() if k != "task"}
    defaults = {
        name: field.default
        for name, field in fields.items()
        if not field.is_required() and field.default_factory is None
    }
    return {
        name: value.model_dump() if isinstance(value, BaseModel) else value
        for name, value in defaults.items()
    }
