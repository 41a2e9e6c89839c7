"""The config of forecasting: windows, split, model and head."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.base import RunConfig, Training
from jaxlstm.lab.config.recurrent import Recurrent
from jaxlstm.lab.config.sections import (
    LARGEST_SIZE,
    Fixed,
    Fraction,
    Rate,
    Section,
    Size,
    Step,
    Whole,
    tagged,
)
from jaxlstm.lab.config.tables import GeneratedSeries, SeriesData

# -- windows ------------------------------------------------------------------

Part = (
    Fraction
    | Annotated[int, Field(ge=1, le=2**31 - 1), Whole]
    | Annotated[str, Field(min_length=4)]
)


class Split(Section):
    """The parts of the time axis, one after another, the same for all series.

    Each is a fraction of all times, a number of times, or the time at which the part
    ends (which is not in it).
    """

    train: Part = Field(default=0.7, description="Part for training and scaling.")
    validation: Part = Field(
        default=0.15, description="Part that selects the best parameters."
    )
    test: Part | None = Field(
        default=None, description="Part that is scored at the end; null is the rest."
    )


class Windows(Section):
    """A forecast: `horizon` values from the `context` values before them."""

    context: Size = Field(default=64, description="Values before a forecast.")
    horizon: Size = Field(default=16, description="Values of a forecast.")
    split: Split = Field(default=Split(), description="Training, validation and test.")
    scaling: Literal["standard", "mean", "none"] = Field(
        default="standard",
        description="Scaling of each series by its training part: subtract the mean "
        "and divide by the standard deviation, or divide by the mean magnitude.",
    )
    season: Step | None = Field(
        default=None,
        description="Steps of a season, for seasonal naive and MASE; null follows from "
        "the frequency.",
    )
    intervals: Annotated[
        tuple[Annotated[int, Field(ge=1, le=99), Whole], ...], Field(strict=False)
    ] = Field(default=(80, 95), description="Central intervals, in percent.")
    samples: Annotated[int, Field(ge=1, le=10_000), Whole] = Field(
        default=100, description="Paths that an autoregressive model draws."
    )


# -- head ---------------------------------------------------------------------


class Point(Section):
    """One number for each step."""

    name: Literal["point"] = "point"
    loss: Literal["mae", "mse", "huber"] = Field(
        default="mae", description="Loss in units of the scaled series."
    )
    delta: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=1.0, description="Error at which huber becomes linear."
    )


LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)


class Quantiles(Section):
    """Quantiles of each step that never cross, trained with the pinball loss."""

    name: Literal["quantiles"] = "quantiles"
    levels: Annotated[
        tuple[Fraction, ...], Field(strict=False, min_length=1, max_length=999)
    ] = Field(default=LEVELS, description="Increasing levels, one of them 0.5.")

    @field_validator("levels")
    @classmethod
    def _are_increasing(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if 0.5 not in levels or list(levels) != sorted(set(levels)):
            raise ValueError(
                f"got {describe(list(levels))}, expected increasing levels with 0.5 "
                "among them"
            )
        return levels


class Normal(Section):
    """A normal distribution for each step."""

    name: Literal["normal"] = "normal"


class StudentT(Section):
    """A Student t distribution for each step, with more than 2 degrees of freedom."""

    name: Literal["student_t"] = "student_t"


class NegativeBinomial(Section):
    """A negative binomial distribution of counts for each step."""

    name: Literal["negative_binomial"] = "negative_binomial"


Head = Annotated[
    Point | Quantiles | Normal | StudentT | NegativeBinomial,
    Field(discriminator="name"),
    tagged("name", "point"),
]

# -- model --------------------------------------------------------------------


class ForecastModel(Recurrent):
    """Recurrent layers over the context, and a decoder of the horizon."""

    kind: Literal["patched", "direct", "encoder_decoder", "autoregressive"] = Field(
        default="patched",
        description="patched reads segments of the context as steps, direct reads "
        "single values, encoder_decoder decodes step by step over the known future, "
        "autoregressive draws each value from the one before.",
    )
    segment: Size = Field(
        default=8, description="Values of a segment of a patched model."
    )
    hidden_size: Annotated[
        int, Field(ge=1, json_schema_extra={"maximum": LARGEST_SIZE}), Whole
    ] = Field(default=64, description="Units of each layer.")
    series_embedding: Annotated[int, Field(ge=0, le=LARGEST_SIZE), Whole] = Field(
        default=0, description="Features of a vector that is learned for each series."
    )
    window_scaling: Literal["last", "standard", "mean", "none"] = Field(
        default="last",
        description="Scaling of each context: subtract its last value; subtract its "
        "mean and divide by its standard deviation; divide by its mean magnitude.",
    )
    output_dropout: Rate = Field(
        default=0.0, description="Dropout rate before the output layer."
    )
    head: Head = Field(
        default=Quantiles(), validate_default=True, description="Output of each step."
    )

    @field_validator("series_embedding")
    @classmethod
    def _leaves_a_position(cls, size: int, info: ValidationInfo) -> int:
        units = info.data.get("hidden_size", LARGEST_SIZE)
        if info.data.get("kind") == "patched" and size >= units:
            raise ValueError(f"got {size}, expected less than hidden_size ({units})")
        return size

    @field_validator("head")
    @classmethod
    def _fits_the_kind(cls, head: Any, info: ValidationInfo) -> Any:
        kind, scaling = info.data.get("kind"), info.data.get("window_scaling")
        if kind == "autoregressive" and head.name in ("point", "quantiles"):
            raise ValueError(
                f"got {describe(head.name)}, expected normal, student_t or "
                "negative_binomial, from which an autoregressive model draws"
            )
        if head.name == "negative_binomial" and scaling not in ("none", "mean"):
            raise ValueError(
                f'got "negative_binomial" with window_scaling {scaling}, expected mean '
                "or none, as counts cannot be shifted"
            )
        return head


# -- training -----------------------------------------------------------------


class ForecastTraining(Training):
    """Length of the run, batches, and intervals of logging and validation."""

    steps: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = Field(
        default=1000, description="Number of parameter updates."
    )
    batch_size: Annotated[Size, Fixed] = Field(
        default=64, description="Windows per update."
    )
    validate_every: Step = Field(
        default=200, description="Steps between two validations."
    )
    checkpoint_every: Step = Field(
        default=200, description="Steps between two checkpoints."
    )
    validation_windows: Annotated[Step | None, Fixed] = Field(
        default=None,
        description="Windows of a validation during training, evenly spaced; null is "
        "all.",
    )


# -- the config ---------------------------------------------------------------


class ForecastConfig(RunConfig):
    """The config of a forecast.

    Example:
        >>> ForecastConfig().model.kind
        'patched'
    """

    tags: ClassVar = {
        ("data",): "source",
        ("model", "cell"): "name",
        ("model", "head"): "name",
    }

    task: Literal["forecast"] = Field(default="forecast", description="Task to train.")
    data: SeriesData = Field(
        default=GeneratedSeries(), description="Time series to learn from."
    )
    windows: Windows = Field(
        default=Windows(),
        validate_default=True,
        description="Windows and their split.",
    )
    model: ForecastModel = Field(default=ForecastModel(), description="Model to train.")
    training: ForecastTraining = Field(  # pyright: ignore
        default=ForecastTraining(), description="Training loop."
    )

    @field_validator("windows")
    @classmethod
    def _fit_the_model(cls, windows: Windows, info: ValidationInfo) -> Windows:
        """Compare with the model, which is checked first; an invalid one is missing."""
        model = info.data.get("model")
        if model is None:
            return windows
        if model.kind == "patched" and windows.context % model.segment:
            raise ValueError(
                f"got the context {windows.context}, expected a multiple of "
                f"model.segment ({model.segment})"
            )
        if model.head.name == "negative_binomial" and windows.scaling != "none":
            raise ValueError(
                f"got the scaling {windows.scaling}, expected none, as the values of "
                "the head negative_binomial are counts"
            )
        return windows
