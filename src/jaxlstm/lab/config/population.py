"""The members of a population: one config for each seed and each point of a grid.

    population: {seeds: 2, grid: {optimizer.0.adam.learning_rate: [1e-3, 1e-2]}}
    =>  00  seed=0 optimizer.0.adam.learning_rate=0.001
        01  seed=1 optimizer.0.adam.learning_rate=0.001
        02  seed=0 optimizer.0.adam.learning_rate=0.01
        03  seed=1 optimizer.0.adam.learning_rate=0.01

All members are trained by one compiled program, so they may differ in their seeds and
in numbers of the optimizer, but not in shapes, data or layers.
"""

import itertools
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.sections import Section, Whole

MOST_MEMBERS = 1024
LEARNING_RATE = "learning_rate"  # wherever it is in the optimizer

Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Whole]
SeedCount = Annotated[int, Field(ge=1, le=MOST_MEMBERS), Whole]
Values = Annotated[tuple[float, ...], Field(min_length=1, strict=False)]
KeyPath = tuple[str | int, ...]


class Population(Section):
    """Members that are trained together, each with its own seed and optimizer."""

    seeds: (
        SeedCount | Annotated[tuple[Seed, ...], Field(min_length=1, strict=False)]
    ) = Field(
        default=1,
        description="Number of seeds, counted up from seed, or a list of seeds.",
    )
    grid: dict[str, Values] = Field(
        default={},
        description="Values of numbers of the optimizer by key, such as learning_rate "
        "or optimizer.1.adamw.b1; every combination is trained with every seed.",
    )

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: Any) -> Any:
        if isinstance(seeds, tuple) and len(set(seeds)) < len(seeds):
            raise ValueError("got a seed twice, expected different seeds")
        return seeds

    @field_validator("grid")
    @classmethod
    def _varies_numbers_of_the_optimizer(cls, grid: dict[str, Any]) -> dict[str, Any]:
        for key, values in grid.items():
            if key != LEARNING_RATE and not key.startswith("optimizer."):
                raise ValueError(
                    f"got the key {describe(key)}, expected numbers of the optimizer "
                    "such as learning_rate or optimizer.1.adamw.b1; the members of a "
                    "population share shapes, data and layers, so vary this key with "
                    "jaxlstm sweep"
                    if key != "seed"
                    else "got the key seed; list seeds under population.seeds"
                )
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: got a value twice, expected different values")
        return grid


class Member(NamedTuple):
    """One member of a population.

    Attributes:
        name: its number with leading zeros, which names its directory.
        seed: its seed.
        values: its value for each key of the grid.
    """

    name: str
    seed: int
    values: dict[str, float]

    def overrides(self) -> list[str]:
        """Return the overrides that make the population's config that of the member.

        Example:
            >>> Member("00", 3, {"optimizer.0.adam.learning_rate": 0.1}).overrides()
            ['seed=3', 'optimizer.0.adam.learning_rate=0.1']
        """
        values = (f"{key}={value!r}" for key, value in self.values.items())
        return [f"seed={self.seed}", *values]


def members(population: Population, seed: int) -> list[Member]:
    """Return the members of a population in their order.

    Args:
        population: the section of the config.
        seed: the seed of the config, the first of those that are counted up.

    Example:
        >>> [member.seed for member in members(Population(seeds=3), 7)]
        [7, 8, 9]
    """
    seeds = population.seeds
    listed = range(seed, seed + seeds) if isinstance(seeds, int) else seeds
    points = itertools.product(*population.grid.values())
    drawn = [(point, seed) for point in points for seed in listed]
    digits = max(2, len(str(len(drawn) - 1)))
    return [
        Member(f"{k:0{digits}d}", seed, dict(zip(population.grid, point, strict=True)))
        for k, (point, seed) in enumerate(drawn)
    ]


def key_path(key: str) -> KeyPath:
    """Return the path of a key inside the optimizer.

    Example:
        >>> key_path("optimizer.1.adamw.learning_rate")
        (1, 'adamw', 'learning_rate')
    """
    parts = key.split(".")[1:]
    return tuple(int(part) if part.isdecimal() else part for part in parts)
