"""Config sections of language modelling: the data, the model and the sample."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.cells import GRU, LSTM, Cell, SimpleRNN
from jaxlstm.lab.config.sections import (
    LARGEST_SIZE,
    Bytes,
    Engine,
    FilePath,
    Fraction,
    Rate,
    Section,
    Size,
    Step,
    Token,
    Unit,
    Whole,
    tagged,
)

# -- data ---------------------------------------------------------------------


class PythonData(Section):
    """Source text of Python's standard library; no download."""

    source: Literal["python"] = "python"
    unit: Unit = Field(default="character", description="Text unit of one token.")
    validation_fraction: Fraction = Field(
        default=0.1, description="Fraction of the text held out, in whole files."
    )


class TextData(Section):
    """One text file, or one for training and one for validation."""

    source: Literal["text"] = "text"
    path: FilePath = Field(description="Text file, relative to the current directory.")
    encoding: str = Field(default="utf-8", description="Name of a Python text codec.")
    unit: Unit = Field(default="character", description="Text unit of one token.")
    validation_fraction: Fraction = Field(
        default=0.1, description="Fraction held out if there is no validation_path."
    )
    validation_path: FilePath | None = Field(
        default=None, description="Separate validation file."
    )
    document_separator: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Text between two documents; the state is reset there.",
    )

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"got {describe(encoding)}, expected a text encoding such as "
                '"utf-8" or "latin-1"'
            ) from None
        return encoding


class TokenData(Section):
    """Files of raw little-endian integer token ids, memory-mapped."""

    source: Literal["tokens"] = "tokens"
    path: FilePath = Field(description="Binary file of token ids.")
    validation_path: FilePath | None = Field(
        default=None, description="Separate validation file."
    )
    validation_fraction: Fraction = Field(
        default=0.1, description="Fraction held out if there is no validation_path."
    )
    dtype: Literal["uint8", "uint16", "uint32", "int32"] = Field(
        default="uint16", description="Integer type of the ids in the file."
    )
    vocabulary_size: Annotated[int, Field(ge=2, le=2**31 - 1), Whole] = Field(
        description="Exclusive upper bound of the ids."
    )
    document_token: Token | None = Field(
        default=None,
        description="Id that begins a document; the state is reset there.",
    )

    @field_validator("document_token")
    @classmethod
    def _is_in_vocabulary(cls, token: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("vocabulary_size")
        if token is not None and size is not None and token >= size:
            raise ValueError(
                f"got {token}, expected an id below vocabulary_size ({size})"
            )
        return token


Data = Annotated[
    PythonData | TextData | TokenData,
    Field(discriminator="source"),
    tagged("source", "python"),
]

# -- model --------------------------------------------------------------------


class Model(Section):
    """An embedding, a stack of recurrent layers and a linear output layer."""

    cell: Cell = Field(default=LSTM(), description="Recurrent cell of every layer.")
    embedding_size: Size = Field(
        default=64, description="Features of an embedded token."
    )
    hidden_size: Annotated[
        int, Field(ge=1, json_schema_extra={"maximum": LARGEST_SIZE}), Whole
    ] = Field(default=192, description="Units of each layer.")
    layers: Annotated[int, Field(ge=1, le=1024), Whole] = Field(
        default=1, description="Number of stacked recurrent layers."
    )
    dropout: Rate = Field(
        default=0.0, description="Dropout rate between recurrent layers."
    )
    embedding_dropout: Rate = Field(
        default=0.0, description="Dropout rate after the embedding."
    )
    output_dropout: Rate = Field(
        default=0.0, description="Dropout rate before the output layer."
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
        description="Dropout rate of each layer's input, with one mask per window.",
    )
    variational_dropout_h: Rate = Field(
        default=0.0,
        description="Dropout rate of the recurrent h, with one mask per window.",
    )
    weight_drop: Rate = Field(
        default=0.0,
        description="Dropout rate of the recurrent weights, with one mask per window.",
    )
    zoneout_h: Rate = Field(
        default=0.0, description="Probability that a unit of h keeps its value."
    )
    zoneout_c: Rate = Field(
        default=0.0, description="Probability that a unit of c keeps its value."
    )
    learned_initial_state: bool = Field(
        default=False, description="Train the state in which a document begins."
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

# -- sample -------------------------------------------------------------------


class Sample(Section):
    """The text that is generated at the end of a run."""

    prompt: str = Field(default="def ", description="Beginning of the sample.")
    length: Annotated[int, Field(ge=0, le=10_000_000), Whole] = Field(
        default=400, description="Number of tokens to draw."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.8,
        description="0 takes the most likely token; 1 samples the model's "
        "distribution.",
    )
    top_k: Step | None = Field(
        default=None, description="Sample from the k most likely tokens only."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Sample from the most likely tokens that have this total "
        "probability.",
    )
