"""Base model of all config sections, and the types of their values."""

import enum
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def whole(value: Any) -> Any:
    """Convert a float such as 1e3, which YAML does not read as an integer."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def path_text(value: Any) -> Any:
    """Convert a `pathlib.Path` to text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def tagged(key: str, default: str) -> BeforeValidator:
    """Return a validator that fills in the tag of a union if it is missing."""

    def fill(value: Any) -> Any:
        missing = isinstance(value, Mapping) and key not in value
        return {key: default, **value} if missing else value

    return BeforeValidator(fill)


Whole = BeforeValidator(whole)
Step = Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
LARGEST_SIZE = 65_536
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE), Whole]
Token = Annotated[int, Field(ge=0, le=2**31 - 2), Whole]
Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
_PathText = BeforeValidator(path_text)
FilePath = Annotated[str, _PathText, Field(min_length=1)]
"""The path of a file; relative ones are recorded in a run as absolute ones."""
Paths = FilePath | Annotated[tuple[FilePath, ...], Field(strict=False, min_length=1)]
"""A file, a pattern such as data/*.csv, or a list of them."""
TextUnit = Literal["character", "byte", "word", "subword"]
Bytes = Annotated[str, Field(pattern=r"^\d+(\.\d*)? ?(B|[kMG]B|[KMG]iB)$")]
Engine = Literal[
    "adjoint",
    "adjoint/lean",
    "adjoint/rows_first",
    "adjoint/weights_first",
    "scan",
    "native",
    "cudnn",
]


class OnResume(enum.Enum):
    """Metadata of a field: may a resumed run change its value?

    A field of a config without it is fixed. Inside a section that may change, a field
    without it may change too. A field that a subclass defines anew keeps it.
    """

    CHANGEABLE = "changeable"
    FIXED = "fixed"


Changeable = OnResume.CHANGEABLE
Fixed = OnResume.FIXED
"""Metadata of keys that determine the data of a step or the shapes of a checkpoint."""


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )


def on_resume(section: type[BaseModel]) -> dict[str, OnResume]:
    """Return the fields of a section that say whether a resumed run may change them.

    Example:
        >>> class Training(Section):
        ...     steps: int = 1
        ...     batch_size: Annotated[int, Fixed] = 16
        >>> on_resume(Training)
        {'batch_size': <OnResume.FIXED: 'fixed'>}
    """
    classes = [kind for kind in section.__mro__ if issubclass(kind, Section)]
    return {
        name: mark
        for kind in reversed(classes)
        for name, field in kind.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, OnResume)
    }


def expanded(path: str | Path) -> Path:
    """Return a path whose `~` is replaced by a home directory, if it has one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # an unknown user
        return Path(path)


SectionT = TypeVar("SectionT", bound=BaseModel)


def with_absolute_paths(section: SectionT) -> SectionT:
    """Return a section whose values of type `FilePath` are absolute, without `~`.

    Args:
        section: a section; those inside it are included.
    """
    return with_paths(section, lambda path: str(expanded(path).absolute()))


def file_paths(section: BaseModel) -> list[str]:
    """Return the values of type `FilePath` of a section and of those inside it."""
    found: list[str] = []

    def record(path: str) -> str:
        found.append(path)
        return path

    with_paths(section, record)
    return found


Change = Callable[[str], str]


def with_paths(section: SectionT, change: Change) -> SectionT:
    """Return a section with changed paths."""
    before = {name: getattr(section, name) for name in type(section).model_fields}
    after = {
        name: _changed(
            before[name], Annotated[field.annotation, *field.metadata], change
        )
        if field.metadata
        else _changed(before[name], field.annotation, change)
        for name, field in type(section).model_fields.items()
    }
    changed = {name: new for name, new in after.items() if new != before[name]}
    return section.model_copy(update=changed) if changed else section


def _changed(value: Any, kind: Any, change: Change) -> Any:
    """Return a value of the type `kind` with changed paths."""
    if isinstance(value, BaseModel):
        return with_paths(value, change)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if isinstance(value, str) and _PathText in kind.__metadata__:
            return change(value)
        return _changed(value, inner[0], change)
    if origin in (Union, UnionType):
        named = any(get_origin(k) is Literal and value in get_args(k) for k in inner)
        for member in () if named else inner:
            value = _changed(value, member, change)
        return value
    if isinstance(value, dict) and inner:
        return {key: _changed(item, inner[-1], change) for key, item in value.items()}
    if isinstance(value, list | tuple) and inner:
        return type(value)(_changed(item, inner[0], change) for item in value)
    return value
