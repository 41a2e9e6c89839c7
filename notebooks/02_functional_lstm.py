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
# A cell is a record of pure functions, its parameters are arrays, and its state is
# passed in and returned. This notebook shows what follows from that. Where the text
# says that two results are equal, the code compares them, or prints their largest
# difference, which is due to rounding.
#
# One convention holds everywhere: time is axis 0, features are the last axis, and any
# number of batch axes lie between them. Functions return the state first, as
# `jax.lax.scan` does.

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
# This helper compares two results:


# %%
def exactly_equal(one, other):
    """Return whether all numbers of two results are equal, without a tolerance."""
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), one, other)
    return all(jax.tree.leaves(equal))


# %% [markdown]
# ## The state
#
# `unroll` returns the state after the last step. Pass it to the next call to continue.
# Splitting a sequence anywhere gives the result of the unsplit sequence.

# %%
state, hs = jl.unroll(cell, params, xs)

half_way, first = jl.unroll(cell, params, xs[:5])
at_the_end, second = jl.unroll(cell, params, xs[5:], half_way)
print("outputs:", np.abs(jnp.concatenate([first, second]) - hs).max())
print("state:  ", np.abs(at_the_end.c - state.c).max())

# %% [markdown]
# Without a state, the cell starts from its initial state. Pass `jl.LSTMState(h, c)` to
# start from another one; numbers are broadcast.

# %%
warm, _ = jl.unroll(cell, params, xs, jl.LSTMState(h=0.0, c=1.0))
print("c of the first units, initially 0:", state.c[0, :4])
print("c of the first units, initially 1:", warm.c[0, :4])

# %% [markdown]
# ## Rows of unequal length
#
# `lengths` gives the number of steps of each row; the rest is padding. A padded step
# keeps the state and emits zeros, and its value in `xs` has no influence: even NaN
# there changes neither values nor gradients.

# %%
lengths = jnp.array([12, 5, 0, 8])
padding = jnp.arange(12)[:, None] >= lengths
with_nan = jnp.where(padding[..., None], jnp.nan, xs)


def loss(params, xs):
    """Return the sum of squares of the outputs."""
    _, hs = jl.unroll(cell, params, xs, lengths=lengths)
    return (hs**2).sum()


clean, from_nan = (jax.grad(loss)(params, inputs) for inputs in (xs, with_nan))
print("gradients are equal with NaN in the padding:", exactly_equal(clean, from_nan))

state, hs = jl.unroll(cell, params, with_nan, lengths=lengths)
print("row 1 ends in the state of its step 5:", exactly_equal(state.h[1], hs[4, 1]))
print("row 2, of length 0, keeps its state:", bool((state.c[2] == 0).all()))

# %% [markdown]
# `mask` is False at the steps that a row skips, which may also be in the middle of the
# row. Here row 0 skips steps 3 to 5, and the result is that of the sequence without
# them.

# %%
mask = jnp.ones((12, 4), bool).at[3:6, 0].set(False)
masked, _ = jl.unroll(cell, params, xs, mask=mask)
without, _ = jl.unroll(cell, params, jnp.delete(xs, jnp.arange(3, 6), axis=0))
print(np.abs(masked.h[0] - without.h[0]).max())

# %% [markdown]
# In reverse, rows need no flipping: `reverse=True` begins at the last step of each row,
# and each output stays at its own step.

# %%
state, hs = jl.unroll(cell, params, xs, lengths=lengths, reverse=True)
alone, _ = jl.unroll(cell, params, xs[:5, 1][::-1])
print("row 1 in reverse:", np.abs(state.h[1] - alone.h).max())

# %% [markdown]
# ## Resets
#
# A row may contain several episodes or documents. `resets` is True at the steps before
# which the state returns to the cell's initial state. Neither the state nor a gradient
# crosses a reset.

# %%
resets = jnp.zeros((12, 4), bool).at[7].set(True)
_, hs = jl.unroll(cell, params, xs, resets=resets)
_, from_step_7 = jl.unroll(cell, params, xs[7:])
print("from the reset on:", np.abs(hs[7:] - from_step_7).max())


def last_output(xs):
    """Return the sum of the outputs of the last step."""
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
# Several documents can be packed into a row, one after another. A second array states
# the number of the document of each step: 0, 0, 0, 1, 1, … `jl.resets_from_segments`
# computes the resets from this array.
#
# ## Outputs
#
# `emit` determines what is stacked over time: `jl.emit.hidden` (the default), `states`,
# `trace` (states and gates), `nothing`, or any function of the state and the gates.
# Only its results are stored, so a summary of a long sequence needs little memory.

# %%
state, trace = jl.unroll(cell, params, xs, emit=jl.emit.trace)
print("gates:", trace.gates._fields, "of", trace.gates.f.shape)


def summary(state, gates):
    """Return the mean forget gate and the mean magnitude of the cell state."""
    return gates.f.mean(-1), jnp.abs(state.c).mean(-1)


_, (mean_f, mean_c) = jl.unroll(cell, params, xs, emit=summary)
print("summary:", mean_f.shape, mean_c.shape)

# %% [markdown]
# ## One input at a time
#
# When inputs arrive one at a time, `jl.stream` returns a compiled step. What depends on
# the parameters alone is computed once, not at every step.

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
# `unroll` is a pure function, so JAX's transformations apply: `jit` compiles it, `vmap`
# adds an axis, `grad` and `jvp` differentiate it. Here ten networks, initialised from
# ten keys, read the same inputs.

# %%
keys = jax.random.split(jax.random.key(2), 10)
ten = jax.vmap(lambda key: cell.init(key, 3, 16))(keys)


@jax.jit
def outputs_of_all(ten, xs):
    """Return the outputs of ten networks, [10, 12, 4, 16]."""
    return jax.vmap(lambda params: jl.unroll(cell, params, xs)[1])(ten)


print(outputs_of_all(ten, xs).shape)

# %% [markdown]
# `vmap` of `grad` over axis 1 computes one gradient per sequence:


# %%
def loss_of_one(params, xs):
    """Return the loss of one sequence [12, 3], without a batch axis."""
    return (jl.unroll(cell, params, xs)[1] ** 2).sum()


per_row = jax.vmap(jax.grad(loss_of_one), in_axes=(None, 1))(params, xs)
whole = jax.grad(lambda params: (jl.unroll(cell, params, xs)[1] ** 2).sum())(params)
print("one gradient per row:", per_row.w_h.shape)
print("sum and batch gradient:", np.abs(per_row.w_h.sum(0) - whole.w_h).max())

# %% [markdown]
# ## Engines
#
# `unroll` has several engines, which compute the same result in different ways. By
# default it tries `native`, a compiled kernel for CPUs, then `adjoint`, then `scan`.
# `explain` returns the engine that runs a call, and for each other one of these three
# why it is not used. The last line says what the engine stores for the gradient. An
# engine can be named, as in `engine="scan"`; `cudnn` is used only if it is named.

# %%
print(jl.explain(cell, params, xs, lengths=lengths))

# %% [markdown]
# ## Deep networks
#
# `serial`, `stack`, `bidirectional` and `residual` compose layers. Lengths, masks,
# resets and the state behave in a deep network as in a single layer. `trace` does the
# same as `apply` and also returns the gates and states of all layers, by name. They are
# recorded as zero at padded steps, although the state itself is kept there; leave these
# steps out of a mean, as below.

# %%
deep = jl.serial(rnn=jl.stack(cell, (16, 16), bidirectional=True), unembed=jl.linear(2))
deep_params, _ = deep.init(jax.random.key(3), 3)
state, ys = deep.apply(deep_params, xs, lengths=lengths)
_, traced, traces = deep.trace(deep_params, xs, lengths=lengths)
print("the same outputs:", exactly_equal(ys, traced))
active = jl.StepMask.from_lengths(lengths, time=len(xs)).active
for name, trace in traces.items():
    share = (trace.gates.f > 0.75)[active].mean()
    print(f"{name:14} forget gates above 0.75: {100 * share:.0f} %")
