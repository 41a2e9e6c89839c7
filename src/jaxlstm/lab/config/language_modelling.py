"""The config of language modelling: the data, the model, training and the sample."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.base import NAME_DESCRIPTION, RunConfig, RunName, Training
from jaxlstm.lab.config.recurrent import Recurrent
from jaxlstm.lab.config.sections import (
    Changeable,
    FilePath,
    Fixed,
    Fraction,
    Paths,
    Rate,
    Section,
    Size,
    Step,
    TextUnit,
    Token,
    Whole,
    tagged,
)

# -- data ---------------------------------------------------------------------


SUBWORD_SIZE = 4000  # ids of a trained tokenizer, if the config does not say
SMALLEST_SUBWORD = 257  # a token for each byte, and one that begins documents


class Text(Section):
    """Unit of a text: one token of it."""

    unit: TextUnit = Field(
        default="character",
        description="Text unit of one token. word and subword train a tokenizer on "
        "the training part; subword is byte-level BPE.",
    )
    vocabulary_size: Annotated[int, Field(ge=3, le=2**31 - 1), Whole] | None = Field(
        default=None,
        description="Most ids of the trained tokenizer of words or subwords; null is "
        f"{SUBWORD_SIZE}.",
    )
    tokenizer: FilePath | None = Field(
        default=None,
        description="A tokenizer.json of the library tokenizers, or a list of tokens, "
        "to use as it is instead of training one.",
    )

    @model_validator(mode="before")
    @classmethod
    def _unit_of_a_tokenizer(cls, value: Any) -> Any:
        """Fill in the unit that a given tokenizer has."""
        if not isinstance(value, Mapping) or "unit" in value:
            return value
        has_tokenizer = value.get("tokenizer") is not None
        return {**value, "unit": "subword"} if has_tokenizer else value

    @field_validator("vocabulary_size")
    @classmethod
    def _is_that_of_a_trained_tokenizer(
        cls, size: int | None, info: ValidationInfo
    ) -> int | None:
        unit = info.data.get("unit")
        if size is not None and unit in ("character", "byte"):
            raise ValueError(
                f"got {size} with unit {describe(unit)}, whose vocabulary is that of "
                'the text; expected unit "word" or "subword"'
            )
        if size is not None and unit == "subword" and size < SMALLEST_SUBWORD:
            raise ValueError(
                f"got {size}, expected at least {SMALLEST_SUBWORD}: one id for each "
                "byte, and one that begins documents"
            )
        return size

    @field_validator("tokenizer")
    @classmethod
    def _replaces_a_trained_one(
        cls, path: str | None, info: ValidationInfo
    ) -> str | None:
        unit, size = info.data.get("unit"), info.data.get("vocabulary_size")
        if path is not None and unit in ("character", "byte", "word"):
            raise ValueError(
                f"got {describe(path)} with unit {describe(unit)}, expected unit "
                '"subword"; the tokenizer says what a token is'
            )
        if path is not None and size is not None:
            raise ValueError(
                f"got {describe(path)} and vocabulary_size {size}, expected one of "
                "them: this tokenizer has its own size"
            )
        return path


class PythonData(Text):
    """Source text of Python's standard library; no download."""

    source: Literal["python"] = "python"
    validation_fraction: Fraction = Field(
        default=0.1, description="Fraction of the text held out, in whole files."
    )


class TextData(Text):
    """Text files: one, several that are documents, or separate ones to validate on."""

    source: Literal["text"] = "text"
    path: Paths = Field(
        description="Text file, folder, pattern such as books/**/*.txt, or a list of "
        "them; several files are documents."
    )
    encoding: str = Field(default="utf-8", description="Name of a Python text codec.")
    validation_fraction: Fraction = Field(
        default=0.1, description="Fraction held out if there is no validation_path."
    )
    validation_path: Paths | None = Field(
        default=None, description="Separate files for validation, as for path."
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
    """Files of integer token ids, memory-mapped: raw little-endian ones, or `.npy`."""

    source: Literal["tokens"] = "tokens"
    path: FilePath = Field(description="File of token ids, raw or .npy.")
    validation_path: FilePath | None = Field(
        default=None, description="Separate validation file."
    )
    validation_fraction: Fraction = Field(
        default=0.1, description="Fraction held out if there is no validation_path."
    )
    dtype: Literal["uint8", "uint16", "uint32", "int32"] = Field(
        default="uint16",
        description="Integer type of the ids in a raw file; .npy files have their own.",
    )
    tokenizer: FilePath | None = Field(
        default=None,
        description="The tokenizer.json that made the ids, or a list of the tokens, so "
        "that prompts and samples are text.",
    )
    vocabulary_size: Annotated[int, Field(ge=2, le=2**31 - 1), Whole] | None = Field(
        default=None,
        validate_default=True,
        description="Exclusive upper bound of the ids; null is the size of the "
        "tokenizer.",
    )
    document_token: Token | None = Field(
        default=None,
        description="Id that begins a document; the state is reset there.",
    )

    @field_validator("vocabulary_size")
    @classmethod
    def _is_known(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is None and info.data.get("tokenizer", "") is None:
            raise ValueError(
                "required key is missing (exclusive upper bound of the ids)"
            )
        return size

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


class Model(Recurrent):
    """An embedding, a stack of recurrent layers and a linear output layer."""

    embedding_size: Size = Field(
        default=64, description="Features of an embedded token."
    )
    embedding_dropout: Rate = Field(
        default=0.0, description="Dropout rate after the embedding."
    )
    output_dropout: Rate = Field(
        default=0.0, description="Dropout rate before the output layer."
    )


# -- training -----------------------------------------------------------------


class LanguageModelTraining(Training):
    """Length of the run, batches, and intervals of logging and validation."""

    batch_size: Annotated[Size, Fixed] = Field(
        default=16, description="Number of parallel streams."
    )
    window: Annotated[Size, Fixed] = Field(
        default=64, description="Tokens of each stream per update."
    )
    validation_streams: Annotated[Size, Fixed] = Field(
        default=128, description="Number of parallel streams in validation."
    )
    validation_tokens: Annotated[Step | None, Fixed] = Field(
        default=None, description="Number of tokens validated on; null uses all."
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
    documents: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = Field(
        default=1,
        description="Number of documents after which the sample ends; 0 goes on to "
        "`length`, and the separator is shown.",
    )


# -- the config ---------------------------------------------------------------


class Config(RunConfig):
    """The config of a language model.

    Example:
        >>> Config().model.cell.name
        'lstm'
    """

    tags: ClassVar = {("data",): "source", ("model", "cell"): "name"}

    task: Literal["language_modelling"] = Field(
        default="language_modelling", description="Task to train."
    )
    name: RunName = Field(default="quickstart", description=NAME_DESCRIPTION + ".")
    data: Data = Field(default=PythonData(), description="Training data.")
    model: Model = Field(default=Model(), description="Model to train.")
    training: LanguageModelTraining = Field(  # pyright: ignore
        default=LanguageModelTraining(), description="Training loop."
    )
    sample: Annotated[Sample, Changeable] = Field(
        default=Sample(), description="Text generated at the end of the run."
    )
