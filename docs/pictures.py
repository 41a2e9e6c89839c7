"""Draw the pictures of the README and the documentation from a run of the quickstart.

    jaxlstm train configs/quickstart.yaml --run RUN
    python docs/pictures.py RUN

Writes `notebooks/forget_gate.png`, the forget gates while the model reads the lines
below, and `notebooks/bracket_unit.png`, the first finding about parentheses of `jaxlstm
inspect RUN`.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxlstm as jl

TARGET = Path(__file__).resolve().parents[1] / "notebooks"
BEFORE = '''\
import math


def area(shape):
    """Return the area of a shape."""
    return shape.width * shape.height


'''
SHOWN = """\
def largest(shapes):
    if not shapes:
        return None
    return max(shapes, key=area)
"""


def main(run: Path) -> None:
    """Draw both pictures."""
    draw_forget_gates(jl.lab.load(run), TARGET / "forget_gate.png")
    copy_finding(run, TARGET / "bracket_unit.png")


def draw_forget_gates(trained: jl.lab.Trained, path: Path) -> None:
    """Draw the forget gates of the first layer over `SHOWN`, with its indentation."""
    tokens = trained.vocabulary.encode(BEFORE + SHOWN)
    _, _, traces = trained.model.trace(trained.params, jnp.asarray(tokens))
    gates = np.asarray(traces["rnn/0"].gates.f)[len(BEFORE) :]
    figure = Figure(figsize=(12.0, 5.2), layout="constrained")
    ax = figure.add_subplot()
    title = f"Forget gates of {gates.shape[1]} units while the model reads Python"
    jl.plots.gate_heatmap(list(SHOWN), gates, title, ax=ax)
    ax.set_title(title, pad=28, fontsize=14)
    ax.set_xlabel("one symbol per step (↵: line end)", fontsize=12)
    ax.tick_params("x", labelsize=11)
    ax.yaxis.label.set_size(12)
    bar = figure.axes[-1]
    bar.set_ylabel("forget gate f", fontsize=12)
    bar.set_yticks([0, 0.5, 1], ["0: clears c", "0.5", "1: keeps c"], fontsize=11)
    for found in re.finditer(r"(?<=\n) +", SHOWN):
        mark(ax, found.start() - 0.4, found.end() - 0.6, "indentation")
    figure.savefig(path, dpi=130)


def mark(ax: Axes, left: float, right: float, words: str) -> None:
    """Draw a bracket with words above the columns from `left` to `right`."""
    place = ax.get_xaxis_transform()
    xs, ys = [left, left, right, right], [1.01, 1.03, 1.03, 1.01]
    ax.plot(xs, ys, color="#222222", lw=1.5, transform=place, clip_on=False)
    middle = (left + right) / 2
    ax.text(middle, 1.04, words, transform=place, ha="center", va="bottom", fontsize=11)


def copy_finding(run: Path, path: Path) -> None:
    """Copy the picture of the first finding whose sentence names a parenthesis.

    Raises:
        SystemExit: There is no such finding.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = jl.lab.inspect(run, out=folder)
        findings = found.search.findings if found.search else []
        for number, finding in enumerate(findings, 1):
            if re.search(r"parenthes|`\(`", finding.feature.phrase):
                shutil.copy(Path(folder) / f"finding-{number}.png", path)
                return
    raise SystemExit(f"{run}: no unit follows parentheses; {path} is unchanged")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
