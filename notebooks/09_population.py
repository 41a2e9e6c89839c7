# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A population of seeds
#
# One training run says little: another seed gives another number. A population trains
# several models side by side, which differ in their seed or in an option of the
# optimizer such as the learning rate, and reports the mean with its interval. The task
# is the adding problem of Hochreiter and Schmidhuber (1997): add two marked numbers of
# a sequence.

# %%
import csv
import os
import tempfile
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import jaxlstm as jl
from jaxlstm import plots

FAST = os.environ.get("FAST") == "1"
PLACE = Path(tempfile.mkdtemp())
RATE = "optimizer.1.adam.learning_rate"

# %% [markdown]
# ## Four seeds, two learning rates
#
# `population` is a section of any config. Each of the 4 x 2 models, the *members*, has
# its own parameters, its own order of the data and its own best checkpoint. `solved` is
# the share of 2,000 sequences, which are not used for updates, whose sum is off by less
# than 0.04. The same sequences choose the best checkpoint. In the lines of the
# training, ± is the standard deviation over the members; in the table at the end it is
# the 95 % confidence interval of their mean.

# %%
ADDING = {
    "task": "memory",
    "name": "adding",
    "data": {"problem": "adding", "length": 20},
    "model": {"hidden_size": 16},
    "optimizer": [
        {"clip_by_global_norm": {"max_norm": 1.0}},
        {"adam": {"learning_rate": 0.01}},
    ],
    "training": {
        "steps": 200 if FAST else 2000,
        "batch_size": 20,
        "steps_per_dispatch": 50,
        "log_every": 100,
        "validate_every": 100,
        "checkpoint_every": 100 if FAST else 1000,
    },
    "population": {"seeds": 4, "grid": {RATE: [0.01, 0.003]}},
}
best = jl.lab.train(ADDING, run=PLACE / "adding")

# %% [markdown]
# ## The results of all members
#
# `members.csv` has a row for each member, the best first. Within one learning rate, the
# members differ by their seed alone.

# %%
with (PLACE / "adding" / "members.csv").open() as file:
    rows = list(csv.DictReader(file))
for row in rows:
    print(
        f"{row['member']} seed {row['seed']} rate {row[RATE]:5} solved {row['solved']}"
    )
for rate in sorted({row[RATE] for row in rows}):
    solved = [float(row["solved"]) for row in rows if row[RATE] == rate]
    mean, deviation = np.mean(solved), np.std(solved, ddof=1)
    print(f"rate {rate}: mean {mean:.4f}, standard deviation {deviation:.4f}")

# %% [markdown]
# ## The training of all members
#
# A line is the median of the four seeds of a learning rate, and its band holds the
# middle half of them. The plot is no test of the difference between the rates; the
# table at the end of the training has the interval of each mean.

# %%
losses = []
for k in range(8):
    member = jl.lab.load(PLACE / "adding" / "members" / f"{k:02d}")
    found = [row for row in member.metrics() if row["split"] == "train"]
    losses.append([row["loss"] for row in found])
steps = [row["step"] for row in found]
plots.loss_bands(
    {"rate 0.01": np.array(losses[:4]), "rate 0.003": np.array(losses[4:])},
    steps=steps,
    label="training loss (squared error)",
    logarithmic=True,
)
plt.show()

# %% [markdown]
# ## A member is a run
#
# Each member can be loaded, evaluated, exported and resumed like a single run. `train`
# and `load` of the population return the best member. It was chosen by the score that
# is reported, so its score is too good; report the mean. The mean is slightly too good,
# too, as the same score chose the checkpoint of each member.

# %%
member = jl.lab.load(PLACE / "adding" / "members" / "02")
print("best member", best.run.name)
print("member 02, seed", member.config.seed, member.evaluate())
