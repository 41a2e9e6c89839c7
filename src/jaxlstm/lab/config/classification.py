"""Configs of the tasks on labelled sequences: classify, tag and ctc."""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from jaxlstm.lab.config.base import Optimizer, RunConfig, Training, Transformation
from jaxlstm.lab.config.recurrent import Recurrent
from jaxlstm.lab.config.sections import (
    Changeable,
    Fixed,
    Fraction,
    Rate,
    Section,
    Size,
    Step,
    Whole,
    tagged,
)
from jaxlstm.lab.config.tables import (
    DigitSequences,
    GeneratedTags,
    GeneratedTranscripts,
    Seed,
    SequenceFiles,
)

# -- split --------------------------------------------------------------------


class Split(Section):
    """The parts of the data that are held out, the same for every `seed` of a run."""

    validation_fraction: Fraction = Field(
        default=0.2,
        description="Fraction of the training sequences that is held out for "
        "validation.",
    )
    test_fraction: Rate = Field(
        default=0.2,
        description="Fraction of the sequences that is held out for the test if data "
        "has no test part; 0 for no test.",
    )
    seed: Seed = Field(default=0, description="Seed of the split.")


# -- model --------------------------------------------------------------------


class Convolution(Section):
    """Convolutions over time, before the recurrent layers or beside them."""

    arrangement: Literal["front", "parallel"] = Field(
        default="front",
        description="front: below the recurrent layers; parallel: beside them, as in "
        "the LSTM-FCN.",
    )
    channels: tuple[Size, ...] = Field(
        default=(64,),
        min_length=1,
        strict=False,
        description="Output channels of each layer.",
    )
    kernels: tuple[Size, ...] = Field(
        default=(5,), strict=False, description="Steps of the kernel of each layer."
    )
    stride: Size = Field(
        default=1, description="Steps between two outputs of each layer."
    )

    @field_validator("kernels")
    @classmethod
    def _one_for_each(cls, kernels: Any, info: ValidationInfo) -> Any:
        channels = info.data.get("channels")
        if channels is not None and len(kernels) != len(channels):
            raise ValueError(
                f"got {len(kernels)} kernels, expected {len(channels)}, one for each "
                "of channels"
            )
        return kernels


class SequenceModel(Recurrent):
    """Convolutions if there are any, recurrent layers and a linear output layer."""

    hidden_size: Size = Field(default=64, description="Units of each layer.")
    normalize: Literal["standard", "none"] = Field(
        default="standard",
        description="standard: each feature gets mean 0 and standard deviation 1 over "
        "the steps of the training part.",
    )
    bidirectional: bool = Field(
        default=False, description="Also run each recurrent layer backwards."
    )
    convolution: Convolution | None = Field(
        default=None, description="Convolutions over time."
    )
    input_noise: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="Standard deviation of noise that is added to the normalized "
        "inputs in training.",
    )
    output_dropout: Rate = Field(
        default=0.0, description="Dropout rate before the output layer."
    )


class ClassifyModel(SequenceModel):
    """A model that gives one label to a sequence."""

    pooling: Literal["last", "mean", "max", "attention"] = Field(
        default="last", description="Summary of the outputs of all steps."
    )
    attention_size: Size = Field(
        default=32, description="Units of attention, if pooling is attention."
    )


class TagModel(SequenceModel):
    """A model that gives a label to each step."""

    bidirectional: bool = Field(
        default=True, description="Also run each recurrent layer backwards."
    )
    crf: bool = Field(
        default=False,
        description="Score label sequences by a linear-chain conditional random field.",
    )

    @model_validator(mode="after")
    def _keeps_the_steps(self) -> Self:
        return _with_stride_1(self, "since each step has a label")


class CTCModel(SequenceModel):
    """A model that gives a symbol sequence to a longer sequence."""

    bidirectional: bool = Field(
        default=True, description="Also run each recurrent layer backwards."
    )

    @model_validator(mode="after")
    def _keeps_the_steps(self) -> Self:
        if self.convolution is None or self.convolution.arrangement == "front":
            return self
        return _with_stride_1(self, "as many steps as the recurrent layers have")


ModelT = TypeVar("ModelT", bound=SequenceModel)


def _with_stride_1(model: ModelT, reason: str) -> ModelT:
    if model.convolution is not None and model.convolution.stride != 1:
        raise ValueError(
            f"got convolution.stride {model.convolution.stride}, expected 1, {reason}"
        )
    return model


# -- training -----------------------------------------------------------------


class SequenceTraining(Training):
    """Length of the run, batches, and intervals of logging and validation."""

    steps: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = Field(
        default=1000, description="Number of parameter updates."
    )
    batch_size: Annotated[Size, Fixed] = Field(
        default=32, description="Number of sequences per update."
    )
    steps_per_dispatch: Annotated[int, Field(ge=1, le=10_000), Whole, Fixed] = Field(
        default=20,
        description="Updates per call of the compiled training step, with sequences of "
        "one bucket.",
    )
    buckets: Annotated[int, Field(ge=1, le=16), Whole, Fixed] | None = Field(
        default=None,
        description="Number of lengths that sequences are padded to. null: the fewest, "
        "at most 4, with less than 15 % padding.",
    )
    log_every: Step = Field(default=100, description="Steps between two log lines.")
    validate_every: Step = Field(
        default=100, description="Steps between two validations."
    )
    checkpoint_every: Step = Field(
        default=500, description="Steps between two checkpoints."
    )
    validation_batch_size: Size = Field(
        default=256, description="Number of sequences per batch of validation."
    )


Weight = Annotated[float, Field(ge=0, le=1e6)]


class ClassifyTraining(SequenceTraining):
    """Training of a classifier."""

    class_weights: Literal["balanced", "none"] | dict[str, Weight] = Field(
        default="none",
        description="Weight of the loss of each class. balanced: inversely "
        "proportional to its number of training sequences; a mapping: by name, 1 "
        "otherwise.",
    )


# -- the configs --------------------------------------------------------------

_OPTIMIZER: tuple[Transformation, ...] = (
    {"clip_by_global_norm": {"max_norm": 1.0}},
    {"adam": {"learning_rate": 3e-3}},
)


class _SequenceConfig(RunConfig):
    """The keys that classify, tag and ctc share."""

    tags: ClassVar = {("data",): "source", ("model", "cell"): "name"}

    split: Split = Field(default=Split(), description="Parts that are held out.")
    optimizer: Annotated[Optimizer, Changeable] = Field(
        default=_OPTIMIZER,
        description="Optax transformations by name, applied in this order.",
    )


class ClassifyConfig(_SequenceConfig):
    """The config of the task `classify`.

    Example:
        >>> ClassifyConfig().data.source
        'digits'
    """

    task: Literal["classify"] = Field(default="classify", description="Task to train.")
    data: Annotated[
        SequenceFiles | DigitSequences,
        Field(discriminator="source"),
        tagged("source", "files"),
    ] = Field(default=DigitSequences(), description="Training data.")
    model: ClassifyModel = Field(default=ClassifyModel(), description="Model to train.")
    training: Annotated[ClassifyTraining, Changeable] = Field(  # pyright: ignore
        default=ClassifyTraining(), description="Training loop."
    )


class TagConfig(_SequenceConfig):
    """The config of the task `tag`."""

    task: Literal["tag"] = Field(default="tag", description="Task to train.")
    data: Annotated[
        SequenceFiles | GeneratedTags,
        Field(discriminator="source"),
        tagged("source", "files"),
    ] = Field(default=GeneratedTags(), description="Training data.")
    model: TagModel = Field(default=TagModel(), description="Model to train.")
    training: Annotated[SequenceTraining, Changeable] = Field(  # pyright: ignore
        default=SequenceTraining(), description="Training loop."
    )


class Decoding(Section):
    """Search for the symbols of a sequence, in the report and in predictions."""

    method: Literal["greedy", "beam"] = Field(
        default="greedy",
        description="greedy: the symbols of the most probable path; beam: prefix beam "
        "search.",
    )
    width: Step = Field(default=16, description="Number of prefixes that beam keeps.")


class CTCConfig(_SequenceConfig):
    """The config of the task `ctc`."""

    task: Literal["ctc"] = Field(default="ctc", description="Task to train.")
    data: Annotated[
        SequenceFiles | GeneratedTranscripts,
        Field(discriminator="source"),
        tagged("source", "files"),
    ] = Field(default=GeneratedTranscripts(), description="Training data.")
    model: CTCModel = Field(default=CTCModel(), description="Model to train.")
    training: Annotated[SequenceTraining, Changeable] = Field(  # pyright: ignore
        default=SequenceTraining(), description="Training loop."
    )
    decoding: Annotated[Decoding, Changeable] = Field(
        default=Decoding(), description="Search for the symbols."
    )
