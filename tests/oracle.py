"""An LSTM in float64 NumPy: one row, one step at a time, with its reverse pass.

It shares no code with the library, and has no batches, mask arithmetic or loop
primitives: a row is a Python loop, and an inactive step is a `continue`. The results of
the library must equal these.

    z = W_x x_t + W_h h_{t-1} + b         i, f, o = σ(z_i), σ(z_f), σ(z_o)
    g = tanh(z_g)      c_t = f ⊙ c_{t-1} + i ⊙ g      h_t = o ⊙ tanh(c_t)

Names: T time, *b any batch axes, D input features, H hidden units. Weights are
[D, 4, H], [H, 4, H] and [4, H]; the gate axis has the order i, f, g, o.
"""

from typing import NamedTuple

import numpy as np


class Weights(NamedTuple):
    """w_x [D, 4, H], w_h [H, 4, H], b [4, H]; also the gradients of each."""

    w_x: np.ndarray
    w_h: np.ndarray
    b: np.ndarray


class Which(NamedTuple):
    """Executed steps, their order, and resets, to zeros or to (h, c) [T, *b, H]."""

    lengths: np.ndarray | None = None
    mask: np.ndarray | None = None
    resets: np.ndarray | None = None
    reverse: bool = False
    reset_state: tuple[np.ndarray, np.ndarray] | None = None


EVERY_STEP = Which()


class StepValues(NamedTuple):
    """Values of one step of one row, stored for the reverse pass."""

    t: int
    reset: bool
    x: np.ndarray
    h_before: np.ndarray
    c_before: np.ndarray
    i: np.ndarray
    f: np.ndarray
    g: np.ndarray
    o: np.ndarray
    c: np.ndarray
    h: np.ndarray


class Run(NamedTuple):
    """Results of a batch: hs, cs [T, *b, H], gates [4, T, *b, H], h_T, c_T."""

    hs: np.ndarray
    cs: np.ndarray
    gates: np.ndarray
    h: np.ndarray
    c: np.ndarray


class Gradients(NamedTuple):
    """The cotangents of weights, inputs, initial state and states after resets."""

    weights: Weights
    xs: np.ndarray
    h: np.ndarray
    c: np.ndarray
    reset_state: tuple[np.ndarray, np.ndarray] | None = None


def sigmoid(z):
    """Return 1 / (1 + exp(-z)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -z))


def is_active(which: Which, t: int, row: tuple) -> bool:
    """Return whether step t of a row is executed."""
    if which.lengths is not None and t >= which.lengths[row]:
        return False
    return which.mask is None or bool(which.mask[(t, *row)])


def run_row(weights: Weights, xs, h, c, which: Which, row: tuple) -> list[StepValues]:
    """Return the executed steps of one row, in order."""
    history = []
    order = range(len(xs))
    for t in reversed(order) if which.reverse else order:
        if not is_active(which, t, row):
            continue
        reset = which.resets is not None and bool(which.resets[(t, *row)])
        if reset:
            h, c = np.zeros_like(h), np.zeros_like(c)
            if which.reset_state is not None:
                h, c = (states[(t, *row)] for states in which.reset_state)
        values = step(weights, t, reset, xs[(t, *row)], h, c)
        history.append(values)
        h, c = values.h, values.c
    return history


def step(weights: Weights, t: int, reset: bool, x, h, c) -> StepValues:
    """Compute the equations of the module for one step."""
    z = [x @ weights.w_x[:, k] + h @ weights.w_h[:, k] + weights.b[k] for k in range(4)]
    i, f, g, o = sigmoid(z[0]), sigmoid(z[1]), np.tanh(z[2]), sigmoid(z[3])
    c_new = f * c + i * g
    return StepValues(t, reset, x, h, c, i, f, g, o, c_new, o * np.tanh(c_new))


def forward(weights: Weights, xs, h, c, which: Which = EVERY_STEP) -> Run:
    """Run a batch row by row; inactive steps have zero outputs."""
    hs = np.zeros((*xs.shape[:-1], h.shape[-1]))
    cs, gates = np.zeros_like(hs), np.zeros((4, *hs.shape))
    h_last, c_last = h.copy(), c.copy()
    for row in np.ndindex(h.shape[:-1]):
        for values in run_row(weights, xs, h[row], c[row], which, row):
            at = (values.t, *row)
            hs[at], cs[at] = values.h, values.c
            gates[(slice(None), *at)] = values.i, values.f, values.g, values.o
            h_last[row], c_last[row] = values.h, values.c
    return Run(hs, cs, gates, h_last, c_last)


def backward(weights: Weights, xs, h, c, which, d_hs, d_h, d_c) -> Gradients:
    """Pull cotangents of hs [T, *b, H], h_T and c_T [*b, H] back to all inputs.

    With δ the cotangents, walking each row's steps from the last to the first:

        δo = δh ⊙ tanh(c)         δc += δh ⊙ o ⊙ (1 - tanh²(c))
        δi = δc ⊙ g      δg = δc ⊙ i      δf = δc ⊙ c_{t-1}
        δz = (δi i(1-i), δf f(1-f), δg (1-g²), δo o(1-o))
        δh_{t-1} = Σ_k W_h[k] δz_k         δc_{t-1} = δc ⊙ f

    A reset cuts the last line: what came before had no part in what follows. There the
    cotangents are those of the state that the reset goes to.
    """
    d_weights = Weights(*(np.zeros_like(w) for w in weights))
    d_xs, d_h, d_c = np.zeros(xs.shape), d_h.copy(), d_c.copy()
    d_resets = np.zeros((2, *xs.shape[:-1], h.shape[-1]))
    for row in np.ndindex(h.shape[:-1]):
        for values in reversed(run_row(weights, xs, h[row], c[row], which, row)):
            at = (values.t, *row)
            d_z, d_c[row] = step_backward(values, d_h[row] + d_hs[at], d_c[row])
            for k in range(4):
                d_weights.w_x[:, k] += np.outer(values.x, d_z[k])
                d_weights.w_h[:, k] += np.outer(values.h_before, d_z[k])
                d_weights.b[k] += d_z[k]
            d_xs[at] = sum(weights.w_x[:, k] @ d_z[k] for k in range(4))
            d_h[row] = sum(weights.w_h[:, k] @ d_z[k] for k in range(4))
            if values.reset:
                d_resets[0][at], d_resets[1][at] = d_h[row], d_c[row]
                d_h[row], d_c[row] = 0.0, 0.0
    given = None if which.reset_state is None else tuple(d_resets)
    return Gradients(d_weights, d_xs, d_h, d_c, given)


def step_backward(values: StepValues, d_h, d_c):
    """Return δz of the four gates, and δc of the previous step."""
    tanh_c = np.tanh(values.c)
    d_c = d_c + d_h * values.o * (1.0 - tanh_c**2)
    d_z = (
        d_c * values.g * values.i * (1.0 - values.i),
        d_c * values.c_before * values.f * (1.0 - values.f),
        d_c * values.i * (1.0 - values.g**2),
        d_h * tanh_c * values.o * (1.0 - values.o),
    )
    return d_z, d_c * values.f
