"""Config sections of the memory tasks: generated sequences with long time lags."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jaxlstm.lab.config.base import RunConfig
from jaxlstm.lab.config.recurrent import Recurrent
from jaxlstm.lab.config.sections import Section, Size


class MemoryData(Section):
    """Sequences drawn from the seed and the step; nothing is read."""

    problem: Literal["adding", "temporal_order", "copying"] = Field(
        default="adding", description="Problem; each is described in the task."
    )
    length: Annotated[Size, Field(ge=20)] = Field(
        default=100, description="Shortest length T; the longest is T + T/10."
    )
    test_sequences: Size = Field(
        default=2000,
        description="Fresh sequences that must all be solved for success.",
    )


class MemoryModel(Recurrent):
    """A stack of recurrent layers and a linear output layer."""

    hidden_size: Size = Field(default=16, description="Units of each layer.")


class MemoryConfig(RunConfig):
    """The config of a memory task."""

    tags: ClassVar = {("model", "cell"): "name"}

    task: Literal["memory"] = Field(default="memory", description="Task to train.")
    data: MemoryData = Field(default=MemoryData(), description="Generated data.")
    model: MemoryModel = Field(default=MemoryModel(), description="Model to train.")
