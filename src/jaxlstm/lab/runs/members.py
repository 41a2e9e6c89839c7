"""The members of a finished population: a run directory each, and their ranking.

RUN/members.csv       member, seed, values of the grid, result; the best first
    members/07/       config.yaml  metrics.jsonl  checkpoints/  weights.safetensors
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlstm.lab import checkpoints
from jaxlstm.lab import config as configs
from jaxlstm.lab.checkpoints.weights import export_weights
from jaxlstm.lab.config.population import Member
from jaxlstm.lab.runs import binding, metrics
from jaxlstm.lab.runs.paths import Run, write_text
from jaxlstm.lab.runs.state import read_state
from jaxlstm.lab.tasks.base import Metric

if TYPE_CHECKING:
    from jaxlstm.lab.training.policies import LoopState, PopulationLoop
    from jaxlstm.lab.training.state import TrainState

NAME = "members.csv"


class MemberResult(NamedTuple):
    """The result of one member.

    Attributes:
        name: its number with leading zeros, as in `members/07`.
        seed: its seed.
        values: its value for each key of the grid.
        best_value: the primary metric at its best validation; NaN without any.
        best_step: the step of that validation.
        status: "finished", "stopped early at step 300" or "diverged at step 412".
    """

    name: str
    seed: int
    values: Mapping[str, float]
    best_value: float
    best_step: int | None
    status: str

    @property
    def diverged(self) -> bool:
        """True if the member diverged."""
        return self.status.startswith("diverged")


def ranked(
    members: Sequence[Member], loop: "PopulationLoop", primary: Metric
) -> list[MemberResult]:
    """Return the results, the best first; those that diverged come last.

    Args:
        members: the members of the population.
        loop: their loop states at the end.
        primary: the metric that ranks them.
    """
    results = []
    for member, end in zip(members, loop, strict=True):
        status = "finished"
        if end.stopped is not None:
            status = f"stopped early at step {end.stopped}"
        if end.diverged is not None:
            status = f"diverged at step {end.diverged}"
        step = end.loop.best_step
        value = math.nan if step is None else end.loop.best_value
        results.append(
            MemberResult(member.name, member.seed, member.values, value, step, status)
        )
    sign = 1 if primary.mode == "min" else -1

    def rank(result: MemberResult) -> tuple[bool, bool, float]:
        missing = math.isnan(result.best_value)
        return result.diverged, missing, 0.0 if missing else sign * result.best_value

    return sorted(results, key=rank)


def write_ranking(run: Run, results: Sequence[MemberResult], primary: Metric) -> None:
    """Write `members.csv`.

    Raises:
        LabError: the file cannot be written.
    """
    keys = list(results[0].values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["member", "seed", *keys, primary.name, "best_step", "status"])
    for one in results:
        value = "" if math.isnan(one.best_value) else repr(one.best_value)
        values = [repr(one.values[key]) for key in keys]
        writer.writerow([one.name, one.seed, *values, value, one.best_step, one.status])
    write_text(run.path / NAME, text.getvalue())


def write(
    run: Run,
    member: Member,
    *,
    config: str,
    last: "TrainState",
    best: "TrainState",
    loop: "LoopState",
    meta: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    steps: int,
) -> None:
    """Write the directory of one member, which then loads as a run of its own.

    It can be repeated: each file is replaced as a whole.

    Args:
        run: the run of the population.
        member: the member.
        config: its config as YAML.
        last: its last state.
        best: its state at its best validation.
        loop: its loop state.
        meta: `data` and `spec` of its checkpoints.
        records: its metrics.
        steps: the number of steps of the config.
    """
    own = Run(run.path / "members" / member.name)
    own.path.mkdir(parents=True, exist_ok=True)
    metrics.truncate_metrics(own, metrics.Mark(0, ""))
    metrics.append(own, *records)
    binding.write_config(own, config, overrides=member.overrides(), total_steps=steps)
    states = {int(last.step): last}
    if loop.best_step is not None:
        states[loop.best_step] = best
    bound = {
        "run": read_state(own).run,
        "config": configs.load(own.config).model_dump(mode="json"),
        "log": metrics.MetricsLog(own).mark._asdict(),
    }
    ledger = {"best": loop.best_step, "ledger": loop.to_json(), **bound, **meta}
    for step, state in sorted(states.items()):
        # A checkpoint before the best validation was made when there was none.
        checkpoints.save(own.checkpoints, step, state, ledger)
    if loop.best_step is not None:
        with suppress(checkpoints.CheckpointError):  # a file system without links
            checkpoints.link_best(own.checkpoints, loop.best_step)
        export_weights(
            own.weights,
            best.params,
            config=configs.content_of(config),
            spec=meta["spec"],
        )
    write_text(own.environment, run.environment.read_text(encoding="utf-8"))
    binding.finish(own, int(last.step))
