# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When does a classifier decide?
#
# We classify recordings of unequal length. The class of a recording is that of a short
# event in it: a rise, a fall, or a spike, somewhere in the noise. A classifier that
# reads a recording step by step can know the answer only when it has read most of the
# event. We train one, find the step at which each of its answers is decided, and look
# at its gates there.

# %%
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxlstm as jl
from jaxlstm.lab.tasks.classification import decisive

STEPS = 40 if os.environ.get("FAST", "0") != "0" else 600
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The recordings
#
# There are 600 recordings of 20 to 60 steps. An event lasts 6 steps. `ends` is the
# number of its last step, counted from 1.

# %%
draw = np.random.default_rng(0)
shapes = {
    "rise": np.linspace(0, 2, 6),
    "fall": np.linspace(2, 0, 6),
    "spike": np.array([0, 1, 2, 2, 1, 0.0]),
}
values, labels, ends = [], [], []
for number in range(600):
    label = number % 3
    recording = 0.3 * draw.normal(size=draw.integers(20, 61))
    start = draw.integers(0, len(recording) - 5)
    recording[start : start + 6] += list(shapes.values())[label]
    values.append(recording)
    labels.append(label)
    ends.append(start + 6)
np.savez(
    folder / "events.npz",
    values=np.concatenate(values)[:, None],
    offsets=np.concatenate([[0], np.cumsum([len(one) for one in values])]),
    labels=labels,
    classes=list(shapes),
)

# %% [markdown]
# ## Training
#
# `jl.lab.train` does the same as `jaxlstm train` with a YAML file. A part for
# validation and one for the test are held out.

# %%

trained = jl.lab.train(
    {
        "task": "classify",
        "data": {"path": str(folder / "events.npz")},
        "model": {"hidden_size": 32, "pooling": "last"},
        "optimizer": [
            {"clip_by_global_norm": {"max_norm": 1.0}},
            {"adam": {"learning_rate": 0.01}},
        ],
        "training": {"steps": STEPS, "validate_every": 20, "checkpoint_every": 200},
    },
    run=folder / "run",
    sink=None,
)
test = trained.dataset().test
print(trained.task.result(trained, test, "test").text)

# %% [markdown]
# ## The decisive steps
#
# The model reads 1, 2, 3, … steps of each test recording. The decisive step is the
# first from which on its answer no longer changes. The left plot and the printed
# percentage are about the recordings whose last answer is right, the right plot about
# all.

# %%
reading = decisive.read(trained)
decided = decisive.decisive_steps(reading)
rows = np.random.default_rng(0).permutation(len(test.ids))[: decisive.MOST]
event_ends = np.array([ends[int(test.ids[row]) - 1] for row in rows])
right = reading.chances[-1].argmax(-1) == reading.labels

fig, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
decisive.describe(trained)[0].pictures[0].draw(axes[1])
colors = {line.get_label(): line.get_color() for line in axes[1].lines}
axes[0].plot([0, 60], [0, 60], color="0.7", lw=1, zorder=0, label="same step")
for label, name in enumerate(shapes):
    chosen = right & (reading.labels == label)
    at = event_ends[chosen], decided[chosen]
    axes[0].plot(*at, "o^s"[label], ms=5, color=colors.get(name), label=name)
axes[0].set(xlabel="step at which the event is over", ylabel="decisive step")
axes[0].legend(frameon=False)
plt.show()
late = decided - event_ends
near = np.mean(abs(late[right]) <= 2)
print(f"decided within 2 steps of the end of the event: {near:.0%}")
first = np.bincount(reading.chances[0].argmax(-1), minlength=3)
print("answers after one step:", dict(zip(shapes, first.tolist(), strict=True)))

# %% [markdown]
# Points near the line were decided when the event was over, or one step earlier,
# perhaps because the last value of a fall and of a spike is 0, as in the noise. Points
# far below it were decided before the event: before any event most answers are `rise`,
# so that the answer to many rises never changes. At the few points above the line, the
# answer was wrong at some step after the event. The right plot shows the mean
# probability of the right class while the recordings are read: that of a rise starts
# higher, at one half.
#
# ## The gates
#
# The plots show one recording of each class that is decided near the end of its event,
# and below each recording the forget gates of all units. The dotted line is at the last
# step that was read for the decision. The axis counts steps from 0, so after 20 steps
# the line is at 19.

# %%
fig, axes = plt.subplots(3, 1, figsize=(11, 11), layout="constrained")
for label, (name, ax) in enumerate(zip(shapes, axes, strict=True)):
    chosen = right & (reading.labels == label)
    row = int(np.where(chosen, abs(late), 100).argmin())
    first, last = test.offsets[rows[row]], test.offsets[rows[row] + 1]
    recording = test.values[first:last]
    _, _, traces = trained.model.trace(trained.params, recording[:, None])
    trace = jax.tree.map(lambda leaf: leaf[:, 0], traces["rnn/0"])
    top = jl.plots.signal_heatmap(recording, trace.gates.f, "forget gate f", ax=ax)
    top.axvline(decided[row] - 1, color="k", ls=":")
    top.set_title(f"{name}, decided after {decided[row]} steps", loc="left")
plt.show()

# %% [markdown]
# The text compares the gates of all 120 test recordings at the decisive steps with
# those at the other steps. The mean of a gate is over all units.

# %%
print(decisive.describe(trained)[0].text)

# %% [markdown]
# A difference at the decisive steps shows that the layer treats them differently. It
# does not show that a gate causes the decision. `jaxlstm inspect RUN` writes the
# same sentences and the picture for a run of your own.
