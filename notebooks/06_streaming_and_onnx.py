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
# # Streaming and ONNX
#
# We train a small character model. Then it serves several users in one batch, and runs
# in onnxruntime, without JAX.

# %%
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
from matplotlib import pyplot as plt

import jaxlstm as jl

STEPS = 60 if os.environ.get("FAST", "0") != "0" else 300
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A model of names
#
# The text has names made of syllables, one on each line. `document_separator` makes
# each of them a document: the state begins anew, and the model learns where a name
# ends. `sink=None` prints no progress. `sample` draws text; `documents=6` draws six
# names.

# %%
random = np.random.default_rng(0)
first = ["an", "be", "car", "da", "el", "fa", "gre", "jo", "ka", "mi"]
last = ["na", "lo", "ra", "lin", "ton", "dy", "ma", "s"]
names = [
    "".join([random.choice(first), *random.choice(last, random.integers(1, 3))])
    for _ in range(4000)
]
(folder / "names.txt").write_text("\n".join(names))
trained = jl.lab.train(
    {
        "data": {
            "source": "text",
            "path": str(folder / "names.txt"),
            "document_separator": "\n",
        },
        "model": {"embedding_size": 16, "hidden_size": 64},
        "optimizer": [{"adam": {"learning_rate": 0.01}}],
        "training": {
            "steps": STEPS,
            "batch_size": 16,
            "window": 32,
            "validate_every": STEPS,
            "checkpoint_every": STEPS,
        },
        "sample": {"prompt": "", "length": 30},
    },
    run=folder / "run",
    sink=None,
)
print(trained.sample(documents=6, length=100, seed=1))

# %% [markdown]
# `score` returns log p of each symbol of a text, here also of the end of the name. We
# add them up:

# %%
for text in "anna\n", "anan\n", "annx\n":
    print(f"{text!r:8} log p = {trained.score(text).sum():.1f}")

# %% [markdown]
# ## Streams
#
# A stream has slots, here four, each with a state of its own. `push` reads tokens in
# some of the slots and returns the logits after each token. A text that is read in
# chunks gives the same logits as the whole text, and other slots are not affected:

# %%
stream = trained.stream(slots=4)
stream.warm_up()
tokens = trained.vocabulary.encode("carlin")
whole = stream.push({0: tokens})[0]
parts = [
    stream.push({1: tokens[:2], 2: tokens[:5]})[1],
    stream.push({1: tokens[2:]})[1],
]
print("largest difference:", abs(np.concatenate(parts) - whole).max())

# %% [markdown]
# The state of a slot is a dict of arrays: those of the model, and the logits after the
# last token (`output`). A saved state can be restored in another slot, stream or
# process, which then continues the sequence:

# %%
saved = stream.state(1)
np.savez(folder / "session.npz", **saved)
stream.restore(3, dict(np.load(folder / "session.npz")))
more = trained.vocabulary.encode("ton")
print({name: array.shape for name, array in saved.items()})
print("same:", np.allclose(stream.push({3: more})[3], stream.push({1: more})[1]))

# %% [markdown]
# ## Several users
#
# Each thread generates names in its slot. Threads that need the model at the same time
# share one call of it.

# %%
texts = {}


def user(slot, prompt):
    """Generate three names, of which the first begins with the prompt."""
    pieces = stream.generate(slot, prompt, documents=3, length=60, seed=slot)
    texts[prompt] = prompt + "".join(pieces)


threads = [
    threading.Thread(target=user, args=(slot, prompt))
    for slot, prompt in enumerate(["a", "be", "jo", "mi"])
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for prompt, text in sorted(texts.items()):
    print(prompt, "->", text.split("\n"))

# %% [markdown]
# ## In onnxruntime
#
# `export` writes the model with the LSTM node of ONNX, runs it in onnxruntime, and
# keeps the file only if the numbers agree. With `stream=True` the file computes a
# single step: each array of the state is an input and an output, with a name.

# %%
exported = jl.lab.export(folder / "run", "onnx", stream=True)
print(exported)
session = onnxruntime.InferenceSession(exported.path)
print("inputs ", [(each.name, each.shape) for each in session.get_inputs()])
print("outputs", [(each.name, each.shape) for each in session.get_outputs()])

# %% [markdown]
# We complete the name that begins with "gre", with the most likely symbol at each step,
# in onnxruntime and by `sample`:

# %%
state = {
    each.name: np.zeros((1, each.shape[1]), np.float32)
    for each in session.get_inputs()[1:]
}


def read(token):
    """Return the logits after a token, and keep the state."""
    feeds = {"token": np.array([token], np.int64), **state}
    logits, *after = session.run(None, feeds)
    state.update(zip(state, after, strict=True))
    return logits[0]


text = "gre"
for token in [1, *trained.vocabulary.encode(text)]:  # 1 begins a document
    logits = read(token)
while (best := int(logits.argmax())) != 1 and len(text) < 20:
    text += trained.vocabulary.decode([best])
    logits = read(best)
expected = "gre" + trained.sample("gre", temperature=0)
print(f"onnxruntime {text}, sample {expected}, equal: {text == expected}")

# %% [markdown]
# ## Time of a step
#
# A step of `trained.stream` is one call of a compiled program for all slots. The slots
# share the time of the call, so the time per slot falls with their number; checks and
# copies in Python are made for each slot. The last bar is the time of a step of 64
# slots divided by 64. `jl.stream`, which takes arrays and has no slots, is faster for a
# single sequence; benchmarks/README.md has its times.


# %%
def microseconds(step, count=200):
    """Return the median time of a step."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1e6 * np.median(times)


one, many = trained.stream(), trained.stream(slots=64)
tokens = np.full(64, 2)
taken = {
    "onnxruntime, 1 row": microseconds(lambda: read(2)),
    "stream, 1 slot": microseconds(lambda: one.step([2])),
    "stream, 64 slots,\nper slot": microseconds(lambda: many.step(tokens)) / 64,
}
figure, ax = plt.subplots(figsize=(6, 2.5), layout="constrained")
bars = ax.barh(list(taken), list(taken.values()))
ax.bar_label(bars, fmt="%.0f µs", padding=3)
ax.set(xlabel="time of a step in µs", xlim=(0, 1.2 * max(taken.values())))
ax.invert_yaxis()
plt.show()

# %% [markdown]
# [Serving a trained model](../docs/serving.md) has a server and a program in
# JavaScript.
