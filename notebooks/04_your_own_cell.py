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
# # A cell of your own
#
# A cell is four single-step functions. Sequences, lengths, masks, resets, both
# directions, stacks, wrappers, a fast gradient and the diagnostics then work without
# more code.
#
# The cell of this notebook is JANET, an LSTM with only a forget gate (van der
# Westhuizen and Lasenby, [*The unreasonable effectiveness of the forget
# gate*](https://arxiv.org/abs/1804.04849), 2018). One gate controls both forgetting and
# writing, and the state is the output:
#
# $$f = \sigma(W_f x + U_f h + b_f) \qquad g = \tanh(W_g x + U_g h + b_g)$$
# $$h_t = f \odot h_{t-1} + (1 - f) \odot g$$

# %%
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import jaxlstm as jl
from jaxlstm.cells.products import affine

SEEDS = 3 if os.environ.get("FAST", "0") != "0" else 8

# %% [markdown]
# ## Four functions
#
# Parameters, state and gates are NamedTuples with names of your choice. The library
# uses three names: a layer passes the state field `h` to the next layer, the
# diagnostics take a gate `f` as the forget gate, and `jl.weight_drop` drops recurrent
# weights called `w_h`.


# %%
class Params(NamedTuple):
    """Input weights, recurrent weights and biases; axis 1 holds f and g."""

    w_x: jax.Array  # [D, 2, H]
    w_h: jax.Array  # [H, 2, H]
    b: jax.Array  # [2, H]


class State(NamedTuple):
    """State carried from step to step."""

    h: jax.Array


class OwnGates(NamedTuple):
    """Gates of one step."""

    f: jax.Array
    g: jax.Array


def init(key, input_size, hidden_size, *, dtype=jnp.float32):
    """Draw the parameters; the forget gates start at σ(1) = 0.73."""
    for_x, for_h = jax.random.split(key)
    draw = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0)
    w_x = draw(for_x, (input_size, 2 * hidden_size), dtype)
    w_h = draw(for_h, (hidden_size, 2 * hidden_size), dtype)
    b = jnp.zeros((2, hidden_size), dtype).at[0].set(1.0)
    return Params(*(w.reshape(len(w), 2, hidden_size) for w in (w_x, w_h)), b)


def initial_state(params, batch_shape=(), *, dtype=None):
    """Return the state at the start of a sequence and after a reset."""
    return State(jnp.zeros((*batch_shape, params.b.shape[-1]), dtype))


def project(params, x):
    """Return W x + b, which needs no earlier state, for one step or for all."""
    return affine(x, params.w_x, params.b)


def step(params, state, z):
    """Return the state after one step and the gates; z is the result of `project`."""
    past = jnp.einsum("...k,kgh->...gh", state.h, params.w_h)
    f = jax.nn.sigmoid(z[..., 0, :] + past[..., 0, :])
    g = jnp.tanh(z[..., 1, :] + past[..., 1, :])
    return State(f * state.h + (1 - f) * g), OwnGates(f, g)


janet = jl.Cell(init, initial_state, project, step)

# %% [markdown]
# ## What works without more code
#
# The four functions do not mention lengths, resets, directions, stacks or zoneout.

# %%
xs = jax.random.normal(jax.random.key(1), (20, 4, 3))
lengths = jnp.array([20, 5, 0, 11])
model = jl.stack(jl.zoneout(janet, h_rate=0.1), (16, 16), bidirectional=True)
params, size = model.init(jax.random.key(0), 3)
state, ys = model.apply(params, xs, lengths=lengths, key=jax.random.key(2))
print("outputs", ys.shape, " padding is zero:", bool((ys[5:, 1] == 0).all()))
_, _, traces = model.trace(params, xs, lengths=lengths)
print("gates by name:", sorted(traces))

# %% [markdown]
# An engine is a program that runs the loop over time. The default engine runs this cell
# too. It calls `step` once on abstract values, as `jax.jit` does, to find out which of
# its operations depend on the state, and computes the gradient of `w_h` as one matrix
# product over all steps. `explain` prints which engine that is; the last line says what
# it stores for the gradient.

# %%
params = janet.init(jax.random.key(0), 3, 16)
print(jl.explain(janet, params, xs))

# %% [markdown]
# ## Testing the cell
#
# Three tests are useful for every new cell. The first compares it with a loop over the
# equations in NumPy and float64:


# %%
def by_hand(params, xs):
    """Return the outputs of one sequence [T, D], step by step."""
    w_x, w_h, b = (np.asarray(leaf, np.float64) for leaf in params)
    h, outputs = np.zeros(b.shape[-1]), []
    for x in np.asarray(xs, np.float64):
        z = np.tensordot(x, w_x, 1) + np.tensordot(h, w_h, 1) + b
        f, g = 1 / (1 + np.exp(-z[0])), np.tanh(z[1])
        h = f * h + (1 - f) * g
        outputs.append(h)
    return np.stack(outputs)


_, hs = jl.unroll(janet, params, xs)
print("largest difference:", np.abs(by_hand(params, xs[:, 0]) - hs[:, 0]).max())

# %% [markdown]
# The second compares the gradient with finite differences along a random direction, in
# float64, which `jax.enable_x64` enables within the block.

# %%
with jax.enable_x64(True):
    exact, ws = (
        jax.tree.map(lambda a: jnp.asarray(a, float), each) for each in (params, xs)
    )

    def loss(params):
        """Return a scalar that depends on every output."""
        return jnp.sin(jl.unroll(janet, params, ws, lengths=lengths)[1]).sum()

    keys = jax.random.split(jax.random.key(3), 3)
    direction = Params(
        *(
            jax.random.normal(key, leaf.shape, float)
            for key, leaf in zip(keys, exact, strict=True)
        )
    )
    small = 1e-5
    ahead, behind = (
        loss(jax.tree.map(lambda p, d, s=sign: p + s * small * d, exact, direction))
        for sign in (1, -1)
    )
    differences = (ahead - behind) / (2 * small)
    gradient = jax.grad(loss)(exact)
    along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    print(f"by differences {differences:.10f}, by jax.grad {along:.10f}")

# %% [markdown]
# The third compares the gradient by the default engine with that by `scan`, the
# reference engine, which is `lax.scan` with automatic differentiation:


# %%
def total(params, engine):
    """Return a loss, computed by the named engine, or the default one for None."""
    return (jl.unroll(janet, params, xs, lengths=lengths, engine=engine)[1] ** 2).sum()


fast, reference = (jax.grad(total)(params, name) for name in (None, "scan"))
for name, one, other in zip(Params._fields, fast, reference, strict=True):
    print(f"{name:4} largest difference {np.abs(one - other).max():.1e}")

# %% [markdown]
# ## Does it learn?
#
# The first input is a sign, +1 or −1, followed by 25 steps of noise; the task is to
# output the sign at the end. We compare the cell with an LSTM and a plain RNN, $h_t =
# \tanh(W x + U h_{t-1} + b)$, of the same number of units, each trained from several
# seeds in parallel by `jax.vmap`.

# %%
LAG, UPDATES = 25, 250
head = jl.linear(1)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def draw_task(key):
    """Return 32 sequences [LAG + 1, 32, 2] and their signs."""
    for_sign, for_noise = jax.random.split(key)
    sign = jax.random.rademacher(for_sign, (32,), jnp.float32)
    noise = jax.random.normal(for_noise, (LAG + 1, 32)).at[0].set(sign)
    return jnp.stack([noise, jnp.zeros_like(noise).at[0].set(1.0)], -1), sign


def learn(cell, key):
    """Return the loss at each update, for one seed."""
    for_cell, for_head, for_tasks = jax.random.split(key, 3)
    params = cell.init(for_cell, 2, 16), head.init(for_head, 16)[0]

    def loss(params, key):
        xs, sign = draw_task(key)
        state, _ = jl.unroll(cell, params[0], xs, emit=jl.emit.nothing)
        answer = head.apply(params[1], state.h[None])[1][0, :, 0]
        return ((answer - sign) ** 2).mean()

    def update(carry, key):
        params, opt_state = carry
        error, gradient = jax.value_and_grad(loss)(params, key)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), error

    start = params, optimizer.init(params)
    return jax.lax.scan(update, start, jax.random.split(for_tasks, UPDATES))[1]


keys = jax.random.split(jax.random.key(4), SEEDS)
cells = {"forget gate only": janet, "LSTM": jl.lstm(), "plain RNN": jl.simple_rnn()}
losses = {
    name: np.asarray(jax.jit(jax.vmap(lambda key, cell=cell: learn(cell, key)))(keys))
    for name, cell in cells.items()
}

# %%
fig, ax = plt.subplots(figsize=(8, 4))
smooth = {
    name: np.apply_along_axis(np.convolve, 1, each, np.ones(10) / 10, "valid")
    for name, each in losses.items()
}
jl.plots.loss_bands(smooth, within=(0.0, 1.0), label="squared error", ax=ax)
ax.set(title=f"A sign, {LAG} steps later", xlabel="updates")
plt.show()
for name, each in losses.items():
    print(f"{name:17} error in the last 25 updates: {each[:, -25:].mean(1).round(2)}")

# %% [markdown]
# A model that always outputs 0 has an error of 1. Look at the printed numbers of the
# single seeds too: a median over few seeds is uncertain.
#
# ## Diagnostics
#
# The diagnostics work for this cell as for any other. How far back does the gradient of
# the last output reach in untrained networks? The loss L is the sum of the last output
# over all units, and the plot shows the norm of its gradient with respect to the hidden
# state h of each step. A line is the median over the seeds.

# %%
noise = jax.random.normal(jax.random.key(5), (SEEDS, LAG + 1, 2))


def flow_of(cell):
    """Return the norm of the gradient at each step, `[seeds, steps]`."""

    @jax.jit
    @jax.vmap
    def one(key, noise):
        params = cell.init(key, 2, 16)
        flow = jl.diagnostics.gradient_flow(
            cell, params, noise, loss=lambda state, hs: hs[-1].sum()
        )
        return flow.norm.h

    return np.asarray(one(jax.random.split(jax.random.key(6), SEEDS), noise))


flows = {name: flow_of(cell) for name, cell in cells.items()}
fig, ax = plt.subplots(figsize=(8, 4))
jl.plots.gradient_flow(flows, ax=ax)
plt.show()
for name, norm in flows.items():
    share = norm[:, 0] / norm[:, -1]
    print(f"{name:17} share of the gradient {LAG} steps back: {np.median(share):.1e}")
