"""Flax linen: `nn.RNN` over `OptimizedLSTMCell` or `GRUCell`, batch first."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.cases import Case, Weights
from benchmarks.peers import jitted
from benchmarks.peers.base import merge_gate_axis

Array = jax.Array


class LayerNormLSTMCell(nn.RNNCellBase):
    """A layer-normalised LSTM of linen's parts, because linen has none."""

    features: int

    @nn.compact
    def __call__(self, carry: Any, inputs: Array) -> tuple[Any, Array]:
        """Return carry and output of one step."""
        c, h = carry
        dense = nn.Dense(4 * self.features, use_bias=False, name="i")(inputs)
        hidden = nn.Dense(4 * self.features, use_bias=False, name="h")(h)
        z = nn.LayerNorm(use_bias=False, epsilon=1e-5, name="norm_i")(dense)
        z = z + nn.LayerNorm(epsilon=1e-5, name="norm_h")(hidden)
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(nn.LayerNorm(epsilon=1e-5, name="norm_c")(c))
        return (c, h), h

    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Any:
        """Return a carry of zeros."""
        zeros = jnp.zeros((*input_shape[:-1], self.features))
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        """Return the number of feature axes."""
        return 1


def supports(case: Case) -> str | None:
    """Return why a case is not supported: linen has no zoneout."""
    return "linen has no zoneout" if case.cell == "zoneout" else None


def _cell(case: Case) -> nn.RNNCellBase:
    if case.cell == "layer_norm":
        return LayerNormLSTMCell(case.units)
    if case.cell == "gru":
        return nn.GRUCell(case.units)
    return nn.OptimizedLSTMCell(case.units)


def by_name(weights: Weights) -> dict[str, Any]:
    """Return a dense layer for each gate and for x and h; those for h have the bias."""
    w_x, w_h, b = weights
    return {
        f"{side}{gate}": parts
        for k, gate in enumerate("ifgo")
        for side, parts in (
            ("i", {"kernel": w_x[:, k]}),
            ("h", {"kernel": w_h[:, k], "bias": b[k]}),
        )
    }


def _gru_by_name(weights: Weights) -> dict[str, Any]:
    """Return dense layers as above; those for x have the bias, as has that of n."""
    w_x, w_h, b = weights
    dense: dict[str, Any] = {}
    for k, gate in enumerate("rzn"):
        dense[f"i{gate}"] = {"kernel": w_x[:, k], "bias": b[k]}
        dense[f"h{gate}"] = {"kernel": w_h[:, k]}
    dense["hn"]["bias"] = 0 * b[2]
    return dense


def _load(case: Case, weights: Weights) -> Any:
    if case.cell == "lstm":
        return by_name(weights)
    if case.cell == "gru":
        return _gru_by_name(weights)
    w_x, w_h, b = map(merge_gate_axis, weights)
    one = jnp.ones(4 * case.units)
    return {
        "i": {"kernel": w_x},
        "h": {"kernel": w_h},
        "norm_i": {"scale": one},
        "norm_h": {"scale": one, "bias": b},
        "norm_c": {"scale": one[: case.units], "bias": 0 * one[: case.units]},
    }


def _run(
    case: Case, params: Any, xs: Array, lengths: Array | None, reverse: bool
) -> Any:
    rnn = nn.RNN(_cell(case), reverse=reverse, keep_order=True)
    return rnn.apply({"params": {"cell": params}}, xs, seq_lengths=lengths)


def _step(case: Case, params: Any, state: Any, x: Array) -> Any:
    """Run one step by `LSTMCell`, which has the same parameters.

    `OptimizedLSTMCell` concatenates its kernels, which takes longer than the step.
    """
    return nn.LSTMCell(case.units).apply({"params": params}, state, x)


def _start(case: Case) -> Any:
    zeros = jnp.zeros((case.batch, case.units))
    return zeros, jnp.copy(zeros)


LAYERS = jitted.Layers(_load, _run, _start, _step, time_axis=1)
CONTENDERS = (jitted.contender("flax linen", "flax", supports, LAYERS),)
