"""Config section of a stack of recurrent layers, from which models derive theirs."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.cells import GRU, LSTM, Cell, SimpleRNN
from jaxlstm.lab.config.sections import (
    LARGEST_SIZE,
    Bytes,
    Engine,
    Rate,
    Section,
    Step,
    Whole,
)


class Recurrent(Section):
    """A stack of recurrent layers: the cell, its size and its wrappers."""

    cell: Cell = Field(default=LSTM(), description="Recurrent cell of every layer.")
    hidden_size: Annotated[
        int, Field(ge=1, json_schema_extra={"maximum": LARGEST_SIZE}), Whole
    ] = Field(default=192, description="Units of each layer.")
    layers: Annotated[int, Field(ge=1, le=1024), Whole] = Field(
        default=1, description="Number of stacked recurrent layers."
    )
    dropout: Rate = Field(
        default=0.0, description="Dropout rate between recurrent layers."
    )
    cell_clip: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="Clip the cell state to [-limit, limit]."
    )
    recurrent_dropout: Rate = Field(
        default=0.0,
        description="Dropout rate of the candidate, with a new mask each step.",
    )
    variational_dropout_x: Rate = Field(
        default=0.0,
        description="Dropout rate of each layer's input, with one mask per sequence.",
    )
    variational_dropout_h: Rate = Field(
        default=0.0,
        description="Dropout rate of the recurrent h, with one mask per sequence.",
    )
    weight_drop: Rate = Field(
        default=0.0,
        description="Dropout rate of the recurrent weights, one mask per sequence.",
    )
    zoneout_h: Rate = Field(
        default=0.0, description="Probability that a unit of h keeps its value."
    )
    zoneout_c: Rate = Field(
        default=0.0, description="Probability that a unit of c keeps its value."
    )
    learned_initial_state: bool = Field(
        default=False, description="Train the initial state."
    )
    residual: bool = Field(
        default=False,
        description="Add each layer's input to its output, from the second layer on.",
    )
    checkpoint_every: Step | Literal["sqrt"] | Bytes | None = Field(
        default=None,
        description="Store every k-th state only, or as many as fit in a memory "
        'budget such as "2 GB"; saves memory and costs time.',
    )
    engine: Engine | None = Field(
        default=None,
        description="Implementation of the recurrence. null selects native if the CPU "
        "kernel is built, and else adjoint, and writes it into the run.",
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        default="float32",
        description="Type of the computation; parameters have 32 bits or more.",
    )

    @field_validator("hidden_size")
    @classmethod
    def _fits_in_memory(cls, size: int) -> int:
        if size > LARGEST_SIZE:
            raise ValueError(
                f"got {size}, expected at most {LARGEST_SIZE}; the recurrent weights "
                f"of one gate would take {4 * size**2 / 1e9:,.0f} GB"
            )
        return size

    @field_validator("cell_clip", "zoneout_c", "recurrent_dropout")
    @classmethod
    def _applies_to_the_cell(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse an option whose target the cell lacks.

        An invalid cell is not in `info`; only its own error is reported then.
        """
        cell, key = info.data.get("cell"), str(info.field_name)
        target = {"recurrent_dropout": "candidate"}.get(key, "cell state c")
        lacking = (SimpleRNN,) if target == "candidate" else (SimpleRNN, GRU)
        if value and isinstance(cell, lacking):
            raise ValueError(
                f"got {describe(value)}, but the cell {describe(cell.name)} has no "
                f"{target}; remove {key} or choose another cell"
            )
        return value


# Options that wrap the cell, from the innermost wrapper to the outermost.
WRAPPERS = (
    "cell_clip",
    "recurrent_dropout",
    "variational_dropout_x",
    "variational_dropout_h",
    "weight_drop",
    "zoneout_h",
    "zoneout_c",
    "learned_initial_state",
)
