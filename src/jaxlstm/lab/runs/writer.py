"""The process that trains a run: it checks the directory, and binds what it writes.

check, check_log     refuse a run that is not the one of its files; change nothing
begin                record identity and config, cut the log to the checkpoint
append, meta         the log, and what each checkpoint records of the run
prune, link_best     housekeeping, whose failure is a message
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.checkpoints import retention
from jaxlstm.lab.checkpoints.manifest import CheckpointError
from jaxlstm.lab.runs import binding
from jaxlstm.lab.runs.metrics import Mark, MetricsLog, has_metrics, truncate_metrics
from jaxlstm.lab.runs.paths import Run
from jaxlstm.lab.runs.state import State, read_state

if TYPE_CHECKING:
    from jaxlstm.lab.config.base import RunConfig


def clean(run: Run) -> None:
    """Remove the unfinished files of a killed process; hold the lock of the run.

    Those of the members of a population are removed, too.

    Raises:
        CheckpointError: a file of a checkpoint cannot be renamed or deleted.
    """
    members = sorted((run.path / "members").glob("*/"))
    for each in (run, *map(Run, members)):
        each.clean()
        retention.clean(each.checkpoints)


class RunWriter:
    """The files of a run that is being trained.

    Args:
        run: the run, whose lock is held.
        config: its config.
        report: receives messages.
    """

    def __init__(
        self, run: Run, config: "RunConfig", report: Callable[[str], object]
    ) -> None:
        self._run, self._config, self._report = run, config, report
        self._state, self._log = State(), MetricsLog(run)
        self._log_end: Mark | int = 0
        self._log_from: int | None = None
        self._warned: set[str] = set()

    def check(self) -> None:
        """Check that the checkpoints are those of this run.

        Nothing is changed, except that unfinished files of a dead writer are removed.

        Raises:
            BadInput: a checkpoint is of another run.
        """
        with self._as_warning():
            clean(self._run)
        binding.require_own_checkpoints(self._run, self._config)

    def check_log(self, found: tuple[int, Any, Mapping[str, Any]] | None) -> None:
        """Check that the log is that of a checkpoint.

        Args:
            found: step, state and meta of the checkpoint; None if there is none.

        Raises:
            BadInput: the log was edited, or the checkpoints of a log were deleted.
        """
        if found is None:
            if has_metrics(self._run) or read_state(self._run).finished is not None:
                raise BadInput(
                    f"{self._run.path}: got metrics but no checkpoint, expected those "
                    "that the run has written; restore them, or begin anew in another "
                    "directory"
                )
            return
        step, _, meta = found
        self._log_end = binding.require_own_log(self._run, step) or step
        if "log" not in meta:
            self._report(
                f"{self._run.path} was made by an earlier version, which did not "
                "record what its log and its config were; they are used as they are"
            )
        elif meta["log"]["size"] and not self._run.metrics.exists():
            self._log_from = step
            self._report(
                f"{self._run.metrics} was deleted; the log begins anew after step "
                f"{step}"
            )

    def begin(self) -> None:
        """Record the identity and the config, and cut the log to the checkpoint.

        Raises:
            LabError: a file cannot be written.
        """
        self._state = binding.settle(self._run, self._config, log_from=self._log_from)
        truncate_metrics(self._run, self._log_end)
        self._log = MetricsLog(self._run)

    def continued_from(self, step: int) -> bool:
        """Return whether the number of steps was raised at a step."""
        return self._state.continued_from == step

    def append(self, *records: Mapping[str, Any]) -> None:
        """Append records to the log, and flush them to the disk.

        Raises:
            LabError: the file cannot be written.
        """
        self._log.append(*records)

    @property
    def meta(self) -> dict[str, Any]:
        """The entries of a checkpoint's meta that bind it to the run."""
        return {
            "run": self._state.run,
            "config": self._config.model_dump(mode="json"),
            "log": self._log.mark._asdict(),
        }

    def prune(self, best: Collection[int]) -> None:
        """Delete old checkpoints, except the best ones."""
        keep = self._config.training.keep_checkpoints
        with self._as_warning():
            retention.prune(self._run.checkpoints, keep, protect=best)

    def link_best(self, step: int | None) -> None:
        """Make the link `best` point to a checkpoint."""
        with self._as_warning():
            retention.link_best(self._run.checkpoints, step)

    @contextmanager
    def _as_warning(self) -> Iterator[None]:
        """Turn an error that costs no result into a message, the same one once."""
        try:
            yield
        except CheckpointError as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                self._report(f"warning: {error}; the run goes on")
