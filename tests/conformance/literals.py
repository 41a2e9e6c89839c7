"""Where literal vectors that others published are read from, if they are there.

They are no part of this repository: the environment variable `JAXLSTM_CASES` names
their folder, or it is `shared/cases` beside the checkout.
"""

import json
import os
from pathlib import Path

import numpy as np

BESIDE = Path(__file__).parents[3] / "shared" / "cases"
FOLDER = Path(os.environ.get("JAXLSTM_CASES", BESIDE))
ABSENT = f"no literal vectors in {FOLDER.name}/: set JAXLSTM_CASES to their folder"


def cases(name: str) -> list[dict]:
    """The cases of one file; none where the file is not there."""
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text())["cases"] if file.exists() else []


def array(tensor: dict) -> np.ndarray:
    """A tensor as the files write it: shape, dtype and the numbers in a row."""
    return np.array(tensor["data"], tensor["dtype"]).reshape(tensor["shape"])


def arrays(tensors: dict[str, dict]) -> dict[str, np.ndarray]:
    """Several of them, by name."""
    return {name: array(tensor) for name, tensor in tensors.items()}
