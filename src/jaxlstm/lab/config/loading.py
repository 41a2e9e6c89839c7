"""Configs: YAML in, a frozen `Config` out, and every mistake said with its place.

    one file it extends  <-  the file  <-  overrides "model.hidden_size=256"
                                |
                     load(...) -> Config            dump(config) -> YAML again

A mistake is a line, and all are found at once:

    configs/a.yaml:7: model.hiden_size: unknown key; did you mean "hidden_size"?

Nothing here imports JAX. What a config may hold stands in `schema`.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab._util.wording import described
from jaxlstm.lab.config.messages import sentences
from jaxlstm.lab.config.schema import NAME_LENGTH, TAGS, Config
from jaxlstm.lab.config.yaml_source import (
    Node,
    SourceError,
    merged,
    overridden,
    plain,
    planted,
    read_file,
    stem,
)

__all__ = ["Config", "ConfigError", "digest", "dump", "json_schema", "load"]

VERSION = 2


def _in_one_shard(node: Node) -> Node:
    """Version 1 knew no `training.shards`: the whole batch was computed in one."""
    training = node.value.get("training", Node({}, ""))
    if not isinstance(training.value, dict):
        return node
    shards = {"shards": Node(1, training.place)}
    training = Node(shards | training.value, training.place)
    return Node({**node.value, "training": training}, node.place)


# A file of version v becomes one of version v + 1 by MIGRATIONS[v]. One that does not
# say which it is, is of the newest.
MIGRATIONS: dict[int, Callable[[Node], Node]] = {1: _in_one_shard}


class ConfigError(BadInput):
    """Everything that is wrong with a config; `problems` holds a line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load(
    source: str | Path | Mapping[str, Any] | Config | None = None,
    *,
    overrides: Sequence[str] = (),
) -> Config:
    """A checked config from a file, a mapping or nothing at all.

    Arguments:
        source: the path of a YAML file, a mapping of the same form, a config, or
            None for the quickstart. A file may say `extends: other.yaml`, a path
            beside it; what it says itself goes before what the other says.
        overrides: `"model.hidden_size=256"`, `"optimizer.1.adamw.weight_decay=0.1"`:
            a key path and a YAML value, set last and checked like the rest.

    Errors: `ConfigError` with a line for every problem.

    >>> load(overrides=["model.hidden_size=512"]).model.hidden_size
    512
    >>> load({"model": {"hiden_size": 512}})
    Traceback (most recent call last):
    jaxlstm.lab.config.ConfigError: model.hiden_size: unknown key; did you mean \
"hidden_size"?
    """
    try:
        node, problems = _read(source)
        return _validated(_set(node, overrides, problems), problems)
    except SourceError as error:
        raise ConfigError([str(error)]) from None
    except RecursionError:
        raise ConfigError(["the config is nested too deeply"]) from None


def dump(config: Config) -> str:
    """The whole config as YAML, defaults written out; `load` reads an equal one.

    >>> dump(load()).splitlines()[:2]
    ['config_version: 2', 'task: language_modelling']
    """
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # pyright: ignore
    writer.width = 10_000
    writer.allow_unicode = False  # what YAML takes for a line end comes back too
    text = io.StringIO()
    writer.dump(config.model_dump(), text)
    return text.getvalue()


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors and for `jaxlstm schema`."""
    schema = Config.model_json_schema()
    extends = {
        "description": "Another file, whose keys stand where this one is silent."
    }
    schema["properties"]["extends"] = extends | {"type": "string"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def digest(config: Config) -> str:
    """The sha256 of everything the config says, in hexadecimal digits."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# -- the steps of `load` ------------------------------------------------------


def _read(source: Any) -> tuple[Node, list[str]]:
    """The source as a node, migrated and merged, and what was wrong with its text."""
    if isinstance(source, str | Path):
        return _read_with_parent(Path(source))
    if source is None:
        return planted({}, ""), []
    if isinstance(source, Config):
        return planted(source.model_dump(), ""), []
    if isinstance(source, Mapping):
        return _migrated(planted(source, "")), []
    raise ConfigError(
        [f"{described(source)} came; a path, a mapping or a Config is wanted"]
    )


def _read_with_parent(path: Path) -> tuple[Node, list[str]]:
    """The file, on top of the one file that it extends."""
    child, problems = read_file(path)
    child = _migrated(child)
    child.value.setdefault("name", Node(stem(path, NAME_LENGTH), child.place))
    extends = child.value.pop("extends", None)
    if extends is None:
        return child, problems
    if not isinstance(extends.value, str):
        raise SourceError(
            f"{extends.place}: extends: the path of a YAML file is wanted"
        )
    try:
        parent, more = read_file(path.parent / extends.value)
    except SourceError as error:
        raise SourceError(f"{extends.place}: extends: {error}") from None
    if "extends" in parent.value:
        further = parent.value["extends"].place
        raise SourceError(
            f"{further}: extends: {path} extends this file already, and one level is "
            "all there is; write the keys out"
        )
    return merged(_migrated(parent), child, TAGS), problems + more


def _migrated(node: Node) -> Node:
    """The node in the form of `VERSION`, whatever older form it came in."""
    while (version := _version(node)) in MIGRATIONS:
        moved = MIGRATIONS[version](node)
        place = moved.value.get("config_version", moved).place
        node = Node(
            {**moved.value, "config_version": Node(version + 1, place)}, node.place
        )
    if version is not None and version > VERSION:
        place = node.value["config_version"].place
        raise SourceError(
            f"{place + ': ' if place else ''}config_version: {version} needs a newer "
            f"jaxlstm; this one reads up to {VERSION}"
        )
    return node


def _version(node: Node) -> int | None:
    version = node.value.get("config_version", Node(VERSION, "")).value
    return version if type(version) is int else None


def _set(node: Node, overrides: Sequence[str], problems: list[str]) -> Node:
    """The node with every override that can be read; the others become problems."""
    if isinstance(overrides, str):
        raise ConfigError(['overrides is text; a list such as ["seed=1"] is wanted'])
    for text in overrides:
        try:
            node = overridden(node, text, defaults=Config().model_dump())
        except SourceError as error:
            problems.append(str(error))
    return node


def _validated(node: Node, problems: list[str]) -> Config:
    try:
        config = Config.model_validate(plain(node))
    except ValidationError as error:
        raise ConfigError(problems + sentences(error, node)) from None
    if problems:
        raise ConfigError(problems)
    return config
