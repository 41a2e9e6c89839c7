"""Paths of the files in a run directory, and how text is written to them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab._util.files import reason, remedy, write_atomic, write_file


@dataclass(frozen=True)
class Run:
    """A run directory and the paths of the files in it."""

    path: Path

    @property
    def config(self) -> Path:
        """The complete resolved config."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """The overrides from the command line, one `key=value` per line."""
        return self.path / "overrides.txt"

    @property
    def environment(self) -> Path:
        """Versions, devices and platform as JSON."""
        return self.path / "env.json"

    @property
    def state(self) -> Path:
        """The requested number of steps, and the step at which the run finished."""
        return self.path / "state.json"

    @property
    def log(self) -> Path:
        """Messages printed during the run, each with its date and time."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The root directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The parameters at the best validation."""
        return self.path / "weights.safetensors"

    @property
    def plots(self) -> Path:
        """The directory of the plots."""
        return self.path / "plots"

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self.path / "report.md"

    @property
    def lock(self) -> Path:
        """The file that the writing process locks."""
        return self.path / ".lock"

    def clean(self) -> None:
        """Remove the temporary files of a process that was killed; hold the lock."""
        for folder in (self.path, self.plots):
            for path in folder.glob(".*.tmp"):
                with suppress(OSError):
                    path.unlink()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, whether they exist or not."""
        config = (self.config, self.overrides, self.environment, self.state)
        logs = (self.log, self.metrics, self.report)
        return (*config, *logs, self.weights, self.lock)

    @property
    def directories(self) -> tuple[Path, ...]:
        """All directories, whether they exist or not."""
        return (self.checkpoints, self.plots)


def append_text(path: Path, text: str) -> None:
    """Append `text` to a file and flush it to the disk.

    Raises:
        LabError: the file cannot be written.
    """
    try:
        write_file(path, text.encode("utf-8", errors="replace"), append=True)
    except OSError as error:
        message = f"{path}: cannot be written ({reason(error)}){remedy(error)}"
        raise LabError(message) from error


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file by `text` atomically; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically.

    Raises:
        LabError: the file cannot be written.
    """
    try:
        write_atomic(path, content)
    except OSError as error:
        message = f"{path}: cannot be written ({reason(error)}){remedy(error)}"
        raise LabError(message) from error
