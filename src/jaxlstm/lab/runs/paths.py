"""Where everything lies in a run directory, and how its text is written."""

import os
from dataclasses import dataclass
from pathlib import Path

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab._util.files import reason, write_atomic


@dataclass(frozen=True)
class Run:
    """A run directory, by the places in it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, complete."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """What the command line changed, one `key=value` a line."""
        return self.path / "overrides.txt"

    @property
    def environment(self) -> Path:
        """Versions, devices and platform, as JSON."""
        return self.path / "env.json"

    @property
    def state(self) -> Path:
        """How many steps were asked for, and whether they are done."""
        return self.path / "state.json"

    @property
    def log(self) -> Path:
        """What was said while it ran, with the time of day."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The root that `jaxlstm.lab.checkpoints` works in."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The trained parameters alone."""
        return self.path / "weights.safetensors"

    @property
    def plots(self) -> Path:
        """The pictures."""
        return self.path / "plots"

    @property
    def report(self) -> Path:
        """The summary, in Markdown."""
        return self.path / "report.md"


def append_text(path: Path, text: str) -> None:
    """Add `text` to a file and force it to the disk.

    Raises:
        LabError: the disk refuses.
    """
    try:
        with path.open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise LabError(f"{path} cannot be written ({reason(error)})") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` in one step.

    Raises:
        LabError: the disk refuses.
    """
    try:
        write_atomic(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise LabError(f"{path} cannot be written ({reason(error)})") from error
