"""A program of Flax nnx switches to jaxlstm: same weights, same losses, faster steps.

    python -m benchmarks.switch_flax

The import and the constructor of the recurrent layer change, and `load` brings the
weights. Both programs then train on the same batches.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxlstm as jl


class Tagger(nnx.Module):
    """A label for each step of ragged sequences."""

    def __init__(self, rnn: nnx.Module, units: int, labels: int, rngs: nnx.Rngs):
        self.rnn, self.head = rnn, nnx.Linear(units, labels, rngs=rngs)

    def __call__(self, xs: jax.Array, lengths: jax.Array) -> jax.Array:
        """Return the logits `[B, T, labels]`."""
        return self.head(self.rnn(xs, seq_lengths=lengths))


def of_flax(features: int, units: int, rngs: nnx.Rngs) -> nnx.Module:
    """Return the recurrent layer before the switch."""
    cell = nnx.OptimizedLSTMCell(features, units, rngs=rngs)
    return nnx.RNN(cell, rngs=rngs)


def of_jaxlstm(rnn: Any, features: int, rngs: nnx.Rngs) -> nnx.Module:
    """Return the recurrent layer after the switch, with the weights of `rnn`."""
    params, model = jl.interop.flax.load(rnn)
    ours = jl.modules.nnx.Recurrent(model, features, rngs=rngs)
    ours.params = nnx.data(jax.tree.map(nnx.Param, params))
    return ours


@nnx.jit
def train_step(
    model: Tagger, optimizer: nnx.Optimizer, batch: tuple[jax.Array, ...]
) -> jax.Array:
    """Change the model by one step of the optimizer; return the loss before it."""
    xs, lengths, labels = batch

    def loss_of(model: Tagger) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model(xs, lengths), labels
        )
        active = jnp.arange(xs.shape[1]) < lengths[:, None]
        return jnp.where(active, losses, 0).sum() / active.sum()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def batch_of(step: int, rows: int, time: int, features: int) -> tuple[jax.Array, ...]:
    """Return inputs, lengths, and labels that depend on the last two inputs."""
    keys = jax.random.split(jax.random.key(step))
    xs = jax.random.normal(keys[0], (rows, time, features))
    lengths = jax.random.randint(keys[1], (rows,), time // 2, time + 1)
    sums = xs[:, :, 0] + jnp.roll(xs[:, :, 1], 1, axis=1)
    return xs, lengths, (sums > 0).astype(jnp.int32)


def trainer(model: Tagger) -> Callable[[tuple[jax.Array, ...]], float]:
    """Return a function that trains on a batch and returns the loss."""
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    return lambda batch: float(train_step(model, optimizer, batch))


def switch(
    *, rows: int, time: int, features: int, units: int, before: int
) -> tuple[Tagger, Tagger]:
    """Return a model of Flax after some training, and this model after the switch."""
    flax = Tagger(of_flax(features, units, nnx.Rngs(0)), units, 2, nnx.Rngs(1))
    train = trainer(flax)
    for step in range(before):
        train(batch_of(step, rows, time, features))
    rnn = of_jaxlstm(flax.rnn, features, nnx.Rngs(2))
    ours = Tagger(rnn, units, 2, nnx.Rngs(1))
    nnx.update(ours.head, nnx.state(flax.head))
    return flax, ours


def main() -> None:
    """Print losses and times of both programs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    sizes = {"rows": 32, "time": 128, "features": 128, "units": 128}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    options = vars(parser.parse_args())
    steps = options.pop("steps")
    shape = [options[name] for name in ("rows", "time", "features")]
    trainers = [trainer(model) for model in switch(**options, before=20)]
    times: list[list[float]] = [[], []]
    difference = 0.0
    for step in range(20, 20 + steps):
        batch = jax.block_until_ready(batch_of(step, *shape))
        losses = []
        for train, taken in zip(trainers, times, strict=True):
            began = time.perf_counter()
            losses.append(train(batch))
            taken.append(time.perf_counter() - began)
        difference = max(difference, abs(losses[0] - losses[1]))
        if step % 20 == 0 or step == 19 + steps:
            print(f"step {step}  loss {losses[0]:.6f} Flax  {losses[1]:.6f} jaxlstm")
    flax, ours = (1e3 * statistics.median(taken[3:]) for taken in times)
    print(f"largest difference of the losses of {steps} steps: {difference:.1e}")
    print(f"{flax:.1f} ms Flax, {ours:.1f} ms jaxlstm, ratio {flax / ours:.2f}")


if __name__ == "__main__":
    main()
