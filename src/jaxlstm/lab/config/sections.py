"""What the sections of a config are made of: one kind of model, and kinds of value."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def whole(value: Any) -> Any:
    """`1e3` is a float to YAML and a whole number to everybody else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def path_text(value: Any) -> Any:
    """A `pathlib.Path` is as good as its text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def tagged(key: str, default: str) -> BeforeValidator:
    """Fills in the tag of a union where the section leaves it out."""

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
FilePath = Annotated[str, BeforeValidator(path_text), Field(min_length=1)]
Unit = Literal["character", "byte"]
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


class Section(BaseModel):
    """A part of the config: frozen, closed to unknown keys, strict about types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )
