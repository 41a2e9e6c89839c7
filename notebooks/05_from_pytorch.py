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
# # From PyTorch
#
# An `nn.LSTM` with a linear head is loaded from a file. We read its gates, train it,
# and write it back. Nothing in this notebook needs torch. In torch, the model and its
# file would be
#
# ```python
# class Net(torch.nn.Module):
#     def __init__(self):
#         super().__init__()
#         self.lstm = torch.nn.LSTM(1, 16, batch_first=True)
#         self.fc = torch.nn.Linear(16, 1)
#
#     def forward(self, xs):                  # [batch, time, 1]
#         return self.fc(self.lstm(xs)[0])
#
# safetensors.torch.save_file(net.state_dict(), "net.safetensors")
# ```

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from safetensors.numpy import save_file

import jaxlstm as jl

STEPS = 50 if os.environ.get("FAST", "0") != "0" else 400

# %% [markdown]
# ## The file
#
# Here the arrays of the file are random, under the names and in the shapes that torch
# gives them: the rows of a matrix are those of i, f, g and o, one below the other, and
# there are two biases.

# %%
random = np.random.default_rng(0)


def array(*shape):
    """Return numbers as `nn.LSTM` draws them, uniform within 1/sqrt(16)."""
    return random.uniform(-0.25, 0.25, shape).astype(np.float32)


state_dict = {
    "lstm.weight_ih_l0": array(64, 1),
    "lstm.weight_hh_l0": array(64, 16),
    "lstm.bias_ih_l0": array(64),
    "lstm.bias_hh_l0": array(64),
    "fc.weight": array(1, 16),
    "fc.bias": array(1),
}
folder = Path(tempfile.mkdtemp())
save_file(state_dict, folder / "net.safetensors")

# %% [markdown]
# ## Load it
#
# `prefix` names the layers in the order in which the model applies them. Sizes, layers
# and directions are read from the shapes. A `.pt` file works too; reading one needs
# torch.

# %%
params, model = jl.interop.torch.load(folder / "net.safetensors", prefix=("lstm", "fc"))
jax.tree.map(jnp.shape, params)

# %% [markdown]
# Time is the first axis here, `[time, batch, features]`. We compute the same outputs by
# torch's own equations, written with NumPy, and compare:

# %%
xs = random.normal(size=(30, 4, 1)).astype(np.float32)
_, ys = model.apply(params, xs)


def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


h = c = np.zeros((4, 16))
for x, y in zip(xs, ys, strict=True):
    z = x @ state_dict["lstm.weight_ih_l0"].T + h @ state_dict["lstm.weight_hh_l0"].T
    z = z + state_dict["lstm.bias_ih_l0"] + state_dict["lstm.bias_hh_l0"]
    i, f, g, o = np.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    expected = h @ state_dict["fc.weight"].T + state_dict["fc.bias"]
    np.testing.assert_allclose(y, expected, atol=1e-5)

# %% [markdown]
# ## Train it further
#
# The task is to output the input of three steps before, on sequences of different
# lengths.

# %%
DELAY = 3
optimizer = optax.adam(1e-2)


@jax.jit
def train_step(params, moments, key):
    """Return parameters and moments after one step, and the loss before it."""
    for_xs, for_lengths = jax.random.split(key)
    xs = jax.random.normal(for_xs, (40, 32, 1))
    lengths = jax.random.randint(for_lengths, (32,), 10, 41)
    active = (jnp.arange(40)[:, None] < lengths) & (jnp.arange(40)[:, None] >= DELAY)

    def loss(params):
        _, ys = model.apply(params, xs, lengths=lengths)
        errors = (ys - jnp.roll(xs, DELAY, axis=0))[..., 0] ** 2
        return jnp.where(active, errors, 0).sum() / active.sum()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, moments = optimizer.update(gradients, moments)
    return optax.apply_updates(params, updates), moments, value


moments, losses = optimizer.init(params), []
for key in jax.random.split(jax.random.key(0), STEPS):
    params, moments, loss = train_step(params, moments, key)
    losses.append(float(loss))
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

# %% [markdown]
# `trace` returns the gates of every step, which torch does not.

# %%
_, ys, traces = model.trace(params, xs)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
left.plot(losses)
left.set(title="training after loading", xlabel="step", ylabel="mean squared error")
forget = traces["lstm"].gates.f[:, 0]
jl.plots.signal_heatmap(xs[:, 0, 0], forget, "forget gate f", ax=right)
plt.show()

# %% [markdown]
# ## And back
#
# `dump` returns arrays under the names of torch. In torch, load them with
# `net.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})`.

# %%
arrays = jl.interop.torch.dump(model, params)
for name, value in arrays.items():
    print(f"{name:20} {value.shape}")

# %%
again, _ = jl.interop.torch.load(arrays, prefix=("lstm", "fc"))
all(
    bool((a == b).all())
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True)
)

# %% [markdown]
# The command line does the same: `jaxlstm import net.safetensors --from torch --prefix
# lstm,fc` writes a model file, and `jaxlstm export FILE --to torch` (or `--to onnx`)
# converts that file. [Weights from and to other libraries](../docs/interop.md) lists
# which layers and options can be converted for each library.
