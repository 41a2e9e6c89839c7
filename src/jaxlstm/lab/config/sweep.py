"""The search space of a sweep, by keys of the config."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.sections import Section, Step

Number = int | float
Value = bool | int | float | str | None


class Range(Section):
    """Numbers from `low` to `high`, both included; whole ones if both are whole."""

    low: Number = Field(description="Smallest value.")
    high: Number = Field(description="Largest value.")
    log: bool = Field(default=False, description="Draw the logarithm uniformly.")

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(
                f"got low {self.low} and high {self.high}, expected low < high"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"got low {self.low} with log, expected a positive number")
        return self

    @property
    def whole(self) -> bool:
        """True if the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Choices = Annotated[tuple[Value, ...], Field(min_length=1, strict=False)]


class Sweep(Section):
    """Trials of `jaxlstm sweep`, drawn by Optuna's TPE sampler."""

    trials: Step = Field(default=20, description="Number of trials of the whole sweep.")
    prune: bool = Field(
        default=True,
        description="Stop a trial whose validation is worse than the median of the "
        "others at the same step.",
    )
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)] = Field(
        description="A range or a list of choices for each key, such as "
        "model.hidden_size.",
    )

    @field_validator("space")
    @classmethod
    def _has_keys_of_the_config(cls, space: dict[str, Any]) -> dict[str, Any]:
        for key in space:
            if key.split(".")[0] in ("sweep", "task", "config_version"):
                raise ValueError(
                    f"got the key {describe(key)}, expected keys of the config that a "
                    "trial may change"
                )
        return space
