"""The computations to measure, as data, with their FLOPs and their inputs.

Nothing here imports JAX: each contender converts the NumPy inputs to its own arrays.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
What = Literal["forward", "training", "step"]
Kind = Literal["lstm", "gru", "layer_norm", "zoneout"]

H_RATE, C_RATE = 0.05, 0.2  # rates of the zoneout case


class Case(NamedTuple):
    """One computation.

    group         first word of its name
    time, batch, features, units     T, B, D, H
    layers, bidirectional            number of layers; whether both directions
    ragged        rows of unequal length, half of all steps padding
    cell          kind of cell
    members       number of independent models, each with its own weights and inputs
    measures      `forward`: the outputs [T, B, H]. `training`: the gradient of all
                  parameters and of the inputs, for a fixed cotangent of the outputs.
                  `step`: one step from a state that is fed back
    compiles      number of timed compilations
    runs          whether running is timed
    contenders    the contenders to measure; empty for all
    """

    group: str
    time: int
    batch: int
    features: int
    units: int
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    cell: Kind = "lstm"
    members: int = 1
    measures: tuple[What, ...] = ("forward", "training")
    compiles: int = 1
    runs: bool = True
    contenders: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The group, T, B, D and H.

        >>> Case("grid", 128, 32, 64, 256).name
        'grid-128-32-64-256'
        """
        sizes = (self.time, self.batch, self.features, self.units)
        return "-".join([self.group, *map(str, sizes)])

    @property
    def plain(self) -> bool:
        """Whether it is one layer of the usual cell, in one direction."""
        one = self.layers == 1 and not self.bidirectional and self.members == 1
        return one and self.cell == "lstm" and not self.ragged

    @property
    def gates(self) -> int:
        """Number of gates, each with a row of weights for every unit."""
        return 3 if self.cell == "gru" else 4

    @property
    def output_size(self) -> int:
        """Features of the outputs."""
        return self.units * (2 if self.bidirectional else 1)

    @property
    def flops_forward(self) -> int:
        """`8 T B H (D + H)` for each layer and direction, with T B executed steps.

        A GRU has three gates where an LSTM has four, so it is `6 T B H (D + H)`.

        >>> Case("grid", 10, 2, 3, 4).flops_forward == 8 * 10 * 2 * 4 * (3 + 4)
        True
        """
        steps = int(lengths(self).sum()) if self.ragged else self.time * self.batch
        inputs = [self.features] + [self.output_size] * (self.layers - 1)
        size = self.output_size * sum(d + self.units for d in inputs)
        return 2 * self.gates * self.members * steps * size

    def flops(self, what: What) -> int:
        """Return the FLOPs of a forward pass, or three times as many for training."""
        return self.flops_forward * (3 if what == "training" else 1)

    def bytes(self, what: What) -> int:
        """Return the bytes of the arguments and results of one plain layer.

        >>> Case("grid", 10, 2, 3, 4).bytes("forward") == 4 * (60 + 80 + 16 * 8)
        True
        """
        xs = self.time * self.batch * self.features
        hs = self.time * self.batch * self.units
        weights = self.gates * self.units * (self.features + self.units + 1)
        return 4 * (xs + hs + weights) * (2 if what == "training" else 1)


class Weights(NamedTuple):
    """One layer in one direction: `[D, G, H]`, `[H, G, H]`, `[G, H]`.

    The gates are i f g o, and r z n for a GRU, whose reset gate is applied after the
    recurrent product and whose second bias is 0.
    """

    w_x: Floats
    w_h: Floats
    b: Floats


class Inputs(NamedTuple):
    """Weights and inputs of a case, the same for all contenders.

    layers    for each layer the weights of each direction
    xs        [T, B, D]
    d_hs      [T, B, output_size], zero at padding
    lengths   [B], None without padding

    With several members, all but the lengths have a leading axis for them.
    """

    layers: list[list[Weights]]
    xs: Floats
    d_hs: Floats
    lengths: NDArray[np.int32] | None


def draw(case: Case) -> Inputs:
    """Draw the inputs of a case: weights U(±1/√H), everything else N(0, 1)."""
    rng = np.random.default_rng(0)
    lead = (case.members,) if case.members > 1 else ()

    def weights(features: int) -> Weights:
        limit, gates = case.units**-0.5, (case.gates, case.units)
        shapes = (features, *gates), (case.units, *gates), gates
        numbers = (rng.random((*lead, *shape), np.float32) for shape in shapes)
        return Weights(*(limit * (2 * n - 1) for n in numbers))

    sizes = [case.features] + [case.output_size] * (case.layers - 1)
    directions = 2 if case.bidirectional else 1
    layers = [[weights(size) for _ in range(directions)] for size in sizes]
    shape = (*lead, case.time, case.batch)
    xs = rng.standard_normal((*shape, case.features), np.float32)
    d_hs = rng.standard_normal((*shape, case.output_size), np.float32)
    if not case.ragged:
        return Inputs(layers, xs, d_hs, None)
    active = np.arange(case.time)[:, None] < lengths(case)
    return Inputs(layers, xs, d_hs * active[..., None], lengths(case))


def lengths(case: Case) -> NDArray[np.int32]:
    """Return lengths spread evenly from 1 to T - 1, shuffled; half of it is padding.

    >>> sorted(lengths(Case("ragged", 8, 4, 3, 5)).tolist())
    [1, 3, 5, 7]
    >>> lengths(Case("ragged", 8, 1, 3, 5)).tolist()
    [4]
    """
    if case.batch == 1:
        return np.array([case.time // 2], np.int32)
    even = np.rint(np.linspace(1, case.time - 1, case.batch)).astype(np.int32)
    return np.random.default_rng(1).permutation(even)


GRID = (  # T, B, D, H
    (1000, 1, 64, 64),
    (512, 8, 64, 64),
    (128, 32, 128, 128),
    (256, 128, 64, 32),
    (256, 32, 256, 256),
    (128, 64, 256, 512),
    (64, 16, 512, 1024),
)
MODELS: dict[str, Callable[[Case], Case]] = {
    "gru": lambda case: case._replace(cell="gru"),
    "bidirectional": lambda case: case._replace(layers=2, bidirectional=True),
    "ragged": lambda case: case._replace(ragged=True),
    "layer_norm": lambda case: case._replace(cell="layer_norm"),
    "zoneout": lambda case: case._replace(cell="zoneout"),
}


def _grid() -> list[Case]:
    return [Case("grid", *size) for size in GRID]


def _limits() -> list[Case]:
    """Return the grid again: a change of torch's threads may slow its LSTM down."""
    contenders = ("jaxlstm", "GEMM", "GEMM one thread", "copy")
    return [Case("limits", *size, contenders=contenders) for size in GRID]


def _other_models() -> list[Case]:
    return [
        Case("stacked", *GRID[2], layers=2),
        *(make(Case(group, *size)) for group, make in MODELS.items() for size in GRID),
    ]


def _populations() -> list[Case]:
    sizes = (100, 20, 2, 16), (100, 32, 2, 64), (64, 16, 64, 128), (64, 16, 64, 512)
    engines = ("", " adjoint", " scan", " native")
    contenders = ("jaxlstm", *(f"jaxlstm{engine} in turn" for engine in engines))
    return [
        Case(
            "population",
            *size,
            members=16,
            measures=("training",),
            contenders=contenders,
        )
        for size in sizes
    ]


def _streams() -> list[Case]:
    sizes = (1, 64), (1, 128), (1, 256), (1, 512), (64, 128)  # B, H
    return [Case("stream", 1, b, h, h, measures=("step",)) for b, h in sizes]


def _growth() -> list[Case]:
    times = (256, 4096, 65_536)
    return [Case("growth", t, 8, 64, 64, measures=("training",)) for t in times]


def _compile() -> list[Case]:
    one, four = (
        Case(group, 128, 8, 64, 64, measures=("training",), compiles=5, runs=False)
        for group in ("compile", "compile_stack")
    )
    stack = four._replace(layers=4, measures=("forward", "training"))
    return [one, one._replace(time=65_536), stack]


def _long() -> list[Case]:
    contenders = ("jaxlstm", "jaxlstm sqrt")
    return [
        Case(
            "long", 100_000, 8, 32, 256, measures=("training",), contenders=contenders
        ),
    ]


CASES: tuple[Case, ...] = (
    *_grid(),
    *_limits(),
    *_other_models(),
    *_populations(),
    *_streams(),
    *_growth(),
    *_compile(),
    *_long(),
)
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(case.group for case in CASES))


def select(names: list[str]) -> list[Case]:
    """Return the cases with these groups or names; all cases for an empty list.

    Raises:
        ValueError: a name is neither a group nor a case.
    """
    for name in names:
        if name not in GROUPS and name not in {case.name for case in CASES}:
            raise ValueError(
                f"cases: got {name!r}, expected one of {', '.join(GROUPS)}"
            )
    return [c for c in CASES if not names or c.group in names or c.name in names]
