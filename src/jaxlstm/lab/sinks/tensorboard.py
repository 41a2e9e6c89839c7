"""A sink that writes TensorBoard event files."""

from pathlib import Path
from typing import Any

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.sinks.formatting import Record


def require_tensorboard() -> None:
    """Raise `LabError` if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise LabError(
            "the TensorBoard sink needs tensorboardX: "
            'pip install "jaxlstm[tensorboard]"'
        ) from error


class TensorBoardSink:
    """Writes every number as a scalar `split/key` to event files in `directory`.

    The directory is created with the first number.

    Raises:
        LabError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path) -> None:
        require_tensorboard()
        self._directory = directory
        self._writer: Any = None

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Do nothing: there are no numbers yet."""

    def log(self, record: Record) -> None:
        """Write one scalar per number."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory))
        split = record.get("split", "train")
        for key, value in record.items():
            if key not in ("step", "split", "total", "spread") and value is not None:
                self._writer.add_scalar(f"{split}/{key}", value, record["step"])

    def message(self, text: str) -> None:
        """Do nothing: TensorBoard shows numbers only."""

    def finish(self) -> None:
        """Flush and close the event files."""
        if self._writer is not None:
            self._writer.close()
