"""The keys of every run: frozen, strict pydantic models that refuse unknown keys."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config import optimizer as optimizers
from jaxlstm.lab.config.population import Population
from jaxlstm.lab.config.sections import (
    Changeable,
    Fixed,
    Section,
    Size,
    Step,
    Whole,
)
from jaxlstm.lab.config.sweep import Sweep

# A name of this length and a date fit in a directory name of 255 bytes, even if every
# character takes four.
NAME_LENGTH = 50

# -- optimizer ----------------------------------------------------------------

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
    """Check a chain; `- zero_nans:` is short for `- zero_nans: {}`."""
    problems = optimizers.check(value)
    if problems:
        raise optimizers.OptimizerError(problems)
    return tuple({name: args or {} for name, args in link.items()} for link in value)


Optimizer = Annotated[
    tuple[Annotated[Transformation, Field(min_length=1, max_length=1)], ...],
    Field(min_length=1, strict=False),
    BeforeValidator(_chain),
]

# -- training -----------------------------------------------------------------


class EarlyStopping(Section):
    """Stop when the task's primary validation metric no longer improves."""

    patience: Step = Field(description="Validations without improvement before a stop.")
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0,
        description="Smallest improvement that counts, in the unit of the metric.",
    )


class Training(Section):
    """Length of the run, batches, and intervals of logging and validation."""

    steps: Annotated[int, Field(ge=0, le=2**31 - 1), Whole] = Field(
        default=2800, description="Number of training steps, of one batch each."
    )
    batch_size: Annotated[Size, Fixed] = Field(
        default=16, description="Number of sequences per step."
    )
    gradient_accumulation_steps: Annotated[
        Annotated[int, Field(ge=1, le=10_000), Whole], Fixed
    ] = Field(
        default=1,
        description=(
            "Steps whose mean gradient makes one update, by optax.MultiSteps. A "
            "learning-rate schedule counts updates."
        ),
    )
    shards: Annotated[
        Annotated[int, Field(ge=1, le=1024), Whole] | Literal["auto"], Fixed
    ] = Field(
        default="auto",
        description=(
            "Parts of a batch whose gradients are computed in parallel, one per device "
            "or core. The number affects rounding; auto is fixed when the run begins."
        ),
    )
    steps_per_dispatch: Annotated[int, Field(ge=1, le=10_000), Whole] = Field(
        default=20, description="Steps per call of the compiled training program."
    )
    log_every: Step = Field(default=100, description="Steps between two log lines.")
    validate_every: Step = Field(
        default=1400, description="Steps between two validations."
    )
    checkpoint_every: Step = Field(
        default=1400, description="Steps between two checkpoints."
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000), Whole] = Field(
        default=3,
        description="Number of newest checkpoints kept, in addition to the best.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="Stop early if the task's primary validation metric stops "
        "improving.",
    )

    @field_validator("shards")
    @classmethod
    def _divides_the_batch(cls, shards: Any, info: ValidationInfo) -> Any:
        size = info.data.get("batch_size")
        if shards != "auto" and size is not None and size % shards:
            raise ValueError(
                f'got {shards}, expected a divisor of batch_size ({size}) or "auto"'
            )
        return shards

    @field_validator("log_every", "validate_every", "checkpoint_every")
    @classmethod
    def _is_a_multiple(cls, every: int, info: ValidationInfo) -> int:
        k = info.data.get("steps_per_dispatch", 1)
        if every % k:
            raise ValueError(
                f"got {every}, expected a multiple of steps_per_dispatch ({k}) such as "
                f"{max(k, every // k * k)}"
            )
        return every


# -- the config ---------------------------------------------------------------


RunName = Annotated[str, Field(max_length=NAME_LENGTH)]
NAME_DESCRIPTION = "Prefix of the run directory's name; default: the config's file name"


class RunConfig(Section):
    """The keys that the configs of all tasks have.

    A task's own config derives from it, narrows `task`, `data` and `model`, adds the
    sections of its results, and is registered with `register`.
    """

    # Keys whose value is one of several kinds of section, and the key that says which.
    tags: ClassVar[Mapping[tuple[str | int, ...], str]] = {}

    config_version: Literal[2] = Field(default=2, description="Version of the format.")
    task: Any = Field(description="Task to train.")
    name: RunName = Field(
        default_factory=lambda fields: str(fields["task"]),
        validate_default=True,
        description=NAME_DESCRIPTION + ", or the task's name.",
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Whole] = Field(
        default=0, description="Seed of every random number of the run."
    )
    device: Annotated[Literal["auto", "cpu", "gpu", "tpu"], Changeable] = Field(
        default="auto", description="Device; auto selects the fastest available."
    )
    data: Any = Field(description="Training data.")
    model: Any = Field(description="Model to train.")
    optimizer: Annotated[Optimizer, Changeable] = Field(
        default=QUICKSTART_OPTIMIZER,
        description="Optax transformations by name, applied in this order.",
    )
    training: Annotated[Training, Changeable] = Field(
        default=Training(), description="Training loop."
    )
    population: Population | None = Field(
        default=None,
        description="Seeds and optimizers that are trained together, in one program.",
    )
    sweep: Sweep | None = Field(
        default=None, description="Search space of jaxlstm sweep."
    )

    @field_validator("name")
    @classmethod
    def _is_a_directory_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"got {describe(name)}, expected letters, digits, _, - and ., "
                "beginning with a letter or a digit"
            )
        return name
