"""A run that takes seconds: its text, its config, and the command line."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

SENTENCE = "the cell keeps what its gates let in and forgets what they let go"


def text(seed: int = 0, words: int = 1500) -> str:
    """Return several thousand characters with regularities that can be learned."""
    drawn, known = random.Random(seed), SENTENCE.split()
    return " ".join(drawn.choice(known) for _ in range(words)) + "\n"


def config(path: Path, **training: Any) -> dict[str, Any]:
    """Return the config of 40 steps with 12 units and dropout on the text in `path`."""
    return {
        "name": "tiny",
        "data": {"source": "text", "path": str(path)},
        "model": {"embedding_size": 6, "hidden_size": 12, "output_dropout": 0.2},
        "optimizer": [
            {"clip_by_global_norm": {"max_norm": 1.0}},
            {"adamw": {"learning_rate": 0.02}},
        ],
        "training": {
            "steps": 40,
            "batch_size": 4,
            "window": 16,
            "steps_per_dispatch": 5,
            "log_every": 10,
            "validate_every": 20,
            "checkpoint_every": 10,
            "validation_streams": 4,
            **training,
        },
        "sample": {"prompt": "the ", "length": 40},
    }


def jaxlstm(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command line in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxlstm", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class RecordingSink:
    """A sink that records everything and prints nothing."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.messages: list[str] = []

    def start(self, total: int, *, step: int = 0, title: str = "") -> None:
        """Do nothing."""

    def log(self, record: Any) -> None:
        """Record it."""
        self.records.append(dict(record))

    def message(self, text: str) -> None:
        """Record it."""
        self.messages.append(text)

    def finish(self) -> None:
        """Do nothing."""
