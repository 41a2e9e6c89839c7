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
# # From nothing to a trained LSTM, in under a minute
#
# An LSTM reads a sequence one step at a time and keeps a *cell state* `c`. Four gates
# decide at each step what becomes of it:
#
# $$i, f, o = \sigma(z_i), \sigma(z_f), \sigma(z_o) \qquad g = \tanh(z_g)$$
# $$c_t = f \odot c_{t-1} + i \odot g \qquad h_t = o \odot \tanh(c_t)$$
#
# where $z = W_x x_t + W_h h_{t-1} + b$. The forget gate `f` says how much of the past
# is kept, the input gate `i` how much of the candidate `g` is written, and the output
# gate `o` how much of the cell is shown.
#
# Here we build a model that writes Python, train it with a loop of our own, and then
# look at its gates while it reads. Nothing is downloaded: the text is the source of
# Python's standard library. You need no experience with JAX.

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

STEPS = 60 if os.environ.get("FAST", "0") != "0" else 600

# %% [markdown]
# ## JAX in five lines
#
# - `jnp` is NumPy on other engines: the same functions, on a CPU, GPU or TPU. Its
#   arrays never change in place.
# - Random numbers come from a *key*, `jax.random.key(0)`. The same key gives the same
#   numbers, so each use gets a key of its own: `jax.random.split` makes several of one.
# - `jax.value_and_grad(f)` is a function that gives `f` and its derivative by the first
#   argument.
# - `jax.jit(f)` compiles `f` when it is first called. What `f` would change it has to
#   take as an argument and give back: parameters, state, the optimiser's memory.
# - A model's parameters are arrays in named records, lists and dicts, to look at and to
#   change like any other.
#
# ## One step
#
# A cell is a record of pure functions: what they give follows from their arguments, and
# nothing else is changed. `init` draws parameters, `project` does what
# does not wait for the past, `step` does the rest and gives back the new state and the
# gates. Gates are fields with names, not numbers in an array.

# %%
cell = jl.lstm()
params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
state = cell.initial_state(params)

x = jnp.array([1.0, 0.0, -1.0])
state, gates = cell.step(params, state, cell.project(params, x))

print("forget gate", gates.f)
print("cell state ", state.c)

# %% [markdown]
# The forget gates scatter around 0.73, because their bias begins at 1 and σ(1) is 0.73;
# the input moves each of them. An untrained LSTM remembers before it has
# learnt what to forget.
#
# ## A whole sequence
#
# `unroll` carries the state through time. Time is the first axis, features are the
# last, and you may put any number of batch axes between them. Here the second of two
# sequences has only 4 real steps; the rest is padding, and `lengths` says so.

# %%
xs = jax.random.normal(jax.random.key(1), (7, 2, 3))  # 7 steps of 2 sequences
state, hs = jl.unroll(cell, params, xs, lengths=jnp.array([7, 4]))

print("outputs", hs.shape, " final state", state.h.shape)
print("row 1 after its 4 steps:", hs[4:, 1].sum(), "(padding is zero)")
print("its final state is that of step 4:", bool((state.h[1] == hs[3, 1]).all()))

# %% [markdown]
# ## The text
#
# Some files of the standard library, cut into 32 streams that run side by side. Batch
# *n + 1* of a stream goes on where batch *n* ended, so the state can be carried over.
# (At its end a stream starts over, with the state that it ended with: once in a while
# the model is surprised.)

# %%
library = Path(sysconfig.get_path("stdlib"))
names = ["argparse", "ast", "dataclasses", "enum", "functools", "inspect", "pathlib"]
found = [
    *(library / f"{name}.py" for name in names),
    *(library / "pathlib").glob("*.py"),
]
text = "\n".join(path.read_text() for path in found if path.exists())
text = text.encode("ascii", "ignore").decode()

alphabet = sorted(set(text))
tokens = np.array([alphabet.index(character) for character in text], np.int32)
streams, window = 32, 64
assert len(tokens) > streams * (window + 1), "a longer text, or fewer streams, please"
rows = (
    tokens[: len(tokens) // streams * streams].reshape(streams, -1).T
)  # [time, stream]


def batch(step):
    """Inputs and targets `[window, streams]` of one step, around and around."""
    at = step * window % (len(rows) - window - 1)
    return rows[at : at + window], rows[at + 1 : at + window + 1]


print(f"{len(text):,} characters, {len(alphabet)} of them different")
print(text[:200])

# %% [markdown]
# ## The model, and one step of training
#
# Layers are put together by `serial`: `embed` has a vector of 32 numbers for each
# character, and `linear` makes of what the LSTM shows a score (a *logit*) for each
# character that may come next. A layer's `init` gives the parameters and the size of
# its output, which is not needed here. `model.apply(params, inputs, state)` gives the
# state after the inputs, and the outputs; `state=None` is the initial state.
#
# The loss of a batch, its gradient, an update by Optax: that is all, and `jax.jit`
# compiles it. The optimizer is a chain: the gradient is shortened where it is longer
# than 1, and Adam takes steps that get smaller towards the end. (`has_aux=True`: the
# loss comes with something that has no part in the derivative, here the state.)

# %%
model = jl.serial(
    jl.embed(len(alphabet), 32), jl.recurrent(cell, 128), jl.linear(len(alphabet))
)
params, _ = model.init(jax.random.key(0))
schedule = optax.cosine_decay_schedule(1e-2, STEPS)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def loss(params, state, inputs, targets):
    """Mean of -log p(target), in bits per character, and the state to carry on."""
    state, logits = model.apply(params, inputs, state)
    # by the natural logarithm, in nats, of which one is 1 / log(2) bits
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats.mean() / jnp.log(2), state


@jax.jit
def train_step(params, opt_state, state, inputs, targets):
    """One update of the parameters."""
    with_gradient = jax.value_and_grad(loss, has_aux=True)
    (bits, state), gradient = with_gradient(params, state, inputs, targets)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, state, bits


# %%
opt_state, state = optimizer.init(params), None
records = []
for step in range(STEPS):
    params, opt_state, state, bits = train_step(params, opt_state, state, *batch(step))
    records.append({"step": step, "split": "train", "bits_per_character": float(bits)})

print(f"{records[0]['bits_per_character']:.2f} bits per character before training")
last = np.mean([record["bits_per_character"] for record in records[-50:]])
print(f"{last:.2f} in the last 50 of {STEPS} steps")

# %%
fig, ax = plt.subplots(figsize=(8, 4))
jl.plots.loss_curve(records, ax=ax)
plt.show()

# %% [markdown]
# A character chosen blindly out of this alphabet costs log₂ of its size, 6 to 7 bits.
# The model has learnt letters, words, indentation.
#
# ## Let it write
#
# Streaming is the same function with the state fed back: one character goes in, as a
# sequence of one step, and the odds of the next come out. The *temperature* makes
# likely characters more likely where it is below 1, and the text more of a surprise
# above; `jax.random.categorical` draws one by these odds.


# %%
TEMPERATURE = 0.6


@jax.jit
def write_one(params, state, token, key):
    """The state after a token, and a token drawn from what the model expects next."""
    state, logits = model.apply(params, token[None], state)
    return state, jax.random.categorical(key, logits[0] / TEMPERATURE)


state, token, written = None, tokens[text.find("\n")], []
for key in jax.random.split(jax.random.key(0), 400):
    state, token = write_one(params, state, token, key)
    written.append(alphabet[int(token)])
print("".join(written))

# %% [markdown]
# ## Look inside
#
# `model.trace` is `model.apply` with a tape of every gate and state of every step, by
# the place of the layer in the parameters: the LSTM stands at 1, between the embedding
# and the output. Here are the forget gates of all 128 units while the model reads a
# line, those that keep most on top: bright keeps, dark lets go.

# %%
# With a text of your own take a line of it: line = text[:80]
line = '    def __init__(self, name: str = "x") -> None:\n        self.name = name\n'
read = jnp.array([alphabet.index(character) for character in line])
_, _, tape = model.trace(params, read)
trace = tape["1"]

fig, ax = plt.subplots(figsize=(11, 5))
jl.plots.gate_heatmap(list(line), trace.gates.f, "forget gate f", ax=ax)
plt.show()

# %% [markdown]
# Some units hold on through a good part of the line, some through a word, and most for
# a character or less. How long a unit remembers follows from its forget gate: what it
# holds fades by a factor e in −1 / mean(log f) steps.

# %%
fig, ax = plt.subplots(figsize=(8, 4))
jl.plots.timescales(trace.gates.f, ax=ax)
plt.show()

# %% [markdown]
# One unit on its own, the one whose forget gate and cell move most: its gates, its
# cell, its output.

# %%
spread = np.asarray(trace.gates.f).std(0) * np.asarray(jnp.tanh(trace.state.c)).std(0)
fig, ax = plt.subplots(figsize=(11, 7))
jl.plots.unit_trace(list(line), trace, int(spread.argmax()), ax=ax)
plt.show()

# %% [markdown]
# ## The same with one command
#
# `jaxlstm train` does all of this from a config file, with validation, checkpoints that
# resume to the same bits, and a report. In a clone of the repository, from this
# directory, the Python function is `jl.lab.train("../configs/quickstart.yaml")`.
