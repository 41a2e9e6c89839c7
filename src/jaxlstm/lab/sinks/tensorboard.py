"""A sink that writes TensorBoard event files."""

from pathlib import Path

from jaxlstm.lab._util.errors import LabError
from jaxlstm.lab.sinks.formatting import Record


class TensorBoardSink:
    """Writes every number as a scalar `split/key` to event files in `directory`.

    Raises:
        LabError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise LabError(
                "the TensorBoard sink needs tensorboardX: "
                'pip install "jaxlstm[tensorboard]"'
            ) from error
        self._writer = SummaryWriter(str(directory))

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Do nothing: there are no numbers yet."""

    def log(self, record: Record) -> None:
        """Write one scalar per number."""
        split = record.get("split", "train")
        for key, value in record.items():
            if key not in ("step", "split", "total") and value is not None:
                self._writer.add_scalar(f"{split}/{key}", value, record["step"])

    def message(self, text: str) -> None:
        """Do nothing: TensorBoard shows numbers only."""

    def finish(self) -> None:
        """Flush and close the event files."""
        self._writer.close()
