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
# # A character model, and what its units stand for
#
# We train a small LSTM on the source code of Python's standard library, and then ask of
# each of its units: is there something in the text that it keeps track of? A bracket
# that is open, a quoted string, the indentation of a line?
#
# With many units and many questions, something always looks as if it fitted. So we
# choose on one half of a text and judge on the other half, which had no say in the
# choice. The text is one that the model was not trained on.

# %%
import os
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import jaxlstm as jl

STEPS = 60 if os.environ.get("FAST", "0") != "0" else 700
UNITS, STREAMS, WINDOW = 128, 32, 96

# %% [markdown]
# ## The text
#
# All top-level files of the library in alphabetical order; every tenth is kept for
# later.

# %%
library = Path(sysconfig.get_path("stdlib"))
files = [
    path.read_bytes().decode("ascii", "ignore") for path in sorted(library.glob("*.py"))
]
unseen = "\n".join(files[::10])
seen = "\n".join(text for n, text in enumerate(files) if n % 10)

alphabet = sorted(set(seen + unseen))
number_of = {character: number for number, character in enumerate(alphabet)}


def numbers(text):
    """The characters as numbers."""
    return np.array([number_of[character] for character in text], np.int32)


streams = numbers(seen[: len(seen) // STREAMS * STREAMS]).reshape(STREAMS, -1).T
print(f"{len(seen):,} characters to learn from, {len(unseen):,} for later")

# %% [markdown]
# ## Training
#
# The same as in the quickstart: each of 32 streams goes on where its last window ended.

# %%
model = jl.serial(
    jl.embed(len(alphabet), 32),
    jl.recurrent(jl.lstm(), UNITS),
    jl.linear(len(alphabet)),
)
params, _ = model.init(jax.random.key(0))
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(8e-3, STEPS))
)


@jax.jit
def update(params, memory, state, inputs, targets):
    """One step of training: the new parameters, and the bits per character."""

    def loss(params):
        after, logits = model.apply(params, inputs, state)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return nats.mean() / jnp.log(2), after

    (bits, after), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    changes, memory = optimizer.update(gradient, memory, params)
    return optax.apply_updates(params, changes), memory, after, bits


memory, state, records = optimizer.init(params), None, []
for step in range(STEPS):
    at = step * WINDOW % (len(streams) - WINDOW - 1)
    window = streams[at : at + WINDOW], streams[at + 1 : at + WINDOW + 1]
    params, memory, state, bits = update(params, memory, state, *window)
    records.append({"step": step, "split": "train", "bits_per_character": float(bits)})

fig, ax = plt.subplots(figsize=(8, 3.6))
jl.plots.loss_curve(records, ax=ax)
plt.show()

# %% [markdown]
# ## What every unit did
#
# `model.trace` runs the model and keeps every gate and state. The tape is a dict, from
# the place of a layer in the parameters to what it did; ours is layer 1 of the three.

# %%
reading = "".join(files[::10])[:24_000]
_, _, tape = model.trace(params, jnp.asarray(numbers(reading)))
print({name: trace.gates.f.shape for name, trace in tape.items()})
trace = tape["1"]
cells = np.asarray(trace.state.c)

# %% [markdown]
# ## What the text did
#
# Four things that one can say of every character. Brackets are followed here in the
# simplest way, from the character that opens to the next one that closes; quotes the
# same, but no further than the end of the line, as an apostrophe in a comment opens
# nothing.


# %%
def inside(opening, closing):
    """1 from the opening character up to the closing one, else 0."""
    depth, marks = 0, []
    for character in reading:
        if character == closing and depth:
            depth = 0
        elif character == opening:
            depth = 1
        marks.append(depth)
    return np.array(marks)


def quoted():
    """1 from a single quote up to the next one in its line, else 0."""
    marks, within = [], 0
    for character in reading:
        within = 0 if character == "\n" else within ^ (character == "'")
        marks.append(within)
    return np.array(marks)


def indented():
    """1 in the spaces that a line begins with, else 0."""
    marks, beginning = [], True
    for character in reading:
        beginning = character == "\n" or (beginning and character == " ")
        marks.append(beginning and character == " ")
    return np.array(marks, int)


features = {
    "between ( and )": inside("(", ")"),
    "between [ and ]": inside("[", "]"),
    "between ' and '": quoted(),
    "in the indentation": indented(),
}

# %% [markdown]
# ## Choose on one half, judge on the other
#
# For each feature we look for the unit whose cell state tells best whether the feature
# is there. The measure is the *AUC*: take one character inside and one outside, and ask
# how often the cell state is the larger inside. 1 (or 0) is always, and 0.5 is what a
# coin comes to.
#
# A slow unit can do better than a coin by luck, as both it and the feature stay what
# they are for a while. So the same is done with the marks pushed along the text by some
# thousand characters, 40 times: what is found then is chance.


# %%
def auc(ranks, marks):
    """The share of pairs (one inside, one outside) in which the inside is larger."""
    within = marks.astype(bool)
    count, rest = within.sum(), (~within).sum()
    return (ranks[within].sum(0) - count * (count - 1) / 2) / (count * rest)


half = len(reading) // 2
first, second = (part.argsort(0).argsort(0) for part in (cells[:half], cells[half:]))


def choose_and_judge(marks):
    """The unit that is best on the first half, and its AUC on either."""
    chosen_by = auc(first, marks[:half])
    unit = int(np.abs(chosen_by - 0.5).argmax())
    return unit, chosen_by[unit], auc(second[:, unit], marks[half:])


found = {}
pushes = np.linspace(0.1, 0.9, 40) * len(reading)
for name, marks in features.items():
    unit, chosen_by, judged = choose_and_judge(marks)
    luck = [choose_and_judge(np.roll(marks, int(push)))[2] for push in pushes]
    chance = np.quantile(np.abs(np.array(luck) - 0.5), 0.95)
    found[name] = unit
    print(
        f"{name:19} unit {unit:3d}: AUC {chosen_by:.3f} where it was chosen, "
        f"{judged:.3f} where it was judged; by chance {0.5 - chance:.3f} to "
        f"{0.5 + chance:.3f}"
    )

# %% [markdown]
# An AUC near 0 is as good as one near 1: such a unit is low inside. What counts is how
# far from 0.5 it is in the second column, because the first one is the best of 128, and
# how far beyond the third, which holds 95 % of what luck comes to. In the run that is
# kept here the unit of the indentation is all but perfect and that of round brackets
# good, also on text that had no say in choosing them; that of quotes knows something;
# and that of square brackets, a slow one, is hardly better than luck.
#
# All of this is about one network. Trained from another seed it would have other units,
# and perhaps a good one for quotes and none for brackets.
#
# ## Look at them
#
# The cell states of the four units over a piece of the second half, with the places
# shaded where the text says that the feature is there.

# %%
switches = [
    np.minimum(np.convolve(np.abs(np.diff(marks[half:])), np.ones(89), "valid"), 6)
    for marks in features.values()
]
variety = sum(switches) + 4 * np.minimum.reduce(switches)  # something of everything
begin = half + int(variety.argmax())
piece = slice(begin, begin + 90)
fig, axes = plt.subplots(4, 1, figsize=(12, 7), sharex=True, layout="constrained")
for ax, (name, unit) in zip(axes, found.items(), strict=True):
    for at in np.flatnonzero(features[name][piece]):
        ax.axvspan(at - 0.5, at + 0.5, color="#dddddd", lw=0)
    ax.step(range(90), cells[piece, unit], where="mid", color="#0072B2")
    ax.set_ylabel("cell c")
    ax.set_title(f"unit {unit}; grey: {name}", loc="left", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
shown = [{"\n": "↵", " ": "·"}.get(c, c) for c in reading[piece]]
axes[-1].set_xticks(range(90), shown, family="monospace", fontsize=9, parse_math=False)
plt.show()

# %% [markdown]
# ## One unit's life
#
# The bracket unit with its gates. When it keeps, its forget gate stands near 1 and its
# input gate near 0; when it writes, the input gate opens.

# %%
fig, ax = plt.subplots(figsize=(12, 7))
passage = jax.tree.map(lambda leaf: leaf[piece], trace)
jl.plots.unit_trace(shown, passage, found["between ( and )"], ax=ax)
plt.show()

# %% [markdown]
# ## All units
#
# How long each unit remembers while it reads, and the forget gates of all of them.

# %%
fig, axes = plt.subplots(
    1, 2, figsize=(13, 4), width_ratios=[1, 2], layout="constrained"
)
jl.plots.timescales(trace.gates.f, ax=axes[0])
jl.plots.gate_heatmap(shown, np.asarray(passage.gates.f), "forget gate f", ax=axes[1])
plt.show()

# %% [markdown]
# A unit that tells where a bracket is open does not have to be *the* reason why the
# model closes brackets: other units may carry the same, in part. What is shown here is
# that the information is there, in one number, on a text that the model never saw.
#
# `jaxlstm inspect RUN` asks such questions of a run that was trained with `jaxlstm
# train`: some hundreds of them, judged against chance as well, with a page of what
# it found.
