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
# An LSTM reads a sequence one step at a time and keeps a *cell state* `c`, which three
# gates and a candidate update at each step:
#
# $$i, f, o = \sigma(z_i), \sigma(z_f), \sigma(z_o) \qquad g = \tanh(z_g)$$
# $$c_t = f \odot c_{t-1} + i \odot g \qquad h_t = o \odot \tanh(c_t)$$
#
# where $z = W_x x_t + W_h h_{t-1} + b$ with its own weights and bias for each of the
# four, σ is the sigmoid, which maps any number to 0..1, and ⊙ multiplies unit by unit.
# The forget gate `f` determines how much of the cell state is kept, the input gate `i`
# how much of the candidate `g` is added, and the output gate `o` how much of the cell
# state is output, as the *hidden state* `h`. All of these are vectors. One position in
# them is a *unit*, with its own gates.
#
# This notebook trains a model that generates Python code, with a training loop written
# out, and then plots its gates while it reads. Nothing is downloaded: the text is the
# source of Python's standard library. You need no experience with JAX.

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
# - `jnp` has the functions of NumPy and runs on a CPU, GPU or TPU. Its arrays are never
#   modified in place.
# - Random numbers come from a *key*, `jax.random.key(0)`. The same key gives the same
#   numbers, so each use needs its own key: `jax.random.split` makes several from one.
# - `jax.value_and_grad(f)` returns a function that computes `f` and its gradient with
#   respect to the first argument.
# - `jax.jit(f)` compiles `f` at the first call. A compiled function must not modify
#   anything outside it: pass parameters and state in and return them.
# - A model's parameters are arrays in NamedTuples, tuples and dicts, which you can
#   print and replace like any others.
#
# ## One step
#
# A cell is a record of pure functions: their results depend on their arguments only.
# `init` draws parameters, `project` computes $W_x x + b$, and `step` computes the rest
# and returns the new state and the gates. Gates are named fields, `gates.f`.

# %%
cell = jl.lstm()
params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
state = cell.initial_state(params)

x = jnp.array([1.0, 0.0, -1.0])
state, gates = cell.step(params, state, cell.project(params, x))

print("forget gate", gates.f)
print("cell state ", state.c)

# %% [markdown]
# The forget gates lie around 0.73, because their bias is initialised to 1 and σ(1) is
# 0.73; the input moves each of them. An untrained LSTM therefore keeps about three
# quarters of its cell state from one step to the next.
#
# ## A whole sequence
#
# `unroll` carries the state through time. Time is the first axis, features are the
# last, and any number of batch axes may lie between them. Here the second of two
# sequences has a length of 4; its other steps are padding.

# %%
xs = jax.random.normal(jax.random.key(1), (7, 2, 3))  # 7 steps of 2 sequences
state, hs = jl.unroll(cell, params, xs, lengths=jnp.array([7, 4]))

print("outputs", hs.shape, " final state", state.h.shape)
print("row 1 after its 4 steps:", hs[4:, 1].sum(), "(padding is zero)")
print("its final state is that of step 4:", bool((state.h[1] == hs[3, 1]).all()))

# %% [markdown]
# ## The text
#
# The text consists of some files of the standard library. It is split into 32 streams
# that are read in parallel. Batch *n + 1* of a stream begins where batch *n* ended, so
# the state can be carried over. (When a stream has been read to its end, reading
# continues near its beginning with the old state, which then does not match the text
# for a few steps.)

# %%
library = Path(sysconfig.get_path("stdlib"))
names = ["argparse", "ast", "dataclasses", "enum", "functools", "inspect", "pathlib"]
found = [
    *(library / f"{name}.py" for name in names),
    *(library / "pathlib").glob("*.py"),
]
text = "\n".join(path.read_text() for path in found if path.exists())
text = text.encode("ascii", "ignore").decode()
text, held_out = text[: -len(text) // 10], text[-len(text) // 10 :]

alphabet = sorted(set(text + held_out))
tokens = np.array([alphabet.index(character) for character in text], np.int32)
streams, window = 32, 64
assert len(tokens) > streams * (window + 1), "use a longer text or fewer streams"
rows = (
    tokens[: len(tokens) // streams * streams].reshape(streams, -1).T
)  # [time, stream]


def batch(step):
    """Return inputs and targets `[window, streams]`; the text is read repeatedly."""
    at = step * window % (len(rows) - window - 1)
    return rows[at : at + window], rows[at + 1 : at + window + 1]


unseen = np.array([alphabet.index(character) for character in held_out], np.int32)
unseen = unseen[: len(unseen) // streams * streams].reshape(streams, -1).T
print(f"{len(text):,} characters, {len(alphabet)} of them different")
print(f"{len(held_out):,} characters held out, which are not trained on")
print(text[:200])

# %% [markdown]
# ## The model, and one step of training
#
# `serial` composes named layers: `embed` maps each character to a vector of 32 numbers,
# and `linear` maps the output of the LSTM to one score (a *logit*) for each possible
# next character. `init` returns the parameters and the output size, which is not needed
# here. `model.apply(params, inputs, state)` returns the state after the inputs, and the
# outputs; `state=None` starts from the initial state.
#
# A training step computes the loss of a batch and its gradient, and updates the
# parameters with Optax. The optimizer is a chain: it clips the gradient to norm 1 and
# then applies Adam with a decaying learning rate. (With `has_aux=True` the loss
# function returns a second result that is not differentiated, here the state.)

# %%
model = jl.serial(
    embed=jl.embed(len(alphabet), 32),
    rnn=jl.recurrent(cell, 128),
    unembed=jl.linear(len(alphabet)),
)
params, _ = model.init(jax.random.key(0))
schedule = optax.cosine_decay_schedule(1e-2, STEPS)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def loss(params, state, inputs, targets):
    """Return the mean of -log2 p(target), in bits per character, and the new state."""
    state, logits = model.apply(params, inputs, state)
    # Optax uses the natural logarithm; one nat is 1 / log(2) bits.
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats.mean() / jnp.log(2), state


@jax.jit
def train_step(params, opt_state, state, inputs, targets):
    """Update the parameters once."""
    with_gradient = jax.value_and_grad(loss, has_aux=True)
    (bits, state), gradient = with_gradient(params, state, inputs, targets)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, state, bits


# %%
opt_state, state = optimizer.init(params), None
validate = jax.jit(lambda params: loss(params, None, unseen[:-1], unseen[1:])[0])
records = []
for step in range(STEPS):
    params, opt_state, state, bits = train_step(params, opt_state, state, *batch(step))
    records.append({"step": step, "split": "train", "bits_per_character": float(bits)})
    if step % 60 == 59:
        bits = float(validate(params))
        record = {"step": step, "split": "validation", "bits_per_character": bits}
        records.append(record)

print(f"{records[0]['bits_per_character']:.2f} bits per character before training")
trained = [r["bits_per_character"] for r in records if r["split"] == "train"]
print(f"{np.mean(trained[-50:]):.2f} in the last 50 of {STEPS} steps")
print(f"{bits:.2f} on the held-out text")

# %%
fig, ax = plt.subplots(figsize=(8, 4))
jl.plots.loss_curve(records, ax=ax)
plt.show()

# %% [markdown]
# A uniform guess costs log₂ of the alphabet's size, 6 to 7 bits per character. The
# model has learnt letters, words and indentation.
#
# The training curve rises again and again, although the model improves: each step reads
# another part of the text, and some parts are harder than others. The validation curve
# is always about the same held-out text. It is higher than the training curve from the
# start: most of the held-out text is from other files (`pathlib`) than the training
# text. Later the model has also read the training text almost three times.
#
# ## Generate text
#
# To generate, call the same function with one character at a time and pass the state
# back in: the logits are those of the next character. A *temperature* below 1 makes
# likely characters more likely, one above 1 makes the text more random.
# `jax.random.categorical` draws a character from these probabilities.


# %%
TEMPERATURE = 0.6


@jax.jit
def write_one(params, state, token, key):
    """Return the state after a token, and a next token drawn from the model."""
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
# `model.trace` does the same as `model.apply` and also returns the gates and states of
# every step, as a dict with an entry for each recurrent layer. The key is the path of
# the layer in the parameters. Here it is `"rnn"`, the name that `serial` was given. A
# stack called `rnn` has one entry for each of its layers, `"rnn/0"` and `"rnn/1"`.
# Without names, paths consist of positions, such as `"1"` or `"1/0"`.
#
# The plot shows the forget gates while the model reads two lines of code. It has a row
# for each of the 128 units, the one with the highest mean on top. Bright is open (1),
# dark is closed (0).

# %%
# With your own text, use a part of it: line = text[:80]
line = '    def __init__(self, name: str = "x") -> None:\n        self.name = name\n'
read = jnp.array([alphabet.index(character) for character in line])
_, _, traces = model.trace(params, read)
trace = traces["rnn"]

fig, ax = plt.subplots(figsize=(11, 5))
jl.plots.gate_heatmap(list(line), trace.gates.f, "forget gate f", ax=ax)
plt.show()

# %% [markdown]
# Some units keep their state for a large part of a line, some for a word, and most for
# a character or less. The forget gate determines for how long. The *timescale* of a
# unit is −1 / mean(log f): after so many steps, if nothing is written, 37 % (1/e) of
# its cell state is left. A timescale below one step means that less than 37 % is left
# after a single character.

# %%
fig, ax = plt.subplots(figsize=(8, 4))
jl.plots.timescales(trace.gates.f, ax=ax)
plt.show()

# %% [markdown]
# The next plot shows a single unit, the one whose forget gate and cell state vary most.
# Its rows are the input gate `i`, the forget gate `f`, the output gate `o`, the
# candidate `g`, the cell state `c` and the hidden state `h`, which is the output of the
# unit.

# %%
spread = np.asarray(trace.gates.f).std(0) * np.asarray(jnp.tanh(trace.state.c)).std(0)
fig, ax = plt.subplots(figsize=(11, 7))
jl.plots.unit_trace(list(line), trace, int(spread.argmax()), ax=ax)
plt.show()

# %% [markdown]
# ## The same with one command
#
# `jaxlstm train` does all of this from a config file, and adds checkpoints and a
# report. An interrupted run that is resumed gives exactly the same numbers as one that
# was not interrupted. In a clone of the repository, from this directory, the Python
# function is `jl.lab.train("../configs/quickstart.yaml")`.
