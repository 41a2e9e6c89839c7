"""What a run is: frozen pydantic models, closed and strict.

All defaults together are the quickstart. Every key is known, every number has
bounds. `config` reads and writes them; `config_problems` says what is wrong.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from jaxlstm.lab._util.wording import described
from jaxlstm.lab.config import optimizer as optimizer_problems
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

# A name of so many letters and a date fit into a directory's name, 255 bytes.
NAME_LENGTH = 50

# -- data ---------------------------------------------------------------------


class PythonData(Section):
    """The standard library's own source text; nothing to download."""

    source: Literal["python"] = "python"
    unit: Unit = Field(default="character", description="What one token is.")
    validation_fraction: Fraction = Field(
        default=0.1, description="Share of the text held out, by whole files."
    )


class TextData(Section):
    """A text file of yours."""

    source: Literal["text"] = "text"
    path: FilePath = Field(description="The file, relative to where you start from.")
    encoding: str = Field(
        default="utf-8", description="A text encoding known to Python."
    )
    unit: Unit = Field(default="character", description="What one token is.")
    validation_fraction: Fraction = Field(
        default=0.1, description="Share held out, unless there is a validation_path."
    )
    validation_path: FilePath | None = Field(
        default=None, description="A file of its own to validate on."
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
                f"{described(encoding)} came; a text encoding is wanted, such as "
                '"utf-8" or "latin-1"'
            ) from None
        return encoding


class TokenData(Section):
    """Token ids as raw little-endian integers in a file, read by memmap."""

    source: Literal["tokens"] = "tokens"
    path: FilePath = Field(description="The .bin file of token ids.")
    validation_path: FilePath | None = Field(
        default=None, description="A file of its own to validate on."
    )
    validation_fraction: Fraction = Field(
        default=0.1, description="Share held out, unless there is a validation_path."
    )
    dtype: Literal["uint8", "uint16", "uint32", "int32"] = Field(
        default="uint16", description="How each id is stored."
    )
    vocabulary_size: Annotated[int, Field(ge=2, le=2**31 - 1), Whole] = Field(
        description="Ids are below this number."
    )
    document_token: Token | None = Field(
        default=None,
        description="The id that begins a document; the state is reset there.",
    )

    @field_validator("document_token")
    @classmethod
    def _is_in_vocabulary(cls, token: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("vocabulary_size")
        if token is not None and size is not None and token >= size:
            raise ValueError(
                f"{token} came; an id below vocabulary_size {size} is wanted"
            )
        return token


Data = Annotated[
    PythonData | TextData | TokenData,
    Field(discriminator="source"),
    tagged("source", "python"),
]

# -- model --------------------------------------------------------------------


class Model(Section):
    """Embedding, a stack of recurrent layers, and a linear read-out."""

    cell: Cell = Field(default=LSTM(), description="What happens at one instant.")
    embedding_size: Size = Field(
        default=64, description="Features of an embedded token."
    )
    hidden_size: Annotated[
        int, Field(ge=1, json_schema_extra={"maximum": LARGEST_SIZE}), Whole
    ] = Field(default=192, description="Units of each layer.")
    layers: Annotated[int, Field(ge=1, le=1024), Whole] = Field(
        default=1, description="Recurrent layers, one above the other."
    )
    dropout: Rate = Field(default=0.0, description="Between two recurrent layers.")
    embedding_dropout: Rate = Field(default=0.0, description="After the embedding.")
    output_dropout: Rate = Field(default=0.0, description="Before the read-out.")
    cell_clip: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="The cell state is kept between -limit and limit."
    )
    recurrent_dropout: Rate = Field(
        default=0.0, description="Of the candidate, another mask each step."
    )
    variational_dropout_x: Rate = Field(
        default=0.0, description="Of each layer's input, one mask for a window."
    )
    variational_dropout_h: Rate = Field(
        default=0.0, description="Of h where it recurs, one mask for a window."
    )
    weight_drop: Rate = Field(
        default=0.0, description="Of the recurrent weights, one mask for a window."
    )
    zoneout_h: Rate = Field(
        default=0.0, description="Units of h that keep their old value, each step."
    )
    zoneout_c: Rate = Field(
        default=0.0, description="Units of c that keep their old value, each step."
    )
    learned_initial_state: bool = Field(
        default=False, description="Begin each document with a state that is learnt."
    )
    residual: bool = Field(
        default=False,
        description="From the second layer on, add each one's input to its output.",
    )
    checkpoint_every: Step | Literal["sqrt"] | Bytes | None = Field(
        default=None,
        description="Remember every k-th state only, or what fits into a size such as "
        '"2 GB"; saves memory, costs time.',
    )
    engine: Engine | None = Field(
        default=None,
        description="How sequences are unrolled; null takes the first that can, and "
        "native is a kernel that is compiled here.",
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        default="float32",
        description="What is computed in; parameters stay in 32 bits or more.",
    )

    @field_validator("hidden_size")
    @classmethod
    def _fits_a_machine(cls, size: int) -> int:
        if size > LARGEST_SIZE:
            raise ValueError(
                f"{size} came; at most {LARGEST_SIZE} is wanted, because the recurrent "
                f"weights of one gate would take {4 * size**2 / 1e9:,.0f} GB"
            )
        return size

    @field_validator("cell_clip", "zoneout_c", "recurrent_dropout")
    @classmethod
    def _finds_what_it_changes(cls, value: Any, info: ValidationInfo) -> Any:
        """A cell that was refused itself is not in `info`, and nothing more is said."""
        cell, key = info.data.get("cell"), str(info.field_name)
        what = {"recurrent_dropout": "candidate"}.get(key, "cell state c")
        lacks = (SimpleRNN,) if what == "candidate" else (SimpleRNN, GRU)
        if value and isinstance(cell, lacks):
            raise ValueError(
                f"{described(value)} came, and the cell {described(cell.name)} has no "
                f"{what}; leave {key} out, or choose another cell"
            )
        return value


# What a model may put around its cell, from the inside out.
AROUND = (
    "cell_clip",
    "recurrent_dropout",
    "variational_dropout_x",
    "variational_dropout_h",
    "weight_drop",
    "zoneout_h",
    "zoneout_c",
    "learned_initial_state",
)


# -- training -----------------------------------------------------------------

Transformation = dict[str, dict[str, Any]]

QUICKSTART_OPTIMIZER: tuple[Transformation, ...] = (
    {"clip_by_global_norm": {"max_norm": 1.0}},
    {
        "adamw": {
            "learning_rate": {
                "warmup_cosine_decay_schedule": {
                    "init_value": 0.0,
                    "peak_value": 8e-3,
                    "warmup_steps": 100,
                    "decay_steps": 2800,
                    "end_value": 8e-5,
                }
            },
            "b2": 0.99,
            "weight_decay": 0.0,
        }
    },
)


def _chain(value: Any) -> Any:
    """`- zero_nans:` stands for `- zero_nans: {}`; everything is checked by name."""
    problems = optimizer_problems.check(value)
    if problems:
        raise optimizer_problems.MisusedError(problems)
    return tuple({name: args or {} for name, args in link.items()} for link in value)


class EarlyStopping(Section):
    """Stop when the validation loss has not fallen for a while."""

    patience: Step = Field(description="Validations to wait for a better one.")
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="What counts as better, in nats per token."
    )


class Training(Section):
    """How long, in what portions, and how often to look."""

    steps: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = Field(
        default=2800, description="Updates of the parameters."
    )
    batch_size: Size = Field(default=16, description="Streams read side by side.")
    shards: Annotated[int, Field(ge=1, le=1024), Whole] | Literal["auto"] = Field(
        default="auto",
        description=(
            "Parts of a batch whose gradients are computed side by side, one a device "
            "or core; auto is settled when the run begins, as it decides the bits."
        ),
    )
    window: Size = Field(default=64, description="Tokens of each stream per update.")
    steps_per_dispatch: Annotated[int, Field(ge=1, le=10_000), Whole] = Field(
        default=20, description="Updates handed to the device at a time."
    )
    log_every: Step = Field(
        default=100, description="Steps between two lines of the log."
    )
    validate_every: Step = Field(
        default=1400, description="Steps between two validations."
    )
    checkpoint_every: Step = Field(
        default=1400, description="Steps between two checkpoints."
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000), Whole] = Field(
        default=3, description="The newest so many are kept, and the best one."
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop before `steps` when validation gets no better."
    )
    validation_streams: Size = Field(
        default=128, description="Streams validated side by side."
    )
    validation_tokens: Step | None = Field(
        default=None, description="Validate on so many tokens; null is the whole part."
    )

    @field_validator("shards")
    @classmethod
    def _divides_the_batch(cls, shards: Any, info: ValidationInfo) -> Any:
        size = info.data.get("batch_size")
        if shards != "auto" and size is not None and size % shards:
            raise ValueError(
                f"{shards} came; a divisor of batch_size ({size}) is wanted, or auto"
            )
        return shards

    @field_validator("log_every", "validate_every", "checkpoint_every")
    @classmethod
    def _is_a_multiple(cls, every: int, info: ValidationInfo) -> int:
        k = info.data.get("steps_per_dispatch", 1)
        if every % k:
            raise ValueError(
                f"{every} came; a multiple of steps_per_dispatch ({k}) is wanted, "
                f"such as {max(k, every // k * k)}"
            )
        return every


class Sample(Section):
    """The text written at the end of a run."""

    prompt: str = Field(default="def ", description="What the sample begins with.")
    length: Annotated[int, Field(ge=0, le=10_000_000), Whole] = Field(
        default=400, description="Tokens to draw."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.8,
        description="0 takes the likeliest token each time; 1 the model's own odds.",
    )
    top_k: Step | None = Field(
        default=None, description="Draw from the k likeliest only."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Draw from the likeliest that together have this probability.",
    )


# -- the whole ----------------------------------------------------------------


class Config(Section):
    """One run. `Config()` is the quickstart.

    >>> Config().model.cell.name
    'lstm'
    """

    config_version: Literal[2] = Field(default=2, description="The form of this file.")
    task: Literal["language_modelling"] = Field(
        default="language_modelling", description="What is learnt."
    )
    name: str = Field(
        default="quickstart",
        max_length=NAME_LENGTH,
        description="Begins the run directory's name; without it, the file's own name.",
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Whole] = Field(
        default=0, description="Every random number of the run follows from it."
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        default="auto", description="Where to compute; auto takes the best there is."
    )
    data: Data = Field(default=PythonData(), description="What is read.")
    model: Model = Field(default=Model(), description="What is trained.")
    optimizer: Annotated[
        tuple[Annotated[Transformation, Field(min_length=1, max_length=1)], ...],
        Field(min_length=1, strict=False),
        BeforeValidator(_chain),
    ] = Field(
        default=QUICKSTART_OPTIMIZER,
        description="Optax transformations by name, applied in this order.",
    )
    training: Training = Field(default=Training(), description="How it is trained.")
    sample: Sample = Field(default=Sample(), description="What is written at the end.")

    @field_validator("name")
    @classmethod
    def _names_a_directory(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{described(name)} came; letters, digits, _, - and . are wanted, and "
                "the first a letter or a digit"
            )
        return name


# Where a section is one of several kinds, and the key that says which.
TAGS = {("data",): "source", ("model", "cell"): "name"}
