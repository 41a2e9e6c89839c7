"""Differences of two configs, and the keys that a run may change.

A run may change the sections marked `Changeable`, except their keys marked `Fixed`, and
the paths of its files: data is identified by its hash, not by its path.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.sections import (
    Changeable,
    Fixed,
    OnResume,
    Section,
    on_resume,
    with_paths,
)

Recorded = RunConfig | Mapping[str, Any]
"""A config, or its fields as JSON."""


def differences(one: Recorded, other: Recorded) -> list[str]:
    """Return the keys `section.key` in which two configs differ, except the name."""
    ours, theirs = flat(one), flat(other)
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [key for key in keys if key != "name" and ours.get(key) != theirs.get(key)]


def described(recorded: Recorded, found: Recorded) -> list[str]:
    """Describe each difference, with both values.

    Keys that only one of them has are left out: versions of this package have different
    keys.
    """
    before, now = flat(recorded), flat(found)
    return [
        f"{key}: got {describe(now[key])}, expected {describe(before[key])}"
        for key in now
        if key in before and now[key] != before[key]
    ]


def fixed(config: RunConfig, keys: Sequence[str]) -> list[str]:
    """Return those of the keys that cannot change within a run."""
    exceptions, paths = _changeable(config), path_keys(config)

    def is_fixed(key: str) -> bool:
        section, _, inner = key.partition(".")
        return section not in exceptions or inner in exceptions[section]

    return [key for key in keys if is_fixed(key) and key not in paths]


def may_change(config: RunConfig) -> str:
    """Return the keys that may change within a run, as a part of a message."""
    names = [
        f"{name} (except its {_listed(keys)})" if keys else name
        for name, keys in _changeable(config).items()
    ]
    return _listed([*names, *path_keys(config)])


def path_keys(config: RunConfig) -> list[str]:
    """Return the keys `section.key` whose value is the path of a file."""
    return differences(config, with_paths(config, lambda path: f"{path}/moved"))


def flat(config: Recorded) -> dict[str, Any]:
    """Return the fields of a config as JSON, by `section.key`."""
    fields = config.model_dump(mode="json") if isinstance(config, RunConfig) else config
    found: dict[str, Any] = {}
    for section, value in fields.items():
        inner = value if isinstance(value, Mapping) else {None: value}
        found |= {f"{section}.{key}" if key else section: v for key, v in inner.items()}
    return found


def _changeable(config: RunConfig) -> dict[str, list[str]]:
    """Return the sections that may change within a run, and their fixed keys."""
    sections = [name for name, mark in _marks(config) if mark is Changeable]
    return {
        name: [key for key, mark in _marks(getattr(config, name)) if mark is Fixed]
        for name in sections
    }


def _marks(section: Any) -> list[tuple[str, OnResume]]:
    kind = type(section)
    return list(on_resume(kind).items()) if issubclass(kind, Section) else []


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
