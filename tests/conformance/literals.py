"""Reads literal test vectors that other projects published, if present.

They are not part of this repository: the environment variable `JAXLSTM_CASES` names
their folder, by default `shared/cases` next to the checkout.
"""

import json
import os
from pathlib import Path

import numpy as np

BESIDE = Path(__file__).parents[3] / "shared" / "cases"
FOLDER = Path(os.environ.get("JAXLSTM_CASES", BESIDE))
ABSENT = f"no literal vectors in {FOLDER.name}/: set JAXLSTM_CASES to their folder"


def cases(name: str) -> list[dict]:
    """Return the cases of one file; none if the file is missing."""
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text())["cases"] if file.exists() else []


def array(tensor: dict) -> np.ndarray:
    """Return a tensor from its shape, dtype and flat list of numbers."""
    return np.array(tensor["data"], tensor["dtype"]).reshape(tensor["shape"])


def arrays(tensors: dict[str, dict]) -> dict[str, np.ndarray]:
    """Return several tensors by name."""
    return {name: array(tensor) for name, tensor in tensors.items()}
