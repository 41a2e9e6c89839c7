"""Decisions about one member of a training run, as pure functions of its numbers.

    LoopState ── validated ──> LoopState       is this the best so far?
              ── out_of_patience ──> bool      is it time to stop?

Each function takes the numbers of one member; a population calls it per member.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlstm.lab.config import base
from jaxlstm.lab.tasks.base import Metric


class LoopState(NamedTuple):
    """Numbers that the log and the policies depend on.

    Attributes:
        unlogged: (loss, gradient norm) of each step since the last line of the log.
        best_step: the step of the best validation so far, None before the first.
        best_value: the value of the task's primary metric at `best_step`.
        waited: the number of validations since one improved on `reference` by more
            than `min_delta`.
        reference: the value of that validation, which early stopping compares with;
            None before the first. It differs from `best_value` after improvements that
            are smaller than `min_delta`.
        skipped: the number of updates that the optimizer skipped.
    """

    unlogged: tuple[tuple[float, float], ...] = ()
    best_step: int | None = None
    best_value: float = math.inf
    waited: int = 0
    reference: float | None = None
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields; a best value that is not finite becomes null."""
        finite = math.isfinite(self.best_value)
        return self._asdict() | {"best_value": self.best_value if finite else None}

    @classmethod
    def from_json(
        cls, fields: dict[str, Any], metric: Metric | None = None
    ) -> "LoopState":
        """Return the state that `to_json` wrote."""
        best = fields["best_value"] if "best_value" in fields else fields["best_loss"]
        return cls(
            unlogged=tuple((loss, norm) for loss, norm in fields["unlogged"]),
            best_step=fields["best_step"],
            best_value=(metric or Metric("loss")).worst if best is None else best,
            waited=fields["waited"],
            # Earlier versions compared with the best value.
            reference=fields.get("reference", best),
            skipped=fields.get("skipped", 0),
        )


class MemberLoop(NamedTuple):
    """Loop state of one member.

    Attributes:
        loop: the numbers of its log, its best validation and its early stopping.
        stopped: the last step of a member that stopped early; None while it trains.
        diverged: the step whose loss or gradient was not finite, or None.
    """

    loop: LoopState
    stopped: int | None = None
    diverged: int | None = None

    @property
    def active(self) -> bool:
        """True while the member trains."""
        return self.stopped is None and self.diverged is None


PopulationLoop = tuple[MemberLoop, ...]


def loop_to_json(loop: PopulationLoop) -> list[dict[str, Any]]:
    """Return the loop states of all members as JSON."""
    return [member._asdict() | {"loop": member.loop.to_json()} for member in loop]


def loop_from_json(
    written: Sequence[Mapping[str, Any]], primary: Metric
) -> PopulationLoop:
    """Return the loop states that `loop_to_json` wrote."""
    return tuple(
        MemberLoop(**{**fields, "loop": LoopState.from_json(fields["loop"], primary)})
        for fields in written
    )


def stepped(
    state: LoopState, loss: float, gradient_norm: float, *, skipped: bool
) -> LoopState:
    """Return the state after a training step; a skipped one is only counted."""
    if skipped:
        return state._replace(skipped=state.skipped + 1)
    return state._replace(unlogged=(*state.unlogged, (loss, gradient_norm)))


def logged(state: LoopState) -> tuple[LoopState, dict[str, float] | None]:
    """Return the state after a line of the log, and the means that the line has.

    The means are None if all steps since the last line were skipped.
    """
    if not state.unlogged:
        return state, None
    losses, norms = zip(*state.unlogged, strict=True)
    count = len(losses)
    means = {
        "loss": math.fsum(losses) / count,
        "gradient_norm": math.fsum(norms) / count,
    }
    if state.skipped:
        means["skipped_updates"] = state.skipped
    return state._replace(unlogged=()), means


def validated(
    state: LoopState,
    metric: Metric,
    stopping: base.EarlyStopping | None,
    *,
    step: int,
    value: float,
) -> LoopState:
    """Return the state after a validation.

    Any improvement makes it the best. Only an improvement by more than `min_delta`
    restarts the count of early stopping. A value that is not finite is neither.

    Args:
        state: the state before the validation.
        metric: the task's primary metric.
        stopping: the config's early stopping.
        step: the step of the validation.
        value: the value of the metric.
    """
    margin = 0.0 if stopping is None else stopping.min_delta
    reference = metric.worst if state.reference is None else state.reference
    if metric.better(value, state.best_value):
        state = state._replace(best_step=step, best_value=value)
    if metric.better(value, reference, margin=margin):
        return state._replace(reference=value, waited=0)
    return state._replace(waited=state.waited + 1)


def out_of_patience(state: LoopState, stopping: base.EarlyStopping | None) -> bool:
    """Return whether the last `patience` validations brought no improvement."""
    return stopping is not None and state.waited >= stopping.patience
