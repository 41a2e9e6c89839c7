"""Cost of a training step, which decides how a batch is split."""

from typing import NamedTuple


class StepCost(NamedTuple):
    """Cost of a training step without shards.

    Attributes:
        operations: the floating-point operations of the step.
        units: the number of units of the widest layer.
    """

    operations: float
    units: int
