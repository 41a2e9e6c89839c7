"""Config sections of time series and labelled sequences: files, and built-in data."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from jaxlstm.lab._util.wording import describe, did_you_mean, join_names
from jaxlstm.lab.config.sections import (
    Fraction,
    Paths,
    Section,
    Size,
    Step,
    Whole,
    tagged,
)

# -- files --------------------------------------------------------------------

Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Whole]
MISSING_VALUES = ("", "NA", "N/A", "NaN", "null", "None")


class TableFormat(Section):
    """The form in which a CSV file writes its fields; Parquet files need none of it."""

    separator: Literal[",", ";", "\t", "|"] | None = Field(
        default=None,
        description="Character between two fields of a CSV file; null detects it in "
        "the header.",
    )
    decimal: Literal[".", ","] = Field(
        default=".", description="Character before the decimals of a number."
    )
    thousands: Literal[".", ",", " ", "'"] | None = Field(
        default=None, description="Character between groups of three digits."
    )
    encoding: str = Field(default="utf-8", description="Name of a Python text codec.")
    missing_values: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=MISSING_VALUES,
        description="Fields, in upper or lower case, that mean that a value is "
        "missing.",
    )

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"got {describe(encoding)}, expected a text encoding such as "
                '"utf-8", "utf-16" or "latin-1"'
            ) from None
        return encoding

    @field_validator("thousands")
    @classmethod
    def _is_not_the_decimal(cls, thousands: str | None, info: ValidationInfo) -> Any:
        if thousands is not None and thousands == info.data.get("decimal"):
            raise ValueError(
                f"got {describe(thousands)}, expected another character than decimal"
            )
        return thousands


# -- time series --------------------------------------------------------------

MissingPolicy = Literal["error", "zero", "forward_fill", "interpolate", "flag"]
CALENDAR = (
    "minute",
    "hour",
    "day_of_week",
    "day_of_month",
    "day_of_year",
    "week_of_year",
    "month",
    "quarter",
    "year",
    "weekend",
)


class SeriesOptions(Section):
    """The options of every source of time series."""

    calendar: Names = Field(
        default=(),
        description="Features of the date, known for all times: "
        f"{', '.join(CALENDAR)}. Periodic ones are a sine and a cosine.",
    )
    missing: MissingPolicy | dict[Name, MissingPolicy] = Field(
        default="error",
        description="What replaces missing values and rows, for all columns or by "
        'column; the key "*" is for all others.',
    )
    short_series: Literal["error", "drop"] = Field(
        default="error", description="Treatment of series that are too short."
    )

    @field_validator("calendar")
    @classmethod
    def _are_features(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in CALENDAR:
                raise ValueError(
                    f"got {describe(name)}, expected {join_names(CALENDAR)}"
                    f"{did_you_mean(name, CALENDAR)}"
                )
        if len(set(names)) < len(names):
            raise ValueError("got a feature twice, expected each once")
        return names


class SeriesFiles(TableFormat, SeriesOptions):
    """CSV or Parquet files of time series, one row a time step."""

    source: Literal["files"] = "files"
    path: Paths = Field(
        description="CSV or Parquet file, a pattern such as data/*.csv, or a list."
    )
    future_path: Paths | None = Field(
        default=None,
        description="Files of future covariates for times after the last target.",
    )
    id: Name | None = Field(
        default="unique_id",
        description="Column that names the series of a row; null if each target column "
        "is a series.",
    )
    time: Name = Field(default="ds", description="Column of the times.")
    target: Name | Names | None = Field(
        default=None,
        description="Column to forecast. null is y; or without id, all columns that "
        "are not named elsewhere.",
    )
    past: Names = Field(
        default=(), description="Covariates known up to the present only."
    )
    future: Names = Field(default=(), description="Covariates known for the future.")
    static: Names = Field(
        default=(), description="Numbers that are the same in all rows of a series."
    )
    static_categories: Names = Field(
        default=(),
        description="Texts that are the same in all rows of a series, as one 0/1 "
        "column each.",
    )
    frequency: Name | None = Field(
        default=None,
        description="Step of the times, such as h, 15min, D, B, W, MS or 1; null "
        "infers it.",
    )
    time_format: Name | None = Field(
        default=None,
        description="Format of the times, such as %d/%m/%Y; null reads ISO 8601 and "
        "whole numbers.",
    )
    time_zone: Name | None = Field(
        default=None, description="Time zone of the times, such as Europe/Berlin."
    )
    sort: bool = Field(default=False, description="Sort the rows of a series by time.")

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str | None) -> str | None:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(name or "UTC")
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f"got {describe(name)}, expected a time zone such as "
                '"Europe/Berlin" or "UTC"'
            ) from None
        return name


class GeneratedSeries(SeriesOptions):
    """Daily sales of several shops, generated: weekly and annual seasons, promotions.

    Promotions are a future covariate, and the size of the shop is static.
    """

    source: Literal["generated"] = "generated"
    series: Size = Field(default=20, description="Number of shops.")
    length: Annotated[int, Field(ge=2, le=10_000_000), Whole] = Field(
        default=1095, description="Days of each shop."
    )
    ahead: Annotated[int, Field(ge=0, le=100_000), Whole] = Field(
        default=0, description="Days after the last sale with known promotions."
    )
    noise: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.1, description="Standard deviation of the logarithm of the noise."
    )
    seed: Seed = Field(default=0, description="Seed of the generator.")


class PackagedSeries(SeriesOptions):
    """A data set that ships with statsmodels; no download."""

    source: Literal["statsmodels"] = "statsmodels"
    name: Literal["co2", "sunspots", "elnino", "nile"] = Field(
        default="co2",
        description="co2 (weekly), sunspots and nile (yearly) or elnino (monthly).",
    )
    missing: MissingPolicy | dict[Name, MissingPolicy] = Field(
        default="interpolate", description="What replaces missing values; co2 has some."
    )


SeriesData = Annotated[
    SeriesFiles | GeneratedSeries | PackagedSeries,
    Field(discriminator="source"),
    tagged("source", "files"),
]

# -- labelled sequences -------------------------------------------------------


class SequenceFiles(TableFormat):
    """Files of labelled sequences: `.ts`, `.npz`, CSV or Parquet."""

    source: Literal["files"] = "files"
    path: Paths = Field(
        description="File with the suffix .ts, .npz, .csv or .parquet, a pattern, or a "
        "list."
    )
    test_path: Paths | None = Field(
        default=None, description="Separate files for testing."
    )
    id: Name | None = Field(
        default="sequence_id",
        description="Column that names the sequence of a row; null if each file is a "
        "sequence.",
    )
    step: Name | None = Field(
        default="step",
        description="Column that orders the rows; null takes the order in the file.",
    )
    label: Name | None = Field(
        default="label",
        description="Column of the labels; null if the folder of a file is its label.",
    )
    features: Names | None = Field(
        default=None, description="Columns of numbers; null is all others."
    )
    missing: MissingPolicy = Field(
        default="error", description="What replaces missing values."
    )
    sort: bool = Field(default=False, description="Sort the rows of a sequence.")


class DigitSequences(Section):
    """The digits of scikit-learn, 8 steps of 8 values; no download."""

    source: Literal["digits"] = "digits"
    test_fraction: Fraction = Field(
        default=0.2, description="Fraction of the images held out for testing."
    )
    seed: Seed = Field(default=0, description="Seed of the split.")


class GeneratedTags(Section):
    """States of a hidden Markov model to be found in its symbols, generated.

    Without noise the states follow from the symbols exactly, by Viterbi's algorithm.
    """

    source: Literal["generated_tags"] = "generated_tags"
    sequences: Step = Field(default=2000, description="Number of sequences.")
    test_sequences: Step = Field(default=500, description="Number of test sequences.")
    length: Size = Field(default=40, description="Largest number of steps.")
    states: Annotated[int, Field(ge=2, le=100), Whole] = Field(
        default=4, description="Number of states, the labels."
    )
    seed: Seed = Field(default=0, description="Seed of the generator.")


class GeneratedTranscripts(Section):
    """Symbols to be read from noisy frames of unknown alignment (CTC), generated."""

    source: Literal["generated_transcripts"] = "generated_transcripts"
    sequences: Step = Field(default=2000, description="Number of sequences.")
    test_sequences: Step = Field(default=500, description="Number of test sequences.")
    symbols: Annotated[int, Field(ge=2, le=100), Whole] = Field(
        default=8, description="Number of different symbols."
    )
    length: Size = Field(default=8, description="Largest number of symbols.")
    noise: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.3, description="Standard deviation of the noise of a frame."
    )
    seed: Seed = Field(default=0, description="Seed of the generator.")


SequenceData = Annotated[
    SequenceFiles | DigitSequences | GeneratedTags | GeneratedTranscripts,
    Field(discriminator="source"),
    tagged("source", "files"),
]
