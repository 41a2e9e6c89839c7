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
# # Functional LSTM: state, lengths, masks, resets, streaming
#
# Nothing here is hidden in an object. A cell is a record of functions, its parameters
# are arrays that you hold, and its state is an array that goes in and comes out. This
# notebook shows what follows from that, and checks each statement as it goes: where two
# things are said to be equal, the cell compares them.
#
# One convention for everything: time is axis 0, features are the last axis, and what
# lies between are as many batch axes as you like. The state comes first in what is
# returned, as in `jax.lax.scan`.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import jaxlstm as jl

cell = jl.lstm()
params = cell.init(jax.random.key(0), input_size=3, hidden_size=16)
xs = jax.random.normal(jax.random.key(1), (12, 4, 3))  # 12 steps of 4 sequences
jax.tree.map(jnp.shape, params)


# %% [markdown]
# A helper: are two results the same, to the last bit?


# %%
def same_bits(one, other):
    """Whether all arrays of two results are equal in every bit."""
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    return all(jax.tree.leaves(equal))


# %% [markdown]
# ## The state is yours
#
# `unroll` returns the state after the last step. Hand it back, and the next part goes
# on where the first one ended. A sequence split anywhere is the unsplit one.

# %%
state, hs = jl.unroll(cell, params, xs)

half_way, first = jl.unroll(cell, params, xs[:5])
at_the_end, second = jl.unroll(cell, params, xs[5:], half_way)
print("outputs:", np.abs(jnp.concatenate([first, second]) - hs).max())
print("state:  ", np.abs(at_the_end.c - state.c).max())

# %% [markdown]
# No state means the cell's initial state. `jl.LSTMState(h, c)` is one of your own;
# numbers are spread over the batch.

# %%
warm, _ = jl.unroll(cell, params, xs, jl.LSTMState(h=0.0, c=1.0))
print("c of the first units, begun at 0:", state.c[0, :4])
print("c of the first units, begun at 1:", warm.c[0, :4])

# %% [markdown]
# ## Rows of unequal length
#
# `lengths` says how many steps of each row happen. A step that does not happen leaves
# the state untouched and emits zeros; what stands in its place in `xs` never matters.
# Even NaN there changes nothing, in the values and in the gradients alike.

# %%
lengths = jnp.array([12, 5, 0, 8])
padding = jnp.arange(12)[:, None] >= lengths
spoilt = jnp.where(padding[..., None], jnp.nan, xs)


def loss(params, xs):
    """Any loss will do: the sum of squares of the outputs."""
    _, hs = jl.unroll(cell, params, xs, lengths=lengths)
    return (hs**2).sum()


clean, from_spoilt = (jax.grad(loss)(params, inputs) for inputs in (xs, spoilt))
print("gradients, padding or NaN:", same_bits(clean, from_spoilt))

state, hs = jl.unroll(cell, params, spoilt, lengths=lengths)
print("row 1 ends in the state of its step 5:", same_bits(state.h[1], hs[4, 1]))
print("row 2, without a step, ends as it began:", bool((state.c[2] == 0).all()))

# %% [markdown]
# A mask says the same step by step, for holes in the middle. Here row 0 does not see
# steps 3 to 5, and the result is that of the sequence without them.

# %%
mask = jnp.ones((12, 4), bool).at[3:6, 0].set(False)
masked, _ = jl.unroll(cell, params, xs, mask=mask)
without, _ = jl.unroll(cell, params, jnp.delete(xs, jnp.arange(3, 6), axis=0))
print(np.abs(masked.h[0] - without.h[0]).max())

# %% [markdown]
# Backwards, `lengths` needs no flipping: `reverse=True` begins at the last step that
# happens, and the outputs stay where they belong.

# %%
state, hs = jl.unroll(cell, params, xs, lengths=lengths, reverse=True)
alone, _ = jl.unroll(cell, params, xs[:5, 1][::-1])
print("row 1 backwards:", np.abs(state.h[1] - alone.h).max())

# %% [markdown]
# ## Resets
#
# Several episodes, or several documents, in one row: `resets` says before which steps
# the cell begins again. Nothing crosses such a border, neither the state nor a
# gradient.

# %%
resets = jnp.zeros((12, 4), bool).at[7].set(True)
_, hs = jl.unroll(cell, params, xs, resets=resets)
_, afresh = jl.unroll(cell, params, xs[7:])
print("after the reset as if begun there:", np.abs(hs[7:] - afresh).max())


def last_output(xs):
    """The sum of the outputs of the last step."""
    return jl.unroll(cell, params, xs, resets=resets)[1][-1].sum()


reach = jnp.abs(jax.grad(last_output)(xs)).sum((1, 2))
fig, ax = plt.subplots(figsize=(8, 3))
ax.bar(range(12), reach, color="#0072B2")
ax.axvline(6.5, color="#D55E00", ls="--", label="reset before step 7")
ax.set(xlabel="step", ylabel="|gradient| of the last output")
ax.legend(frameon=False)
plt.show()
assert (reach[:7] == 0).all()

# %% [markdown]
# `jl.resets_from_segments` makes resets out of the segment ids that packed data comes
# with.
#
# ## What comes out
#
# `emit` says what is stacked over time: `jl.emit.hidden` (as above), `states`, `trace`
# (every gate too), `nothing`, or any function of the state and the gates. Only what it
# returns is kept, so a summary of a long sequence costs no memory.

# %%
state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
print("gates:", trace.gates._fields, "of", trace.gates.f.shape)


def summary(state, gates):
    """How open the forget gates are, and how full the cells."""
    return gates.f.mean(-1), jnp.abs(state.c).mean(-1)


_, (openness, fill) = jl.unroll(cell, params, xs, emit=summary)
print("summary:", openness.shape, fill.shape)

# %% [markdown]
# ## One input at a time
#
# When inputs arrive one by one, `jl.stream` gives a compiled step. It prepares what
# follows from the parameters once, and not at every step.

# %%
step, state = jl.stream(cell, params, xs[0])
outputs = []
for x in xs:
    state, h = step(state, x)
    outputs.append(h)
_, hs = jl.unroll(cell, params, xs)
print("streamed and unrolled:", np.abs(jnp.stack(outputs) - hs).max())

# %% [markdown]
# ## Transformations
#
# `unroll` is a pure function, and so JAX's transformations do what they always do:
# `jit` compiles it, `vmap` adds an axis, `grad` and `jvp` differentiate it. Here are
# ten networks at once, drawn from ten keys, over the same inputs.

# %%
keys = jax.random.split(jax.random.key(2), 10)
ten = jax.vmap(lambda key: cell.init(key, 3, 16))(keys)


@jax.jit
def outputs_of_all(ten, xs):
    """The outputs of ten networks: [10, 12, 4, 16]."""
    return jax.vmap(lambda params: jl.unroll(cell, params, xs)[1])(ten)


print(outputs_of_all(ten, xs).shape)

# %% [markdown]
# The gradient of one sequence at a time, which many libraries cannot give without a
# loop: `vmap` of `grad`, over axis 1.


# %%
def loss_of_one(params, xs):
    """The loss of a single sequence [12, 3]: no batch axis at all."""
    return (jl.unroll(cell, params, xs)[1] ** 2).sum()


each = jax.vmap(jax.grad(loss_of_one), in_axes=(None, 1))(params, xs)
whole = jax.grad(lambda params: (jl.unroll(cell, params, xs)[1] ** 2).sum())(params)
print("one gradient for each row:", each.w_h.shape)
print("their sum is that of the batch:", np.abs(each.w_h.sum(0) - whole.w_h).max())

# %% [markdown]
# ## Who computed it
#
# Behind `unroll` stand several engines. They all mean the same; `explain` says which
# one serves a call, how, and what becomes of the others that are tried unasked. Those
# of the README's table that are missing here serve by name only: `engine="native"`.

# %%
print(jl.explain(cell, params, xs, lengths=lengths))

# %% [markdown]
# ## Deep networks
#
# Layers are put together by `serial`, `stack`, `bidirectional`, `residual`. Lengths,
# masks, resets and the state mean in a deep network what they mean in a single layer.
# `trace` is `apply` with a tape: all gates of all layers, by name. Gates of steps that
# do not happen are zeros there, which a mean over steps has to leave out.

# %%
deep = jl.serial(jl.stack(cell, (16, 16), bidirectional=True), jl.linear(2))
deep_params, _ = deep.init(jax.random.key(3), 3)
state, ys = deep.apply(deep_params, xs, lengths=lengths)
_, traced, tape = deep.trace(deep_params, xs, lengths=lengths)
print("the same outputs:", same_bits(ys, traced))
happens = jnp.arange(len(xs))[:, None] < lengths
for name, seen in tape.items():
    share = (seen.gates.f > 0.75)[happens].mean()
    print(f"{name:13} forget gates open {100 * share:.0f} %")
