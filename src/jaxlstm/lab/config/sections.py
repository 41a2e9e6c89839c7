"""Base model of all config sections, and the types of their values."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

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
    """Base of all sections: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )
